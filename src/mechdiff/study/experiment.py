"""What a study reads of a measure: what it can be told, what must be there before it, its cells, and the stages that compute them. No torch here."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mechdiff.architectures.sizes import Shape
from mechdiff.prompts.rendering import Rendered
from mechdiff.prompts.templates import PromptPolicy
from mechdiff.study.cells import Cell
from mechdiff.study.config import StudyConfig
from mechdiff.study.options import Options
from mechdiff.study.planner import Planner

Result = tuple[pl.DataFrame, dict[str, np.ndarray]]
"""What a stage computes: rows, and tensors by name."""


def runs_of(cell: Cell) -> int:
    """Laws that a cell makes: one for each of its counterfactual runs."""
    return int(cell.key.get("n_variants", 0)) * len(cell.items)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One kind of cell: what computes it, and which cells must be there before."""

    name: str
    """In cell keys, the log and the record."""
    compute: Callable[..., Result]
    """(execution, cell, model or None): the cell's rows and tensors."""
    needs: tuple[str, ...] = ("capture",)
    """Stages all of whose cells come first. "heads@same": those of the same model; "attribution/select": those on that split."""
    loads: tuple[str, ...] = ()
    """Models that a cell that belongs to no side loads by itself, in this order."""
    soon: bool = False
    """Whether a reader asks for its result first: it runs before stages that could run as well."""
    rate: float = 1.0
    """Share that it reaches of the speed at which most stages compute: what an estimate divides by."""
    laws: Callable[[Cell], int] = runs_of
    """Laws that a cell makes."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """States of one split that are captured."""

    split: str
    position: str = "decision"
    kinds: tuple[str, ...] | None = None
    """None: every kind of site that any measure of the study asks for."""
    layers: tuple[int, ...] | None = None
    """None: all."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What must be captured before a measure's first stage, and how prompts are packed for it."""

    sites: tuple[str, ...] = ()
    """Kinds of site whose states are captured at the decision position of every split."""
    windows: tuple[Window, ...] = ()
    """States beside these."""
    side_by_side: int | None = None
    """Edits of one prompt that run side by side; None: as the others have it."""
    over_answers: tuple[str, ...] | None = None
    """Kinds of site whose states are captured at every position of the answers; none: both models' distributions there; None: no answers."""


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """Prompts that a measure brings beside the study's own."""

    split: str
    file: str | Path
    n: int | None = None
    """So many; None: all."""
    spread: bool = False
    """Evenly spaced over the file, not its first ones."""
    unread: bool = False
    """Without texts that stand in the study's own prompts."""
    any_length: bool = False
    """Also those longer than a model's context, which the measure leaves out by itself."""


@dataclass(kw_only=True)
class Reading:
    """All prompts as both models read them, before anything is planned. A measure may add a split, take prompts out, and say what is left out."""

    study: StudyConfig
    rendered: dict[str, dict[str, Rendered]]
    """Split -> prompt id -> the prompt."""
    tokenizers: Mapping[str, Any]
    """By side."""
    policy: PromptPolicy
    lengths: Mapping[str, int]
    """The most tokens that each model reads, as arguments of `render`."""
    shapes: Mapping[str, Shape]
    full: set[tuple[str, str]] = field(default_factory=set)
    """(split, prompt) behind which no text has room."""
    text_tokens: Mapping[tuple[str, str], Sequence[int]] = field(default_factory=dict)
    """Tokens of each text that is scored behind a prompt, where that is known."""
    left_out: list[dict[str, str]] = field(default_factory=list)
    """What, and why."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a measure may cost in the demo, and what it is told so that it does not cost more."""

    seconds: int
    """Of one core like those of a small server of 2024, for one pair."""
    options: Mapping[str, Any] = field(default_factory=dict)
    few_sites: bool = False
    """Whether it is told to look where the embedded fine-tune is known to be, at one kind of site: of the demo, with or without a budget."""


def needs_nothing(planner: Planner, options: Any) -> Needs:
    return Needs()


def no_prompts(options: Any) -> Sequence[PromptSet]:
    return ()


def reads_nothing(reading: Reading) -> None:
    return None


def proves_nothing(run: Any) -> None:
    return None


def no_record(run: Any) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What the study reads of one measure. Its functions that load torch are named as text (`Later`)."""

    options: type[Options]
    """What a study file can tell it."""
    cells: Callable[[Planner], Iterator[Cell]]
    """Its cells; it is asked in every study, for one measure's cells may serve others."""
    stages: tuple[Stage, ...]
    """What computes them."""
    demo: Budget
    needs: Callable[[Planner, Any], Needs] = needs_nothing
    """(planner, its options)"""
    prompts: Callable[[Any], Sequence[PromptSet]] = no_prompts
    """(its options)"""
    read: Callable[[Reading], None] = reads_nothing
    """Looks through the rendered prompts; in every study."""
    proof: Callable[[Any], None] = proves_nothing
    """(execution without a folder): raises ModelError for what would end its stages and shows on the loaded models alone. For `check`."""
    record: Callable[[Any], dict[str, Any]] = no_record
    """(execution): what the manifest keeps of it. "warnings" and "skipped" (what, why) are added to the run's; in every study."""
    total_effect: bool = False
    """Whether D of every split is computed beside it."""
    parts_changed: bool = False
    """Whether the plan must know which weights have changed."""
    routers: bool = False
    """Whether the plan must know which blocks choose experts for their tokens."""
    few: Mapping[str, Any] = field(default_factory=dict)
    """Options with which it runs in seconds."""


def asked(study: StudyConfig, experiments: Mapping[str, Experiment]) -> list[tuple[Experiment, Any]]:
    """The measures that a study asks for, each with its options."""
    return [(experiments[name], options) for name, options in study.measures.items()]
