"""The overlap of runs with the difference of two models: naive formulas, exact identities, a network whose truth is known."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mechdiff.audit import whole
from mechdiff.engine.distributions import kl_nats
from mechdiff.engine.overlap import overlap_nats, total_nats
from mechdiff.measures.heads.formula import swap
from mechdiff.validate import edits, planted
from mechdiff.validate.truths_heads import Heads


def laws(seed: int, *shape: int, size: float = 1.0) -> Tensor:
    return size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive(run: Tensor, own: Tensor, other: Tensor, steps: int = 400) -> float:
    """The mean of Cov_{p_s}(run - own, other - own) along the straight line of logits, by the midpoint rule, halved."""
    x, y, found = run - own, other - own, 0.0
    for i in range(steps):
        p = (own + (i + 0.5) / steps * y).softmax(-1)
        found += float((p * x * y).sum() - (p * x).sum() * (p * y).sum()) / steps
    return found / 2


@pytest.mark.parametrize("size", [0.01, 1.0, 5.0])
def test_it_is_the_fisher_projection_averaged_along_the_way(size: float) -> None:
    own = laws(0, 3, 50, size=2.0)
    other, runs = own + laws(1, 3, 50, size=size), own[:, None] + laws(2, 3, 4, 50, size=size)
    found = overlap_nats(runs, own, other)
    expected = [[naive(runs[i, j], own[i], other[i]) for j in range(4)] for i in range(3)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-9)
    again = [[whole.overlap(own[i], other[i], runs[i, j]) for j in range(4)] for i in range(3)]
    np.testing.assert_allclose(found.numpy(), again, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("size", [1e-3, 1.0, 6.0])
def test_the_whole_change_is_half_of_both_divergences(size: float) -> None:
    base, tuned = laws(0, 5, 80), laws(0, 5, 80) + laws(1, 5, 80, size=size)
    total = (kl_nats(tuned, base) + kl_nats(base, tuned)) / 2
    torch.testing.assert_close(total_nats(base, tuned), total)
    for own, other in ((base, tuned), (tuned, base)):
        torch.testing.assert_close(overlap_nats(other[:, None], own, other)[:, 0], total, rtol=1e-6, atol=1e-12)
        assert (overlap_nats(own[:, None], own, other) == 0).all()


def test_overlaps_add_and_do_not_see_a_shift_of_all_logits() -> None:
    own, other = laws(0, 2, 30), laws(1, 2, 30)
    one, two = laws(2, 2, 30, size=0.4), laws(3, 2, 30, size=0.4)
    parts = overlap_nats(torch.stack([own + one, own + two, own + one + two, own + one + 7.0], 1), own, other)
    torch.testing.assert_close(parts[:, 0] + parts[:, 1], parts[:, 2])
    torch.testing.assert_close(parts[:, 3], parts[:, 0])


@pytest.mark.parametrize("strength", [0.1, 1.0, 8.0])
def test_shares_of_a_linear_network_do_not_hang_on_the_size(strength: float) -> None:
    """Logits that are a sum over parts: each part's share of the whole is its own, at any strength of one direction."""
    own, parts = laws(0, 1, 40), laws(1, 6, 40)
    parts[1:] = parts[0] * torch.tensor([2.0, 0.5, -0.3, 0.0, 1.0], dtype=torch.float64)[:, None]
    other = own + strength * parts.sum(0)
    shares = overlap_nats(own[:, None] + strength * parts, own, other)[0] / total_nats(own, other)[0]
    torch.testing.assert_close(shares, torch.tensor([1, 2, 0.5, -0.3, 0, 1.0], dtype=torch.float64) / 4.2, rtol=1e-6, atol=1e-12)
    assert float(shares.sum()) == pytest.approx(1)


def test_two_vocabularies_are_compared_on_the_tokens_that_both_have() -> None:
    own, other, runs = laws(0, 2, 30), laws(1, 2, 30), laws(2, 2, 3, 30)
    own[:, 25:] = -math.inf
    runs[..., 25:] = -math.inf
    found = overlap_nats(runs, own, other, 20)
    torch.testing.assert_close(found, overlap_nats(runs[..., :20], own[:, :20], other[:, :20]))
    torch.testing.assert_close(total_nats(own, other, 20), total_nats(own[:, :20], other[:, :20]))
    assert overlap_nats(runs, own, other).isfinite().all(), "a token that the running model excludes cannot be moved"


def test_float32_is_enough_for_small_edits() -> None:
    own = laws(0, 1, 50_000, size=3.0)
    other, run = own + laws(1, 1, 50_000, size=0.05), own + laws(2, 1, 50_000, size=1e-3)
    exact, found = overlap_nats(run[:, None], own, other), overlap_nats(run[:, None].float(), own.float(), other.float())
    assert float(found) == pytest.approx(float(exact), rel=1e-2, abs=1e-8)


# ---- in a network -------------------------------------------------------------------------------------------------------------------


def small(net: edits.Net) -> None:
    """A small change of every matrix of the blocks."""
    for i, weight in enumerate(p for p in net.model.layers.parameters() if p.ndim == 2):
        edits.add_low_rank(weight, 2, 0.01, seed=i)


def overlaps_of(pair: planted.Planted, direction: str, logits: Tensor) -> Tensor:
    own, other = direction.split("<-")
    return overlap_nats(logits, pair.logits(own), pair.logits(other))


@pytest.mark.parametrize("direction", ["tuned<-base", "base<-tuned"])
def test_the_last_block_s_output_carries_all_of_it(direction: str) -> None:
    pair = planted.plant(small)
    found = overlaps_of(pair, direction, pair.patched(direction, "resid_post"))
    total = total_nats(pair.logits("base"), pair.logits("tuned"))
    torch.testing.assert_close(found[:, -1], total, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("direction", ["tuned<-base", "base<-tuned"])
def test_the_heads_of_a_block_add_up_to_all_of_them(direction: str) -> None:
    here = Heads(planted.plant(small), direction)
    for layer in range(edits.N_LAYERS):
        change = here.block(layer).change()
        runs = here.logits([swap(layer, change, one) for one in (*([head] for head in range(here.n_heads)), range(here.n_heads))])
        found = overlaps_of(here.pair, direction, runs.double())
        torch.testing.assert_close(found[:, :-1].sum(1), found[:, -1], rtol=0.05, atol=0.01 * float(found.abs().max()))


def test_one_matrix_in_the_last_mlp_is_one_site_at_any_strength() -> None:
    """The last block's MLP alone differs: of all that blocks write, that one site has all of the overlap, exactly."""
    for size in (0.02, 0.2, 2.0):
        pair = planted.plant(lambda net, size=size: edits.add_low_rank(net.model.layers[-1].mlp.down_proj.weight, 2, size))
        total = total_nats(pair.logits("base"), pair.logits("tuned"))
        for direction in ("tuned<-base", "base<-tuned"):
            shares = {
                kind: overlaps_of(pair, direction, pair.patched(direction, kind)) / total[:, None] for kind in ("attn_out", "mlp_out")
            }
            torch.testing.assert_close(shares["mlp_out"][:, -1], torch.ones_like(total), rtol=1e-3, atol=1e-3)
            assert shares["attn_out"].abs().max() < 1e-3
            assert shares["mlp_out"][:, :-1].abs().max() < 1e-3
