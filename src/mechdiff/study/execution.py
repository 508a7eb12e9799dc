"""One execution of a plan, as its stages see it: the prompts, the engines, the states that were captured, the folder of finished cells."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechdiff.engine.activations import Clean, capture
from mechdiff.engine.models import Model
from mechdiff.engine.rendering import Rendered
from mechdiff.engine.replay import ENGINES, Engine
from mechdiff.measures.grafting import Lattice
from mechdiff.study.artifacts import RunFolder
from mechdiff.study.cells import Cell
from mechdiff.study.manifest import engines
from mechdiff.study.prepare import Prepared


@dataclass(frozen=True, kw_only=True)
class States:
    """What a capture of several prompts kept."""

    layers: tuple[int, ...]
    kinds: dict[str, Float[Tensor, "layer prompt pos d"]]
    """One entry for each of `layers`."""
    logits: Float[Tensor, "prompt vocab"]


class Execution:
    """What every stage may ask for. Nothing here computes a result."""

    def __init__(self, prepared: Prepared, folder: RunFolder) -> None:
        self.prepared, self.folder = prepared, folder
        self.cells = prepared.plan.cells
        self.engines = engines(prepared)
        self._states: dict[tuple[str, str, str], States] = {}
        self._cleans: tuple[Any, list[Clean]] = (None, [])
        self.lattices: dict[str, Lattice] = {}
        """By split: what all grafting cells start from, kept from one to the next."""

    def engine(self, model: Model, position: str) -> Engine:
        """The engine for one model and window: whole sequences where edits are at all positions."""
        name = self.engines[model.side][0]
        return ENGINES["relay" if name == "replay" and position == "all" else name]

    def prompt(self, split: str, name: str) -> Rendered:
        return self.prepared.rendered[split][name]

    def ids(self, cell: Cell, name: str) -> tuple[int, ...]:
        one = self.prompt(cell.key["split"], name)
        return one.ids_base if cell.side == "base" else one.ids_tuned

    def captures(self, side: str, split: str, position: str) -> list[Cell]:
        """The capture cells of one model on one split, in the order of its shards."""
        wanted = (side, split, position)
        return [cell for cell in self.cells if cell.stage == "capture" and (cell.side, cell.key["split"], cell.key["position"]) == wanted]

    def states(self, side: str, split: str, position: str, ids: Sequence[str] | None = None) -> States:
        """The captured states of a split (in the order of its shards), or of the one shard that holds just `ids`."""
        shards = self.captures(side, split, position)
        if ids is not None:
            return self._joined([cell for cell in shards if cell.key["ids"] == ids])
        if (side, split, position) not in self._states:
            self._states[side, split, position] = self._joined(shards)
        return self._states[side, split, position]

    def _joined(self, shards: Sequence[Cell]) -> States:
        loaded = [self.folder.load(cell.key).tensors for cell in shards]
        kinds = {kind: torch.cat([torch.from_numpy(part[kind]) for part in loaded], 1) for kind in shards[0].key["kinds"]}
        return States(
            layers=tuple(shards[0].key["layers"]), kinds=kinds, logits=torch.cat([torch.from_numpy(part["logits"]) for part in loaded])
        )

    def cleans(self, cell: Cell, model: Model) -> list[Clean]:
        """The running model's clean passes of a cell's prompts, kept for the next cells of the same shard."""
        wanted = (model.side, cell.key["split"], cell.key["ids"])
        if self._cleans[0] != wanted:
            keep = self.engine(model, cell.key["position"]) is ENGINES["replay"]
            self._cleans = (None, [])
            found = [capture(model, self.ids(cell, name), [], [0], keep_cache=keep) for name in cell.key["ids"]]
            self._cleans = (wanted, found)
        return self._cleans[1]
