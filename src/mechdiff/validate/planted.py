"""Pairs of models are made with one planted, known difference.

An *edit* is a function that changes a network in place; `plant` makes the pair base, edit(base), and runs both on the same prompts. Edits of the
first part go into any model that mechdiff knows (the family's row tells where the matrices are); those of the second are written for Llama's
modules, which the tiny network has.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mechdiff.architectures.sites import Site
from mechdiff.engine.activations import Clean, capture
from mechdiff.engine.choice import engine_for
from mechdiff.engine.distributions import kl_nats
from mechdiff.engine.overlap import overlap_nats, total_nats
from mechdiff.engine.replay import ENGINES
from mechdiff.measures.patching.formula import variants
from mechdiff.models.pair import Model, wrap
from mechdiff.validate import made
from mechdiff.validate.edits import LAYER, Edit, Net


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A pair, the clean runs of both on the same prompts, and what is asked most."""

    base: Model
    tuned: Model
    prompts: Sequence[Sequence[int]]
    cleans: Mapping[str, list[Clean]]

    @property
    def n_layers(self) -> int:
        return self.base.shape.n_layers

    def states(self, side: str, kind: str) -> Tensor:
        """`[layer, prompt, d]` at the decision position."""
        return torch.stack(
            [torch.stack([clean.states[Site(layer, kind)][-1] for clean in self.cleans[side]]) for layer in range(self.n_layers)]
        )

    def logits(self, side: str) -> Tensor:
        """`[prompt, vocab]`, clean; in float64, so that a share's rounding is the engine's alone."""
        return torch.stack([clean.logits for clean in self.cleans[side]]).double()

    @property
    def d_nats(self) -> Tensor:
        """`[prompt]`: KL(tuned || base)."""
        return kl_nats(self.logits("tuned"), self.logits("base"))

    def patched(
        self, direction: str, kind: str, *, positions: str = "decision", engine: str | None = None, layers: Sequence[int] | None = None
    ) -> Tensor:
        """Logits `[prompt, layer, vocab]` with the other model's state written at each block's `kind`, at the last position or at "all"."""
        runs, other = (self.tuned, "base") if direction == "tuned<-base" else (self.base, "tuned")
        engine = engine or ("relay" if positions == "all" else engine_for(runs.config)[0])
        layers = range(self.n_layers) if layers is None else layers
        found = []
        for own, theirs in zip(self.cleans[runs.side], self.cleans[other], strict=True):
            n_pos = len(own.ids) if positions == "all" else 1
            written = {layer: theirs.states[Site(layer, kind)][-n_pos:][None] for layer in layers}
            found.append(ENGINES[engine](runs, [own], variants(kind, layers, written))[0, 1:])
        return torch.stack(found).double()

    def breakage(self, kind: str, **how: Any) -> Tensor:
        """`[prompt, layer]` KL(tuned || tuned[site <- base]) in nats."""
        return kl_nats(self.logits("tuned")[:, None], self.patched("tuned<-base", kind, **how))

    def recovery(self, kind: str, **how: Any) -> Tensor:
        """`[layer]` 1 - KL(tuned || base[site <- tuned]) / D, a ratio of means over prompts."""
        kl = kl_nats(self.logits("tuned")[:, None], self.patched("base<-tuned", kind, **how))
        return 1 - kl.mean(0) / self.d_nats.mean()

    def way(self, direction: str, kind: str, **how: Any) -> Tensor:
        """`[layer]` the part of the way to the other model's logits that a patch moves the one that runs: a ratio of mean overlaps."""
        own, other = ("tuned", "base") if direction == "tuned<-base" else ("base", "tuned")
        moved = overlap_nats(self.patched(direction, kind, **how), self.logits(own), self.logits(other))
        return moved.mean(0) / total_nats(self.logits("base"), self.logits("tuned")).mean()


def plant(
    change: Edit, *, n_prompts: int = 6, prepare: Edit | None = None, net: Net | None = None, prompts: Sequence[Sequence[int]] | None = None,
    whole: bool = True,
) -> Planted:  # fmt: skip
    """The pair base, change(base), `prepare` applied to both; of the tiny network and random prompts where none are given.

    States are kept at every position, or (not `whole`) at the decision position alone.
    """
    net = made.tiny_net() if net is None else net
    if prepare:
        net = edited(net, prepare)
    base, tuned = wrap(net, side="base", ref="planted base"), wrap(edited(net, change), side="tuned", ref="planted tuned")
    prompts = made.token_prompts(n_prompts, seed=1) if prompts is None else prompts
    sites = [Site(layer, kind) for layer in range(base.shape.n_layers) for kind in base.kinds()]
    replays = engine_for(base.config)[0] == "replay"
    cleans: dict[str, list[Clean]] = {
        m.side: [capture(m, ids, sites, range(0 if whole else len(ids) - 1, len(ids)), keep_cache=replays) for ids in prompts]
        for m in (base, tuned)
    }
    return Planted(base=base, tuned=tuned, prompts=prompts, cleans=cleans)


def edited(net: Net, change: Edit) -> Net:
    """A copy of the network with the edit in it."""
    other = copy.deepcopy(net)
    with torch.no_grad():
        change(other)
    return other


# ---- where truths are planted --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A network to plant in, and prompts to run."""

    net: Net
    prompts: Sequence[Sequence[int]]
    layer: int = LAYER
    """The block that is edited."""
    rounding: float = 1e-9
    """How far a share of D that is 0 or 1 by construction may come out from it."""
    n_prompts: int = 6
    tiny: bool = False

    def plant(self, change: Edit, *, n_prompts: int | None = None, prepare: Edit | None = None, whole: bool = False) -> Planted:
        """The pair net, change(net), on the first prompts; states at the decision position, or of the `whole` prompt."""
        return plant(change, prepare=prepare, net=self.net, prompts=self.prompts[: n_prompts or self.n_prompts], whole=whole)


def tiny_bench(seed: int = 0) -> Bench:
    """The tiny network and random prompts."""
    return Bench(net=made.tiny_net(seed), prompts=made.token_prompts(200, seed=seed + 1), tiny=True)
