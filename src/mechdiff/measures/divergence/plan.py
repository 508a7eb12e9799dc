"""A study file may set these options of divergence; its cells are planned from them."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from mechdiff.prompts.rendering import render
from mechdiff.prompts.sets import SPLITS
from mechdiff.study.cells import Cell
from mechdiff.study.experiment import Needs, Reading, Window
from mechdiff.study.options import Options
from mechdiff.study.planner import Planner


class DivergenceOptions(Options):
    over_text: bool = True  # beside the decision position: every position of the prompts and of a continuation
    continuation: Annotated[int, Field(ge=0, le=4096)] = 16  # tokens of the tuned model's own greedy answer that both models read
    native: bool = True  # with policy same_text: D once more with each model's own template, and what the template alone does to each


TEXTS_AT_A_TIME = 8
"""Prompts whose laws at every position are in memory together."""


def needs(planner: Planner, options: DivergenceOptions) -> Needs:
    """Laws of the prompts by each model's own template, where there are some."""
    return Needs(windows=(Window(split="native", kinds=(), layers=()),) if "native" in planner.splits else (), over_answers=())


def cells(planner: Planner) -> Iterator[Cell]:
    """D at the decision position, over answers, then over text."""
    yield from divergence_cells(planner)
    if items := planner.answered:
        key = planner.key(items, stage="answer_divergence", split="report", position="decision", answer=planner.answer)
        yield Cell(stage="answer_divergence", key=key, items=items, side=None, flops=0)
    yield from texts_cells(planner)


def laws_over_text(cell: Cell) -> int:
    """Laws that a cell over text makes: at every position of the prompts and their continuations, for either model."""
    return 3 * (cell.steps * len(cell.items) + sum(item.tokens for item in cell.items))


def divergence_cells(planner: Planner) -> Iterator[Cell]:
    """D of every split, wherever a measure of the study needs it; D once more by the models' own templates."""
    for split in SPLITS if planner.total_effect else ():
        if split in planner.splits:
            items = planner.whole(split)
            yield Cell(stage="divergence", key=planner.key(items, stage="divergence", split=split), items=items, side=None, flops=0)
    if "native" in planner.splits:
        items = planner.whole("native")
        yield Cell(stage="native", key=planner.key(items, stage="native", split="report"), items=items, side=None, flops=0)


def texts_cells(planner: Planner) -> Iterator[Cell]:
    options = planner.study.asked(DivergenceOptions)
    if not options or not options.over_text:
        return
    if "report" not in planner.splits:
        planner.skip("divergence over text", "the study has no report prompts")
        return
    items = planner.whole("report")
    for start in range(0, len(items), TEXTS_AT_A_TIME):
        shard = items[start : start + TEXTS_AT_A_TIME]
        tokens = sum(item.tokens for item in shard) + options.continuation * len(shard)
        key = planner.key(shard, stage="texts", split="report", continuation=options.continuation)
        yield Cell(stage="texts", key=key, items=shard, side=None, flops=planner.flops(2 * tokens, 2 * tokens), steps=options.continuation)


def read(reading: Reading) -> None:
    """Adds the report prompts by each model's own template, as the split `native`, where that is another text."""
    options, policy, report = reading.study.asked(DivergenceOptions), reading.policy, reading.rendered.get("report")
    if not (options and options.native and policy.policy == "same_text" and report is not None):
        return
    if bare := [side for side, tokenizer in reading.tokenizers.items() if not tokenizer.chat_template]:
        why = f"the tokenizer of {' and '.join(bare)} has no chat template of its own"
        reading.left_out.append({"what": "divergence: native templates", "why": why})
        return
    base, tuned, native = reading.tokenizers["base"], reading.tokenizers["tuned"], replace(policy, policy="native", position="decision")
    own = render([one.prompt for one in report.values()], base, tuned, native, **reading.lengths)
    if any(one.sha256 != report[one.prompt.id].sha256 for one in own):
        reading.rendered["native"] = {one.prompt.id: one for one in own}
