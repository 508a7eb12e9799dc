"""The numbers that are held against each other between runs: each run's own, on its reported prompts.

An axis is a question, a quantity one number of it. What is chosen (the strongest site, the best map, orders of heads and modules) was chosen by
each run on its select prompts, and is given of its reported ones. Effective numbers choose nothing: all parts are in them. They are of overlaps,
which add (additive.py); those of divergences stand beside them with the D that they are of, breakage and recovery apart, and no sentence is made of
them. A rank 0 map is a constant shift; it counts as one direction of the states' change. The weights' change is cut to k directions in every module
at once, so that its number is that of one module. These numbers of directions are participation ratios of what each direction gains, not ranks of a
regression (`rank chosen by cross-validation`), which is a larger number wherever the first directions gain most.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import polars as pl

from mechdiff import labels
from mechdiff.report import (
    additive,
    effects,
    findings,
    findings_grafting,
    findings_heads,
    findings_rank,
    findings_transport,
    findings_weights,
    spread,
)
from mechdiff.report.comparable import Loaded
from mechdiff.report.contrasts import STATE_RANK, WEIGHT_RANK
from mechdiff.report.effects import WRITES, Table
from mechdiff.report.findings import BREAKAGE
from mechdiff.report.findings_heads import WORDS
from mechdiff.report.findings_transport import CLOSENESS, TRANSPORT
from mechdiff.report.phrasing import nats
from mechdiff.report.quantity import Quantity, crossing, exact, mean_of, number, ratio
from mechdiff.rows import OVERLAP

TOPS = (1, 3, 5)
"""Sizes of the sets of heads whose coverage is given."""
MODULES = "modules for 0.9 of D, added greedily"
ENERGY = {50: "energy_rank_50", 90: "energy_rank_90"}


def quantities(run: Loaded) -> list[Quantity]:
    """Every number of a run that others may be held against; those that it did not measure are left out. Of a run without an effect only D."""
    makers = (size, where, weights, grafts, transport, ranks, heads) if run.counts else (size,)
    return [one for make in makers for one in make(run) if np.isfinite(one.estimate.value)]


def size(run: Loaded) -> Iterator[Quantity]:
    """D."""
    split = findings.reported(run.content.rows, "divergence")
    d = findings_transport.totals(run.content.rows, split).filter(pl.col("total").is_finite()).sort("prompt")
    if len(d):
        keys = [run.key(split, prompt) for prompt in d["prompt"]]
        yield Quantity(axis="size", name="D", estimate=spread.estimate(d["total"].to_numpy()[:, None], mean_of, keys), unit="nats")


def where(run: Loaded) -> Iterator[Quantity]:
    """Sites and layers that carry it, by shares that add; the same by divergences, at this D; and where half of D is passed."""
    sites, back = additive.patched(run, WRITES), additive.patched(run, WRITES, BREAKAGE)
    if sites is not None:
        yield number("where", "effective sites", sites, null=True)
        yield number("where", "effective layers", additive.summed(sites, lambda name: name[0]), null=True)
    if back is not None:
        yield number("where", "effective sites, where the tuned model runs", back)
    for direction, word in WORDS.items():
        if (alone := effects.patched(run, direction, WRITES)) is not None:
            yield by_divergence("where", f"effective sites by KL, {word}", alone)
        stream = effects.patched(run, direction, ("resid_post",))
        if stream is not None and stream.total.mean() > 0:
            layers = [float(layer) for layer, _ in stream.names]
            yield crossing("where", f"half of D passed, {word}", stream, [*layers, layers[-1] + 1], "layer", threshold=0.5)


def by_divergence(axis: str, name: str, of: Table, *, parts: int | None = None) -> Quantity:
    """A number of parts by shares of D, beside the D that it is of: at another D of the same fine-tune it is another number."""
    return number(axis, name, of, parts=parts, where=f"at D = {nats(float(of.total.mean()))}")


def weights(run: Loaded) -> Iterator[Quantity]:
    """Exact, from the files: how many tensors changed, of what rank, in how many modules."""
    summary = run.content.summary
    changed = findings_weights.how_many(summary)
    if changed is None:
        return
    yield exact("weights", "tensors changed", changed.changed / changed.tensors, "share", where=f"{changed.changed} of {changed.tensors}")
    tensors = findings_weights.tensors(summary).filter(pl.col("relative_norm") > 0)
    for part, metric in ENERGY.items():
        if metric in tensors.columns and len(known := tensors[metric].drop_nulls()):
            name = f"directions with {part} % of a tensor's squared change"
            yield exact("weights", name, float(np.median(known.to_numpy())), "dimensions", where=f"median of {len(known)} tensors")
    modules, _ = findings_weights.modules(summary)
    if len(modules) and "share" in modules.columns and not modules["share"].null_count():
        amount = float(spread.effective(modules["share"].to_numpy()[None])[0])
        yield exact("weights", "effective modules, by squared change", amount, "parts", parts=len(modules))


def grafts(run: Loaded) -> Iterator[Quantity]:
    """Tuned weights put into the base: over how many modules, of what rank."""
    modules, _ = findings_weights.modules(run.content.summary)
    alone = additive.grafted(run, "alone", findings_grafting.module_name())
    by_kl = effects.grafted(run, "alone", findings_grafting.module_name())
    if alone is not None:
        yield number("weights", "effective modules, grafted alone", alone, parts=max(len(modules), len(alone.names)))
    if by_kl is not None:
        yield by_divergence("weights", "effective modules by KL, grafted alone", by_kl, parts=max(len(modules), len(by_kl.names)))
    sets = effects.grafted(run, "greedy", pl.col("rank"))
    if sets is not None:
        sizes = [float(k) for k in sets.names]
        yield crossing("weights", MODULES, sets, [*sizes, sizes[-1] + 1], "modules", threshold=findings_grafting.WANTED)
    cut = additive.grafted(run, "truncate", pl.col("rank"), pl.col("unit") == labels.ALL)
    if cut is not None and len(cut.names) > 1:
        known = [int(rank) for rank in cut.names]
        found = spread.estimate(cut.values, lambda means: spread.effective_rank(means, known), cut.prompts, ends=(1, max(known)))
        yield Quantity(axis=WEIGHT_RANK[0], name=WEIGHT_RANK[1], estimate=found, unit="parts", parts=max(known))


def transport(run: Loaded) -> Iterator[Quantity]:
    """The best map at the run's own strongest site, against what learns nothing of the single prompt."""
    rows = run.content.rows
    carried = findings_transport.carried(rows, run.content.summary)
    if carried is None:
        return
    arms = [carried.arm, *([carried.trivial.arm] if carried.trivial else [])]
    values = findings_transport.plain(findings_transport.written(rows, TRANSPORT, "kl_other_nats"))
    here = values.filter(findings.site_name() == carried.name, pl.col("arm").is_in(arms))
    of = effects.table(run, here.with_columns(name=pl.col("arm")), recovered=True)
    if of is None or of.total.mean() <= 0:
        return
    gained = {arm: of.values[:, of.names.index(arm)] for arm in arms}
    best, at = gained[carried.arm], f"at {carried.name}"
    yield ratio("transport", "recovered by the best map", best, of.total, of.prompts, where=f"{carried.arm} {at}", layer=carried.layer)
    if carried.trivial:
        simple = gained[carried.trivial.arm]
        name, how = "recovered by the best of shift and mean", f"{carried.trivial.arm} {at}"
        yield ratio("transport", name, simple, of.total, of.prompts, where=how, layer=carried.layer)
        name = "best map, less the best of shift and mean"
        yield ratio("transport", name, best - simple, of.total, of.prompts, where=at, layer=carried.layer)


def ranks(run: Loaded) -> Iterator[Quantity]:
    """Dimensions of the states' change at the run's own strongest site."""
    rows, summary = run.content.rows, run.content.summary
    top = findings_rank.strongest(rows, summary)
    if top is not None and top.says == "rank":
        for words, rank in (("the shift apart", top.rank), ("the shift counted", top.uncentred)):
            if rank is not None:
                name, at = f"rank chosen by cross-validation, {words}", f"at {top.name}"
                yield exact("rank", name, float(rank), "dimensions", where=at, layer=top.layer)
    site = next(iter(findings_rank.curve_sites(rows, summary)), "")
    curve = rank_gains(run, site)
    if curve is None:
        return
    known = [int(rank) for rank in curve.names]
    ends = (1, max(known) + 1)
    found = spread.estimate(curve.values, lambda means: spread.effective_rank(means, known, shift=True), curve.prompts, ends=ends)
    at = f"at {site}"
    if recovers(curve):
        yield Quantity(axis=STATE_RANK[0], name=STATE_RANK[1], estimate=found, unit="parts", parts=ends[1], where=at)
    for direction, words in ((TRANSPORT, "transport"), (CLOSENESS, "closeness")):
        needed = findings_rank.needed(findings_rank.causal(rows, site, direction), direction) or {}
        for part, k in needed.items():
            yield exact("rank", f"rank for {100 * part:.0f} % of the gain over a shift, {words}", float(k), "dimensions", where=at)


def recovers(curve: Table) -> bool:
    """Whether the maps of some rank, a shift among them, recover anything: without, a rank of what they gain is one of noise."""
    best = int(curve.values.mean(axis=0).argmax())
    return spread.estimate(curve.values[:, [best]], mean_of, curve.prompts).low > 0


def rank_curve(run: Loaded, site: str) -> Table | None:
    """What maps of each rank recover at one site, in nats; None without rank 0 and another."""
    return _from_rank_0(effects.table(run, _of_ranks(run, site, "kl_other_nats"), recovered=True))


def rank_gains(run: Loaded, site: str) -> Table | None:
    """The same as overlaps, which add."""
    return _from_rank_0(additive.table(run, _of_ranks(run, site, OVERLAP)))


def _of_ranks(run: Loaded, site: str, metric: str) -> pl.DataFrame:
    values = findings_transport.written(run.content.rows, TRANSPORT, metric, measure="rank")
    values = values.filter(findings.site_name() == site, pl.col("arm") == "rrr", pl.col("rank").is_not_null())
    return values.filter(pl.all_horizontal(pl.col("control", "unit", "strength").is_null())).with_columns(name=pl.col("rank"))


def _from_rank_0(of: Table | None) -> Table | None:
    return of if of is not None and len(of.names) > 1 and of.names[0] == 0 else None


def heads(run: Loaded) -> Iterator[Quantity]:
    """Heads of the network, each alone; and the heads of the strongest layer, together."""
    singles = additive.heads_alone(run)
    if singles is not None:
        yield number("heads", "effective heads of the network", singles, null=True)
    for direction, word in WORDS.items():
        if (alone := effects.heads_alone(run, direction)) is not None:
            yield by_divergence("heads", f"effective heads of the network by KL, {word}", alone)
    rows, summary, manifest = run.content.rows, run.content.summary, run.content.manifest
    games = {layer: findings_heads.game(rows, summary, BREAKAGE, layer) for layer in findings_heads.closer_layers(manifest)}
    known = [layer for layer, one in games.items() if one and one.n > 1 and one.whole.counts]
    if not known:
        return
    layer, _ = findings_heads.strongest_layer(rows, known)
    phi = effects.shapley(run, BREAKAGE, layer)
    if phi is not None:
        yield replace(number("heads", "effective heads of the strongest layer", phi, where=f"L{layer}"), layer=layer)
    game, keys = games[layer], effects.head_prompts(run, BREAKAGE, layer)
    order = next(iter(findings_heads.orders(manifest, BREAKAGE, layer).values()), [])
    assert game is not None
    for k in TOPS:
        together, without = game.value(order[:k]), game.value([head for head in range(game.n) if head not in order[:k]])
        if not k <= len(order) or k >= game.n or len(keys) != len(game.whole.values):
            continue
        for word, part in (("coverage by", together), ("necessity of", None if without is None else game.whole.values - without)):
            if part is not None:
                yield ratio("heads", f"{word} the top {k}", part, game.whole.values, keys, where=f"of L{layer}", layer=layer)
