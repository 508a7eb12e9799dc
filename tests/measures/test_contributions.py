"""Contributions of heads: identities of the measure, and what it refuses. Planted heads: mechdiff/validate/truths_heads.py."""

import pytest
import torch
from torch import nn

from mechdiff import errors
from mechdiff.architectures.sites import Site
from mechdiff.engine.distributions import kl_nats
from mechdiff.labels import CROSSED
from mechdiff.measures.heads import formula as heads_formula
from mechdiff.measures.heads.formula import swap, swap_across
from mechdiff.validate import edits
from mechdiff.validate.edits import N_LAYERS, Edit
from mechdiff.validate.planted import plant
from mechdiff.validate.truths_heads import Heads

N_HEADS = 8


def made(change: Edit, direction: str = "tuned<-base") -> Heads:
    return Heads(plant(change), direction)


def test_identical_models_have_nothing_to_swap() -> None:
    for direction in CROSSED:
        here = made(edits.identical, direction)
        block = here.block(1)
        assert block.change().abs().max() == 0
        assert kl_nats(here.clean[:, None], here.logits([swap(1, block.change(), range(N_HEADS))])).max() <= 1e-10
        assert heads_formula.noise_like(block, 0).abs().max() == 0


def test_all_heads_and_mlps_of_the_network_are_the_other_network_but_for_its_ends() -> None:
    """With the embedding, final norm and unembedding in common, every contribution of the tuned model makes its law."""

    def blocks_alone(net: nn.Module) -> None:
        for parameter in net.model.layers.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=edits.generator()) * 0.05)

    here = made(blocks_alone, "base<-tuned")
    blocks = {layer: here.block(layer) for layer in range(N_LAYERS)}
    mlps = {layer: here.pair.states("tuned", "mlp_out")[layer] for layer in range(N_LAYERS)}
    players = [(layer, head) for layer in range(N_LAYERS) for head in (*range(N_HEADS), None)]
    torch.testing.assert_close(here.effect([swap_across(players, blocks, mlps)])[:, 0], here.pair.d_nats, rtol=1e-4, atol=1e-6)
    one = here.effect([swap_across([(1, 3)], blocks, mlps), swap(1, blocks[1].change(), [3])])
    torch.testing.assert_close(one[:, 0], one[:, 1], rtol=1e-4, atol=1e-6)
    assert Site(1, "z") in swap_across([(1, 3)], blocks, mlps)


def test_a_mismatch_of_all_heads_and_the_whole_site_is_refused() -> None:
    good = torch.tensor([0.5, 0.0])
    heads_formula.refuse_mismatch("model", 3, good * (1 + 1e-5), good, 1e-10, torch.float32)
    with pytest.raises(errors.SelfCheckError, match=r"model: .* block 3 .* 0.4 nats on prompt 0"):
        heads_formula.refuse_mismatch("model", 3, torch.tensor([0.4, 0.0]), good, 1e-10, torch.float32)


def test_an_effect_of_no_head_is_refused() -> None:
    heads_formula.refuse_start("model", torch.tensor([1e-9, -1e-7]), torch.tensor([0.0, 2.0]), torch.float32)
    with pytest.raises(errors.SelfCheckError, match=r"with no head swapped v is 0.02 nats on prompt 1"):
        heads_formula.refuse_start("model", torch.tensor([0.0, 0.02]), torch.tensor([1.0, 2.0]), torch.float32)
