"""The page's sentences say how differently the two models predict and, where no share of D can be given, why not."""

import polars as pl

from mechdiff import terms
from mechdiff.measures.divergence import findings
from mechdiff.report import difference
from mechdiff.report.difference import Difference
from mechdiff.report.headlines import Candidate
from mechdiff.report.parts import Run
from mechdiff.report.phrasing import listed, nats, prompts, share, with_interval
from mechdiff.rows import where
from mechdiff.shares import ANSWER
from mechdiff.statistics import floors
from mechdiff.statistics.clusters import n_prompts
from mechdiff.statistics.intervals import FEW, FEWEST

NO_SHARE = {"no_effect", "outside_only"}
"""Flags of a D that there is no share of."""


def lead(run: Run) -> list[str]:
    """D in words, or why there is none."""
    found = difference.difference(run.rows, run.summary)
    behind = any(map(answers_differ, run.by_answers))
    return [how_different(found, run.manifest, behind=behind), *(said for one in run.by_answers for said in over_answers(one))]


def clause(run: Run) -> list[Candidate]:
    """The same for the verdict."""
    found = difference.difference(run.rows, run.summary)
    text = how_different(found, run.manifest, behind=any(map(answers_differ, run.by_answers)))
    said = [Candidate(text=text, n=None if found is None else found.n, needed=1)]
    behind = found is not None and not found.counts  # else it stands beside what carries it over answers
    return [*said, *(Candidate(text=text, needed=1) for one in run.by_answers for text in over_answers(one, brief=True) if behind)]


def differ(run: Run) -> bool:
    """Whether the two models' predictions differ at the next token, or along whole answers."""
    found = difference.difference(run.rows, run.summary)
    return (found is not None and found.counts) or any(map(answers_differ, run.by_answers))


def answers_differ(run: Run) -> bool:
    """Whether D over whole answers was measured, and is above three times the noise floor."""
    d = where(run.summary, measure="divergence", metric=floors.d_metric(run.rows, ANSWER), control=None, unit=None)
    return len(d) > 0 and not NO_SHARE & set((d["flag"][0] or "").split(";"))


def over_answers(run: Run, *, brief: bool = False) -> list[str]:
    """How far apart the two models are along whole answers; nothing where these were not read."""
    plain = where(run.summary, measure="divergence", control=None, unit=None)
    by_metric = {row["metric"]: row for row in plain.iter_rows(named=True)}
    d, same = (by_metric.get(name) for name in (floors.d_metric(run.rows, ANSWER), "top1_same_answer"))
    if d is None or same is None:
        return []
    quiet = "" if answers_differ(run) else ", which is not above three times the numerical noise"
    size = with_interval(d["mean"], d["ci_low"], d["ci_high"], coverage=d["coverage"])
    tokens = "" if brief else f", and the top-1 tokens are the same at {share(same['mean'])} of positions"
    return [f"Along {whose(run)} ({answered_by(run, d['n'])}) D is {size} nats per token{quiet}{tokens}."]


def whose(run: Run) -> str:
    """ "the answers", or of which model they are: where it is the base, or where both models' answers are read."""
    if run.manifest.get("config", {}).get("answers", {}).get("of") == "base":
        return "the base's answers"
    return "the tuned model's answers" if run.over_base else "the answers"


def answered_by(run: Run, n: int) -> str:
    """ "8 prompts", or where prompts share clusters "5 clusters": whose answers are read."""
    split = difference.reported(run.rows, "divergence")
    clustered = n_prompts(run.manifest, split, n) != n
    return f"{n} cluster{'s' * (n != 1)}" if clustered else prompts(n)


def how_different(found: Difference | None, manifest: dict | None = None, *, behind: bool = False) -> str:
    """D with its interval; of two vocabularies also what lies on tokens that one model lacks. Where there is nothing, or nothing to share, that.

    With the manifest, prompts that share a cluster are counted as prompts and as clusters. `behind`: the two models differ along whole answers.
    """
    if found is None:
        return "How differently the two models behave was not measured, so no effect can be given as a share of it."
    on, clustered = counted(found, manifest or {})
    if not found.counts:
        floor = f" is not above three times the numerical noise of {nats(found.floor)} nats" if found.mean else ""
        opening = "At the next token there is no effect to explain" if behind else "There is no effect to explain"
        return f"{opening}: D = {nats(found.mean)} nats{floor}, on {on}. No share{' of it' * behind} is given below."
    choice = "" if found.other_token is None else f"; their top-1 tokens differ on {found.other_token} of them"
    if clustered and found.other_share is not None:
        choice = f"; their top-1 tokens differ on {share(found.other_share)} of them"
    if not found.divides:
        floor = f", not above three times the numerical noise of {nats(found.floor)} nats" if found.mean else ""
        return (
            f"On {on} the two models differ in tokens that only one of them has: {_outside(found)} "
            f"(JS {nats(found.js)} nats{_bytes(found)}){choice}. On the tokens that both have D = KL(tuned ‖ base) = {nats(found.mean)} nats{floor}: "
            "there is nothing there to take a share of, so no share of D is given below."
        )
    few, units = found.n < FEWEST, "clusters" if clustered else "prompts"
    size = with_interval(found.mean, found.low, found.high, coverage=found.coverage, n=found.n)
    short = f"too few {units} for an interval; " if few else f"fewer than {FEW} {units}; " if "few_prompts" in found.flags else ""
    shared, outside = "", ""
    if found.mass_outside is not None:
        shared, outside = " on the tokens that both have", f"; {_outside(found)}{_bytes(found)}"
    said = (
        f"On {on} the two models' next-token distributions differ by D = {size} nats{shared} "
        f"({short}D is the KL divergence KL(tuned ‖ base) between them){outside}{choice}."
    )
    if found.outside > found.mean:
        more = f"(−log(1 − mass) = {nats(found.outside)} nats)"
        said += f" More of the difference lies outside these tokens {more}: shares of D are of the smaller part."
    return said


def counted(found: Difference, manifest: dict) -> tuple[str, bool]:
    """ "24 report prompts (16 clusters)", and whether prompts share clusters; "16 report prompts" where none do."""
    n = n_prompts(manifest, found.split, found.n)
    kind = terms.of_split(found.split) if found.counts else ""
    if n == found.n:
        return prompts(n, kind), False
    return f"{prompts(n, kind)} ({found.n} cluster{'s' * (found.n != 1)})", True


def why_no_share(found: Difference | None) -> str:
    """Why no share of D is given; empty where shares are."""
    if found is None:
        return "D was not measured"
    if not found.counts:
        return "D is not above three times the numerical noise"
    if not found.divides:
        return "the models differ only in tokens that one of them lacks, and on those that both have D is not above three times the numerical noise"
    return ""


def _outside(found: Difference) -> str:
    """ "the tuned model gives 0.65 of its probability mass to tokens that the base lacks"."""
    sides = (("the tuned model", found.mass_outside, "the base"), ("the base", found.mass_outside_base, "the tuned model"))
    return listed(
        f"{who} gives {share(mass) if mass >= 0.01 else nats(mass)} of its probability mass to tokens that {other} lacks"
        for who, mass, other in sides
        if mass is not None
    )


def _bytes(found: Difference) -> str:
    return "" if found.byte is None else f", KL(tuned ‖ base) of the next byte is {nats(found.byte)} nats"


def how_it_goes_on(rows: pl.DataFrame, manifest: dict) -> list[str]:
    """What the two models say differently behind the first token."""
    behind = findings.on_continuation(rows, manifest)
    if behind is None:
        return []
    bits = findings.bits_per_byte(rows)
    sentence = f"After the first token, along the continuation, they differ by {with_interval(behind.mean, behind.low, behind.high)} nats per token"
    if "more" in bits:
        more = bits["more"]
        if more.low > 0 or more.high < 0:
            said = "more" if more.mean >= 0 else "fewer"
            size = with_interval(abs(more.mean), *sorted((abs(more.low), abs(more.high))), coverage=1.0, n=more.n)
            sentence += f"; the base needs {size} bits per byte {said} for it than the tuned model"
        else:
            size = with_interval(more.mean, more.low, more.high, coverage=1.0, n=more.n)
            beside = f"base less tuned {size}" if more.n >= FEWEST else f"too few prompts, {more.n}"
            sentence += f"; that either model predicts it better, in bits per byte, could not be shown ({beside})"
    return [sentence + "."]
