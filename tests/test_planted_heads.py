"""Planted truths of heads (METHOD C): which head was edited is known by construction, and contributions have to say it."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import planted
from mechdiff.engine.replay import Variant, replay
from mechdiff.engine.sites import Site
from mechdiff.measures import games, heads
from mechdiff.measures.heads import Block, fisher_weights, swap, swap_across, swap_z
from mechdiff.measures.outcome import kl_nats
from planted import D_HEAD, GROUP, HEAD, N_LAYERS, Planted, plant

N_HEADS = 8
DIRECTIONS = ("tuned<-base", "base<-tuned")


class Heads:
    """One direction of a planted pair: what heads contribute, and what swapping them does."""

    def __init__(self, pair: Planted, direction: str) -> None:
        self.pair, self.direction = pair, direction
        self.own, self.other = (pair.tuned, pair.base) if direction == "tuned<-base" else (pair.base, pair.tuned)
        self.clean = pair.logits(self.own.side).float()

    def block(self, layer: int = 1) -> Block:
        def output(net: nn.Module) -> Tensor:
            weight = net.model.layers[layer].self_attn.o_proj.weight.detach()
            return weight.reshape(len(weight), N_HEADS, D_HEAD).permute(1, 2, 0)

        own, other = (self.pair.states(model.side, "z")[layer].unflatten(1, (N_HEADS, D_HEAD)) for model in (self.own, self.other))
        return Block(layer=layer, own=own, other=other, w_own=output(self.own.net), w_other=output(self.other.net))

    def logits(self, variants: Sequence[Variant]) -> Tensor:
        """`[prompt, variant, vocab]`, one prompt a pass."""
        found = []
        for i, clean in enumerate(self.pair.cleans[self.own.side]):
            here = [{site: heads.Write(value=w.value[[i]], add=w.add, where=w.where) for site, w in one.items()} for one in variants]
            found.append(replay(self.own, [clean], here)[0, 1:])
        return torch.stack(found)

    def effect(self, variants: Sequence[Variant]) -> Tensor:
        """v `[prompt, variant]` in nats: breakage, or recovery."""
        logits = self.logits(variants).double()
        kl = kl_nats(self.pair.logits("tuned")[:, None], logits)
        return kl if self.own is self.pair.tuned else self.pair.d_nats[:, None] - kl

    def singles(self, layer: int = 1, arm: str = "contribution") -> Tensor:
        change = self.block(layer).change(arm)
        return self.effect([swap(layer, change, [head]) for head in range(N_HEADS)])

    def game(self, layer: int = 1) -> games.Game:
        change = self.block(layer).change()
        return games.Game(N_HEADS, lambda sets: self.effect([swap(layer, change, one) for one in sets]).T.numpy())

    def fisher(self, layer: int = 1) -> tuple[Tensor, Tensor]:
        """`fisher_nats` of each head `[prompt, head]` and of all `[prompt]`."""
        change = self.block(layer).change()
        moved = (
            self.logits([swap(layer, change, one) for one in [*([head] for head in range(N_HEADS)), range(N_HEADS)]]) - self.clean[:, None]
        )
        weights = fisher_weights(moved[:, -1], self.clean)
        found = torch.einsum("prv,pv->pr", moved, weights)
        return found[:, :-1], found[:, -1]


def made(change: Callable[[nn.Module], None], **how: object) -> dict[str, Heads]:
    pair = plant(change, **how)  # type: ignore[arg-type]
    return {direction: Heads(pair, direction) for direction in DIRECTIONS}


@pytest.fixture(scope="module")
def p4() -> dict[str, dict[str, Heads]]:
    edits = {"a": planted.edit_head_output, "b": planted.edit_head_query, "c": planted.edit_group_value}
    return {name: made(edit) for name, edit in edits.items()}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("edit", ["a", "b"])
def test_p4_the_edited_head_has_all_of_it(p4: dict[str, dict[str, Heads]], edit: str, direction: str) -> None:
    here = p4[edit][direction]
    singles, everyone = here.singles(), here.effect([swap(1, here.block().change(), range(N_HEADS))])
    assert everyone.mean() > 1e-3
    rounding = 1e-9 if direction == "tuned<-base" else 2e-6  # D - KL(tuned || run) is rounded to the first order in the logits
    torch.testing.assert_close(singles[:, HEAD], everyone[:, 0], rtol=1e-4, atol=rounding)
    others = torch.cat([singles[:, :HEAD], singles[:, HEAD + 1 :]], 1)
    assert others.abs().max() <= rounding


@pytest.mark.parametrize("edit", ["a", "b"])
def test_p4_shapley_and_greedy_name_the_edited_head(p4: dict[str, dict[str, Heads]], edit: str) -> None:
    game = p4[edit]["tuned<-base"].game()
    shapley = games.shapley_exact(game)
    everyone = game.value(game.everyone)
    np.testing.assert_allclose(shapley[HEAD], everyone, rtol=1e-4, atol=1e-9)
    assert np.abs(np.delete(shapley, HEAD, 0)).max() <= 1e-6 * everyone.max()
    assert games.greedy(game, 2)[0] == HEAD


def test_p4_only_what_the_head_reads_or_writes_has_changed(p4: dict[str, dict[str, Heads]]) -> None:
    z = {edit: p4[edit]["tuned<-base"].effect([swap_z(p4[edit]["tuned<-base"].block(), range(N_HEADS))]).mean() for edit in ("a", "b")}
    whole = {
        edit: p4[edit]["tuned<-base"].effect([swap(1, p4[edit]["tuned<-base"].block().change(), range(N_HEADS))]).mean()
        for edit in ("a", "b")
    }
    assert z["a"] <= 1e-11, "an edit of W_O leaves z as it is: swapping z finds nothing (A24)"
    assert z["b"] == pytest.approx(float(whole["b"]), rel=1e-5)
    for edit, zero, all_of_it in (("a", "routing", "write"), ("b", "write", "routing")):
        assert p4[edit]["tuned<-base"].singles(arm=zero)[:, HEAD].max() <= 1e-11
        torch.testing.assert_close(p4[edit]["tuned<-base"].singles(arm=all_of_it), p4[edit]["tuned<-base"].singles(), rtol=1e-4, atol=1e-9)


def test_p4c_a_groups_values_are_the_groups_heads(p4: dict[str, dict[str, Heads]]) -> None:
    here = p4["c"]["tuned<-base"]
    change, singles = here.block().change(), here.singles()
    members = [2 * GROUP, 2 * GROUP + 1]
    assert (singles[:, members].mean(0) > 1e-4).all()
    assert singles[:, [head for head in range(N_HEADS) if head not in members]].max() <= 1e-9
    group, everyone = here.effect([swap(1, change, members), swap(1, change, range(N_HEADS))]).unbind(1)
    torch.testing.assert_close(group, everyone, rtol=1e-5, atol=1e-9)


def test_p10_another_basis_of_the_heads_is_no_effect_and_z_swap_invents_one() -> None:
    for direction, here in made(planted.turn_head_values).items():
        assert here.pair.d_nats.max() < 1e-10
        for layer in range(N_LAYERS):
            moved = here.logits([swap(layer, here.block(layer).change(), range(N_HEADS))])
            assert kl_nats(here.clean[:, None], moved).max() <= 1e-10, direction
        invented = here.logits([swap_z(here.block(), range(N_HEADS))])
        assert kl_nats(here.clean[:, None], invented).mean() > 0.05, "which is why contributions are swapped (A24)"


def test_p14_heads_that_cancel_have_no_coverage_and_an_interaction() -> None:
    here = made(planted.cancel_heads, prepare=planted.twin_heads)["tuned<-base"]
    game = here.game()
    first, second, both = (game.value(frozenset(one)).mean() for one in ({0}, {1}, {0, 1}))
    assert min(first, second) > 0.01
    assert both <= 1e-9
    assert game.value(game.everyone).mean() <= 1e-9, "no effect to explain: a coverage would be a ratio of rounding"
    assert games.interaction(game, 0, 1).mean() == pytest.approx(-(first + second), rel=1e-6)


def test_p15_heads_that_change_alike_share_the_effect() -> None:
    here = made(planted.scale_heads(0.02), n_prompts=40)["tuned<-base"]
    single, everyone = here.fisher()
    assert float(single.sum(1).mean() / everyone.mean()) == pytest.approx(1, abs=0.02)
    shapley = games.shapley_exact(here.game()).mean(1)
    share = np.abs(shapley) / np.abs(shapley).sum()
    assert 1 / (share**2).sum() > 0.8 * N_HEADS
    quadratic = games.shapley_two_point(here.game()).mean(1)
    np.testing.assert_allclose(quadratic, shapley, atol=0.02 * np.abs(shapley).sum())


def test_identical_models_have_nothing_to_swap() -> None:
    for here in made(planted.identical).values():
        block = here.block()
        assert block.change().abs().max() == 0
        assert kl_nats(here.clean[:, None], here.logits([swap(1, block.change(), range(N_HEADS))])).max() <= 1e-10
        assert heads.noise_like(block, 0).abs().max() == 0


def test_all_heads_and_mlps_of_the_network_are_the_other_network_but_for_its_ends() -> None:
    """With the embedding, final norm and unembedding in common, every contribution of the tuned model makes its law."""

    def blocks_alone(net: nn.Module) -> None:
        for parameter in net.model.layers.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=planted.generator()) * 0.05)

    here = made(blocks_alone)["base<-tuned"]
    blocks = {layer: here.block(layer) for layer in range(N_LAYERS)}
    mlps = {layer: here.pair.states("tuned", "mlp_out")[layer] for layer in range(N_LAYERS)}
    players = [(layer, head) for layer in range(N_LAYERS) for head in (*range(N_HEADS), None)]
    torch.testing.assert_close(here.effect([swap_across(players, blocks, mlps)])[:, 0], here.pair.d_nats, rtol=1e-4, atol=1e-6)
    one = here.effect([swap_across([(1, 3)], blocks, mlps), swap(1, blocks[1].change(), [3])])
    torch.testing.assert_close(one[:, 0], one[:, 1], rtol=1e-4, atol=1e-6)
    assert Site(1, "z") in swap_across([(1, 3)], blocks, mlps)


def test_names_of_players_and_sets() -> None:
    for player in ((26, 3), (5, None), (0, 11)):
        assert heads.player_named(heads.player_name(player)) == player
    assert [heads.player_name(one) for one in ((26, 3), (5, None))] == ["L26.head 3", "L5.mlp"]
    assert [heads.unit(one, 4) for one in ([2], [3, 0], range(4))] == ["head 2", "heads 0,3", "all"]


def test_a_mismatch_of_all_heads_and_the_whole_site_is_refused() -> None:
    good = torch.tensor([0.5, 0.0])
    heads.refuse_mismatch("model", 3, good * (1 + 1e-5), good, 1e-10, torch.float32)
    with pytest.raises(heads.SelfCheckError, match=r"model: .* block 3 .* 0.4 nats on prompt 0"):
        heads.refuse_mismatch("model", 3, torch.tensor([0.4, 0.0]), good, 1e-10, torch.float32)


def test_an_effect_of_no_head_is_refused() -> None:
    heads.refuse_start("model", torch.tensor([1e-9, -1e-7]), torch.tensor([0.0, 2.0]), torch.float32)
    with pytest.raises(heads.SelfCheckError, match=r"with no head swapped v is 0.02 nats on prompt 1"):
        heads.refuse_start("model", torch.tensor([0.0, 0.02]), torch.tensor([1.0, 2.0]), torch.float32)
