"""The page's sentences say what the tuned model was taught, each with the numbers of the lines that carry it; or that nothing can be named."""

from collections.abc import Mapping
from typing import Any

from mechdiff.measures.words import findings
from mechdiff.measures.words.judge import BEYOND, CAUSAL, REPLICATES, UNHELD
from mechdiff.report.headlines import Candidate, Number, quoting, told
from mechdiff.report.overview.strips import Strip
from mechdiff.report.parts import Answers, Run
from mechdiff.report.phrasing import listed, nats, visible

SILENT = "Nothing that these readers can name"
REFUSED = {
    REPLICATES: "not replicated on the half that tests",
    BEYOND: "no larger than null pairs show",
    CAUSAL: "doing no more than a random vector where patched into the base",
    UNHELD: "of amplified texts, which no random edit was made to be compared with",
}
"""Why so many lines are not named."""
MOST = 4
"""Lines that a sentence lists."""
LETTERS = 60
"""Letters of a phrase that are quoted in the first answers."""
WHERE = {
    "openings": "neutral openings of texts",
    "questions": "everyday questions",
    "prompts": "the test prompts",
    "passages": "neutral passages",
    "neutral": "everyday questions",
}


def lead(run: Run) -> list[str]:
    """What is named, at the head of the section."""
    return sentences(run.manifest)


def sentences(manifest: Mapping[str, Any]) -> list[str]:
    """What is named, reader by reader; else that nothing is. Empty where it was not measured."""
    told = findings.record(manifest)
    if told is None:
        return []
    said = [*_continuations(manifest), *_tokens(manifest), *_lens(manifest)]
    if not said:
        return [f"{SILENT}: of {len(told['lines'])} lines of evidence {_why(manifest)}."]
    if {line["where"].partition(", ")[0] for line in findings.named(manifest)} == {"prompts"}:
        said.append("On texts that have nothing to do with the test prompts, nothing is named.")
    return said


def _why(manifest: Mapping[str, Any]) -> str:
    refused = findings.refused(manifest)
    if not refused:
        return "there is none, for both models do the same"
    return listed(f"{n} {'is' if n == 1 else 'are'} {REFUSED[why]}" for why, n in refused.most_common())


def place(where: str) -> str:
    """ "everyday questions", "neutral passages, position 1", "neutral openings of texts, difference amplified by 3"."""
    named, comma, at = where.partition(", ")
    return WHERE[named] + comma + at.replace("amplified ", "difference amplified by ")


def _continuations(manifest: Mapping[str, Any]) -> list[str]:
    said = []
    for gained in (True, False):
        lines = findings.named(manifest, gained=gained, reader="continuations")
        for where in dict.fromkeys(line["where"] for line in lines):
            here = findings.once([line for line in lines if line["where"] == where])[:MOST]
            told = listed(f"{visible(line['text'])} ({counted(line)})" for line in here)
            said.append(f"{_of_texts(where, told, findings.strength_of(here[0]), gained=gained)} {findings.cited(manifest, here)}.")
    return said


def _of_texts(where: str, told: str, strength: str, *, gained: bool) -> str:
    """What one of the two texts has and the other does not. An amplified text is not what the tuned model says, nor a cut one what the base says."""
    if not strength:
        return f"On {place(where)} " + (
            f"the tuned model's text {told}" if gained else f"the base's text {told}; the tuned model's does so no longer"
        )
    on, louder = WHERE[where.partition(", ")[0]], f"where the tuned model's difference from the base is amplified by {strength},"
    if gained:
        return f"On {on}, {louder} the text {told}"
    return f"On {on} the base's text, drawn from its likelier tokens alone, {told}; {louder} the text does so no longer"


def counted(line: Mapping[str, Any]) -> str:
    """ "9 of 10 more, q = 0.01": seeds of the half that tests on which only one model's text has it, less those on which only the other's has."""
    values = line["values"]
    more, fewer = sum(v > 0 for v in values), sum(v < 0 for v in values)
    ours, theirs = (more, fewer) if line["gained"] else (fewer, more)
    other = f", the other way on {theirs}" if theirs else ""
    return f"alone on {ours} of {len(values)} held-out seeds{other}, q = {nats(line['q'])}"


def token(line: Mapping[str, Any]) -> str:
    return f"“{visible(line['text'])}”"


def _tokens(manifest: Mapping[str, Any]) -> list[str]:
    said = []
    for gained, way in ((True, "raises"), (False, "lowers")):
        lines = findings.named(manifest, gained=gained, reader="tokens")
        for where in dict.fromkeys(line["where"] for line in lines):
            here = findings.once([line for line in lines if line["where"] == where])[: 2 * MOST]
            q = max(line["q"] for line in here)
            sizes = dict.fromkeys(nats(size) for size in (min(line["size"] for line in here), max(line["size"] for line in here)))
            size = " to ".join(sizes)
            said.append(
                f"On {place(where)} it {way} the probability of {listed(map(token, here))} ({size} robust standard deviations among "
                f"{(findings.record(manifest) or {})['ranked']} ranked tokens, q at most {nats(q)}) {findings.cited(manifest, here)}."
            )
    return said


def _lens(manifest: Mapping[str, Any]) -> list[str]:
    lines = findings.named(manifest, reader="lens", gained=True)
    if not lines:
        return []
    best = lines[0]
    here = findings.once([line for line in lines if (line["layer"], line["where"]) == (best["layer"], best["where"])])[:MOST]
    read = f"The change of its activations at layer {best['layer']} on {place(best['where'])} reads {listed(map(token, here))}"
    cited = findings.cited(manifest, here)
    if best["replay_nats"] is None:
        return [f"{read} {cited}."]
    return [f"{read}, and patched into the base it moves log p of {token(best)} by {nats(best['replay_nats'])} nats {cited}."]


# ---- the first answers -----------------------------------------------------------------------------------------------------------------


def taught(run: Run) -> list[Candidate]:
    """The lines of evidence of texts, the largest first; where there is none, the token that rose most. Nothing where nothing is named."""
    lines = [one for one in findings.named(run.manifest, gained=True, reader="continuations") if not findings.strength_of(one)]
    return [_text_in_brief(line, findings.cited(run.manifest, [line])) for line in lines] or _likelier(run)


def _text_in_brief(line: findings.Line, cited: str) -> Candidate:
    values = line["values"]
    more = sum(value > 0 for value in values)
    alone = Number(
        shown=f"{more} of {len(values)}",
        value=more / len(values),
        of=f"held-out texts of which the tuned model's alone does, {cited}",
        n=len(values),
    )

    def says(text: str) -> Candidate:
        return told(f"On {place(line['where'])} the tuned text {text} where the base's does not: ", alone, ".", n=len(values), needed=1)

    return quoting(visible(line["text"]), LETTERS, says, closing="”")


def _likelier(run: Run) -> list[Candidate]:
    lines = findings.named(run.manifest, gained=True, reader="tokens")
    if not lines:
        return []
    one = lines[0]
    rise = sum(one["values"]) / len(one["values"])
    by = Number(shown=f"{rise:.2g}", value=rise, of=f"rise of its log-probability, {findings.cited(run.manifest, [one])}", unit="nats",
                n=len(one["values"]))  # fmt: skip
    return [
        told(
            f"On {place(one['where'])} the token “{visible(one['text'])}” became likelier, by ",
            by,
            " nats.",
            n=len(one["values"]),
            needed=1,
        )
    ]


def names_something(run: Run) -> bool:
    """Whether any line of evidence is named."""
    return bool(findings.named(run.manifest))


def answers(run: Run) -> list[Answers]:
    """Both models' texts behind the same seeds, those that stand apart most first."""
    return [Answers(prompt=one["seed"], asked=one["text"], base=one["base"], tuned=one["tuned"]) for one in findings.ranked(run.manifest)]


def strips(run: Run) -> list[Strip]:
    """On how many of the study's prompts a layer reads the token that comes out, in either model; at the last layer it always does."""
    depth = (findings.record(run.manifest) or {}).get("depth", [])
    own = next((one for one in depth if one["where"] == "prompts"), None)
    if own is None:
        return []
    n = len(own["prompts"])
    return [
        Strip(group="Logit lens", number="part of prompts whose final token it reads", name=side,
              values=dict(enumerate(own[side]["top1_share"][:-1])), n=n, place=6 + number / 10)
        for number, side in enumerate(("base", "tuned"))
    ]  # fmt: skip
