"""Counterfactual runs are held against the clean distributions of both models, by every metric, in one sweep over the vocabulary.

The metrics and their formulas stand in distributions.py, the overlap in overlap.py. With u = logits of a run - the running model's clean logits,

    KL(other || run) = KL(other || own) + KL(own || run) - (E_other[u] - E_own[u]),       the last being twice the overlap,

so where every token has a logit and both models have the same tokens, one exponential of each entry gives both divergences and the overlap. Where
KL(other || run) is a small difference of large numbers it is taken once more, by the centred form. On a device the host waits once for all of it.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from mechdiff.engine.distributions import (
    EVERY,
    ON_SHARED,
    Reference,
    Sweep,
    blocks,
    kl_and_js_nats,
    logit_diff_divergent,
    reference,
    rows_at_once,
)
from mechdiff.rows import OVERLAP


@dataclass(frozen=True, kw_only=True)
class CleanLogits:
    """What both models, unedited, say next on the same prompts, over the tokens of both."""

    base: Float[Tensor, "prompt vocab"]
    tuned: Float[Tensor, "prompt vocab"]
    n_shared: int | None = None
    """The first so many tokens are those that both models have; None: all."""

    def of(self, side: str) -> Float[Tensor, "prompt vocab"]:
        return self.tuned if side == "tuned" else self.base

    def beside(self, side: str) -> Float[Tensor, "prompt vocab"]:
        """Those of the other model."""
        return self.base if side == "tuned" else self.tuned

    @cached_property
    def cut(self) -> bool:
        """Whether some tokens are one model's alone."""
        return self.n_shared is not None and self.n_shared < self.base.shape[-1]

    @cached_property
    def _made(self) -> dict[tuple[str, str], Any]:
        return {}

    def reference(self, side: str, *, shared: bool = False) -> Reference:
        """One model's next-token distributions, or the same over the shared tokens; made once for all passes."""
        key = (side, "shared" if shared and self.cut else "all")
        if key not in self._made:
            self._made[key] = reference(self.of(side)[:, : self.n_shared if key[1] == "shared" else None])
        return self._made[key]

    def toward(self, side: str) -> Float[Tensor, "prompt vocab"]:
        """p_other - p_own of the clean distributions where this side runs; made once, in float64, for in float32 near ones lose their digits."""
        if (side, "toward") not in self._made:
            other, own = (logits.double().softmax(-1) for logits in (self.beside(side), self.of(side)))
            self._made[side, "toward"] = (other - own).to(torch.promote_types(self.base.dtype, torch.float32))
        return self._made[side, "toward"]

    def apart(self, side: str) -> Float64[Tensor, " prompt"]:
        """KL(other || own) of the clean distributions where this side runs, in float64, where they are; made once."""
        if (side, "apart") not in self._made:
            other, own = (logits.double().log_softmax(-1) for logits in (self.beside(side), self.of(side)))
            self._made[side, "apart"] = (other.exp() * (other - own)).sum(-1)
        return self._made[side, "apart"]


@dataclass(frozen=True, kw_only=True)
class _Against:
    """What runs are held against: a clean distribution of each prompt, over some of the tokens."""

    kl: str
    js: str
    law: Reference
    n_tokens: int | None = None

    def again(self, logits: Float[Tensor, "prompt run vocab"], found: dict[str, Tensor]) -> None:
        """Does the runs again that are not to be trusted, each by itself."""
        which, most = np.argwhere(found.pop(f"{self.kl} trusted").numpy() == 0), rows_at_once(logits)
        for start in range(0, len(which), most):
            prompts, runs = torch.from_numpy(which[start : start + most].T.copy())
            both = kl_and_js_nats(self.law.logits[prompts], logits[prompts, runs][:, : self.n_tokens])
            for name, values in zip((self.kl, self.js), both, strict=True):
                if name in found:
                    found[name][prompts, runs] = values


@torch.no_grad()
def outcomes(
    logits: Float[Tensor, "prompt variant vocab"], clean: CleanLogits, side: str, *, metrics: Collection[str] = EVERY
) -> dict[str, Float64[Tensor, "prompt variant"]]:
    """`metrics` of each run of the model on this `side`, on the CPU.

    What holds a run against the other model looks at the tokens alone that both models have, renormalised. Where these are all tokens there is no
    cut, and no metric of `ON_SHARED`; the overlap is given (if asked for) where one sweep gives it.
    """
    own, other = clean.reference(side), clean.reference("base" if side == "tuned" else "tuned", shared=True)
    against = [_Against(kl="kl_own_nats", js="js_own_nats", law=own)]
    if clean.cut and not set(ON_SHARED).isdisjoint(metrics):
        against.append(_Against(kl=ON_SHARED[0], js=ON_SHARED[1], law=clean.reference(side, shared=True), n_tokens=clean.n_shared))
    one_sweep = not (clean.cut or own.masked or other.masked)
    against_other = _Against(kl="kl_other_nats", js="", law=other, n_tokens=clean.n_shared)
    swept = [against[0]] if one_sweep else [*against, against_other]
    raw = [Sweep.of(logits.shape[:2], logits.device) for _ in swept]
    same = torch.empty(logits.shape[:2], dtype=torch.float64, device=logits.device)
    for prompts, runs in _tiles(logits):
        block, at = logits[prompts, runs], (prompts, runs)
        toward = (clean.toward(side)[prompts] if isinstance(prompts, int) else clean.toward(side)[prompts, None]) if one_sweep else None
        for one, table in zip(swept, raw, strict=True):
            table.put(at, one.law.at(prompts), block[..., : one.n_tokens], one.js in metrics, toward)
        top = own.at(prompts).top.expand(*block.shape[:-1])[..., None]
        same[at] = block.gather(-1, top)[..., 0] == block.amax(-1)
    found = {"top1_same": same}
    for one, table in zip(swept, raw, strict=True):
        found[one.kl], found[one.js], found[f"{one.kl} trusted"] = table.divergences()
    if one_sweep:
        found["kl_other_nats"], found[OVERLAP], found["kl_other_nats trusted"] = raw[0].towards(clean.apart(side))
    found.pop("", None)
    if "logit_diff_divergent" in metrics:
        shared = (law[..., : clean.n_shared] for law in (logits, clean.tuned[:, None], clean.base[:, None]))
        found["logit_diff_divergent"] = logit_diff_divergent(*shared)
    on_cpu = dict(zip(found, torch.stack([values.double() for values in found.values()]).cpu(), strict=True))
    for one in (*against, against_other):
        one.again(logits, on_cpu)
    asked = [*(name for name in EVERY if clean.cut or name not in ON_SHARED), *([OVERLAP] if one_sweep else [])]
    return {name: on_cpu[name] for name in asked if name in metrics}


def _tiles(logits: Float[Tensor, "prompt run vocab"]) -> Iterator[tuple[int | slice, slice]]:
    """Prompts and runs that are small enough to be handled at once: some runs of one prompt, or where there is room all of several prompts."""
    n_prompts, n_runs, _ = logits.shape
    together = rows_at_once(logits) // n_runs
    if together < 2:
        return ((i, at) for i in range(n_prompts) for at in blocks(logits[i]))
    return ((slice(start, start + together), slice(None)) for start in range(0, n_prompts, together))
