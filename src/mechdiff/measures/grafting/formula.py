"""Which part of the weights carries the fine-tune?

The tuned weights of a set S of units (`models/modules.py`: a block's attention, MLP or norms, the embedding, the final norm, the head) are put
into the base, and the network runs. With dW_S the change of these units and p_t the tuned model's next-token distribution,

    v(S) = KL( p_t || p_{base + dW_S} )       in nats, at the last prompt token

Over an answer that follows the prompt (`answers` of a study) it is the mean over its positions, from the same pass: kl_other_answer_nats.

0: S is all of the fine-tune that matters on this prompt. D = v(nothing): S does nothing. More than D: S alone leads away from the tuned model,
which happens where two units only work together. No activation is patched, no map is fitted, no position is chosen: what is grafted is the
fine-tune itself, so this is the exact statement that patching and maps are compared with (a graft of all blocks above one is what patching of its
`resid_post` at all positions does).

Conditions:

    none          the base as it is: D
    all           every changed unit: 0, to rounding. Checked in every run, before anything else is said
    alone         one unit: is it sufficient?
    from_below    this unit and all before it in network order: embed, each block's attn, mlp, norm, then final_norm, head
    from_above    this unit and all behind it
    greedy        the best set found by adding the best next unit, on prompts of the validation split; `rank` is how many units it has
    truncate      the change of one unit's matrices, or of all (`all`), cut to their first `rank` singular vectors: the causal rank of the update

A unit that did not change is in no set, and costs nothing. Curves `from_below` and `from_above` say in which order of the network the fine-tune
comes together: where the first falls to 0, the rest above is not needed; where the second does, the rest below is not.

When it misleads: v is not additive (two units that are redundant are each worthless once the other is in), and v > D is no error. A greedy set
is one good set, not the only one. A tied embedding is one unit `embed`: what its rows do when tokens are read and when they are predicted
cannot be separated. Truncation to a rank is by size of the weights' change, which need not be the order of what matters.

Weight grafting as a way to localise: Panigrahi 2023 (arXiv 2302.06600); low-rank truncation of the update: Sharma 2023 (LASER, arXiv 2312.13558),
Shuttleworth 2024 (arXiv 2410.21228).
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import accumulate

import polars as pl
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from mechdiff import labels
from mechdiff.engine.counterfactuals import first_parting, over_answers
from mechdiff.engine.distributions import ROUNDING_NATS, kl_nats
from mechdiff.engine.grafts import Batch, Trace, batches, grafted, resume, trace, truncated
from mechdiff.engine.outcome import CleanLogits
from mechdiff.engine.overlap import overlap_nats
from mechdiff.errors import SelfCheckError
from mechdiff.models.modules import ChangedUnits, Factors, Unit, factors
from mechdiff.models.pair import Model
from mechdiff.rows import OVERLAP, rows
from mechdiff.spacing import evenly_spaced

CANDIDATES, PICKS = 12, 8
"""Greedy search: units tried (the best alone), units picked."""

TOLERANCE_SHARE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest distance of v(nothing), by way of the grafted runs, from D, as a share of 1 + D."""


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """One split's prompts, and what both models as they run say next."""

    split: str
    names: Sequence[str]
    ids: Sequence[Sequence[int]]
    """Tokens, the same for both models; behind the prompt those of its answer, where one is looked at."""
    base_logits: Float[Tensor, "place vocab"]
    tuned_logits: Float[Tensor, "place vocab"]
    n_places: Sequence[int] = ()
    """Of each prompt: its last positions that are looked at, the decision position and those of its answer; none given: one of each."""
    answered: Sequence[bool] = ()
    """Whether a prompt's places are those of an answer."""

    @property
    def lengths(self) -> list[int]:
        return list(self.n_places or [1] * len(self.names))

    @property
    def decisions(self) -> list[int]:
        """The place of each prompt's decision position."""
        return [0, *accumulate(self.lengths)][:-1]


@dataclass(frozen=True, kw_only=True)
class Lattice:
    """v(S) of any set of changed units on some prompts; made by `lattice`."""

    model: Model
    changes: ChangedUnits
    prompts: Prompts
    batches: list[Batch]
    below: dict[str, list[Trace]]
    """The traces of each batch that a run can start from: of the base, and of everything grafted ("tuned")."""
    floor_nats: float
    """Largest KL(base || base, by way of an empty graft) of any prompt."""
    known: dict[frozenset[Unit], Float64[Tensor, " place"]] = field(default_factory=dict, repr=False)
    overlaps: dict[frozenset[Unit], Float64[Tensor, " place"]] = field(default_factory=dict, repr=False)
    """How far each set that was run moves the logits towards the tuned model's (overlap.py)."""

    def value(self, units: Iterable[Unit]) -> Float64[Tensor, " place"]:
        """v(S) at each place."""
        chosen = frozenset(units)
        if chosen not in self.known:
            logits = self._run(sorted(chosen), grafted(self.model, self.changes, sorted(chosen)))
            self.known[chosen] = _against(self.prompts.tuned_logits, logits)
            self.overlaps[chosen] = _overlap(self.prompts, logits)
        return self.known[chosen]

    def truncated(self, cut: dict[Unit, dict[str, Factors]], rank: int) -> tuple[Float64[Tensor, " place"], Float64[Tensor, " place"]]:
        """v and the overlap at each place with the change of these units cut to `rank`; rank 0 is the base."""
        if not rank:
            return self.value(()), self.overlaps[frozenset()]
        logits = self._run(sorted(cut), truncated(self.model, self.changes, cut, rank), tuned_below=False)
        return _against(self.prompts.tuned_logits, logits), _overlap(self.prompts, logits)

    def start(self, units: Sequence[Unit], tuned_below: bool = True) -> tuple[str, int]:
        """The highest block that a run with these grafts can start from, and on which model's residual stream.

        Below the lowest grafted unit the network is the base; below the lowest changed unit that is not grafted it is the tuned model. A network
        whose blocks read more of earlier ones than that stream always runs whole.
        """
        if self.model.family.tangled:
            return "base", -1
        n_layers = self.model.shape.n_layers
        base = min((unit.first(n_layers) for unit in units), default=n_layers)
        tuned = min((unit.first(n_layers) for unit in self.changes.units if unit not in units), default=n_layers) if tuned_below else -1
        return ("base", base) if base >= tuned else ("tuned", tuned)

    def _run(self, units: Sequence[Unit], weights: AbstractContextManager[None], tuned_below: bool = True) -> Float[Tensor, "place vocab"]:
        """What the network says at each place with some units' weights in it."""
        side, layer = self.start(units, tuned_below)
        with weights:
            found = [resume(self.model, batch, start, layer) for batch, start in zip(self.batches, self.below[side], strict=True)]
        return _in_order(self.prompts, self.batches, found)


def lattice(model: Model, changes: ChangedUnits, prompts: Prompts, *, max_tokens: int | None = None) -> Lattice:
    """Ready for any set of units; `model` is the base, in use.

    Holds the residual streams of both models at every block and position: 2 (n_layers + 1) d_model numbers a token, in the model's dtype.

    Raises SelfCheckError where nothing grafted is not D, or everything grafted is not the tuned model.
    """
    packed = batches(model, prompts.ids, max_tokens, prompts.lengths)
    base = [trace(model, batch) for batch in packed]
    with grafted(model, changes, changes.units):
        tuned = [trace(model, batch) for batch in packed]
    middle = -1 if model.family.tangled else model.shape.n_layers // 2
    empty = [resume(model, batch, start, middle) for batch, start in zip(packed, base, strict=True)]
    nothing, all_of_it = _in_order(prompts, packed, empty), _in_order(prompts, packed, [start.logits for start in tuned])
    floor = float(_against(prompts.base_logits, nothing).max())
    total = kl_nats(prompts.tuned_logits, prompts.base_logits)
    everything = _against(prompts.tuned_logits, all_of_it)
    _check_nothing(model, _against(prompts.tuned_logits, nothing), total)
    _check_everything(model, changes, everything, total, floor)
    known = {frozenset(changes.units): everything, frozenset[Unit](): total}
    overlaps = {frozenset(changes.units): _overlap(prompts, all_of_it), frozenset[Unit](): _overlap(prompts, prompts.base_logits)}
    return Lattice(
        model=model, changes=changes, prompts=prompts, batches=packed, below={"base": base, "tuned": tuned}, floor_nats=floor, known=known,
        overlaps=overlaps,
    )  # fmt: skip


def _in_order(prompts: Prompts, packed: Sequence[Batch], logits: Sequence[Tensor]) -> Float[Tensor, "place vocab"]:
    """The logits of all batches in the order of the prompts."""
    rows_of = torch.tensor([row for batch in packed for row in batch.rows for _ in range(prompts.lengths[row])])
    order = rows_of.argsort(stable=True).to(logits[0].device)
    return torch.cat([part[:, : prompts.tuned_logits.shape[-1]] for part in logits])[order]


def _against(reference: Float[Tensor, "place vocab"], logits: Float[Tensor, "place vocab"]) -> Float64[Tensor, " place"]:
    """KL(reference || run) at each place."""
    return kl_nats(reference.to(logits.device), logits)


def _overlap(prompts: Prompts, logits: Float[Tensor, "place vocab"]) -> Float64[Tensor, " place"]:
    """The overlap of the run at each place, the base being the model that runs."""
    base, tuned = (law.to(logits.device) for law in (prompts.base_logits, prompts.tuned_logits))
    return overlap_nats(logits[:, None], base, tuned)[:, 0]


def _check_nothing(model: Model, nothing: Tensor, total: Tensor) -> None:
    share = TOLERANCE_SHARE[model.dtype]
    if not torch.isclose(nothing, total, rtol=share, atol=share).all():
        worst = int((nothing - total).abs().argmax())
        raise SelfCheckError(
            f"{model.ref}: with nothing grafted v is {float(nothing[worst]):.6g} nats at place {worst} and D is {float(total[worst]):.6g}; they "
            "must be equal. Were the logits and the tokens given those of this model, with its adapter off?"
        )


def _check_everything(model: Model, changes: ChangedUnits, everything: Tensor, total: Tensor, floor: float) -> None:
    limit = max(3 * floor, ROUNDING_NATS[model.dtype])
    if not (everything <= limit).all():
        what = f"with all {len(changes.units)} changed units grafted" if changes.units else "no tensor differs, yet"
        raise SelfCheckError(
            f"{model.ref}: {what} the base is {float(everything.max()):.3g} nats from the tuned model (D is {float(total.mean()):.3g}), where at "
            f"most {limit:.1g} are rounding. The two differ in something that is no weight: compare their config.json (rope, sliding "
            "window, norm epsilon, soft-capping), or leave the measure grafting out."
        )


# ---- which sets ---------------------------------------------------------------------------------------------------------------------


def greedy(bench: Lattice, *, candidates: int = CANDIDATES, picks: int = PICKS) -> list[tuple[Unit, ...]]:
    """Nested sets of 1, 2, ... units: to each, the unit that lowers mean v most is added, out of the `candidates` best alone.

    Ends early where v is rounding. Ties go to the unit that is first in network order.
    """
    pool = best_alone(bench, candidates)
    chosen: list[Unit] = []
    sets = []
    while len(chosen) < min(picks, len(pool)) and float(bench.value(chosen).mean()) > _rounding(bench):
        chosen.append(min((unit for unit in pool if unit not in chosen), key=lambda unit: (_mean(bench, [*chosen, unit]), unit)))
        sets.append(tuple(sorted(chosen)))
    return sets


def best_alone(bench: Lattice, n: int = CANDIDATES) -> list[Unit]:
    """The `n` changed units of the lowest mean v alone, best first."""
    return sorted(bench.changes.units, key=lambda unit: (_mean(bench, [unit]), unit))[:n]


def _mean(bench: Lattice, units: Sequence[Unit]) -> float:
    return float(bench.value(units).mean())


def _rounding(bench: Lattice) -> float:
    return max(3 * bench.floor_nats, ROUNDING_NATS[bench.model.dtype])


def ranks(full: int, kept: int) -> list[int]:
    """0, the powers of two below `full` (as far as factors are `kept`), and `full`."""
    powers = [2**i for i in range(full.bit_length()) if 2**i < full and 2**i <= kept]
    return [0, *powers, full]


# ---- rows ---------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Label:
    """What a grafted set is called in its rows."""

    arm: str
    unit: Unit | None = None
    """The one that the set is made from, where it is."""
    name: str | None = None
    """Of a set that is made from no single unit."""
    rank: int | None = None
    """Of its change, or the size of a greedy set."""


def ends(bench: Lattice) -> pl.DataFrame:
    """Rows of the arms none and all."""
    return pl.concat([_of_set(bench, (), Label(arm="none")), _of_set(bench, bench.changes.units, Label(arm="all"))])


def curves(bench: Lattice, chosen: Iterable[Unit], points: int | None = None) -> pl.DataFrame:
    """Rows of the arms alone, from_below and from_above of some changed units; the latter two only at `points` evenly spaced ones of all."""
    units = bench.changes.units
    cumulative = evenly_spaced(points or len(units), range(len(units)))
    frames = [ends(bench).clear()]
    for unit in chosen:
        i = units.index(unit)
        frames.append(_of_set(bench, [unit], Label(arm="alone", unit=unit)))
        if i in cumulative:
            frames.append(_of_set(bench, units[: i + 1], Label(arm="from_below", unit=unit)))
            frames.append(_of_set(bench, units[i:], Label(arm="from_above", unit=unit)))
    return pl.concat(frames)


def singles(bench: Lattice) -> pl.DataFrame:
    """Rows of the arm alone of every changed unit, and of none: on the select prompts, whose greedy search has run them all."""
    alone = (_rows(bench, bench.value([unit]), Label(arm="alone", unit=unit)) for unit in bench.changes.units)
    return pl.concat([_rows(bench, bench.value(()), Label(arm="none")), *alone])


def chosen_sets(bench: Lattice, sets: Iterable[tuple[Unit, ...]]) -> pl.DataFrame:
    """Rows of the arm greedy; `unit` names each set."""
    return pl.concat(
        [_rows(bench, bench.value([]), Label(arm="none")).clear()]
        + [_of_set(bench, units, Label(arm="greedy", name=labels.set_unit(units), rank=len(units))) for units in sets]
    )


def truncation(bench: Lattice, units: Sequence[Unit]) -> pl.DataFrame:
    """Rows of the arm truncate: each of `units` that has matrices, and all changed units together (their norms whole from rank 1 on).

    Raises ModelError for an adapter that is no LoRA on matrices.
    """
    every = {unit: factors(bench.model, bench.changes, unit) for unit in bench.changes.units}
    frames = [_rows(bench, bench.value([]), Label(arm="none")).clear()]
    for unit in [*units, None]:
        cut = every if unit is None else {unit: every[unit]}
        changes = [change for matrices in cut.values() for change in matrices.values()]
        if changes:
            grid = ranks(max(change.full for change in changes), max(change.left.shape[-1] for change in changes))
            for rank in grid:
                label = Label(arm="truncate", unit=unit, name=None if unit else labels.ALL, rank=rank)
                values = zip(("kl_other_nats", OVERLAP), bench.truncated(cut, rank), strict=True)
                frames += [_rows(bench, value, label, metric) for metric, value in values]
    return pl.concat(frames)


def _of_set(bench: Lattice, units: Iterable[Unit], label: Label) -> pl.DataFrame:
    """Rows of v and of the overlap of a set of units."""
    chosen = frozenset(units)
    v = _rows(bench, bench.value(chosen), label)
    return pl.concat([v, _rows(bench, bench.overlaps[chosen], label, OVERLAP)])


def _rows(bench: Lattice, values: Float64[Tensor, " place"], label: Label, metric: str = "kl_other_nats") -> pl.DataFrame:
    place = {"layer": label.unit.layer, "site": label.unit.kind} if label.unit else {}
    prompts = bench.prompts
    columns = {"measure": "grafting", "split": prompts.split, "arm": label.arm, "unit": label.name, "rank": label.rank, **place}
    found = rows(values[prompts.decisions].numpy(), prompt=list(prompts.names), metric=metric, **columns)
    if not any(prompts.answered):
        return found
    names, lengths, parting = _answered(prompts)
    kept = torch.cat([one for one, answered in zip(values.split(prompts.lengths), prompts.answered, strict=True) if answered])
    together = over_answers({metric: kept[:, None]}, lengths, parting)
    return pl.concat([found, *(rows(one[:, 0].numpy(), prompt=names, metric=name, **columns) for name, one in together.items())])


def _answered(prompts: Prompts) -> tuple[list[str], list[int], list[int | None]]:
    """The prompts whose answers are looked at, how many places each has, and the first one at which the two models part."""
    parting = first_parting(CleanLogits(base=prompts.base_logits, tuned=prompts.tuned_logits), prompts.lengths)
    which = [i for i, answered in enumerate(prompts.answered) if answered]
    return [prompts.names[i] for i in which], [prompts.lengths[i] for i in which], [parting[i] for i in which]


def few(bench: Lattice, choosing: Lattice | None, n: int = CANDIDATES) -> Sequence[Unit]:
    """The units that are cut to a rank one by one: all, or where there are more than `n` the best alone on other prompts (without: none)."""
    units = bench.changes.units
    return units if len(units) <= n else sorted(best_alone(choosing, n)) if choosing else ()


def searched(bench: Lattice, choosing: Lattice, *, candidates: int = CANDIDATES, picks: int = PICKS) -> pl.DataFrame:
    """Rows of the greedy sets, which are chosen on the prompts of `choosing`, on these and on the reported ones; and of its single units."""
    sets = greedy(choosing, candidates=candidates, picks=picks)
    return pl.concat([chosen_sets(bench, sets), chosen_sets(choosing, sets), singles(choosing)])
