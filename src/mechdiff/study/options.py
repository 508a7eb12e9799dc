"""Each measure can be told a few things in a study file: one class of options a measure, all with defaults. No torch here.

Lists come back sorted (sites and arms in their own order, numbers ascending): the order in a file changes no result,
so it must not change a study's identity either.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, model_validator

from mechdiff.architectures.sites import KINDS
from mechdiff.errors import StudyError
from mechdiff.labels import CROSSED, PATCHES
from mechdiff.study.document import Count, Section, listed, some_of, whole_numbers, wrong

ARMS = (*PATCHES, "oracle")
"""How a written state can be made: see measures/patching/formula.py."""


def _layers(given: object) -> Literal["all"] | tuple[int, ...]:
    if given == "all":
        return "all"
    if not isinstance(given, (list, tuple)) or not given:
        raise wrong(given, "all, or a list of layer numbers such as [0, 12, 24]", ["all"])
    return whole_numbers(given, 0)


def _closer(given: object) -> Literal["hot"] | tuple[int, ...]:
    if given == "hot":
        return "hot"
    if not isinstance(given, (list, tuple)) or not given:
        raise wrong(given, "hot (chosen on the validation prompts), or a list of layer numbers such as [12, 24]", ["hot"])
    return whole_numbers(given, 0)


def read_directions(given: object) -> tuple[str, ...]:
    if given == "both":
        return CROSSED
    if isinstance(given, str):
        if given not in CROSSED:
            raise wrong(given, f"both, {' or '.join(CROSSED)}", ["both", *CROSSED])
        return (given,)
    return some_of(CROSSED)(given)


def read_positions(given: object) -> tuple[str, ...]:
    for item in (items := listed(given)):
        if item not in ("decision", "all") and not (isinstance(item, str) and re.fullmatch(r"last_([2-9]|[1-9][0-9]{1,5})", item)):
            raise wrong(item, "decision, last_2, last_3, ... or all", ["decision", "last_2", "all"])
    if not items:
        raise wrong(given, "at least one of decision, last_2, last_3, ... or all")
    return tuple(sorted(items, key=lambda name: 1 if name == "decision" else float("inf") if name == "all" else int(name[5:])))


Kinds = Annotated[tuple[str, ...], BeforeValidator(some_of(KINDS))]


class Options(Section):
    """What a measure can be told."""

    paths: ClassVar[Mapping[str, str]] = {}
    """Options that name a file -> which files count where a folder is named; empty: it may be none."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}}
    """Presets (study/presets.py) that ask for the measure -> what they tell it."""

    def files(self) -> dict[str, str]:
        """The files and folders that are named, by option."""
        given = {option: getattr(self, option) for option in self.paths}
        return {option: path for option, path in given.items() if isinstance(path, str) and path}


class LayeredOptions(Options):
    layers: Annotated[Literal["all"] | tuple[int, ...], BeforeValidator(_layers)] = "all"  # or numbers of blocks, from 0
    stride: Count = 1  # with layers: all, every stride-th layer from 0

    @model_validator(mode="after")
    def _one_choice(self) -> "LayeredOptions":
        if self.layers != "all" and self.stride != 1:
            raise wrong(self.stride, "stride only with layers: all")
        return self

    def layer_numbers(self, n_layers: int) -> tuple[int, ...]:
        """The layers meant, in a model that has `n_layers`."""
        if self.layers == "all":
            return tuple(range(0, n_layers, self.stride))
        if missing := [layer for layer in self.layers if layer >= n_layers]:
            raise StudyError(f"layers {missing} are asked for; the model has {n_layers}, numbered 0 to {n_layers - 1}.")
        return self.layers


class CloserOptions(LayeredOptions):
    closer: Annotated[Literal["hot"] | tuple[int, ...], BeforeValidator(_closer)] = "hot"  # layers looked at more closely


def read_strengths(given: object) -> tuple[float, ...]:
    for item in (items := listed(given)):
        if isinstance(item, bool) or not isinstance(item, (int, float)) or not 0 <= item <= 100:
            raise wrong(item, "numbers from 0 to 100, such as [0, 0.25, 0.5, 0.75, 1.5]")
    return tuple(sorted({float(item) for item in items} - {1.0}))
