"""A bench holds what the heads of some prompts contribute in both models, and runs one model with some of them swapped."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from mechdiff import labels, shares
from mechdiff.architectures.lookup import family_of, shape_of
from mechdiff.architectures.sizes import QUANTIZED
from mechdiff.engine.counterfactuals import Along, Scores, labelled
from mechdiff.engine.replay import Variant
from mechdiff.errors import ModelError
from mechdiff.measures.divergence.formula import total_effect
from mechdiff.measures.heads import formula, shapley
from mechdiff.measures.heads.formula import Block
from mechdiff.models.changes import Change
from mechdiff.models.pair import DTYPES, SIDES, Model, Pair, Side, is_quantized
from mechdiff.models.projections import Layout, layout_of
from mechdiff.models.quantization import rounded
from mechdiff.rows import OVERLAP
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution

AT_ONCE = 512
"""Sets whose written states are in memory together."""


class Bench:
    """What the heads of some prompts contribute in both models, and runs of the model of a direction in which they are swapped."""

    def __init__(self, run: Execution, cell: Cell, model: Model) -> None:
        self.run, self.cell, self.model, self.direction = run, cell, model, cell.key["direction"]
        self.theirs = "base" if model.side == "tuned" else "tuned"
        self.states = {side: run.states(side, cell.key["split"], "decision", cell.key["ids"]) for side in ("base", "tuned")}
        self.tokens = run.prepared.tokens
        self.metric = shares.effect(self.direction, shared=not self.tokens.all_shared)
        """What v is made of."""
        self.breaks = self.metric != shares.OTHER
        self.way = "fisher_nats" if self.breaks else OVERLAP
        """What sets of one block's heads are measured by in a currency that adds: away from its own law how far they go the way of all heads, by that
        law; towards the other's, how far they go there: what the base's own law hardly says is most of that."""
        self.total = total_effect(self.states["base"].logits, self.states["tuned"].logits, self.tokens)
        """`[prompt]`: D."""

    def block(self, layer: int) -> Block:
        """One block's heads on the cell's prompts."""
        return block(self.run, layer, {side: self.state(side, "z", layer) for side in ("base", "tuned")}, self.model.side)

    def state(self, side: str, kind: str, layer: int) -> Float[Tensor, "prompt d"]:
        return self.states[side].kinds[kind][layer, :, 0]

    def effect(self, found: Scores) -> Float64[Tensor, "prompt variant"]:
        """v of every variant, in nats; that of none, which is the unedited run's, must be 0."""
        v = found[self.metric] if self.breaks else self.total[:, None] - found[self.metric]
        formula.refuse_start(self.model.ref, v[:, 0], self.total, self.model.dtype)
        return v[:, 1:]

    def as_metric(self, v: Float64[np.ndarray, " prompt"]) -> Float64[np.ndarray, " prompt"]:
        """The value of the direction's metric that makes this v."""
        return v if self.breaks else self.total.numpy() - v

    def fisher(self, everyone: Sequence[Variant]) -> Float[Tensor, "variant prompt vocab"]:
        """The weights of `fisher_nats` towards each of these runs."""
        return torch.stack([self.fisher_weights(moved) for moved in self.run.moved(self.cell, self.model, everyone).unbind(1)])

    def fisher_weights(self, moved: Float[Tensor, "prompt vocab"]) -> Float[Tensor, "prompt vocab"]:
        """Those of `fisher_nats` towards a run that moved the logits so."""
        return formula.fisher_weights(moved, self.states[self.model.side].logits, self.tokens.n_shared)

    def game(
        self, layer: int, change: Float[Tensor, "prompt head d"], ways: dict[shapley.Coalition, np.ndarray] | None = None
    ) -> shapley.Game:
        """The game of one block's heads. `ways` is given `self.way` `[prompt]` of each set that is run: how far it goes."""
        everyone = range(change.shape[1])
        towards = self.fisher([formula.swap(layer, change, everyone)]) if ways is not None and self.breaks else None
        metrics = (self.metric,) if ways is None or self.breaks else (self.metric, self.way)

        def evaluate(coalitions: Sequence[shapley.Coalition]) -> np.ndarray:
            parts = []
            for start in range(0, len(coalitions), AT_ONCE):
                here = coalitions[start : start + AT_ONCE]
                along = None if towards is None else Along(name="fisher_nats", weights=towards, which=[0] * len(here))
                found = self.scores([formula.swap(layer, change, one) for one in here], metrics, along)
                if ways is not None:
                    ways.update(zip(here, found[self.way][:, 1:].T.numpy(), strict=True))
                parts.append(self.effect(found))
            return torch.cat(parts, 1).T.numpy()

        return shapley.Game(change.shape[1], evaluate)

    def scores(self, variants: Sequence[Variant], metrics: Sequence[str], along: Along | None = None) -> Scores:
        return self.run.scores(self.cell, self.model, variants, metrics, along)


def block(run: Execution, layer: int, z: Mapping[str, Float[Tensor, "prompt *pos z"]], runs: str) -> Block:
    """One block's heads from both models' z, at the decision position or at several; `runs` is the side of the running model."""
    other = "base" if runs == "tuned" else "tuned"
    weights = {side: output_of(run, side, layer)[0] for side in ("base", "tuned")}
    n_heads = len(weights[runs])
    own, theirs = (z[side].unflatten(-1, (n_heads, -1)) for side in (runs, other))
    return Block(layer=layer, own=own, other=theirs, w_own=weights[runs], w_other=weights[other])


def output_of(run: Execution, side: str, layer: int) -> tuple[Float[Tensor, "head d_head d"], Float[Tensor, " d"]]:
    """One model's output projection by head, and its bias, in float32 as the model holds them. ModelError: not in the files."""
    return run.once(("output projection", side, layer), lambda: _output(run, side, layer))


def proof(run: Execution) -> None:
    """Raises ModelError where the heads of a model cannot be told apart."""
    for side in SIDES:
        for layer in range(shape_of(run.prepared.pair.config(side)).n_layers):
            _output(run, side, layer)


def _output(run: Execution, side: str, layer: int) -> tuple[Float[Tensor, "head d_head d"], Float[Tensor, " d"]]:
    pair, changes = run.prepared.pair, run.changes

    def read(name: str) -> Tensor | None:
        if name not in changes:
            return None
        return _held(changes.change(name), side, pair)

    found = head_layout(run).output(layer, read)
    if isinstance(found, str):
        raise ModelError(
            f"{pair.base.ref}, {pair.tuned.ref}: heads cannot be separated in block {layer}: {found}. Leave the measures heads and attribution out."
        )
    return found


def _held(change: Change, side: str, pair: Pair) -> Tensor:
    """One model's tensor, in float32, as the model holds it."""
    own = change.base if side == "base" else change.after()
    if is_quantized(pair.config(cast(Side, side))):
        return own.float()
    if pair.dtype not in QUANTIZED or own.ndim < 2:
        return own.to(DTYPES[pair.dtype]).float()
    if side == "base" or not pair.tuned.adapter:
        return rounded(own, pair.dtype)
    if change.tuned is not None:
        raise ModelError(
            f"{pair.tuned.ref}: its change of {change.name} is not two factors' product, so what it is beside a base in {pair.dtype} is not known. "
            "Leave the measures heads and attribution out, or give float32, bfloat16 or float16."
        )
    return rounded(change.base, pair.dtype) + change.delta().float()


def head_layout(run: Execution) -> Layout:
    """Where the heads of both models are."""
    pair = run.prepared.pair
    return layout_of(family_of(pair.config("base"), pair.base.ref), pair.config("base"))


def units(run: Execution, n_heads: int, *, groups: bool) -> list[tuple[str, Sequence[int]]]:
    """(the rows' unit, heads) of every head, every key-value group that has several, and all."""
    found: list[tuple[str, Sequence[int]]] = [(labels.head_unit(head), [head]) for head in range(n_heads)]
    n_groups = head_layout(run).n_groups
    size = n_heads // n_groups
    if groups and size > 1:
        found += [(labels.group_unit(group), range(group * size, (group + 1) * size)) for group in range(n_groups)]
    return [*found, (labels.ALL, range(n_heads))]


def columns(places: Sequence[Mapping[str, Any]], **constant: Any) -> pl.DataFrame:
    names = {name for label in places for name in label}
    return labelled(len(places), **{name: [label.get(name) for label in places] for name in names}, **constant)
