"""Planted truths that must come out: the difference is known by construction, and each measure has to say it."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

import planted
from mechdiff.engine.activations import capture
from mechdiff.engine.models import wrap
from mechdiff.engine.replay import replay
from mechdiff.engine.sites import KINDS, Site
from mechdiff.measures import similarity
from mechdiff.measures.outcome import kl_nats
from mechdiff.measures.patching import variants
from planted import N_LAYERS, Planted, plant


def cka(pair: Planted, kind: str, metric: str = "cka") -> list[float]:
    """The measure's value by layer."""
    base, tuned = ({Site(layer, kind): pair.states(side, kind)[layer] for layer in range(N_LAYERS)} for side in ("base", "tuned"))
    rows = similarity.measure(base, tuned, [str(i) for i in range(len(pair.prompts))], "report", permutations=0)
    found = rows.filter((rows["metric"] == metric) & rows["control"].is_null()).sort("layer")
    return found["value"].to_list()


@pytest.fixture(scope="module")
def p0() -> Planted:
    return plant(planted.identical, n_prompts=12)


@pytest.fixture(scope="module")
def p1() -> Planted:
    return plant(planted.rotate, n_prompts=12, prepare=planted.fold_norms)


@pytest.fixture(scope="module")
def p2() -> Planted:
    return plant(planted.edit_attention, n_prompts=12)


@pytest.fixture(scope="module")
def p3() -> Planted:
    return plant(planted.edit_mlp, n_prompts=12)


# ---- P0: the same model twice


def test_p0_no_effect_anywhere(p0: Planted) -> None:
    assert p0.d_nats.abs().max() == 0
    for kind in p0.base.kinds():
        assert torch.equal(p0.patched("tuned<-base", kind, engine="full"), p0.logits("tuned")[:, None].expand(-1, N_LAYERS, -1)), kind
        assert p0.breakage(kind).max() <= 1e-10, kind


def test_p0_similarity_is_one(p0: Planted) -> None:
    for kind in p0.base.kinds():
        assert cka(p0, kind) == pytest.approx([1] * N_LAYERS, abs=1e-12)
        assert cka(p0, kind, "same_basis_change") == [0] * N_LAYERS


# ---- P1: a rotated basis


def test_p1_same_function_in_other_coordinates(p1: Planted) -> None:
    assert p1.d_nats.max() <= 1e-10
    assert (p1.logits("base") - p1.logits("tuned")).abs().max() <= 5e-5
    for kind in KINDS:
        assert cka(p1, kind) == pytest.approx([1] * N_LAYERS, abs=1e-9), kind
        assert max(cka(p1, kind, "procrustes_distance")) < 1e-5, kind
    assert (p1.states("base", "z") - p1.states("tuned", "z")).abs().max() <= 1e-5
    assert min(cka(p1, "resid_post", "same_basis_change")) > 1  # the coordinates themselves moved by about sqrt 2


def test_p1_identity_patch_is_worse_than_the_mean(p1: Planted) -> None:
    """A state in the wrong basis does more harm than no information at all: no claim of "this layer matters" may follow from it."""
    tuned = p1.states("tuned", "resid_post")
    broken = p1.breakage("resid_post").mean(0)
    written = tuned.mean(1)[:, None, None].expand(-1, len(p1.prompts), 1, -1)
    mean = kl_nats(
        p1.logits("tuned")[:, None], replay(p1.tuned, p1.cleans["tuned"], variants("resid_post", range(N_LAYERS), written))[:, 1:]
    ).mean(0)
    assert (broken > mean).all()
    assert (broken > 1).all()


# ---- P2 and P3: one matrix of one block


@pytest.mark.parametrize(("name", "kind"), [("p2", "attn_out"), ("p3", "mlp_out")])
def test_p2_p3_all_positions_localise_exactly(name: str, kind: str, request: pytest.FixtureRequest) -> None:
    pair: Planted = request.getfixturevalue(name)
    assert pair.d_nats.mean() > 0.1

    def recovered(site: str) -> list[float]:
        exact = pair.recovery(site, positions="all", engine="full")
        assert pair.recovery(site, positions="all", engine="relay").tolist() == pytest.approx(exact.tolist(), abs=1e-6), (
            "float32 rounding only"
        )
        return exact.tolist()

    assert recovered("resid_pre") == pytest.approx([0, 0, 1, 1], abs=1e-9)
    assert recovered("resid_post") == pytest.approx([0, 1, 1, 1], abs=1e-9)
    assert recovered(kind)[1] == pytest.approx(1, abs=1e-9)
    assert recovered("z")[1] == pytest.approx(0, abs=1e-9)
    if name == "p3":
        assert recovered("attn_out")[:2] == pytest.approx([0, 0], abs=1e-9)


@pytest.mark.parametrize("name", ["p2", "p3"])
def test_p2_p3_one_position_recovers_part_before_the_last_block(name: str, request: pytest.FixtureRequest) -> None:
    pair: Planted = request.getfixturevalue(name)
    recovered = pair.recovery("resid_post").tolist()
    assert recovered[0] == pytest.approx(0, abs=1e-6)
    assert all(0.2 < share < 0.999 for share in recovered[1:-1])
    assert recovered[-1] == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("name", ["p2", "p3"])
def test_p2_p3_similarity_drops_where_the_edit_is(name: str, request: pytest.FixtureRequest) -> None:
    pair: Planted = request.getfixturevalue(name)
    found = cka(pair, "resid_post")
    assert found[0] == pytest.approx(1, abs=1e-12)
    assert all(value < 1 - 1e-4 for value in found[1:])
    assert cka(pair, "z")[1] == pytest.approx(1, abs=1e-12)
    if name == "p3":
        assert cka(pair, "attn_out")[:2] == pytest.approx([1, 1], abs=1e-12)


# ---- P8: a small change everywhere


def test_p8_effects_grow_as_the_square_of_the_change() -> None:
    sizes = [0.001, 0.002, 0.005, 0.01]
    pairs = [plant(planted.add_noise(size), n_prompts=12) for size in sizes]

    def slope(values: list[float]) -> float:
        x, y = torch.tensor(sizes).log(), torch.tensor(values, dtype=torch.float64).log()
        return float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())

    assert slope([float(pair.d_nats.mean()) for pair in pairs]) == pytest.approx(2, abs=0.1)
    assert slope([1 - cka(pair, "resid_post")[-1] for pair in pairs]) == pytest.approx(2, abs=0.1)


# ---- P9: on the way from base to tuned ----------------------------------------------------------------------------------------------


def test_p9_the_divergences_from_both_ends_are_monotone_on_the_way() -> None:
    ends = planted.plant(planted.child(3, size=0.05))

    def at(t: float) -> torch.Tensor:
        net = copy.deepcopy(ends.base.net)
        for own, other in zip(net.parameters(), ends.tuned.net.parameters(), strict=True):
            own.data.lerp_(other.data, t)
        model = wrap(net, side="tuned", ref=f"{t}")
        return torch.stack([capture(model, ids, [], [0]).logits for ids in ends.prompts]).double()

    laws = [at(t) for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
    from_base = torch.stack([kl_nats(ends.logits("base"), law).mean() for law in laws])
    from_tuned = torch.stack([kl_nats(ends.logits("tuned"), law).mean() for law in laws])
    assert from_base[0] == from_tuned[-1] == 0
    assert (from_base.diff() > 0).all()
    assert (from_tuned.diff() < 0).all()


# ---- P10, P11: large changes of the weights, none of the function


@pytest.mark.parametrize("change", [planted.turn_head_values, planted.shuffle_neurons])
def test_p10_p11_the_function_is_the_same(change: Callable[[nn.Module], None]) -> None:
    found = planted.plant(change)
    moved = sum(
        float((a - b).detach().square().sum()) for a, b in zip(found.base.net.parameters(), found.tuned.net.parameters(), strict=True)
    )
    assert moved > 1
    assert found.d_nats.max() < 1e-10
    for kind in ("attn_out", "mlp_out", "resid_post"):
        assert found.breakage(kind).max() < 1e-10
        torch.testing.assert_close(found.states("base", kind), found.states("tuned", kind), rtol=1e-4, atol=1e-4)


# ---- P13: the embedding alone


def test_p13_the_first_residual_state_carries_all() -> None:
    pair = plant(planted.edit_embedding)
    assert pair.recovery("resid_pre", positions="all")[0] == pytest.approx(1, abs=1e-9)
    assert pair.d_nats.mean() > 0.01
    assert not math.isclose(float(pair.recovery("attn_out", positions="all")[0]), 1, abs_tol=0.01)
