"""Numbers in words: the sentences of the report, each computed from the tables and true of them."""

import polars as pl

from mechdiff.report import (
    findings,
    findings_grafting,
    findings_texts,
    findings_weights,
)
from mechdiff.report.findings import BREAKAGE, RECOVERY, Crossing, Difference
from mechdiff.report.phrasing import between, listed, nats, share, with_interval
from mechdiff.report.wording_attribution import what_gradients_say
from mechdiff.report.wording_behaviour import what_they_do
from mechdiff.report.wording_difference import how_different
from mechdiff.report.wording_factorial import early_or_late
from mechdiff.report.wording_heads import which_heads
from mechdiff.report.wording_rank import how_many_dimensions
from mechdiff.report.wording_steering import does_it_obey
from mechdiff.report.wording_transport import carried

GUESSES = {
    "shift": "the base's state plus the mean difference recovers",
    "mean": "the mean tuned state",
    "resample": "another prompt's tuned state",
}
LEAST_TO_SPLIT = 0.1
"""Recovery at the strongest site under which nobody asks what it depends on."""
NO_CHANGE = 1e-8
"""Nats under which two float32 networks say the same, however far their weights lie apart."""


def leads(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict) -> dict[str, list[str]]:
    """What stands at the head of each section, by its id: its measure's numbers in words. Shares of D only where there is an effect to share."""
    found = findings.difference(rows, summary)
    said = {
        "behaviour": [how_different(found)],
        "texts": how_it_goes_on(rows, manifest),
        "answers": what_they_do(rows, manifest),
        "weights": which_weights(summary, found),
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
        "factorial": early_or_late(rows, summary, found),
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
    sentence = (
        f"Behind the first token, along the continuation, they lie {with_interval(behind.mean, behind.low, behind.high)} nats a token apart"
    )
    if "more" in bits:
        more = bits["more"]
        said = "more" if more.mean >= 0 else "fewer"
        ends = between(*sorted((abs(more.low), abs(more.high)))) if more.low * more.high > 0 else between(more.low, more.high)
        sentence += f"; the base needs {nats(abs(more.mean))} (95 %: {ends}) bits per byte {said} for it than the tuned model"
    return [sentence + "."]


def which_weights(summary: pl.DataFrame, difference: Difference | None = None) -> list[str]:
    """How many tensors changed, and the most changed one; and whether the function changed with them."""
    found = findings_weights.how_many(summary)
    if found is None:
        return []
    if not found.changed:
        return [f"Not one of the {found.tensors} tensors differs: these are the same weights."]
    top = findings_weights.tensors(summary).row(0, named=True)
    rank = top.get("numerical_rank")
    of_rank = f", in a change of rank {rank:.0f}" if rank else ""
    name = findings_weights.short_tensor(top["unit"])
    only = "It is" if found.changed == 1 else "Most changed is"
    return [
        f"The fine-tune changed {found.changed} of {found.tensors} tensors, in {found.layers_changed} of {found.layers} layers. "
        f"{only} {name}, by {nats(top['relative_norm'])} of its norm{of_rank}.",
        *(["On these prompts the function did not change with the weights: they are reparametrised, or the change does not reach here."]
          if difference and reparametrised(difference) else []),
    ]  # fmt: skip


def reparametrised(found: Difference) -> bool:
    """Whether the function stayed as it was, however far the weights lie apart."""
    return not found.counts or (found.mean < NO_CHANGE and found.outside < NO_CHANGE)


def which_module(rows: pl.DataFrame) -> list[str]:
    """The module whose tuned weights alone make the base most like the tuned model, and how many a good set needs."""
    alone, ranking = findings_grafting.ranked(rows)
    if alone.is_empty():
        return []
    best = alone.row(0, named=True)
    chosen = " (chosen on the select prompts)" if ranking == "select" != findings.reported(rows, "grafting") else ""
    recovered = with_interval(best["share"], best["low"], best["high"], digits=2)
    sentence = f"Put into the base alone, the tuned weights of {best['name']}{chosen} recover {recovered} of D"
    return [f"{sentence}; {how_many_modules(rows)}." if how_many_modules(rows) else f"{sentence}."]


def how_many_modules(rows: pl.DataFrame) -> str:
    """ "2 modules (L4.attn+L5.mlp) recover 0.9", from the greedy search; empty where it was not run."""
    sets = findings_grafting.greedy(rows)
    if sets.is_empty():
        return ""
    wanted = share(findings_grafting.WANTED, 1)
    small = findings_grafting.needed(rows)
    if small is None:
        last = sets.row(-1, named=True)
        return f"{last['rank']} modules, the most that were tried together, recover {share(last['share'], 3)}, under {wanted}"
    count = "one module is enough" if small["rank"] == 1 else f"{small['rank']} modules are enough"
    return f"{count} for {wanted} of D ({(small['unit'] or '').replace('+', ' + ')}: {share(small['share'], 3)})"


def where_it_passes(rows: pl.DataFrame) -> list[str]:
    """Where along the residual stream more than half of D has been carried over, by direction."""
    broken, recovered = findings.half_way(rows, BREAKAGE), findings.half_way(rows, RECOVERY)
    if broken and recovered and broken.site == recovered.site:
        return [f"Along the residual stream more than half of D is carried over from {crossing(broken)} on, in both directions."]
    said = []
    if broken:
        said.append(f"Writing the base's residual stream into the tuned model breaks more than half of D from {crossing(broken)} on.")
    if recovered:
        said.append(f"Writing the tuned residual stream into the base recovers more than half of D from {crossing(recovered)} on.")
    return said


def which_output(rows: pl.DataFrame, summary: pl.DataFrame) -> list[str]:
    """The strongest single output, and the next, with their shares."""
    ranked, ranking = findings.ranked_outputs(rows, summary)
    if ranked.is_empty():
        return []
    first = ranked.row(0, named=True)
    reported = findings.reported(rows, "patching")
    chosen = (
        f"(chosen on the {ranking} prompts)"
        if ranking != reported
        else "(chosen on the prompts it is reported on, so its share is a little flattered)"
    )
    of_what = "single sites" if ranked["site"].is_in(findings.STREAM).any() else "outputs of attention and MLPs"
    sentence = f"Of the {of_what} the strongest is {first['name']} {chosen}: {both_shares(first)}"
    if len(ranked) > 1:
        second = ranked.row(1, named=True)
        sentence += f". Next is {second['name']}, {both_shares(second, interval=False)}"
    return [sentence + "."]


def what_it_depends_on(rows: pl.DataFrame, summary: pl.DataFrame) -> list[str]:
    """At the strongest site: would a constant, or another prompt's tuned state, recover as much as this prompt's own?"""
    name, shares = findings.recovery_by_arm(rows, summary)
    own = shares.get("identity")
    others = {words: shares[arm] for arm, words in GUESSES.items() if arm in shares}
    if own is None or own < LEAST_TO_SPLIT or not others:
        return []
    said = listed(f"{words} {share(value, 3)}" for words, value in others.items())
    same = (
        "most of what is carried over is the same on every prompt"
        if max(others.values()) >= 0.8 * own
        else "what is carried over depends on the prompt"
    )
    return [f"At {name}, in place of this prompt's own tuned state (recovery {share(own, 3)}), {said}: {same}."]


def how_similar(rows: pl.DataFrame, summary: pl.DataFrame) -> list[str]:
    """The lowest CKA, and whether the strongest site is where the states differ most."""
    table = findings.similarity_by_site(rows, summary).filter(pl.col("cka").is_not_nan())
    if table.is_empty():
        return []
    lowest = table.sort("cka", maintain_order=True).row(0, named=True)
    value = with_interval(lowest["cka"], lowest["low"], lowest["high"], digits=3)
    equal = len(table.filter(pl.col("cka") > 1 - 1e-6))
    ranked, _ = findings.ranked_outputs(rows, summary)
    top = None if ranked.is_empty() else ranked["name"][0]
    too = ", the strongest site too" if top == lowest["name"] else ""
    sentence = f"States differ most in shape at {lowest['name']}{too}: CKA {value}. At {equal} of {len(table)} sites they have the same shape (CKA 1)"
    return [sentence + ("." if too or top is None else f"; the strongest site, {top}, is not the one that CKA points to.")]


def how_sure(found: Difference | None, manifest: dict) -> list[str]:
    """Noise floor against D."""
    floor = found.floor if found and found.floor is not None else max((manifest.get("noise_floor") or {}).values(), default=None)
    if floor is None:
        return []
    sentence = f"The noise floor is {nats(floor)} nats: an unedited row, replayed, strays no further"
    if found and found.divides and floor > 0:
        sentence += f", and D is {nats(found.mean / floor)} times that"
    return [sentence + "."]


def crossing(found: Crossing) -> str:
    """ "L26.resid_mid (95 % set: L25.resid_post to L26.resid_mid)" """
    ends = "the same site in 95 % of resamples" if found.earliest == found.latest else f"95 % set: {found.earliest} to {found.latest}"
    return f"{found.site} ({ends})"


def both_shares(row: dict, *, interval: bool = True) -> str:
    """ "breakage 0.98 (95 %: ...), recovery 0.95 (...)", of what there is."""
    said = []
    for word in ("breakage", "recovery"):
        if row[word] is not None:
            ends = (row[f"{word}_low"], row[f"{word}_high"]) if interval else (None, None)
            said.append(f"{word} {with_interval(row[word], *ends, digits=2 if interval else 3)}")
    return listed(said)
