"""A study file may set these options of divergence; its cells are planned from them."""

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar

from pydantic import Field

from mechdiff import labels
from mechdiff.prompts.sets import SPLITS
from mechdiff.study.cells import Cell
from mechdiff.study.experiment import Needs
from mechdiff.study.options import Options
from mechdiff.study.planner import Planner


class DivergenceOptions(Options):
    gone: ClassVar[Mapping[str, str]] = {
        "native": "this option is gone: what chat templates do alone is asked by the measure chat_template; leave it out."
    }
    presets: ClassVar = {"quick": {"over_text": False, "continuation": 0}, "standard": {}, "paper": {}, "audit": {}}

    over_text: bool = True  # beside the last prompt token: every position of the prompts and of a continuation
    continuation: Annotated[int, Field(ge=0, le=4096)] = 16  # tokens of the tuned model's own greedy answer that both models read


TEXTS_AT_A_TIME = 8
"""Prompts whose laws at every position are in memory together."""


def needs(planner: Planner, options: DivergenceOptions) -> Needs:
    """Both models' distributions over the answers."""
    return Needs(over_answers=())


def cells(planner: Planner) -> Iterator[Cell]:
    """D at the decision position, over answers, then over text."""
    yield from divergence_cells(planner)
    for answer in planner.answers if planner.answered else ():
        items, where = planner.answered, labels.answer_position(planner.study.answers.tokens)
        key = planner.key(items, stage="answer_divergence", split="report", position=where, answer=answer)
        yield Cell(stage="answer_divergence", key=key, items=items, side=None, flops=0)
    yield from texts_cells(planner)


def laws_over_text(cell: Cell) -> int:
    """Laws that a cell over text makes: at every position of the prompts and their continuations, for either model."""
    return 3 * (cell.steps * len(cell.items) + sum(item.tokens for item in cell.items))


def divergence_cells(planner: Planner) -> Iterator[Cell]:
    """D of every split, wherever a measure of the study needs it."""
    for split in SPLITS if planner.total_effect else ():
        if split in planner.splits:
            items = planner.whole(split)
            yield Cell(stage="divergence", key=planner.key(items, stage="divergence", split=split), items=items, side=None, flops=0)


def texts_cells(planner: Planner) -> Iterator[Cell]:
    options = planner.study.asked(DivergenceOptions)
    if not options or not options.over_text:
        return
    if "report" not in planner.splits:
        planner.skip("divergence over text", "the study has no test prompts")
        return
    items = planner.whole("report")
    for start in range(0, len(items), TEXTS_AT_A_TIME):
        shard = items[start : start + TEXTS_AT_A_TIME]
        tokens = sum(item.tokens for item in shard) + options.continuation * len(shard)
        key = planner.key(shard, stage="texts", split="report", continuation=options.continuation)
        yield Cell(stage="texts", key=key, items=shard, side=None, flops=planner.flops(2 * tokens, 2 * tokens), steps=options.continuation)
