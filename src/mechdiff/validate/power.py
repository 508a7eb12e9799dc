"""How small an edit would be found in this model, with these prompts?

Random rank-1 edits of growing size are planted in random blocks, each in the attention's or the MLP's last matrix, in two settings:

    alone      nothing else changed
    beside     every matrix also moved by noise of the size BACKGROUND, as a diffuse fine-tune would

and looked for in three ways:

    onset      (alone) D = KL(tuned || base) is above three noise floors, and the first block at which the base's residual state, written into the
               tuned model, does more than three floors is the edited one. What limits this is float32.
    output     (beside) of all blocks' attention and MLP outputs, the base's does most at the edited one, written at the decision position
    graft      (beside) of all parts of the network, the edited one recovers most of D when its tuned weights are put into the base

Output sees the edit at one position, graft at all; what limits both is the rest of the fine-tune. Sizes are relative to the matrix,
||dW||_F / ||W||_F. `weights` is exact, and would give an edit of any size away: this is what states and behaviour show of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechdiff.architectures.sites import Site
from mechdiff.engine.activations import Clean, capture
from mechdiff.engine.choice import engine_for
from mechdiff.engine.distributions import kl_nats
from mechdiff.engine.replay import ENGINES, Engine
from mechdiff.measures.grafting import formula as grafting_formula
from mechdiff.measures.grafting.formula import Prompts
from mechdiff.measures.patching.formula import variants
from mechdiff.models.modules import Unit, changes_between, tensors_of
from mechdiff.models.pair import Model, wrap
from mechdiff.statistics.floors import FLOORS
from mechdiff.statistics.intervals import wilson
from mechdiff.validate import edits as validate_edits
from mechdiff.validate import planted
from mechdiff.validate.planted import Bench

ALONE = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
BESIDE = (0.01, 0.032, 0.1, 0.32, 1.0)
"""Sizes that are tried in each setting."""
BACKGROUND = 0.003
DRAWS, PROMPTS, GRAFTED = 10, 6, 2
"""Edits of each size; prompts, and those on which parts of the network are grafted, one after the other."""
WANTED, HOPELESS = 0.8, 0.5
"""The share that is asked for; smaller edits are not tried where fewer than this share were found."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """Edits of one size."""

    size: float
    """||dW||_F / ||W||_F."""
    draws: int
    d_nats: float
    """Mean D over draws and prompts."""
    found: float
    """Share of the draws."""
    low: float
    high: float
    """Wilson's interval of 95 %."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The power curve of one way to look."""

    way: str
    background: float
    n_prompts: int
    points: list[Point]

    @property
    def smallest(self) -> float | None:
        """The least size from which on at least 80 % of the edits are found; None: not even of the largest."""
        least = None
        for point in reversed(self.points):
            if point.found < WANTED:
                break
            least = point.size
        return least

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"smallest": self.smallest}


@dataclass(frozen=True, kw_only=True)
class Probe:
    """The base's side of every try: its laws and states, and a copy of it that is edited."""

    base: Model
    prompts: Sequence[Sequence[int]]
    logits: Tensor
    """`[prompt, vocab]`, float32."""
    states: dict[str, dict[int, Tensor]]
    """Site kind -> block -> `[prompt, 1, d]`."""
    tuned: Model
    background: float
    engine: Engine

    def tried(self, edit: "Planned", size: float, finds: "Finds") -> tuple[float, bool]:
        """D in nats, and whether an edit is found; it is taken out of the network again, bit for bit."""
        weight = edit.matrix(self.tuned.net)
        kept = weight.clone()
        try:
            with torch.no_grad():
                validate_edits.add_low_rank(weight, 1, size, edit.seed)
            cleans = [capture(self.tuned, ids, [], [], keep_cache=self.engine is ENGINES["replay"]) for ids in self.prompts]
            own = torch.stack([clean.logits for clean in cleans])
            return float(kl_nats(own, self.logits).mean()), finds(edit, cleans, own)
        finally:
            with torch.no_grad():
                weight.copy_(kept)

    def _effects(self, cleans: list[Clean], own: Tensor, kind: str) -> tuple[list[float], float]:
        """Mean KL in nats of writing the base's state of each block, and the noise floor."""
        logits = self.engine(self.tuned, cleans, variants(kind, list(self.states[kind]), self.states[kind]))
        kl = kl_nats(own[:, None], logits)
        return kl[:, 1:].mean(0).tolist(), float(kl[:, 0].max())

    def finds_onset(self, edit: "Planned", cleans: list[Clean], own: Tensor) -> bool:
        """The first block with an effect is the edited one."""
        effects, floor = self._effects(cleans, own, "resid_post")
        felt = [layer for layer, nats in enumerate(effects) if nats > FLOORS * floor]
        return float(kl_nats(own, self.logits).mean()) > FLOORS * floor and felt[:1] == [edit.layer]

    def finds_output(self, edit: "Planned", cleans: list[Clean], own: Tensor) -> bool:
        """The output with the largest effect is the edited one."""
        effects = {(layer, kind): nats for kind in self.states for layer, nats in enumerate(self._effects(cleans, own, kind)[0])}
        return max(effects, key=effects.__getitem__) == (edit.layer, "mlp_out" if edit.mlp else "attn_out")

    def finds_graft(self, edit: "Planned", cleans: list[Clean], own: Tensor) -> bool:
        """The part that recovers most is the edited one."""
        prompts = Prompts(
            split="report", names=[str(i) for i in range(GRAFTED)], ids=[list(ids) for ids in self.prompts[:GRAFTED]],
            base_logits=self.logits[:GRAFTED], tuned_logits=own[:GRAFTED],
        )  # fmt: skip
        lattice = grafting_formula.lattice(self.base, changes_between(self.base, tensors_of(self.tuned)), prompts)
        best = min(lattice.changes.units, key=lambda unit: float(lattice.value([unit]).mean()))
        return best == Unit("mlp" if edit.mlp else "attn", edit.layer)


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One random edit, the same at every size."""

    layer: int
    mlp: bool
    seed: int

    def matrix(self, net: validate_edits.Net) -> Tensor:
        """The matrix that is edited, in place."""
        return (validate_edits.mlp_output(net, self.layer) if self.mlp else validate_edits.attention_output(net, self.layer)).detach()


Finds = Callable[[Planned, list[Clean], Tensor], bool]
"""Whether an edit is found, from the edited model's clean runs and its logits `[prompt, vocab]`."""


def power(bench: Bench, *, background: float = 0.0, sizes: Sequence[float] | None = None, draws: int = DRAWS, seed: int = 0) -> list[Curve]:
    """The curves of a network: `alone`, or `beside` a background."""
    probe = _probe(bench, background)
    random = np.random.default_rng(seed)
    n_layers, dense = probe.tuned.shape.n_layers, validate_edits.has_dense_mlps(bench.net)
    edits = [
        Planned(layer=int(random.integers(n_layers)), mlp=bool(random.integers(2)) and dense, seed=int(random.integers(1 << 30)))
        for _ in range(draws)
    ]
    ways = {"output": probe.finds_output, "graft": probe.finds_graft} if background else {"onset": probe.finds_onset}
    curves = []
    for way, finds in ways.items():
        points: list[Point] = []
        for size in sorted(sizes or (BESIDE if background else ALONE), reverse=True):
            tried = [probe.tried(edit, size, finds) for edit in edits]
            found = float(np.mean([hit for _, hit in tried]))
            low, high = wilson(np.array(found), draws)
            d = float(np.mean([nats for nats, _ in tried]))
            points.insert(0, Point(size=size, draws=draws, d_nats=d, found=found, low=float(low), high=float(high)))
            if found < HOPELESS:
                break
        curves.append(Curve(way=way, background=background, n_prompts=GRAFTED if way == "graft" else PROMPTS, points=points))
    return curves


def _probe(bench: Bench, background: float) -> Probe:
    base = wrap(bench.net, side="base", ref="base")
    kinds = ("attn_out", "mlp_out") if background else ("resid_post",)
    layers, prompts = range(base.shape.n_layers), bench.prompts[:PROMPTS]
    cleans = [capture(base, ids, [Site(layer, kind) for layer in layers for kind in kinds], [len(ids) - 1]) for ids in prompts]
    return Probe(
        base=base, prompts=prompts, logits=torch.stack([clean.logits for clean in cleans]), background=background,
        states={kind: {layer: torch.stack([clean.states[Site(layer, kind)] for clean in cleans]) for layer in layers} for kind in kinds},
        tuned=wrap(planted.edited(bench.net, validate_edits.add_noise(background)), side="tuned", ref="tuned"),
        engine=ENGINES[engine_for(base.config)[0]],
    )  # fmt: skip
