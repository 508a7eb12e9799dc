"""Which head was edited is known, and measures of heads have to say it (METHOD C: P4, P8, P10, P14, P15)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mechdiff import labels
from mechdiff.engine.choice import engine_for
from mechdiff.engine.distributions import kl_nats
from mechdiff.engine.overlap import overlap_nats, total_nats
from mechdiff.engine.replay import ENGINES, Variant, Write
from mechdiff.measures.heads import shapley as heads_shapley
from mechdiff.measures.heads.formula import Block, fisher_weights, swap, swap_z
from mechdiff.models.pair import Model, wrap
from mechdiff.validate import edits
from mechdiff.validate.checks import Check, above, at_most, near, same
from mechdiff.validate.edits import GROUP, HEAD, Edit
from mechdiff.validate.planted import Bench, Planted
from mechdiff.validate.truths import first_order_nats

MANY = 40
"""Prompts, where heads are told apart by their means over them."""
EXACT_UP_TO = 12
"""Heads of a block up to which Shapley values are exact."""


def by_head(model: Model, layer: int) -> Tensor:
    """`[head, d_head, d]`: one block's output projection."""
    weight = edits.attention_output(model.net, layer).detach()
    return weight.reshape(len(weight), model.shape.n_heads, model.shape.d_head).permute(1, 2, 0)


@dataclass
class Heads:
    """One direction of a planted pair: what heads contribute, and what swapping them does."""

    pair: Planted
    direction: str = "tuned<-base"

    @property
    def own(self) -> Model:
        return self.pair.tuned if self.direction == "tuned<-base" else self.pair.base

    @property
    def other(self) -> Model:
        return self.pair.base if self.direction == "tuned<-base" else self.pair.tuned

    @cached_property
    def clean(self) -> Tensor:
        return self.pair.logits(self.own.side).float()

    @property
    def n_heads(self) -> int:
        return self.own.shape.n_heads

    def block(self, layer: int) -> Block:
        width = self.own.shape.d_head
        if "z" not in self.own.kinds():
            raise edits.Absent("its blocks do not all have heads")
        own, other = (self.pair.states(model.side, "z")[layer].unflatten(1, (self.n_heads, width)) for model in (self.own, self.other))
        return Block(layer=layer, own=own, other=other, w_own=by_head(self.own, layer), w_other=by_head(self.other, layer))

    def logits(self, variants: Sequence[Variant]) -> Tensor:
        """`[prompt, variant, vocab]`, one prompt a pass."""
        run = ENGINES[engine_for(self.own.config)[0]]
        found = []
        for i, clean in enumerate(self.pair.cleans[self.own.side]):
            here = [{site: Write(value=w.value[[i]], add=w.add, where=w.where) for site, w in one.items()} for one in variants]
            found.append(run(self.own, [clean], here)[0, 1:])
        return torch.stack(found)

    def effect(self, variants: Sequence[Variant]) -> Tensor:
        """v `[prompt, variant]` in nats: breakage, or recovery."""
        kl = kl_nats(self.pair.logits("tuned")[:, None], self.logits(variants).double())
        return kl if self.own is self.pair.tuned else self.pair.d_nats[:, None] - kl

    def singles(self, layer: int, arm: str = "contribution") -> Tensor:
        """v of each head alone, `[prompt, head]`."""
        change = self.block(layer).change(arm)
        return self.effect([swap(layer, change, [head]) for head in range(self.n_heads)])

    def ways(self, layer: int) -> tuple[Tensor, Tensor]:
        """Overlap with the difference of the models, a share that adds: of each head `[prompt, head]` and of all `[prompt]`, in nats."""
        change = self.block(layer).change()
        moved = self.logits([swap(layer, change, one) for one in [*([head] for head in range(self.n_heads)), range(self.n_heads)]])
        found = overlap_nats(moved.double(), self.pair.logits(self.own.side), self.pair.logits(self.other.side))
        return found[:, :-1], found[:, -1]

    def everyone(self, layer: int) -> Tensor:
        """v of all heads of a block together, `[prompt]`."""
        return self.effect([swap(layer, self.block(layer).change(), range(self.n_heads))])[:, 0]

    def game(self, layer: int) -> heads_shapley.Game:
        change = self.block(layer).change()
        return heads_shapley.Game(self.n_heads, lambda sets: self.effect([swap(layer, change, one) for one in sets]).T.numpy())

    def fisher(self, layer: int, more: Sequence[Sequence[int]] = ()) -> tuple[Tensor, Tensor]:
        """`fisher_nats` of each head and of `more` sets `[prompt, set]`, and of all `[prompt]`."""
        change = self.block(layer).change()
        sets = [*([head] for head in range(self.n_heads)), *more, range(self.n_heads)]
        moved = self.logits([swap(layer, change, one) for one in sets]) - self.clean[:, None]
        found = torch.einsum("prv,pv->pr", moved, fisher_weights(moved[:, -1], self.clean))
        return found[:, :-1], found[:, -1]


def shapley_of(game: heads_shapley.Game) -> np.ndarray:
    """`[head]`: of the mean effect; of blocks with many heads, from 32 orders and their reverses."""
    if game.n <= EXACT_UP_TO:
        return heads_shapley.shapley_exact(game).mean(1)
    return heads_shapley.shapley_sampled(game, heads_shapley.permutations(game.n, 64, seed=0))[0].mean(1)


def effective(shapley: np.ndarray) -> float:
    """The effective number of heads."""
    share = np.abs(shapley) / np.abs(shapley).sum()
    return float(1 / (share**2).sum())


def p4a(bench: Bench) -> Iterator[Check]:
    """Noise on one head's columns of one block's W_O."""
    yield from _one_head(bench, lambda net: edits.edit_head_output(net, bench.layer), zero="routing", all_of_it="write")


def p4b(bench: Bench) -> Iterator[Check]:
    """Noise on one head's rows of one block's W_Q."""
    yield from _one_head(bench, edits.edit_head_query, zero="write", all_of_it="routing")


def _one_head(bench: Bench, edit: Edit, *, zero: str, all_of_it: str) -> Iterator[Check]:
    pair, layer = bench.plant(edit), bench.layer
    for direction in labels.CROSSED:
        here = Heads(pair, direction)
        singles, everyone = here.singles(layer), here.everyone(layer)
        # D - KL(tuned || run) is rounded to the first order in the logits, KL(tuned || tuned') to the second.
        rounding = 1e-9 if direction == "tuned<-base" else 5e-6 if bench.tiny else first_order_nats(bench, pair)
        yield above(f"{direction}: effect of all heads in nats", everyone.mean(), 3 * rounding)
        within = max(1e-3, rounding / float(everyone.mean()))
        yield near(f"{direction}: the edited head's effect, over that of all", singles[:, HEAD].mean() / everyone.mean(), 1, within)
        ways, together = here.ways(layer)
        felt = max(1e-3, first_order_nats(bench, pair) / float(together.mean()))
        yield near(f"{direction}: the same of its part of the way in logits", ways[:, HEAD].mean() / together.mean(), 1, felt)
        others = np.delete(singles.numpy(), HEAD, 1)
        yield at_most(f"{direction}: any other head's effect in nats", np.abs(others), rounding)
    here = Heads(pair)
    game = here.game(layer)
    shapley, everyone = shapley_of(game), here.everyone(layer)
    yield near("Shapley value of the edited head, over the effect of all", shapley[HEAD] / float(everyone.mean()), 1, 1e-3)
    yield near("effective number of heads", effective(shapley), 1, 1e-3)
    yield same("the first pick of the greedy order", heads_shapley.greedy(game, 1), [HEAD])
    by_z = here.effect([swap_z(here.block(layer), range(here.n_heads))])[:, 0].mean()
    yield near("z swapped instead of contributions, over the effect of all", by_z / everyone.mean(), float(zero == "write"), 1e-4)
    yield at_most(f"the head's {zero} part alone in nats", here.singles(layer, zero)[:, HEAD].abs(), 1e-9)
    yield near(f"its {all_of_it} part, over the effect of all", here.singles(layer, all_of_it)[:, HEAD].mean() / everyone.mean(), 1, 1e-3)


def p4c(bench: Bench) -> Iterator[Check]:
    """Noise on one key-value group's rows of one block's W_V."""
    here, members = Heads(bench.plant(edits.edit_group_value)), [2 * GROUP, 2 * GROUP + 1]
    singles, change = here.singles(bench.layer), here.block(bench.layer).change()
    yield above("effect of each of the group's heads in nats", singles[:, members].mean(0), 1e-5)
    yield at_most("effect of any other head in nats", np.delete(singles.numpy(), members, 1), 1e-9)
    group = here.effect([swap(bench.layer, change, members)])[:, 0]
    yield near("effect of the group as one, over that of all heads", group.mean() / here.everyone(bench.layer).mean(), 1, 1e-5)
    ways, together = here.ways(bench.layer)
    yield above("part of the way in logits of each of the group's heads, over that of all", ways[:, members].mean(0) / together.mean(), 0)
    felt = max(1e-3, first_order_nats(bench, here.pair) / float(together.mean()))
    others = np.delete(ways.mean(0).numpy(), members) / float(together.mean())
    yield near("any other head's part of the way in logits, over that of all", others, 0, felt)


def p8(bench: Bench) -> Iterator[Check]:
    """A little noise on every matrix: no head stands out."""
    here = Heads(bench.plant(edits.add_noise(0.01), n_prompts=MANY))
    yield above("effective number of heads, of all", effective(shapley_of(here.game(bench.layer))) / here.n_heads, 0.8)
    fisher = here.fisher(bench.layer)[0].mean(0).numpy()
    yield at_most("largest share of a head", np.abs(fisher).max() / np.abs(fisher).sum(), 0.5)
    ways, together = here.ways(bench.layer)
    yield near("heads' parts of the way in logits, summed, over that of all heads", ways.sum(1).mean() / together.mean(), 1, 0.02)


def p10(bench: Bench) -> Iterator[Check]:
    """Every head's values in another basis, undone in its output matrix: the same function."""
    for direction in labels.CROSSED:
        here = Heads(bench.plant(edits.turn_head_values), direction)
        yield at_most(f"{direction}: D in nats", here.pair.d_nats, 1e-10)
        moved = [here.logits([swap(layer, here.block(layer).change(), range(here.n_heads))]) for layer in range(here.pair.n_layers)]
        yield at_most(f"{direction}: swapping all contributions of any block, nats", [_from_clean(here, one).max() for one in moved], 1e-10)
        invented = here.logits([swap_z(here.block(bench.layer), range(here.n_heads))])
        yield above(f"{direction}: what swapping z invents, nats", _from_clean(here, invented).mean(), 0.05)


def _from_clean(here: Heads, logits: Tensor) -> Tensor:
    return kl_nats(here.clean[:, None], logits)


def p14(bench: Bench) -> Iterator[Check]:
    """Two heads whose edits cancel."""
    here = Heads(bench.plant(edits.cancel_heads, prepare=edits.twin_heads))
    game = here.game(bench.layer)
    first, second, both = (float(game.value(frozenset(one)).mean()) for one in ({0}, {1}, {0, 1}))
    yield above("effect of each alone in nats", [first, second], 0.01)
    yield at_most("effect of both in nats", both, 1e-9)
    yield at_most("effect of all heads in nats: no coverage can be given", game.value(game.everyone).mean(), 1e-9)
    total = total_nats(here.pair.logits("base"), here.pair.logits("tuned"))
    yield at_most("nats that their parts of the way in logits would be shares of: none can be given", total, 1e-9)
    yield near("their interaction, over minus the sum of both", heads_shapley.interaction(game, 0, 1).mean() / -(first + second), 1, 1e-6)


def p15(bench: Bench) -> Iterator[Check]:
    """Every W_O times 1.02."""
    if wrap(bench.net, side="base", ref="base").family.attn_norm:
        raise edits.Absent("a norm after the attention's output takes its scale away")
    here = Heads(bench.plant(edits.scale_heads(0.02), n_prompts=MANY))
    pairs = [(i, i + 1) for i in range(0, here.n_heads - 1, 2)]
    found, everyone = here.fisher(bench.layer, pairs)
    single, both = found[:, : here.n_heads], found[:, here.n_heads :]
    yield near("Fisher-projected coverages of all heads, summed", single.sum(1).mean() / everyone.mean(), 1, 0.02)
    beyond = [float((both[:, at] - single[:, i] - single[:, j]).mean() / everyone.mean()) for at, (i, j) in enumerate(pairs)]
    yield near("interaction of any two heads in that currency, over all heads: changes that add", beyond, 0, 0.02)
    ways, together = here.ways(bench.layer)
    yield near("heads' parts of the way in logits, summed, over that of all heads", ways.sum(1).mean() / together.mean(), 1, 0.02)
    if bench.tiny:  # whose heads are all of about one size
        game = here.game(bench.layer)
        shapley = shapley_of(game)
        yield above("effective number of heads, of all", effective(shapley) / here.n_heads, 0.8)
        yield near("Shapley values, summed, over the effect of all", shapley.sum() / game.value(game.everyone).mean(), 1, 1e-9)
