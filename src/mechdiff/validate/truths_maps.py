"""A linear map must find what is there, and nothing else (METHOD C: P0, P1, P2, P8, P16; A8's law of strengths)."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mechdiff.engine.distributions import kl_nats
from mechdiff.engine.replay import replay
from mechdiff.maps.maps import DEFAULT
from mechdiff.measures.patching import formula as patching_formula
from mechdiff.measures.rank import formula as rank_formula
from mechdiff.measures.transport.formula import Maps, Sample, fit_maps
from mechdiff.validate import edits
from mechdiff.validate.checks import Check, above, at_most, near, same
from mechdiff.validate.planted import Bench, Planted
from mechdiff.validate.truths import everywhere

REPORT = 8
"""The first prompts of a pair; the others are those that maps are fitted on."""


def p0(bench: Bench) -> Iterator[Check]:
    """The same model twice: every map but the mean is the identity, also with fewer rows than dimensions."""
    harm: list[Tensor] = []
    mean: list[Tensor] = []
    chosen = set()
    for n_fit in (3, 20, 80):
        pair = bench.plant(edits.identical, n_prompts=REPORT + n_fit)
        for kind, layer in (("resid_post", 1), ("attn_out", 2), ("mlp_out", 3)):
            states = report_states(pair, kind, layer)
            for arm, one in maps_at(pair, kind, layer).there.items():
                (mean if arm == "mean" else harm).append(closeness(pair, kind, layer, one.transform(states)).max())
        chosen.add(ranks_of_change(pair, "attn_out")[1])
    yield at_most("KL of any map but the mean in nats, 3, 20 and 80 rows of 64 dimensions", harm, 1e-10)
    yield above("KL of the mean in nats", mean, 1e-4)
    yield same("rank of the change", chosen, {0})


def p1(bench: Bench) -> Iterator[Check]:
    """The residual stream in another orthogonal basis: the same function in other coordinates."""
    pair = bench.plant(edits.rotate, n_prompts=REPORT + 100, prepare=edits.fold_norms)
    yield at_most("D in nats", pair.d_nats, 1e-10)
    yield at_most("change of any logit", (pair.logits("base") - pair.logits("tuned")).abs(), 5e-5)
    yield near("CKA, every block and site", everywhere(pair), 1, 1e-9)
    yield at_most("Procrustes distance, every block and site", everywhere(pair, "procrustes_distance"), 1e-5)
    yield at_most("change of any z", (pair.states("base", "z") - pair.states("tuned", "z")).abs(), 1e-5)
    identity = pair.breakage("resid_post")[:REPORT].mean(0)
    constant = torch.stack([closeness(pair, "resid_post", layer, mean_state(pair, layer)).mean() for layer in range(pair.n_layers)])
    yield above("KL of the base's activation as it is in nats, every block", identity, 1)
    yield above(
        "KL of the base's activation less that of the mean activation: coordinates alone do more harm than no information",
        identity - constant,
        0,
    )
    states = report_states(pair, "resid_post", 1)
    drops = []
    for lam in (1.0, 0.01, 1e-4, 0.0):
        maps = maps_at(pair, "resid_post", 1, ("anchored_procrustes",), anchored_procrustes={"lam": lam})
        found = closeness(pair, "resid_post", 1, maps.there["anchored_procrustes"].transform(states)).mean()
        drops.append(1 - float(found / identity[1]))
    yield near("share of that KL that Procrustes takes away, its anchor gone", drops[-1], 1, 1e-9)
    yield same("it takes away more as its anchor goes", drops, sorted(drops))
    few = bench.plant(edits.rotate, n_prompts=REPORT + 40, prepare=edits.fold_norms)
    warned = maps_at(few, "resid_post", 1, ("anchored_procrustes",)).there["anchored_procrustes"].warnings_
    yield same("with 40 rows of 64 dimensions it warns", any("40" in text and "64" in text for text in warned), True)


def p2(bench: Bench) -> Iterator[Check]:
    """Rank 2 added to one block's attention output matrix: a map of rank 2 carries it."""
    pair = bench.plant(edits.edit_attention, n_prompts=REPORT + 160)
    states = report_states(pair, "attn_out", 1)
    maps = maps_at(pair, "attn_out", 1, ("identity", "shift", "mean", "rrr"), rrr={"rank": 2})
    written = {arm: one.transform(states) for arm, one in maps.there.items()}
    kl = {arm: float(closeness(pair, "attn_out", 1, state).mean()) for arm, state in written.items()}
    yield at_most(
        "KL of the map of rank 2, over the least of identity, shift and mean",
        kl["rrr"] / min(kl["identity"], kl["shift"], kl["mean"]),
        1e-4,
    )
    yield same("rank measured on the fitted map", maps.there["rrr"].rank_, 2)
    oracle = recovery(pair, "attn_out", 1, report_states(pair, "attn_out", 1, "tuned"))
    yield near(
        "share of D that it recovers, less what the tuned activation itself does",
        recovery(pair, "attn_out", 1, written["rrr"]) - oracle,
        0,
        1e-3,
    )
    found = ranks_of_change(pair, "attn_out")
    yield same("rank of the change in that block, chosen by cross-validation", found[1], 2)
    yield same("rank of the change in the block below", found[0], 0)
    source, own = states, report_states(pair, "attn_out", 1, "tuned")
    grows = [float(closeness(pair, "attn_out", 1, own + s * (source - own)).mean()) / s**2 for s in (0.05, 0.1)]
    yield near("KL over strength squared, at 0.1 over at 0.05", grows[1] / grows[0], 1, 0.1)


def p16(bench: Bench) -> Iterator[Check]:
    """A constant added to what the last MLP writes."""
    layer = edits.BIASED
    pair = bench.plant(edits.add_mlp_bias, n_prompts=REPORT + 30, prepare=edits.give_mlp_bias)
    states, maps = report_states(pair, "mlp_out", layer), maps_at(pair, "mlp_out", layer)
    yield above("D in nats", pair.d_nats.mean(), 0.01)
    for arm in ("shift", "rrr"):
        yield at_most(f"KL of {arm} in nats", closeness(pair, "mlp_out", layer, maps.there[arm].transform(states)), 1e-10)
    yield same("rank of the change, a shift being free", maps.there["rrr"].rank_, 0)
    yield near("share of D that the shift recovers", recovery(pair, "mlp_out", layer, maps.there["shift"].transform(states)), 1, 1e-6)
    direction = pair.states("tuned", "mlp_out")[layer].mean(0) - pair.states("base", "mlp_out")[layer].mean(0)
    unembedding = pair.base.net.get_parameter("lm_head.weight")
    yield near(
        "cosine of the mean difference and the planted direction",
        torch.cosine_similarity(direction, unembedding[65].detach(), dim=0),
        1,
        1e-5,
    )


# ---- what the truths ask ---------------------------------------------------------------------------------------------------------------


def maps_at(pair: Planted, kind: str, layer: int, arms: tuple[str, ...] = DEFAULT, **settings: Mapping[str, Any]) -> Maps:
    """Maps both ways, fitted on the prompts that are not reported."""
    base, tuned = (pair.states(side, kind)[layer, REPORT:] for side in ("base", "tuned"))
    return fit_maps(arms, Sample(base=base, tuned=tuned, groups=torch.arange(len(base))), None, settings=settings)


def closeness(pair: Planted, kind: str, layer: int, written: Tensor) -> Tensor:
    """`[prompt]` KL(p_tuned || p_tuned[site <- written]) in nats on the report prompts."""
    [variant] = patching_formula.variants(kind, [layer], {layer: written[:, None]})
    logits = replay(pair.tuned, pair.cleans["tuned"][:REPORT], [variant])[:, 1].double()
    return kl_nats(pair.logits("tuned")[:REPORT], logits)


def recovery(pair: Planted, kind: str, layer: int, written: Tensor) -> float:
    """The share of D that the base recovers with `written` in place of its own state."""
    [variant] = patching_formula.variants(kind, [layer], {layer: written[:, None]})
    logits = replay(pair.base, pair.cleans["base"][:REPORT], [variant])[:, 1].double()
    return 1 - float(kl_nats(pair.logits("tuned")[:REPORT], logits).mean() / pair.d_nats[:REPORT].mean())


def report_states(pair: Planted, kind: str, layer: int, side: str = "base") -> Tensor:
    """`[prompt, d]`."""
    return pair.states(side, kind)[layer, :REPORT]


def mean_state(pair: Planted, layer: int) -> Tensor:
    """The tuned model's mean state of the prompts that are not reported, for each report prompt."""
    return pair.states("tuned", "resid_post")[layer, REPORT:].mean(0).expand(REPORT, -1)


def ranks_of_change(pair: Planted, kind: str) -> dict[int, float]:
    """The rank of the change of the state that the measure chooses, by block."""
    base, tuned = (pair.states(side, kind) for side in ("base", "tuned"))
    samples = [
        [
            Sample(base=base[layer, part], tuned=tuned[layer, part], groups=torch.arange(len(base[layer, part])))
            for layer in range(pair.n_layers)
        ]
        for part in (slice(REPORT, None), slice(0, REPORT))
    ]
    names = [f"p{i}" for i in range(REPORT)]
    rows = rank_formula.measure(samples[0], samples[1], layers=range(pair.n_layers), kind=kind, prompt_ids=names, seed=0)
    return {row["layer"]: row["value"] for row in rows.iter_rows(named=True) if row["metric"] == "rank_chosen"}
