"""The prompts are printed with both chat templates, where these differ, and one cell crosses templates and models."""

from collections.abc import Iterator
from dataclasses import replace

from mechdiff.errors import PromptError
from mechdiff.prompts.rendering import Rendered, render
from mechdiff.prompts.templates import of_a_model
from mechdiff.study.cells import Cell
from mechdiff.study.experiment import Needs, Reading, Window
from mechdiff.study.options import Options
from mechdiff.study.planner import Planner

NAME = "chat_template"
SPLITS = {"base": "template of base", "tuned": "template of tuned"}
"""The report prompts as this model's template prints them, for both models to read; where the study prints them so, they are its report prompts."""


class ChatTemplateOptions(Options):
    """It has none."""


def read(reading: Reading) -> None:
    """Adds the report prompts as either model's chat template prints them, or says why templates are not crossed."""
    report = reading.rendered.get("report")
    if not reading.study.asked(ChatTemplateOptions) or report is None:
        return
    if bare := [side for side in SPLITS if not reading.tokenizers[side].chat_template]:
        _leave_out(reading, f"the tokenizer of {' and '.join(bare)} has no chat template of its own")
        return
    try:
        printed = {side: _printed(reading, side) for side in SPLITS}
    except PromptError as error:
        _leave_out(reading, str(error))
        return
    if all(base == tuned for base, tuned in zip(*printed.values(), strict=True)):
        _leave_out(reading, "both chat templates print the same text")
        return
    if why := _beyond(reading, [one for prompts in printed.values() for one in prompts]):
        _leave_out(reading, why)
        return
    for side, prompts in printed.items():
        if any(one != report[one.prompt.id] for one in prompts):
            reading.rendered[SPLITS[side]] = {one.prompt.id: one for one in prompts}


def _printed(reading: Reading, side: str) -> list[Rendered]:
    """The report prompts as one model's template prints them; where the study names one of its several, by that one."""
    named = of_a_model(reading.policy.template)
    template = reading.policy.template if named and named[0] == side else side
    policy = replace(reading.policy, policy="same_text", template=template, position="decision")
    prompts = [one.prompt for one in reading.rendered["report"].values()]
    return render(prompts, reading.tokenizers["base"], reading.tokenizers["tuned"], policy, **reading.lengths)


def _beyond(reading: Reading, prompts: list[Rendered]) -> str:
    """Why a model cannot read the other's template: a token for which its embedding has no row; empty where there is none."""
    for side in SPLITS:
        token, rows = max(max(getattr(one, f"ids_{side}")) for one in prompts), reading.shapes[side].vocab
        if token >= rows:
            return f"a chat template prints token {token}, and the embedding of the {side} model has {rows} rows"
    return ""


def _leave_out(reading: Reading, why: str) -> None:
    reading.left_out.append({"what": NAME, "why": why})


def split_of(side: str, splits: object) -> str:
    """The split in which prompts are printed with this model's template, of those there are."""
    return SPLITS[side] if SPLITS[side] in splits else "report"  # type: ignore[operator]


def _left_out(planner: Planner, split: str) -> bool:
    """Whether prompts were printed so, and left out since; else the study prints them so itself."""
    return any(one["what"].endswith(f"({split})") for one in planner.skipped)


def needs(planner: Planner, options: ChatTemplateOptions) -> Needs:
    """Both models' distributions behind either template."""
    return Needs(windows=tuple(Window(split=split, kinds=(), layers=()) for split in SPLITS.values() if split in planner.splits))


def cells(planner: Planner) -> Iterator[Cell]:
    """One cell: all report prompts, by both templates and both models."""
    if not planner.study.asked(ChatTemplateOptions):
        return
    if "report" not in planner.splits:
        planner.skip(NAME, "the study has no test prompts")
        return
    if lost := [side for side, split in SPLITS.items() if split not in planner.splits and _left_out(planner, split)]:
        planner.skip(NAME, f"every prompt printed with the template of {' and of '.join(lost)} was left out")
        return
    if not any(split in planner.splits for split in SPLITS.values()):
        return
    printed = {side: split_of(side, planner.splits) for side in SPLITS}
    there = set.intersection(*({one.id for one in planner.splits[split]} for split in printed.values()))  # none that a model cannot read so
    items = tuple(one for one in planner.whole("report") if one.id in there)
    read = {side: [one.sha256 for one in planner.whole(split) if one.id in there] for side, split in printed.items()}
    yield Cell(
        stage=NAME, key=planner.key(items, stage=NAME, split="report", templates=printed, printed=read), items=items, side=None, flops=0
    )
