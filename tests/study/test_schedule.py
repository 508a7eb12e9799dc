"""No stage runs before what it needs, whatever a study asks for; and the loaded model changes as rarely as it can."""

from collections.abc import Collection
from itertools import combinations
from typing import Any

import pytest

from every_measure import made
from mechdiff.measures.catalogue import EXPERIMENTS, load_study
from mechdiff.study.cells import Cell
from mechdiff.study.config import RunOptions
from mechdiff.study.experiment import Stage
from mechdiff.study.prepare import prepare
from mechdiff.study.schedule import Group, Need, first_stages, n_loads, schedule
from mechdiff.study.stages import stages_of

STAGES = stages_of(EXPERIMENTS)

BY_HAND = 8
"""Loads of the order that was written by hand, stages that load both models themselves apart."""

OWN = {name: [stage.name for stage in one.stages] for name, one in EXPERIMENTS.items()}
"""The stages of each measure."""

NOTHING = Stage(name="nothing", compute=lambda *given: given, needs=())


def cell(stage: str, side: str | None = None, **key: Any) -> Cell:
    return Cell(stage=stage, key=key, items=(), side=side, flops=0)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[Cell]:
    """One cell of each stage, model and split of the study of every measure."""
    study, _ = load_study(made(tmp_path_factory.mktemp("every_measure")))
    planned = prepare(study, RunOptions(device="cpu"), EXPERIMENTS).plan.cells
    return list({(one.stage, one.side, one.key.get("split")): one for one in planned}.values())


def of(cells: Collection[Cell], measures: Collection[str]) -> list[Cell]:
    wanted = {"selfcheck", "capture"} | {stage for name in measures for stage in OWN[name]}
    return [one for one in cells if one.stage in wanted]


def too_early(order: list[Group]) -> list[str]:
    """Groups that come before one that they need."""
    place = {group: number for number, group in enumerate(order)}
    needs = [(group, other) for group in order for need in map(Need.of, group.stage.needs) for other in order if need.means(other, group)]
    return [
        f"{group.stage.name} {group.side} before {other.stage.name} {other.side}" for group, other in needs if place[group] < place[other]
    ]


FEW_OR_ALMOST_ALL = (0, 1, 2, 3, len(OWN) - 2, len(OWN) - 1, len(OWN))
"""Of how many measures every choice is tried in `make test`: all 2^n choices double with each measure that is added."""


@pytest.mark.parametrize("n", [pytest.param(n, marks=() if n in FEW_OR_ALMOST_ALL else pytest.mark.slow) for n in range(len(OWN) + 1)])
def test_no_stage_comes_before_what_it_needs(cells: list[Cell], n: int) -> None:
    for measures in combinations(OWN, n):
        asked = of(cells, measures)
        order = schedule(STAGES, asked)
        assert not too_early(order), measures
        assert sorted(map(id, asked)) == sorted(id(one) for group in order for one in group.cells), "each cell runs once"


def test_the_model_changes_less_often_than_in_the_order_by_hand(cells: list[Cell]) -> None:
    sided = [one for one in cells if not STAGES[one.stage].loads]
    assert n_loads(schedule(STAGES, sided)) <= 5 < BY_HAND
    assert n_loads(schedule(STAGES, cells)) <= 5, "also with two stages that load both models themselves"


def test_what_a_reader_asks_for_first_comes_first(cells: list[Cell]) -> None:
    """Where both models stay in memory: before everything that it does not need. Else as early as no more loads allow."""
    order = schedule(STAGES, cells, both=True)
    assert not too_early(order)
    soon = [place for place, group in enumerate(order) if group.stage.soon]
    names = [group.stage.name for group in order]
    assert {"weights", "behaviour", "divergence", "texts"} <= {order[place].stage.name for place in soon}
    assert max(soon) < min(names.index(name) for name in ("patching", "heads", "grafting", "steering"))
    assert n_loads(schedule(STAGES, cells)) <= n_loads(order)


def test_what_is_there_already_is_no_load(cells: list[Cell]) -> None:
    tuned = [one for one in cells if one.side == "tuned"]
    assert n_loads(schedule(STAGES, tuned, "tuned"), "tuned") == 0
    assert n_loads(schedule(STAGES, tuned, "base"), "base") == 1


def test_states_are_captured_before_all_else() -> None:
    assert first_stages(STAGES, "capture") == {"selfcheck", "capture"}


def test_a_stage_that_loads_both_models_waits_until_the_model_changes() -> None:
    both = Stage(name="both", compute=lambda *given: given, needs=(), loads=("tuned", "base"))
    order = schedule({"nothing": NOTHING, "both": both}, [cell("both"), cell("nothing", "base"), cell("nothing", "tuned")])
    assert [(group.stage.name, group.side) for group in order] == [("nothing", "tuned"), ("both", None), ("nothing", "base")]
    assert n_loads(order) == 2


def test_a_need_of_one_split_and_of_the_same_model() -> None:
    later = Stage(name="later", compute=lambda *given: given, needs=("later/select@same",))
    order = schedule({"later": later}, [cell("later", side, split=split) for side in ("base", "tuned") for split in ("report", "select")])
    assert [(group.side, group.part) for group in order] == [(side, part) for side in ("base", "tuned") for part in ("select", "")]


def test_a_need_that_is_no_stage_is_named() -> None:
    with pytest.raises(ValueError, match="the stage 'late' needs 'erly', which is no stage; there are nothing, late"):
        schedule({"nothing": NOTHING, "late": Stage(name="late", compute=lambda *given: given, needs=("erly",))}, [])


def test_a_cell_of_no_stage_is_named() -> None:
    with pytest.raises(ValueError, match="no stage 'other' computes the cell 'other'"):
        schedule({"nothing": NOTHING}, [cell("other")])


def test_stages_that_wait_for_each_other_are_named() -> None:
    circle = {name: Stage(name=name, compute=lambda *given: given, needs=(need,)) for name, need in (("one", "two"), ("two", "one"))}
    with pytest.raises(ValueError, match="the stages one, two wait for each other"):
        schedule(circle, [cell("one", "base"), cell("two", "tuned")])
