"""Planted pairs against the maps of states: what a map must find, and what it must not."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import planted
from mechdiff.engine.replay import replay
from mechdiff.measures import patching, rank
from mechdiff.measures.maps import DEFAULT
from mechdiff.measures.outcome import kl_nats
from mechdiff.measures.transport import Maps, Sample, fit_maps
from planted import N_LAYERS, Planted, plant

REPORT = 8
"""The first prompts of a pair; the others are those that maps are fitted on."""


def pair(change: Callable[[nn.Module], None], n_fit: int, **how: Callable[[nn.Module], None]) -> Planted:
    return plant(change, n_prompts=REPORT + n_fit, **how)


def maps_at(found: Planted, kind: str, layer: int, arms: tuple[str, ...] = DEFAULT, **settings: dict[str, object]) -> Maps:
    base, tuned = (found.states(side, kind)[layer, REPORT:] for side in ("base", "tuned"))
    return fit_maps(arms, Sample(base=base, tuned=tuned, groups=torch.arange(len(base))), None, settings=settings)


def closeness(found: Planted, kind: str, layer: int, written: Tensor) -> Tensor:
    """`[prompt]` KL(p_tuned || p_tuned[site <- written]) in nats on the report prompts."""
    [variant] = patching.variants(kind, [layer], {layer: written[:, None]})
    logits = replay(found.tuned, found.cleans["tuned"][:REPORT], [variant])[:, 1].double()
    return kl_nats(found.logits("tuned")[:REPORT], logits)


def recovery(found: Planted, kind: str, layer: int, written: Tensor) -> float:
    """The share of D that the base recovers with `written` in place of its own state."""
    [variant] = patching.variants(kind, [layer], {layer: written[:, None]})
    logits = replay(found.base, found.cleans["base"][:REPORT], [variant])[:, 1].double()
    return 1 - float(kl_nats(found.logits("tuned")[:REPORT], logits).mean() / found.d_nats[:REPORT].mean())


def report_states(found: Planted, kind: str, layer: int, side: str = "base") -> Tensor:
    return found.states(side, kind)[layer, :REPORT]


@pytest.mark.parametrize("n_fit", [3, 20, 80])
def test_p0_every_map_of_identical_models_is_the_identity(n_fit: int) -> None:
    found = pair(planted.identical, n_fit)
    for kind, layer in (("resid_post", 1), ("attn_out", 2), ("mlp_out", 3)):
        states = report_states(found, kind, layer)
        for arm, one in maps_at(found, kind, layer).there.items():
            kl = closeness(found, kind, layer, one.transform(states))
            assert (kl.max() > 1e-4) if arm == "mean" else (kl.max() <= 1e-10), (kind, arm)


def test_p1_anchored_procrustes_finds_the_rotation_as_its_anchor_goes() -> None:
    found = pair(planted.rotate, 100, prepare=planted.fold_norms)
    states = report_states(found, "resid_post", 1)
    raw = closeness(found, "resid_post", 1, states).mean()
    drops = []
    for lam in (1.0, 0.01, 1e-4, 0.0):
        maps = maps_at(found, "resid_post", 1, ("anchored_procrustes",), anchored_procrustes={"lam": lam})
        drops.append(1 - float(closeness(found, "resid_post", 1, maps.there["anchored_procrustes"].transform(states)).mean() / raw))
    assert drops == sorted(drops)
    assert drops[-1] == pytest.approx(1, abs=1e-9)
    assert raw > 1


def test_p1_fewer_rows_than_dimensions_are_warned_of() -> None:
    found = pair(planted.rotate, 40, prepare=planted.fold_norms)
    one = maps_at(found, "resid_post", 1, ("anchored_procrustes",)).there["anchored_procrustes"]
    assert any("40" in text and "64" in text for text in one.warnings_)


def test_p2_a_rank_2_edit_is_carried_by_a_map_of_rank_2() -> None:
    found = pair(planted.edit_attention, 160)
    states = report_states(found, "attn_out", 1)
    maps = maps_at(found, "attn_out", 1, ("identity", "shift", "mean", "rrr"), rrr={"rank": 2})
    written = {arm: one.transform(states) for arm, one in maps.there.items()}
    kl = {arm: float(closeness(found, "attn_out", 1, state).mean()) for arm, state in written.items()}
    assert kl["rrr"] < 1e-4 * min(kl["identity"], kl["shift"], kl["mean"])
    assert maps.there["rrr"].rank_ == 2
    assert recovery(found, "attn_out", 1, written["rrr"]) == pytest.approx(
        recovery(found, "attn_out", 1, report_states(found, "attn_out", 1, "tuned")), abs=1e-3
    )


@pytest.mark.parametrize(("change", "expected"), [(planted.identical, 0), (planted.edit_attention, 2)])
def test_p2_the_rank_of_the_change_is_that_of_the_edit(change: Callable[[nn.Module], None], expected: int) -> None:
    found = pair(change, 150)
    base, tuned = (found.states(side, "attn_out") for side in ("base", "tuned"))
    samples = [
        [Sample(base=base[layer, part], tuned=tuned[layer, part], groups=torch.arange(len(base[layer, part]))) for layer in range(N_LAYERS)]
        for part in (slice(REPORT, None), slice(0, REPORT))
    ]
    rows = rank.measure(samples[0], samples[1], layers=range(N_LAYERS), kind="attn_out", seed=0)
    chosen = {row["layer"]: row["value"] for row in rows.iter_rows(named=True) if row["metric"] == "rank_chosen"}
    assert chosen[1] == expected
    assert chosen[0] == 0


def test_p16_a_constant_bias_is_a_shift_and_no_more() -> None:
    found = pair(planted.add_mlp_bias, 30, prepare=planted.give_mlp_bias)
    states = report_states(found, "mlp_out", planted.BIASED)
    maps = maps_at(found, "mlp_out", planted.BIASED)
    assert found.d_nats.mean() > 0.01
    assert closeness(found, "mlp_out", planted.BIASED, maps.there["shift"].transform(states)).max() <= 1e-10
    assert closeness(found, "mlp_out", planted.BIASED, maps.there["rrr"].transform(states)).max() <= 1e-10
    assert maps.there["rrr"].rank_ == 0
    assert recovery(found, "mlp_out", planted.BIASED, maps.there["shift"].transform(states)) == pytest.approx(1, abs=1e-6)


def test_kl_grows_as_the_square_of_the_strength() -> None:
    found = pair(planted.edit_attention, 100)
    source, own = (report_states(found, "attn_out", 1, side) for side in ("base", "tuned"))
    kl = [float(closeness(found, "attn_out", 1, own + s * (source - own)).mean()) / s**2 for s in (0.05, 0.1, 0.2)]
    assert kl[1] == pytest.approx(kl[0], rel=0.1)
    assert kl[2] == pytest.approx(kl[0], rel=0.2)
    assert float(closeness(found, "attn_out", 1, own).max()) <= 1e-10
