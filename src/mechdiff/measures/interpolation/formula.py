"""What lies between the base and its fine-tune, and beyond it?

A strength a leads from the base (0) to the tuned model (1), and on in the same direction; below 0 it leads away. Three forms of the same way:

    weights_path    the network runs with W_base + a (W_tuned - W_base), all changed tensors together (an adapter's layers at a times their scale), or
                    those of some modules alone (`modules`), all others the base's: at 1 a graft
    logits_path     z_base + a (z_tuned - z_base), the two models' logits; no network runs
    states_path     h_base + a (h_tuned - h_base) patched at one block's `resid_post`, at the last prompt token; the base runs on

At a = 0 all three are the base, to the bit; at a = 1 the first two (of all modules) are the tuned model (to the bit too, but for an adapter that
runs merged into copies, models/merged.py: within rounding), and the third is an activation patch. Of each run's next-token distribution q_a, at the
last prompt token:

    kl_other_nats         D(a) = KL(p_tuned || q_a): D at a = 0, and 0 where the run is the tuned model
    kl_own_nats           KL(p_base || q_a): how far it went. On unrelated prompts, which have nothing to do with the fine-tune: its side effect
    top1_same             1: the base's top-1 token is the top-1 token still
    top1_same_as_tuned    1: the top-1 token is the tuned model's
    repeated_4grams       of an answer that is spoken with weights at a: the share of its 4-grams that it had said before (seq-rep-4, Welleck 2019)

Near either end a KL grows as the square of the way from there, so its root is nearly straight, and what lies between two strengths that were run is
read off straight lines through roots: exact where KL is c (a - a0)^2.

**Matched by KL on unrelated prompts.** One strength does not mean the same in three forms. What can be compared is the effect at one price: the
strengths at which the forms move unrelated prompts alike, and what each leaves of D there.

When it misleads: unrelated prompts are few and everyday, so what a fine-tune does elsewhere is not in them; a change that shows on every prompt has
a KL there that is the change itself. Beyond 1 nothing was trained: a growing KL from the base says that a run goes on, not that it still speaks
(loops are counted for that). Weights in between need not be on a path that training took.

Interpolating weights: Wortsman 2022 (WiSE-FT, arXiv 2109.01903), Ilharco 2023 (task arithmetic, arXiv 2212.04089); logits: Liu 2021 (DExperts,
arXiv 2105.03023); repetition: Welleck 2019 (arXiv 1908.04319).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechdiff.engine.grafts import batches, logits_at, resume, scaled, towards, trace
from mechdiff.engine.outcome import CleanLogits, outcomes
from mechdiff.measures.interpolation.plan import OF_TUNED, REPEATED, WEIGHTS
from mechdiff.models.modules import ChangedUnits, Unit
from mechdiff.models.pair import Model
from mechdiff.rows import rows

METRICS = ("kl_other_nats", "kl_own_nats", "top1_same")
GRAM = 4


def of_weights(
    model: Model, changes: ChangedUnits, ids: Sequence[Sequence[int]], strengths: Sequence[float], units: Sequence[Unit] | None = None
) -> Iterator[tuple[float, Float[Tensor, "prompt vocab"]]]:
    """Each strength, and what the network between (or beyond) says next to each prompt. `model` is the base, in use.

    `units`: the changed ones that move; none: all. Below the lowest of them the network is the base, and starts there from its residual stream.
    """
    packed, n_layers = batches(model, ids), model.shape.n_layers
    order = torch.tensor([row for batch in packed for row in batch.rows]).argsort()
    first = min((unit.first(n_layers) for unit in (changes.units if units is None else units)), default=n_layers)
    starts = [trace(model, batch) for batch in packed] if first > 0 else []
    for strength in strengths:
        with scaled(model, changes, strength, units):
            if starts:
                found = [resume(model, batch, start, first) for batch, start in zip(packed, starts, strict=True)]
            else:
                found = [logits_at(model, batch) for batch in packed]
        yield strength, torch.cat(found)[order.to(found[0].device)]


def of_logits(clean: CleanLogits, strengths: Sequence[float]) -> Iterator[tuple[float, Float[Tensor, "prompt vocab"]]]:
    """Each strength, and the logits between."""
    for strength in strengths:
        yield strength, towards(clean.base, clean.tuned, strength)


def repeated(tokens: Int[Tensor, " said"], n: int = GRAM) -> float:
    """Share of an answer's n-grams that stood in it before: 0 where none did, near 1 in a loop; NaN of fewer than n tokens."""
    grams = [tuple(tokens[i : i + n].tolist()) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else float("nan")


@dataclass(frozen=True, kw_only=True)
class Label:
    """What the rows of a form are called."""

    arm: str
    split: str
    prompts: Sequence[str]
    direction: str | None = None
    layer: int | None = None
    site: str | None = None
    unit: str | None = None

    def columns(self, strength: float) -> Mapping[str, object]:
        named = {name: getattr(self, name) for name in ("arm", "split", "direction", "layer", "site", "unit")}
        return {"measure": "interpolation", "strength": strength, "prompt": list(self.prompts), **named}


def measure(logits: Float[Tensor, "prompt vocab"], clean: CleanLogits, label: Label, strength: float) -> pl.DataFrame:
    """Rows of the distributions at one strength."""
    found = outcomes(logits[:, None], clean, "base", metrics=METRICS)
    best = logits.amax(-1, keepdim=True)
    values = {name: values[:, 0] for name, values in found.items()}
    values[OF_TUNED] = (logits.gather(-1, clean.tuned.argmax(-1, keepdim=True)) == best)[:, 0].double().cpu()
    return pl.concat([rows(one.numpy(), metric=name, **label.columns(strength)) for name, one in values.items()])


def spoken(answers: Sequence[Int[Tensor, " said"]], prompts: Sequence[str], split: str, strength: float) -> pl.DataFrame:
    """Rows of how much the answers repeat themselves."""
    label = Label(arm=WEIGHTS, split=split, prompts=prompts)
    return rows([repeated(one) for one in answers], metric=REPEATED, **label.columns(strength))
