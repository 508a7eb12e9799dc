"""One execution of a plan holds what its stages share: the prompts, the engines, captured activations, the folder of finished cells."""

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar, cast

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from mechdiff.architectures.lookup import shape_of
from mechdiff.engine import counterfactuals
from mechdiff.engine.activations import Clean
from mechdiff.engine.counterfactuals import Along, Scores, Subject, moved_logits, score_rows, scores
from mechdiff.engine.distributions import EVERY
from mechdiff.engine.norms import Norms, norms_in
from mechdiff.engine.outcome import CleanLogits
from mechdiff.engine.reading import cleans
from mechdiff.engine.replay import ENGINES, Engine, Variant
from mechdiff.errors import MachineError, StudyError
from mechdiff.labels import n_positions
from mechdiff.models.changes import Changes, open_changes
from mechdiff.models.pair import SIDES, Model
from mechdiff.prompts.rendering import Rendered
from mechdiff.prompts.sets import clusters_of
from mechdiff.spacing import evenly_spaced
from mechdiff.store.run_folder import RunFolder
from mechdiff.study.cells import Cell
from mechdiff.study.manifest import engines
from mechdiff.study.planner import LAST_LEFT_OUT, MAX_ROWS
from mechdiff.study.prepare import Prepared

T = TypeVar("T")


ALL = slice(None)
HELD_BYTES = 1 << 28
"""Keys and values of clean passes that are kept from one stage to the next."""


@dataclass(frozen=True, kw_only=True)
class States:
    """What a capture of several prompts kept."""

    layers: tuple[int, ...]
    kinds: dict[str, Float[Tensor, "layer prompt pos d"]]
    """One entry for each of `layers`."""
    logits: Float[Tensor, "prompt *place vocab"]
    """After each prompt; over answers at every position."""
    norms: dict[str, Norms]
    """By site kind, where a norm may read it: at the decision position."""

    def at(self, prompts: Sequence[int]) -> "States":
        """Those of some prompts."""
        kinds = {kind: states[:, prompts] for kind, states in self.kinds.items()}
        return States(layers=self.layers, kinds=kinds, logits=self.logits[prompts], norms=self.norms)


class Execution:
    """What every stage may ask for. Nothing here computes a result."""

    def __init__(self, prepared: Prepared, folder: RunFolder | None) -> None:
        self.prepared, self._folder = prepared, folder
        self.cells = prepared.plan.cells
        self.engines = engines(prepared)
        self._states: dict[tuple[str, str, str, str | None], States] = {}
        self._cleans: dict[Any, list[Clean]] = {}
        self._held: tuple[Any, dict[str, np.ndarray]] = (None, {})
        self._once: dict[Hashable, Any] = {}

    @property
    def folder(self) -> RunFolder:
        """Where finished cells lie: there is none while a study is only checked."""
        assert self._folder
        return self._folder

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, made for the first cell that asks for it and kept for all others."""
        if key not in self._once:
            self._once[key] = make()
        return cast(T, self._once[key])

    def engine(self, model: Model, position: str) -> Engine:
        """The engine for one model and window: whole sequences where edits are at all positions."""
        name = self.engines[model.side][0]
        return ENGINES["relay" if name == "replay" and position == "all" else name]

    def prompt(self, split: str, name: str) -> Rendered:
        return self.prepared.rendered[split][name]

    def ids(self, cell: Cell, name: str) -> tuple[int, ...]:
        one = self.prompt(cell.key["split"], name)
        return one.ids_base if cell.side == "base" else one.ids_tuned

    def captures(self, side: str, split: str, position: str, of: str | None = None) -> list[Cell]:
        """The capture cells of one model on one split, in the order of its shards; `of`: of the answers of this model."""
        wanted = (side, split, position, of)
        stages = ("capture", "answer_states")
        return [
            one for one in self.cells if one.stage in stages and (one.side, one.key["split"], one.key["position"], answered(one)) == wanted
        ]

    def answers(self, side: str, names: Sequence[str], of: str | None) -> list[tuple[int, ...]]:
        """What the model `of` says after these prompts (study/answers.py) in one model's tokens, as many as there are positions."""

        def load() -> dict[str, tuple[int, ...]]:
            (cell,) = [one for one in self.cells if one.stage == "answer" and answered(one) == of]
            table = self.folder.load(cell.key).tensors[side].tolist()
            return {name: tuple(one for one in ids if one >= 0) for name, ids in zip(cell.key["ids"], table, strict=True)}

        found = self.once(("answers", side, of), load) if names else {}
        return [found[name] for name in names]

    def states_of(self, cell: Cell, side: str) -> States:
        """One model's captured states where a cell is about: on its prompts, at its position, along the answers that its key names."""
        return self.states(side, cell.key["split"], cell.key["position"], cell.key["ids"], answered(cell))

    def states(self, side: str, split: str, position: str, ids: Sequence[str] | None = None, of: str | None = None) -> States:
        """The captured states of a split (in the order of its shards), or of the prompts `ids`; `of`: along the answers of this model."""
        shards = self.captures(side, split, position, of)
        if ids is not None:
            here = [cell for cell in shards if cell.key["ids"] == ids]
            everyone = [name for cell in shards for name in cell.key["ids"]]
            return self._joined(here) if here else self.states(side, split, position, of=of).at([everyone.index(name) for name in ids])
        if (side, split, position, of) not in self._states:
            self._states[side, split, position, of] = self._joined(shards)
        return self._states[side, split, position, of]

    def _joined(self, shards: Sequence[Cell]) -> States:
        loaded = [self.folder.load(cell.key).tensors for cell in shards]
        kinds = {kind: torch.cat([torch.from_numpy(part[kind]) for part in loaded], 1) for kind in shards[0].key["kinds"]}
        return States(
            layers=tuple(shards[0].key["layers"]),
            kinds=kinds,
            logits=torch.cat([torch.from_numpy(part["logits"]) for part in loaded]),
            norms={kind: norms for kind in kinds if (norms := norms_in(loaded[0], kind))},
        )

    def tensors(self, cell: Cell) -> dict[str, np.ndarray]:
        """The tensors of a finished cell, kept for the next one that asks for the same."""
        if self._held[0] is not cell:
            self._held = (cell, self.folder.load(cell.key).tensors)
        return self._held[1]

    def clusters(self, split: str, names: Sequence[str]) -> list[str]:
        """The cluster of each of these prompts of a split."""
        return clusters_of([self.prompt(split, name).prompt for name in names])

    def donors(self, side: str, cell: Cell) -> Float[Tensor, "layer prompt pos d"]:
        """For a cell's prompts, one model's states on other prompts of the split: the same others in every cell."""
        key = cell.key
        everyone = [name for shard in self.captures(side, key["split"], key["position"]) for name in shard.key["ids"]]
        donor = counterfactuals.donors(self.clusters(key["split"], everyone), key["seed"])
        chosen = [donor[everyone.index(name)] for name in key["ids"]]
        return self.states(side, key["split"], key["position"]).kinds[key["kind"]][:, chosen]

    @cached_property
    def changes(self) -> Changes:
        """The weights of both models, read from their files when asked for."""
        return open_changes(self.prepared.pair.base, self.prepared.pair.tuned, self.prepared.tokens)

    @property
    def n_layers(self) -> int:
        return shape_of(self.prepared.pair.config("base")).n_layers

    def variants(
        self,
        cell: Cell,
        model: Model,
        variants: Sequence[Variant],
        labels: pl.DataFrame,
        *,
        floor: bool = False,
        metrics: Collection[str] = EVERY,
    ) -> pl.DataFrame:
        """The rows of these variants on a cell's prompts."""
        return score_rows(self.scores(cell, model, variants, metrics), labels, cell.key["ids"], floor=floor)

    def scores(
        self, cell: Cell, model: Model, variants: Sequence[Variant], metrics: Collection[str] = EVERY, along: Along | None = None
    ) -> Scores:
        """What these variants do to the distributions of a cell's prompts; with too little memory, of half the prompts at a time.

        Of a cell whose key names an `answer`, over the positions of the answers.
        """

        def score(cleans: Sequence[Clean], here: Sequence[Variant], part: slice) -> Scores:
            subject, clean = self.subject(cell, model, cleans, part), self.clean(cell, part, str(model.device))
            return scores(subject, here, clean, max_rows=self.max_rows, metrics=metrics, along=along and along.at(part))

        found = self.in_parts(cell, model, variants, score)
        return {name: torch.cat([part[name] for part in found]) for name in found[0]}

    def subject(self, cell: Cell, model: Model, cleans: Sequence[Clean], part: slice = ALL) -> Subject:
        """The running model with some of a cell's prompts, whose clean runs these are; with their answers, where the cell's key names an `answer`."""
        answers = self.answers(model.side, cell.key["ids"], answered(cell))[part] if "answer" in cell.key else None
        engine = self.engine(model, cell.key["position"])
        return Subject(model=model, engine=engine, cleans=cleans, tokens=self.prepared.tokens, answers=answers)

    def clean(self, cell: Cell, part: slice = ALL, device: str = "cpu", *, position: str | None = None) -> CleanLogits:
        """What both models predict, unedited, after some of a cell's prompts; where its key names an `answer`, at every position of it, in turn.

        `position`: as what was captured there (None: where the cell is about) says.
        """
        key, laws = cell.key, dict[str, Tensor]()
        for side in SIDES:
            found = self.states(side, key["split"], position or key["position"], key["ids"], answered(cell)).logits[part]
            if "answer" in key:
                found = torch.cat([law[:n] for law, n in zip(found, self.lengths(cell)[part], strict=True)])
            laws[side] = found.to(device)
        return CleanLogits(base=laws["base"], tuned=laws["tuned"], n_shared=self.prepared.tokens.n_shared)

    def lengths(self, cell: Cell) -> list[int]:
        """Positions of the answers to a cell's prompts."""
        return [len(said) for said in self.answers("tuned", cell.key["ids"], answered(cell))]

    def moved(self, cell: Cell, model: Model, variants: Sequence[Variant]) -> Float[Tensor, "prompt variant vocab"]:
        """How far these variants move the logits of a cell's prompts, on the CPU."""
        engine = self.engine(model, cell.key["position"])

        def move(cleans: Sequence[Clean], here: Sequence[Variant], part: slice) -> Tensor:
            subject = Subject(model=model, engine=engine, cleans=cleans, tokens=self.prepared.tokens)
            return moved_logits(subject, here, max_rows=self.max_rows)

        return torch.cat(self.in_parts(cell, model, variants, move))

    def in_parts(
        self, cell: Cell, model: Model, variants: Sequence[Variant], compute: Callable[[Sequence[Clean], Sequence[Variant], slice], T]
    ) -> list[T]:
        """What `compute` gives for all prompts of a cell, or with too little memory for half of them at a time."""
        cleans = self.cleans(cell, model)

        def sweep(part: slice) -> list[T]:
            here = [{site: replace(write, value=write.value[part].to(model.device)) for site, write in one.items()} for one in variants]
            try:
                return [compute(cleans[part], here, part)]
            except torch.OutOfMemoryError as error:
                n = part.stop - part.start
                if n == 1:
                    raise MachineError(f"one prompt's {len(variants)} variants do not fit on {model.device}. Lower --max-rows.") from error
                self.folder.log("out_of_memory", cell=cell.title, prompts=n, then="halved")
                middle = part.start + n // 2
                return sweep(slice(part.start, middle)) + sweep(slice(middle, part.stop))

        return sweep(slice(0, len(cleans)))

    @property
    def max_rows(self) -> int:
        return self.prepared.options.max_rows or MAX_ROWS

    def cleans(self, cell: Cell, model: Model) -> list[Clean]:
        """The running model's clean passes of a cell's prompts, kept for later cells as far as HELD_BYTES go."""
        engine = self.engine(model, cell.key["position"])
        wanted = (model.side, engine, cell.key["split"], tuple(cell.key["ids"]))
        if wanted not in self._cleans:
            while sum(t.nbytes for held in self._cleans.values() for one in held for block in one.cache or () for t in block) > HELD_BYTES:
                del self._cleans[next(iter(self._cleans))]
            self._cleans[wanted] = cleans(model, engine, [self.ids(cell, name) for name in cell.key["ids"]])
        return self._cleans[wanted]


def answered(cell: Cell) -> str | None:
    """The model whose answers a cell is about; None where it is about none."""
    of: str | None = cell.key.get("answer", {}).get("of")
    return of


def positions(one: Rendered, position: str, side: str) -> list[int]:
    """Token indices of a window in one model's tokens, or of positions spread over the prompt."""
    n_pos, model = n_positions(position), 0 if side == "base" else 1
    if position.startswith("spread"):
        assert n_pos
        before = one.positions[: -1 - LAST_LEFT_OUT]
        return [pair[model] for pair in (*evenly_spaced(n_pos - 1, before), one.positions[-1])]
    pairs = one.positions[-n_pos:] if n_pos else one.positions
    length = n_pos or len(one.ids_base)
    for which, ids in enumerate((one.ids_base, one.ids_tuned)):
        if [pair[which] for pair in pairs] != list(range(len(ids) - length, len(ids))):
            raise StudyError(
                f"positions {position}: the last tokens of prompt {one.prompt.id!r} are not the same places for both models. "
                "Use position decision, or policy same_text."
            )
    return [pair[model] for pair in pairs]
