"""A measure is a question and, for each kit that works on it, what that kit reads of it. No torch here."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from mechdiff.comparison.between_runs import BetweenRuns
from mechdiff.report.parts import Chapter
from mechdiff.statistics.metric import Numbers
from mechdiff.study.experiment import Experiment


@dataclass(frozen=True)
class Later:
    """A function at "module:name", imported when it is first called: a page declares what loads torch or a plotting library without loading it."""

    place: str

    def resolve(self) -> Callable[..., Any]:
        module, _, name = self.place.partition(":")
        found: Callable[..., Any] = getattr(import_module(module), name)
        return found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.resolve()(*args, **kwargs)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One question, declared on one page."""

    name: str
    """In study files, rows, section ids: the name of its folder."""
    question: str
    """As README and the title of its section ask it."""
    experiment: Experiment
    """What the study reads: options, needs, cells, stages (study/experiment.py)."""
    numbers: Numbers
    """What statistics read: its metrics (statistics/metric.py)."""
    chapter: Chapter
    """What the page says of it (report/parts.py)."""
    between_runs: BetweenRuns
    """What several runs are compared in (comparison/between_runs.py)."""
    again: Callable[..., float]
    """(rerun, row): the row's value once more, another way; raises NotRecomputed with the reason."""
    answers: Callable[..., Any] | None = None
    """(rerun): what its record says the models answered, beside what is generated again; None where it records no answers."""


def page(place: str) -> Measure:
    """The measure that is declared at "module:name"."""
    found = Later(place).resolve()
    assert isinstance(found, Measure), f"{place} is no measure"
    return found
