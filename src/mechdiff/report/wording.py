"""Numbers in words: the sentences of the report, each computed from the tables and true of them."""

import polars as pl

from mechdiff import labels
from mechdiff.report import (
    findings,
    findings_constant,
    findings_grafting,
    findings_texts,
    findings_weights,
    spoken,
)
from mechdiff.report.findings import BREAKAGE, RECOVERY, Crossing, Difference, LeastSimilar
from mechdiff.report.findings_constant import Constant
from mechdiff.report.headlines import Candidate
from mechdiff.report.phrasing import between, listed, nats, prompts, share, with_interval
from mechdiff.report.wording_attribution import what_gradients_say
from mechdiff.report.wording_behaviour import what_they_do
from mechdiff.report.wording_difference import how_different
from mechdiff.report.wording_factorial import early_or_late
from mechdiff.report.wording_heads import which_heads
from mechdiff.report.wording_rank import how_many_dimensions
from mechdiff.report.wording_steering import does_it_obey
from mechdiff.report.wording_transport import carried

GUESSES = {
    "shift": "the base's activation plus the mean difference recovers",
    "mean": "the mean tuned activation",
    "resample": "another prompt's tuned activation",
}
BIASED = "chosen on these prompts, so optimistically biased"
NO_CHANGE = 1e-8
"""Nats under which two float32 networks say the same, however far their weights lie apart."""


def leads(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict) -> dict[str, list[str]]:
    """What stands at the head of each section, by its id: its measure's numbers in words. Shares of D only where there is an effect to share."""
    found = findings.difference(rows, summary)
    said = {
        "behaviour": [how_different(found, manifest)],
        "texts": how_it_goes_on(rows, manifest),
        "answers": what_they_do(rows, manifest),
        "weights": which_weights(summary, manifest, found),
        "similarity": how_similar(rows, summary),
        "trust": how_sure(found, manifest),
    }
    if found is not None and not found.counts:
        return said
    if found is not None and not found.divides:
        return said | {"rank": how_many_dimensions(rows, summary)}
    return said | {
        "grafting": which_module(rows),
        "causal": [*where_it_passes(rows), *which_output(rows, summary), *what_it_depends_on(rows, summary)],
        "factorial": early_or_late(rows, summary),
        "transport": carried(rows, summary),
        "rank": how_many_dimensions(rows, summary),
        "steering": does_it_obey(rows, summary, manifest),
        "heads": which_heads(rows, summary, manifest),
        "attribution": what_gradients_say(rows, summary, manifest),
    }


def how_it_goes_on(rows: pl.DataFrame, manifest: dict) -> list[str]:
    """What the two models say differently behind the first token."""
    behind = findings_texts.on_continuation(rows, manifest)
    if behind is None:
        return []
    bits = findings_texts.bits_per_byte(rows)
    sentence = f"After the first token, along the continuation, they differ by {with_interval(behind.mean, behind.low, behind.high)} nats per token"
    if "more" in bits:
        more = bits["more"]
        if more.low > 0 or more.high < 0:
            said, ends = "more" if more.mean >= 0 else "fewer", between(*sorted((abs(more.low), abs(more.high))))
            sentence += f"; the base needs {nats(abs(more.mean))} (95 %: {ends}) bits per byte {said} for it than the tuned model"
        else:
            ends = between(more.low, more.high)
            beside = f"base less tuned {nats(more.mean)}, 95 %: {ends}" if ends else f"too few prompts, {more.n}"
            sentence += f"; that either model predicts it better, in bits per byte, could not be shown ({beside})"
    return [sentence + "."]


def which_weights(summary: pl.DataFrame, manifest: dict, difference: Difference | None = None) -> list[str]:
    """How many tensors changed, and the most changed one; and whether the function changed with them."""
    found = findings_weights.how_many(summary)
    if found is None:
        return []
    if not found.changed:
        said = findings_weights.unchanged(found, manifest)
        return [f"{said[0].upper()}{said[1:]}."]
    top = findings_weights.tensors(summary).row(0, named=True)
    rank = top.get("numerical_rank")
    of_rank = f", in a change of rank {rank:.0f}" if rank else ""
    name = findings_weights.short_tensor(top["unit"])
    only = "It is" if found.changed == 1 else "Most changed is"
    return [
        f"The fine-tune changed {found.changed} of {found.tensors} tensors, in {found.layers_changed} of {found.layers} layers. "
        f"{only} {name}, by {nats(top['relative_norm'])} of its norm{of_rank}.",
        *([f"{beside[0].upper()}{beside[1:]}."] if (beside := findings_weights.beside_weights(manifest)) else []),
        *(["On these prompts the function did not change with the weights: they are reparametrised, or the change does not reach here."]
          if difference and reparametrised(difference) else []),
    ]  # fmt: skip


def reparametrised(found: Difference) -> bool:
    """Whether the function stayed as it was, however far the weights lie apart."""
    return not found.counts or (found.mean < NO_CHANGE and found.outside < NO_CHANGE)


def which_module(rows: pl.DataFrame) -> list[str]:
    """The module whose tuned weights alone make the base most like the tuned model, and what a small set of them does."""
    alone, ranking = findings_grafting.ranked(rows)
    if alone.is_empty():
        return []
    best = alone.row(0, named=True)
    steady = findings_grafting.steadiness(rows, ranking)
    other = ranking != findings.reported(rows, "grafting")
    chosen = f" (chosen on {chosen_by(rows, ranking, ranking or '')}{steady})" if other else f" ({BIASED}{steady})"
    recovered = with_interval(best["share"], best["low"], best["high"], digits=2)
    sentence = f"Copied into the base alone, the tuned weights of {best['name']}{chosen} recover {recovered} of D"
    several = how_many_modules(rows)
    return [f"{sentence}; {several}." if several else f"{sentence}."]


def how_many_modules(rows: pl.DataFrame) -> str:
    """ "L4.attn + L5.mlp, the smallest set ..., recover 0.93 (95 %: ...)", from the greedy search; empty where it was not run."""
    found = findings_grafting.needed(rows)
    if found is None:
        return ""
    row, wanted = found.row, share(findings_grafting.WANTED, 1)
    on = "these" if found.chosen_on == findings.reported(rows, "grafting") else f"the {found.chosen_on}"
    names = " + ".join(labels.set_of(row["unit"]))
    recovers = with_interval(row["share"], row["low"], row["high"], digits=2)
    if found.enough:
        size = "one module" if row["rank"] == 1 else f"{row['rank']} modules"
        return f"{size}, the smallest greedy set with {wanted} of D on {on} prompts ({names}), recover{'s' * (row['rank'] == 1)} {recovers}"
    tried = "one module" if row["rank"] == 1 else f"{row['rank']} modules"
    why = f"the most that the search was allowed, stay under {wanted}" if found.at_budget else f"all that changed, stay under {wanted}"
    return f"{tried}, {why} on {on} prompts: {names}, {recovers}"


def modules(rows: pl.DataFrame) -> list[Candidate]:
    """What the verdict may say of grafts."""
    alone, ranking = findings_grafting.ranked(rows)
    if alone.is_empty():
        return []
    best, found = alone.row(0, named=True), findings_grafting.needed(rows)
    said = []
    recovered = with_interval(best["share"], best["low"], best["high"], digits=2)
    chosen = f"selected on {chosen_by(rows, ranking)}" if ranking != findings.reported(rows, "grafting") else BIASED
    which = f"{best['name']} ({chosen})" if len(alone) > 1 else f"{best['name']}, the one module that changed,"
    single = "of single modules, " if len(alone) > 1 else ""
    said.append(Candidate(text=f"{single}the tuned weights of {which} recover {recovered} of D when copied into the base", n=best["n"]))
    if found is not None:
        said.append(Candidate(text=how_many_modules(rows), n=found.row["n"], at_budget=found.at_budget))
    return said


def chosen_by(rows: pl.DataFrame, ranking: str | None, kind: str = "other") -> str:
    """ "2 other prompts": those that ranked the modules."""
    return prompts(findings_grafting.scores(rows, ranking).filter(pl.col("arm") == "alone")["prompt"].n_unique(), kind)


def where_it_passes(rows: pl.DataFrame) -> list[str]:
    """Where along the residual stream more than half of D has been carried over, by direction."""
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
    reported = findings.reported(rows, "patching")
    steady = findings.steadiness(rows, ranking)
    chosen = f"(chosen on the {ranking} prompts{steady})" if ranking != reported else f"({BIASED}{steady})"
    of_what = "single sites" if ranked["site"].is_in(findings.STREAM).any() else "outputs of attention and MLPs"
    sentence = f"Of the {of_what} the strongest is {first['name']} {chosen}: {both_shares(first)}"
    if len(ranked) > 1:
        second = ranked.row(1, named=True)
        sentence += f". Next is {second['name']}, {both_shares(second, interval=False)}"
    return [sentence + "."]


def what_it_depends_on(rows: pl.DataFrame, summary: pl.DataFrame) -> list[str]:
    """At the strongest output: how much of what the patch recovers is one constant vector, and whether the rest is shown to depend on the prompt."""
    found = findings_constant.constant(rows, summary)
    if found is None:
        return []
    _, shares = findings.recovery_by_arm(rows, summary)
    said = listed(f"{words} {share(shares[arm], 3)}" for arm, words in GUESSES.items() if arm in shares)
    sentence = f"At {found.name}, in place of this prompt's own tuned activation (recovery {share(found.own, 3)}), {said}"
    return [f"{sentence}: {one_constant(found)}."]


def one_constant(found: Constant) -> str:
    """The fraction that is one vector, and what the paired test says of the rest."""
    if not found.recovers:
        return "what the patch recovers there cannot be told from 0, so that no fraction of it is given"
    vector = "one vector, the mean difference" if found.arm == "shift" else "one vector, the mean tuned activation"
    if found.fraction <= 0:
        fraction = f"{vector}, recovers nothing of what the patch does there"
    else:
        fraction = f"{with_interval(found.fraction, found.low, found.high, digits=2)} of what the patch recovers there is {vector}"
    if found.depends:
        return f"{fraction}, and the rest depends on the prompt (paired {spoken.in_words(found.p)})"
    rest = "it" if found.fraction >= 1 else "the rest"
    return f"{fraction}; that {rest} depends on the prompt could not be shown ({spoken.in_words(found.p)})"


def in_short(found: Constant) -> str:
    """The same for the verdict: "one constant vector has 0.77 (95 %: 0.20 to 1.01) of that recovery; that the rest depends ..."."""
    fraction = f"one constant vector has {with_interval(max(found.fraction, 0.0), found.low, found.high, digits=2)} of that recovery"
    p = f"({spoken.in_words(found.p)})"
    if found.depends:
        return f"{fraction}, the rest depends on the prompt {p}"
    rest = "any of it" if found.fraction >= 1 else "the rest"
    return f"{fraction}; that {rest} depends on the prompt could not be shown {p}"


def how_similar(rows: pl.DataFrame, summary: pl.DataFrame) -> list[str]:
    """The site of the lowest CKA, by other prompts where there are some, and at how many sites CKA is 1 to three digits."""
    found = findings.least_similar(rows, summary)
    if found is None:
        return []
    ranked, _ = findings.ranked_outputs(rows, summary)
    top = None if ranked.is_empty() else ranked["name"][0]
    too = ", the strongest output too" if top == found.name else ""
    sentence = f"By CKA, activations differ most in shape at {lowest_cka(found, too)}"
    return [sentence + ("." if too or top is None else f"; the strongest output, {top}, is not where CKA is lowest.")]


def lowest_cka(found: LeastSimilar, beside: str = "") -> str:
    """ "L26.attn_out (lowest on the select prompts; ...): CKA 0.884 (95 %: 0.750 to 1); at 5 of 90 sites it is 1.000 to three digits"."""
    how = (
        f"lowest on the {found.chosen_on} prompts; on these others may be lower" if found.chosen_on else f"of {found.sites} sites, {BIASED}"
    )
    high = None if found.high is None else min(found.high, 1.0)
    value = with_interval(found.cka, found.low, high, digits=3, coverage=1.0)
    return f"{found.name}{beside} ({how}): CKA {value}; at {found.same} of {found.sites} sites it is 1.000 to three digits"


def how_sure(found: Difference | None, manifest: dict) -> list[str]:
    """Noise floor against D."""
    floor = found.floor if found and found.floor is not None else max((manifest.get("noise_floor") or {}).values(), default=None)
    if floor is None:
        return []
    sentence = f"The noise floor is {nats(floor)} nats: an unedited row, replayed, strays no further"
    if found and found.divides and floor > 0:
        sentence += f", and D is {nats(found.mean / floor)} times that"
    return [sentence + "."]


def crossing(found: Crossing, *, brief: bool = False) -> str:
    """ "from L26.resid_mid on (95 % set: L25.resid_post to L26.resid_mid)", or between which of a few sites it lies."""
    if brief:
        ends = "" if found.earliest == found.latest else f" [{found.earliest}, {found.latest}]"
        return f"from between {found.after} and {found.site}{ends} on" if found.after else f"from {found.site}{ends} on"
    ends = "the same site in 95 % of resamples" if found.earliest == found.latest else f"95 % set: {found.earliest} to {found.latest}"
    if found.after is not None:
        return f"from a place between {found.after} and {found.site} on (blocks between were not patched; {ends})"
    return f"from {found.site} on ({ends})"


def both_shares(row: dict, *, interval: bool = True) -> str:
    """ "KL increase 0.98 (95 %: ...) of D, recovery 0.95 (...)", of what there is: base into tuned, and tuned into base."""
    said: list[str] = []
    for word, name in (("breakage", "KL increase"), ("recovery", "recovery")):
        if row[word] is not None:
            ends = (row[f"{word}_low"], row[f"{word}_high"]) if interval else (None, None)
            said.append(f"{name} {with_interval(row[word], *ends, digits=2 if interval else 3)}{'' if said else ' of D'}")
    return ", ".join(said)
