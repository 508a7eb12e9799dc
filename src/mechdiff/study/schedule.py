"""The order of a run is computed from what its stages need, so that the loaded model changes as rarely as it can. No torch here.

Cells of one stage and model are a *group*, and are computed one after the other. All groups run that are ready for the model that is loaded, or that
need none; then the model changes. A stage whose cells load both models themselves waits for such a change and makes it. Of those
that are ready, what a reader asks for first comes first; where models change at no cost, with all that it needs.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from mechdiff.study.cells import Cell
from mechdiff.study.experiment import Stage

SIDES = ("base", "tuned")


@dataclass(frozen=True, eq=False)
class Group:
    """Cells none of which needs another of them."""

    stage: Stage
    side: str | None
    """The model that must run; None: none, or those that the stage loads itself."""
    part: str
    """The split, where another group waits for this split alone; else empty."""
    cells: tuple[Cell, ...]

    @property
    def models(self) -> tuple[str, ...]:
        """The models that its cells run, one after the other."""
        return (self.side,) if self.side else self.stage.loads * len(self.cells)


@dataclass(frozen=True)
class Need:
    """What one entry of a stage's `needs` asks for."""

    stage: str
    part: str
    same: bool

    @classmethod
    def of(cls, text: str) -> "Need":
        place, _, same = text.partition("@")
        stage, _, part = place.partition("/")
        return cls(stage, part, same == "same")

    def means(self, needed: Group, of: Group) -> bool:
        """Whether a group is one that another waits for."""
        here = needed.stage.name == self.stage and needed is not of
        return here and self.part in ("", needed.part) and (not self.same or needed.side == of.side)


def schedule(stages: Mapping[str, Stage], cells: Sequence[Cell], loaded: str | None = None, *, both: bool = False) -> list[Group]:
    """The groups of these cells in an order in which none comes before one that it needs; `loaded` is the model that is there already, `both`: both
    models stay in memory, so that a change costs nothing.

    A need of which there are no cells is met. Raises ValueError for a stage that nobody knows, and for stages that wait for each other.
    """
    for cell in cells:
        if cell.stage not in stages:
            raise ValueError(f"no stage {cell.stage!r} computes the cell {cell.title!r}; there are {', '.join(stages)}.")
    for stage in stages.values():
        if unknown := [need for need in stage.needs if Need.of(need).stage not in stages]:
            raise ValueError(f"the stage {stage.name!r} needs {unknown[0]!r}, which is no stage; there are {', '.join(stages)}.")
    found = groups(stages, cells)
    waits = {group: [other for need in map(Need.of, group.stage.needs) for other in found if need.means(other, group)] for group in found}
    early = _with_needs([group for group in found if group.stage.soon], waits)
    orders = [
        order for first in ([loaded] if loaded else SIDES) for order in (_phases(found, early, waits, first), _greedy(found, waits, first))
    ]
    return orders[0] if both else min(orders, key=lambda order: n_loads(order, loaded))


def _with_needs(wanted: Sequence[Group], waits: Mapping[Group, Sequence[Group]]) -> set[Group]:
    """Groups and all that they wait for."""
    found: set[Group] = set()
    more = set(wanted)
    while more:
        found |= more
        more = {other for group in more for other in waits[group]} - found
    return found


def _phases(found: Sequence[Group], early: set[Group], waits: Mapping[Group, Sequence[Group]], loaded: str) -> list[Group]:
    """Some groups, which wait for none of the others, in their order, and then all others in theirs."""
    first = _greedy([group for group in found if group in early], waits, loaded)
    last = [model for group in first for model in group.models][-1:] or [loaded]
    return [*first, *_greedy([group for group in found if group not in early], waits, last[0], first)]


def groups(stages: Mapping[str, Stage], cells: Sequence[Cell]) -> list[Group]:
    """Cells by stage and model, and by split where that is needed alone."""
    named = {(need.stage, need.part) for stage in stages.values() for need in map(Need.of, stage.needs) if need.part}
    found: dict[tuple[str, str | None, str], list[Cell]] = {}
    for cell in cells:
        split = str(cell.key.get("split"))
        found.setdefault((cell.stage, cell.side, split if (cell.stage, split) in named else ""), []).append(cell)
    return [Group(stages[stage], side, part, tuple(group)) for (stage, side, part), group in found.items()]


def n_loads(order: Sequence[Group], loaded: str | None = None) -> int:
    """How often a model is loaded, where only one fits into memory."""
    models = [loaded, *(side for group in order for side in group.models)]
    return sum(before != after for before, after in pairwise(models))


def first_stages(stages: Mapping[str, Stage], last: str) -> set[str]:
    """A stage with all that it needs."""
    before = {last}
    while more := {Need.of(need).stage for name in before for need in stages[name].needs} - before:
        before |= more
    return before


def _greedy(found: Sequence[Group], waits: Mapping[Group, Sequence[Group]], loaded: str, before: Collection[Group] = ()) -> list[Group]:
    order: list[Group] = []
    done = set(before)
    while len(order) < len(found):
        ready = [group for group in found if group not in done and done.issuperset(waits[group])]
        if not ready:
            stuck = sorted({group.stage.name for group in found if group not in done})
            raise ValueError(f"the stages {', '.join(stuck)} wait for each other: change what one of them needs.")
        now = [group for group in ready if set(group.models) <= {loaded}]
        if not now:
            now = [group for group in ready if group.models[0] == loaded][:1] or ready[:1]
            loaded = now[0].models[-1]
        now.sort(key=lambda group: not group.stage.soon)
        order += now
        done.update(now)
    return order
