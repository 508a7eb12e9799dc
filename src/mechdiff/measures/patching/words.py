"""The page's sentences say where the difference passes, which output carries it and what it depends on."""

from typing import Any

import polars as pl

from mechdiff import terms
from mechdiff.architectures.sites import Site
from mechdiff.measures.grafting.words import BIASED
from mechdiff.measures.patching import answers, constant, findings, pairs
from mechdiff.measures.patching.answers import crossing
from mechdiff.measures.patching.constant import Constant
from mechdiff.measures.similarity.findings import least_similar
from mechdiff.report import difference, spoken
from mechdiff.report.difference import BREAKAGE, RECOVERY
from mechdiff.report.headlines import Candidate, Number, told
from mechdiff.report.overview.scales import DEPTH, NEARLY_ALL, ONE_PLACE
from mechdiff.report.overview.strips import Strip
from mechdiff.report.parts import Run
from mechdiff.report.phrasing import level, listed, share, with_interval
from mechdiff.rows import where
from mechdiff.statistics import spread

OUTPUTS = {"attn_out": "attention output", "mlp_out": "MLP output", "attn_proj": "attention output", "z": "attention heads"}
ROWS = {"resid_post": "stream", "attn_out": "attention", "mlp_out": "MLP"}
GROUPS = {
    RECOVERY: ("Patched: tuned into base", "part of the change recovered"),
    BREAKAGE: ("Patched: base into tuned", "KL increase, part of the change"),
}
GUESSES = {
    "shift": "the base's activation plus the mean difference recovers",
    "mean": "the mean tuned activation",
    "resample": "another prompt's tuned activation",
}

BETTER = "the better of two on these prompts, so optimistically biased"


def lead(run: Run) -> list[str]:
    """Where the difference passes, over answers and at their first token; which output carries it, and whether one constant vector does."""
    first = [*where_it_passes(run.rows), *which_output(run.rows, run.summary), *what_it_depends_on(run.rows, run.summary)]
    return [*answers.lead(run), *first, *pairs.lead(run)]


def clause(run: Run) -> list[Candidate]:
    """From where on half of the way in logits is passed, the strongest single output, and how much of that is one constant vector."""
    rows, summary, n = run.rows, run.summary, difference.d_per_prompt(run.rows).height
    over = answers.clause(run)
    said = [*over, *(Candidate(text=text, n=n) for text in (_passes(rows, again=bool(over)), _strongest(rows, summary)) if text)]
    vector = constant.constant(rows, summary)
    if vector is not None:
        said.append(Candidate(text=in_short(vector), n=vector.n, tested=vector.recovers))
    if many := over_how_many(rows):
        said.append(Candidate(text=many, n=n))
    return said


def _passes(rows: pl.DataFrame, *, again: bool = False) -> str:
    """ "patches of the residual stream go more than half of the way in logits from L2.resid_post on (base into tuned)"; empty where none does.

    `again`: behind the same of whole answers, so that it says "at the first token".
    """
    passed = answers.in_brief(rows)
    opening = "at the first token" if again else f"patches of the residual stream {answers.how_far(answers.half_ways(rows))}"
    return f"{opening} {passed}" if passed else ""


def _strongest(rows: pl.DataFrame, summary: pl.DataFrame) -> str:
    """ "strongest output: L2.mlp_out (selected on other prompts), KL increase 0.4 of D, recovery 0.3"; empty where nothing was patched."""
    ranked, ranking = findings.ranked_outputs(rows, summary)
    if ranked.is_empty():
        return ""
    first = ranked.row(0, named=True)
    chosen = "selected on other prompts" if ranking != difference.reported(rows, "patching") else BIASED
    moved = on_the_way(rows, first["name"])
    return f"strongest output: {first['name']} ({chosen}), {', '.join(moved) or both_shares(first)}"


def on_the_way(rows: pl.DataFrame, name: str) -> list[str]:
    """ "0.31 (95 %: ...) of the way in logits", "0.29 (...) back": how far the base is moved, and the tuned model; shares that add."""
    said = []
    for direction, text in ((RECOVERY, "{} of the way in logits"), (BREAKAGE, "{} back")):
        for row in findings.way(rows, direction).filter(pl.col("name") == name).iter_rows(named=True):
            said.append(text.format(with_interval(row["additive"], row["additive_low"], row["additive_high"], digits=2)))
    return said


def over_how_many(rows: pl.DataFrame) -> str:
    """ "by shares that add ... over 13.7 (90 % interval: ...) effective outputs of 60"; empty where nothing may be said."""
    found = findings.spread_of_outputs(rows)
    if found is None or found.silent:
        return ""
    number = f"{found.number.value:.1f} [{level(spread.COVERAGE)}: {found.number.low:.1f}, {found.number.high:.1f}]"
    return f"by shares that add, the way to the tuned model's logits is spread over {number} effective outputs of {found.of}"


def is_it_where_similarity_is_lowest(rows: pl.DataFrame, summary: pl.DataFrame) -> list[str]:
    """Whether the strongest output is the site of the lowest CKA."""
    lowest, (ranked, _) = least_similar(rows, summary), findings.ranked_outputs(rows, summary)
    if lowest is None or ranked.is_empty():
        return []
    top = ranked["name"][0]
    return [f"The strongest output, {top}, is {'also' if top == lowest.name else 'not'} where CKA is lowest."]


def where_it_passes(rows: pl.DataFrame) -> list[str]:
    """Where along the residual stream half of the way in logits has been gone, by direction, and half of D beside it, which bends."""
    if answers.in_logits(answers.half_ways(rows)):
        bent = answers.in_brief(rows, of_kl=True)
        beside = f" (half of D, which bends, is passed {bent})" if bent else ""
        return [f"Patches of the residual stream go more than half of the way in logits {answers.in_brief(rows)}{beside}."]
    broken, recovered = findings.half_way(rows, BREAKAGE), findings.half_way(rows, RECOVERY)
    if broken and recovered and broken.site == recovered.site:
        return [f"Along the residual stream more than half of D is carried over {crossing(broken)}, in both directions."]
    said = []
    if broken:
        said.append(f"Patching the base's residual stream into the tuned model brings it more than half of D away {crossing(broken)}.")
    if recovered:
        said.append(f"Patching the tuned residual stream into the base recovers more than half of D {crossing(recovered)}.")
    return said


def which_output(rows: pl.DataFrame, summary: pl.DataFrame) -> list[str]:
    """The strongest single output, and the next, with their shares."""
    ranked, ranking = findings.ranked_outputs(rows, summary)
    if ranked.is_empty():
        return []
    first = ranked.row(0, named=True)
    reported = difference.reported(rows, "patching")
    steady = findings.steadiness(rows, ranking)
    chosen = f"(chosen on the {terms.of_split(ranking)} prompts{steady})" if ranking != reported else f"({BIASED}{steady})"
    of_what = "single sites" if ranked["site"].is_in(difference.STREAM).any() else "outputs of attention and MLPs"
    moved = ", ".join(on_the_way(rows, first["name"]))
    sentence = f"Of the {of_what} the strongest is {first['name']} {chosen}: {moved + '; ' if moved else ''}{both_shares(first)}"
    if len(ranked) > 1:
        second = ranked.row(1, named=True)
        sentence += f". Next is {second['name']}, {both_shares(second, interval=False)}"
    many = over_how_many(rows)
    return [sentence + ".", *([f"{many[0].upper()}{many[1:]}."] if many else [])]


def what_it_depends_on(rows: pl.DataFrame, summary: pl.DataFrame) -> list[str]:
    """At the strongest output: how much of what the patch recovers is one constant vector, and whether the rest is shown to depend on the prompt."""
    found = constant.constant(rows, summary)
    if found is None:
        return []
    _, shares = findings.recovery_by_arm(rows, summary)
    if found.in_logits:
        said = listed(
            f"{words.replace('recovers', 'goes')} {share(found.arms[arm], 3)}" for arm, words in GUESSES.items() if arm in found.arms
        )
        of_d = listed(f"{arm} {share(shares[arm], 3)}" for arm in ("identity", *GUESSES) if arm in shares)
        sentence = f"At {found.name}, in place of this prompt's own tuned activation ({share(found.own, 3)} of the way in logits), {said}"
        return [f"{sentence} (recovered of D: {of_d}): {one_constant(found)}."]
    said = listed(f"{words} {share(shares[arm], 3)}" for arm, words in GUESSES.items() if arm in shares)
    sentence = f"At {found.name}, in place of this prompt's own tuned activation (recovery {share(found.own, 3)}), {said}"
    return [f"{sentence}: {one_constant(found)}."]


def one_constant(found: Constant) -> str:
    """The fraction that is one vector, and what the paired test says of the rest."""
    does = "does" if found.in_logits else "recovers"
    if not found.recovers:
        return f"what the patch {does} there does not differ significantly from 0, so that no fraction of it is given"
    vector = "one vector, the mean difference" if found.arm == "shift" else "one vector, the mean tuned activation"
    vector += f" ({BETTER})" if found.chosen else ""
    if found.fraction <= 0:
        fraction = f"{vector}, {does} nothing of what the patch does there"
    else:
        fraction = f"{with_interval(found.fraction, found.low, found.high, digits=2)} of what the patch {does} there is {vector}"
    if found.exceeds:
        return f"{fraction}: more than the patch itself does (paired {spoken.in_words(found.p)})"
    if found.depends:
        return f"{fraction}, and the rest depends on the prompt (paired {spoken.in_words(found.p)})"
    rest = "it" if found.fraction >= 1 else "the rest"
    return f"{fraction}; that {rest} depends on the prompt could not be shown ({spoken.in_words(found.p)})"


def in_short(found: Constant) -> str:
    """The same for the verdict: "one constant vector has 0.77 (95 %: 0.20 to 1.01) of what is recovered there; that the rest depends ..."."""
    what = "the patch does" if found.in_logits else "is recovered"
    chosen = f" ({BETTER})" if found.chosen else ""
    fraction = (
        f"one constant vector{chosen} has {with_interval(max(found.fraction, 0.0), found.low, found.high, digits=2)} of what {what} there"
    )
    p = f"({spoken.in_words(found.p)})"
    if found.exceeds:
        return f"{fraction}, more than the patch itself {p}"
    if found.depends:
        return f"{fraction}, the rest depends on the prompt {p}"
    rest = "any of it" if found.fraction >= 1 else "the rest"
    return f"{fraction}; that {rest} depends on the prompt could not be shown {p}"


def both_shares(row: dict, *, interval: bool = True) -> str:
    """ "KL increase 0.98 (95 %: ...) of D, recovery 0.95 (...)", of what there is: base into tuned, and tuned into base."""
    said: list[str] = []
    for word, name in (("breakage", "KL increase"), ("recovery", "recovery")):
        if row[word] is not None:
            ends = (row[f"{word}_low"], row[f"{word}_high"]) if interval else (None, None)
            said.append(f"{name} {with_interval(row[word], *ends, digits=2 if interval else 3)}{'' if said else ' of D'}")
    return ", ".join(said)


# ---- the first answers -----------------------------------------------------------------------------------------------------------------


def place_in_brief(run: Run) -> list[Candidate]:
    """The one output that carries the change, where one does; else from which layers on the residual stream does."""
    return [*_one_place(run), *_depth(run)]


def _one_place(run: Run) -> list[Candidate]:
    ranked, ranking = findings.ranked_outputs(run.rows, run.summary)
    if ranked.is_empty():
        return []
    top = ranked.row(0, named=True)
    word, value = ONE_PLACE.last, top["recovery"]
    if value is None or top["site"] in difference.STREAM or ONE_PLACE.word(value) != word:
        return []
    part = Number(shown=share(value), value=value, of=f"part of the change (KL) that a patch of {top['name']} alone recovers in the base",
                  n=len(_prompts(run)), low=top["recovery_low"], high=top["recovery_high"])  # fmt: skip
    own = "" if ranking != difference.reported(run.rows, "patching") else "The place was chosen on the prompts that it is reported on."
    return [
        told(f"{word}: patching layer {top['layer']}'s {OUTPUTS[top['site']]} alone recovers ", part, " of the change.",
             n=len(_prompts(run)), tested=top["recovery_low"] is not None and top["recovery_low"] > 0, caveat=own)
    ]  # fmt: skip


def _depth(run: Run) -> list[Candidate]:
    """Half of the change, and nearly all of it, along the residual stream where the base runs; the last block's output carries all of any change."""
    half, most = (findings.half_way(run.rows, RECOVERY, of_kl=True, threshold=part) for part in (0.5, NEARLY_ALL))
    if half is None:
        return []
    layers = _layers(run)
    at, last = Site.parse(half.site).layer, f"L{layers - 1}.resid_post"
    word = DEPTH.word(at / max(1, layers - 1))
    opening = f"{word}. Copying the tuned model's activations into the base recovers half of the change at layer "
    behind: tuple[str | Number, ...] = ()
    if most is not None and most.site != last and Site.parse(most.site).layer > at:
        behind = (", nearly all at ", _crossed_at(most, run, f"nearly all of the change ({NEARLY_ALL:g})"))
    known: dict[str, Any] = {"n": len(_prompts(run)), "by_construction": half.site == last}
    here = _crossed_at(half, run, "half of the change")
    brief = told(f"{word}: half of the change is there from layer ", here, " on.", **known)
    return [told(opening, here, *behind, ".", shorter=brief, **known)]


def _layers(run: Run) -> int:
    """Layers of the base."""
    known = (run.manifest.get("pair") or {}).get("base", {}).get("n_layers")
    return int(known or max(run.rows["layer"].drop_nulls().to_list(), default=0) + 1)


def _crossed_at(found: findings.Crossing, run: Run, what: str) -> Number:
    ends = [None if one == "nowhere" else float(Site.parse(one).layer) for one in (found.earliest, found.latest)]
    at = Site.parse(found.site).layer
    between = f"; {found.after} is the last one before it that was patched" if found.after else ""
    of = f"first layer whose patched residual stream recovers {what}, by KL ({found.site}{between})"
    return Number(shown=str(at), value=at, of=of, unit="layer", n=len(_prompts(run)), low=ends[0], high=ends[1])


def _prompts(run: Run) -> list[str]:
    split = difference.reported(run.rows, "patching")
    found = where(run.rows, measure="patching").filter(
        pl.col("split").eq_missing(split), pl.col("unit").is_null(), pl.col("layer").is_not_null()
    )
    return found["prompt"].drop_nulls().unique().to_list()


def strips(run: Run) -> list[Strip]:
    """What is recovered, and what is broken, by a patch of each layer's residual stream, attention output and MLP output.

    Without the last block's residual stream, which carries all of any change.
    """
    found = findings.site_shares(run.rows, run.summary)
    found = found.filter(pl.col("share").is_not_null())
    n, made = len(_prompts(run)), []
    for number, (direction, (group, what)) in enumerate(GROUPS.items()):
        for place, (site, name) in enumerate(ROWS.items()):
            here = found.filter(pl.col("direction") == direction, pl.col("site") == site)
            here = here if site not in difference.STREAM else here.filter(pl.col("layer") != _layers(run) - 1)
            columns = {column: dict(here.select("layer", column).iter_rows()) for column in ("share", "low", "high")}
            made.append(
                Strip(group=group, number=what, name=name, values=columns["share"], low=columns["low"], high=columns["high"], n=n,
                      place=3 + number + place / 10)
            )  # fmt: skip
    return [strip for strip in made if strip.values]
