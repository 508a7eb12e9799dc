"""Steering: planted shifts are found and obeyed, what does nothing does nothing, and every edit is the formula that it claims to be."""

import copy

import polars as pl
import pytest
import torch
from torch import Tensor, nn

import pico
from mechdiff.architectures.sites import Site
from mechdiff.engine.activations import capture, forward
from mechdiff.engine.distributions import kl_nats
from mechdiff.engine.outcome import CleanLogits
from mechdiff.engine.replay import replay
from mechdiff.measures.patching.formula import variants as patch_variants
from mechdiff.measures.steering import formula as steering_formula
from mechdiff.measures.steering.formula import (
    Edit,
    Place,
    Push,
    ablate,
    add,
    amplify,
    at_the_decision,
    edits,
    few,
    interchange,
    random_edits,
    side_effects,
)
from mechdiff.measures.steering.subspaces import Subspace, change_subspace, label_swapped, random_basis
from mechdiff.models.pair import wrap
from mechdiff.validate import edits as validate_edits
from mechdiff.validate import planted
from mechdiff.validate.made import tiny_net

LAYER = 2


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- formulas ----------------------------------------------------------------------------------------------------------------------


def test_each_push_is_its_formula() -> None:
    states, other, origin, basis = normal(5, 12), normal(5, 12, seed=1), normal(12, seed=2), random_basis(12, 3, seed=3)
    projector = basis @ basis.T
    torch.testing.assert_close(states + ablate(basis)(states), states - states @ projector)
    torch.testing.assert_close(states + amplify(basis, origin, 0.5)(states), states + 0.5 * (states - origin) @ projector)
    torch.testing.assert_close(states + interchange(basis, other)(states), states + (other - states) @ projector)
    torch.testing.assert_close(states + add(origin, 2)(states), states + 2 * origin)
    everything = torch.eye(12, dtype=torch.float64)
    torch.testing.assert_close(states + interchange(everything, other)(states), other)
    removed = states + ablate(basis)(states)
    torch.testing.assert_close(removed @ basis, torch.zeros(5, 3, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(removed + ablate(basis)(removed), removed, msg="twice is once")


def test_a_random_push_is_as_long_as_the_real_one() -> None:
    states, real = normal(5, 12), ablate(random_basis(12, 3, seed=3))
    random = ablate(random_basis(12, 3, seed=4))
    stretched = Push(offset=random.offset, basis=random.basis, gain=random.gain, length_of=real)
    torch.testing.assert_close(stretched(states).norm(dim=1), real(states).norm(dim=1))
    torch.testing.assert_close(nn.functional.cosine_similarity(stretched(states), random(states)), torch.ones(5, dtype=torch.float64))
    assert not stretched(torch.zeros_like(states)).any(), "nothing to stretch is nothing"


def test_side_effects_are_means_over_positions() -> None:
    clean, edited, ids = normal(6, 9), normal(2, 6, 9, seed=1), torch.tensor([3, 1, 4, 1, 5, 0])
    found = side_effects(clean, edited, ids)
    log_p, log_q = clean.log_softmax(-1), edited.log_softmax(-1)
    torch.testing.assert_close(found["side_kl_nats"], (log_p.exp() * (log_p - log_q)).sum(-1).mean(-1))
    torch.testing.assert_close(found["side_top1_same"], (log_p.argmax(-1) == log_q.argmax(-1)).double().mean(-1))
    ratio = [torch.stack([log_p[i, ids[i + 1]] - log_q[v, i, ids[i + 1]] for i in range(5)]).mean() for v in range(2)]
    torch.testing.assert_close(found["side_log_perplexity_ratio_nats"], torch.stack(ratio))
    same = side_effects(clean, clean[None], ids)
    assert {name: float(value) for name, value in same.items()} == {
        "side_kl_nats": 0,
        "side_top1_same": 1,
        "side_log_perplexity_ratio_nats": 0,
    }
    assert "side_log_perplexity_ratio_nats" not in side_effects(clean[:1], edited[:, :1], ids[:1]), "nothing comes next"


# ---- planted pairs -----------------------------------------------------------------------------------------------------------------


def bias_pair(n_prompts: int = 12) -> tuple[planted.Planted, Tensor]:
    """P16: a constant, along the unembedding of one token, added to the MLP's output of one block."""
    net = tiny_net()
    config = copy.deepcopy(net.config)
    config.mlp_bias = True
    biased = pico.make_net(config)
    biased.load_state_dict(net.state_dict(), strict=False)
    for block in biased.model.layers:
        for matrix in (block.mlp.gate_proj, block.mlp.up_proj, block.mlp.down_proj):
            matrix.bias.data.zero_()
    other = copy.deepcopy(biased)
    direction = net.lm_head.weight[77].detach()
    vector = 3 * direction / direction.norm()
    other.model.layers[LAYER].mlp.down_proj.bias.data += vector
    base, tuned = wrap(biased, side="base", ref="base"), wrap(other, side="tuned", ref="tuned")
    prompts = pico.prompts(n_prompts, seed=1)
    sites = [Site(layer, kind) for layer in range(4) for kind in base.kinds()]
    cleans = {m.side: [capture(m, ids, sites, range(len(ids)), keep_cache=True) for ids in prompts] for m in (base, tuned)}
    return planted.Planted(base=base, tuned=tuned, prompts=prompts, cleans=cleans), vector.double()


def subspace(pair: planted.Planted, kind: str, layer: int = LAYER, k: int = 8) -> Subspace:
    return change_subspace(pair.states("base", kind)[layer], pair.states("tuned", kind)[layer], k)


def effect(pair: planted.Planted, side: str, edit: Edit) -> Tensor:
    """`[prompt]` KL(p_tuned || run) where the base runs, KL(p_base || run) where the tuned runs."""
    return kl_nats(pair.logits("tuned" if side == "base" else "base"), run(pair, side, edit))


def run(pair: planted.Planted, side: str, edit: Edit) -> Tensor:
    model, kind = (pair.base if side == "base" else pair.tuned), next(iter(edit.pushes)).kind
    found = []
    for i, clean in enumerate(pair.cleans[side]):
        own = {layer: pair.states(side, kind)[layer][i : i + 1] for layer in range(4)}
        pushes = {
            site: Push(**{**vars(push), "offset": push.offset[i : i + 1] if push.offset.ndim > 1 else push.offset})
            for site, push in edit.pushes.items()
        }
        found.append(replay(model, [clean], [at_the_decision(Edit(pushes=pushes, arm=edit.arm, rank=edit.rank), own)])[0, 1])
    return torch.stack(found).double()


def one(push: Push, kind: str = "mlp_out", arm: str = "add", layer: int = LAYER) -> Edit:
    return Edit(pushes={Site(layer, kind): push}, arm=arm, rank=1)


@pytest.fixture(scope="module")
def biased() -> tuple[planted.Planted, Tensor]:
    return bias_pair()


def test_a_planted_shift_is_the_mean_direction_and_the_only_one(biased: tuple[planted.Planted, Tensor]) -> None:
    pair, vector = biased
    found = subspace(pair, "mlp_out")
    assert found.rank == 1
    torch.testing.assert_close(found.mean, vector, atol=1e-5, rtol=1e-5)
    assert float(found.basis[:, 0] @ vector / vector.norm()) == pytest.approx(1, abs=1e-9)
    assert found.split_half_cosine == pytest.approx(1)
    assert subspace(pair, "mlp_out", LAYER - 1).rank == 0, "below it nothing changed"


def test_adding_it_at_the_decision_is_what_patching_the_site_does(biased: tuple[planted.Planted, Tensor]) -> None:
    """The states at that site differ by the mean difference on every prompt: shift and identity write what add adds."""
    pair, _ = biased
    steered = effect(pair, "base", one(add(subspace(pair, "mlp_out").mean)))
    patched = kl_nats(pair.logits("tuned")[:, None], pair.patched("base<-tuned", "mlp_out"))[:, LAYER]
    torch.testing.assert_close(steered, patched, atol=1e-7, rtol=1e-4)
    assert float(steered.mean()) < 0.9 * float(pair.d_nats.mean()), "and it recovers some of D"


def test_random_and_swapped_vectors_do_much_less(biased: tuple[planted.Planted, Tensor]) -> None:
    pair, _ = biased
    base, tuned = pair.states("base", "mlp_out")[LAYER], pair.states("tuned", "mlp_out")[LAYER]
    place = Place(
        kind="mlp_out",
        subspaces={LAYER: subspace(pair, "mlp_out")},
        swapped={LAYER: [label_swapped(base, tuned, seed=i) for i in range(5)]},
    )
    found = edits(place, "base<-base", strengths=(0.5,), draws=5, seed=0)
    gained = {str(edit.control): float((pair.d_nats - effect(pair, "base", edit)).mean()) for edit in found if edit.strength is None}
    assert len(gained) == 11
    assert gained["None"] > 0
    assert max(value for name, value in gained.items() if "vector" in name) < 0.3 * gained["None"]
    assert max(abs(value) for name, value in gained.items() if "swap" in name) < 1e-6, "the planted shift cancels"


def test_kl_grows_as_the_square_of_a_small_strength(biased: tuple[planted.Planted, Tensor]) -> None:
    pair, vector = biased
    own = pair.logits("base")
    ratios = [float(kl_nats(own, run(pair, "base", one(add(s * vector)))).mean()) / s**2 for s in (0.02, 0.04, 0.08)]
    assert ratios[1] == pytest.approx(ratios[0], rel=0.05)
    assert ratios[2] == pytest.approx(ratios[0], rel=0.1)
    assert float(kl_nats(own, run(pair, "base", one(add(0 * vector)))).max()) < 1e-10


def test_everywhere_it_is_the_tuned_model(biased: tuple[planted.Planted, Tensor]) -> None:
    """The tuned model is the base with the vector added at every position: D is recovered to rounding, at last positions alone not."""
    pair, _ = biased
    edit = one(add(subspace(pair, "mlp_out").mean))
    ids = {f"p{i}": torch.tensor(prompt) for i, prompt in enumerate(pair.prompts)}
    reader = steering_formula.Reader(model=pair.base, prompts=ids, tokens=pico.same_tokens(259), max_rows=512)
    clean = CleanLogits(base=pair.logits("base"), tuned=pair.logits("tuned"))
    columns = {"direction": "base<-base", "split": "report"}
    rows = steering_formula.measure_effects(reader, [edit], clean, columns)
    assert set(rows["unit"]) == {"all_pos"}
    assert rows.filter(pl.col("metric") == "kl_other_nats")["value"].max() < 1e-8  # type: ignore[operator]
    last = steering_formula.measure_effects(reader, [edit], clean, columns, all_positions=False)
    assert last["unit"].null_count() == len(last)
    found = last.filter(pl.col("metric") == "kl_other_nats")["value"].to_torch()
    torch.testing.assert_close(
        found, effect(pair, "base", edit), atol=1e-7, rtol=1e-4, msg="the last prompt token alone is what replay does"
    )


def test_interchange_of_all_directions_is_the_full_patch() -> None:
    pair = planted.plant(validate_edits.edit_attention)
    states = {side: pair.states(side, "resid_post") for side in ("base", "tuned")}
    edit = one(interchange(torch.eye(64, dtype=torch.float64), states["tuned"][1]), "resid_post", "interchange", 1)
    for i, clean in enumerate(pair.cleans["base"]):
        variant = patch_variants("resid_post", [1], {1: states["tuned"][1][i : i + 1, None]})
        whole = replay(pair.base, [clean], variant)[0, 1]
        torch.testing.assert_close(run(pair, "base", edit)[i], whole.double(), atol=1e-4, rtol=1e-4)


def test_a_rank_two_edit_is_exchanged_in_two_directions() -> None:
    """P2: W_O changed by rank 2. The mean difference and one more direction hold all of it; the mean's alone does not."""
    pair = planted.plant(validate_edits.edit_attention, n_prompts=12)
    found = subspace(pair, "attn_out", 1)
    assert found.rank == 2, "the mean lies in the same two dimensions"
    other = pair.states("tuned", "attn_out")[1]
    patched = kl_nats(pair.logits("tuned")[:, None], pair.patched("base<-tuned", "attn_out"))[:, 1]
    whole = effect(pair, "base", one(interchange(found.basis, other), "attn_out", "interchange", 1))
    torch.testing.assert_close(whole, patched, atol=1e-6, rtol=1e-3)
    first = effect(pair, "base", one(interchange(found.leading(1), other), "attn_out", "interchange", 1))
    assert float((first - patched).abs().max()) > 1e-3


def test_identical_models_have_nothing_to_steer_with() -> None:
    pair = planted.plant(validate_edits.identical)
    place = Place(kind="resid_post", subspaces={LAYER: subspace(pair, "resid_post")})
    nothing = edits(place, "base<-base", strengths=(0.5,), draws=5, seed=0)
    assert [(edit.rank, edit.strength, edit.control) for edit in nothing] == [(0, None, None)]
    assert few(nothing) == []
    assert all(float(effect(pair, "base", edit).max()) < 1e-10 for edit in nothing)
    for direction in ("tuned<-tuned", "base<-tuned", "tuned<-base"):
        assert edits(place, direction, strengths=(0.5,), draws=5, seed=0) == []


def test_side_effects_of_nothing_are_nothing(biased: tuple[planted.Planted, Tensor]) -> None:
    pair, vector = biased
    neutral = {f"n{i}": torch.tensor([256, 7, 8, 9, *ids[1:]]) for i, ids in enumerate(pair.prompts)}
    kl = {}
    for s in (0.0, 1.0):
        reader = steering_formula.Reader(model=pair.base, prompts=neutral, tokens=pico.same_tokens(259), max_rows=512)
        alone = steering_formula.measure_side_effects(reader, [one(add(vector, s))], {})
        assert set(alone["metric"]) == set(steering_formula.SIDE_METRICS)
        assert (set(alone["prompt"]), set(alone["unit"])) == (set(neutral), {"all_pos"})
        kl[s] = alone.filter(pl.col("metric") == "side_kl_nats")["value"].to_list()
    assert max(kl[0.0]) < 1e-10
    assert min(kl[1.0]) > 1e-4
    ids = neutral["n0"]
    clean, tuned = (forward(model, ids[None], use_cache=False, logits_to_keep=0).logits[0] for model in (pair.base, pair.tuned))
    naive = side_effects(clean[4:], tuned[4:][None], ids[4:])
    assert kl[1.0][0] == pytest.approx(float(naive["side_kl_nats"]), rel=1e-3), (
        "of each prompt's own tokens; the tuned model is base + vector"
    )


# ---- the list of edits -------------------------------------------------------------------------------------------------------------


def subspaces_of(rank: int, seed: int) -> Subspace:
    mean = normal(12, seed=seed)
    basis = torch.linalg.qr(torch.cat([mean[:, None], normal(12, rank - 1, seed=seed + 1)], 1))[0]
    return Subspace(mean=mean, basis=basis, origin=normal(12, seed=seed + 2), relative_size=1.0, split_half_cosine=1.0)


def test_every_edit_is_named_once() -> None:
    place = Place(
        kind="resid_post",
        subspaces={3: subspaces_of(5, 0)},
        swapped={3: [normal(12, seed=i) for i in range(5)]},
        others={3: normal(6, 12, seed=9)},
    )
    for direction, n in (
        ("base<-base", 4 + 10),
        ("tuned<-tuned", 3 * 4 + 3 + 2 * 3 * 5),
        ("base<-tuned", 3 + 3 * 5),
        ("tuned<-base", 3 + 3 * 5),
    ):
        found = edits(place, direction, strengths=(0.5, 1.5, 2.0), draws=5, seed=0)
        labels = [tuple(edit.label().values()) for edit in found]
        assert len(set(labels)) == len(labels) == n
        assert {edit.arm for edit in found} == set(steering_formula.ARMS[direction])
        ranks = {edit.rank for edit in found}
        assert ranks == ({1} if direction == "base<-base" else {1, 2, 4}), "as many as there are"
        assert 0 < len(few(found)) < n
        assert all(edit.control is None for edit in few(found))


@pytest.mark.parametrize(("arm", "rank", "strength"), [("add", 1, 1.5), ("ablate", 4, None), ("amplify", 2, 2.0)])
def test_random_edits_are_as_large_as_the_real_one_at_the_same_dose(arm: str, rank: int, strength: float | None) -> None:
    place = Place(kind="resid_post", subspaces={3: subspaces_of(5, 0)})
    real = next(
        edit
        for edit in edits(place, "base<-base" if arm == "add" else "tuned<-tuned", strengths=(1.5, 2.0), draws=0, seed=0)
        if (edit.arm, edit.rank, edit.strength) == (arm, rank, strength)
    )
    states, found = normal(6, 12), random_edits(place, arm, rank, strength, draws=4, seed=0)
    assert [edit.control.rpartition("#")[2] for edit in found if edit.control] == ["0", "1", "2", "3"]
    for edit in found:
        assert {**edit.label(), "control": None} == real.label()
        written, drawn = (one.pushes[Site(3, "resid_post")](states) for one in (real, edit))
        torch.testing.assert_close(drawn.norm(dim=-1), written.norm(dim=-1))
        assert float(torch.cosine_similarity(written, drawn).abs().max()) < 0.999


def test_ablate_is_amplify_backwards() -> None:
    """Both about the base's mean: what one doubles the other takes off; without an origin the coordinates become 0."""
    states, basis, origin = normal(5, 12), random_basis(12, 3, seed=3), normal(12, seed=5)
    torch.testing.assert_close(ablate(basis, origin)(states), -amplify(basis, origin)(states))
    torch.testing.assert_close((states + ablate(basis, origin)(states)) @ basis, (origin @ basis).expand(5, -1))
    torch.testing.assert_close((states + ablate(basis)(states)) @ basis, torch.zeros(5, 3).double())


def test_a_window_edits_each_layer_with_its_own_directions() -> None:
    place = Place(kind="mlp_out", subspaces={1: subspaces_of(3, 0), 2: subspaces_of(2, 10)})
    (first, *_) = edits(place, "base<-base", strengths=(), draws=0, seed=0)
    states = normal(4, 12)
    for layer in (1, 2):
        torch.testing.assert_close(first.pushes[Site(layer, "mlp_out")](states), place.subspaces[layer].mean.expand_as(states))
    assert first.label()["unit"] == "window 2"
    assert first.label()["layer"] == 1
    assert first.label(all_positions=True)["unit"] == "window 2, all_pos"
    assert {edit.rank for edit in edits(place, "tuned<-tuned", strengths=(), draws=0, seed=0)} == {1, 2}, "what every layer has"
