"""A study file may set these options of grafting; its cells are planned from them."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from mechdiff.spacing import evenly_spaced
from mechdiff.study.cells import Cell, Item
from mechdiff.study.document import Count
from mechdiff.study.experiment import Needs
from mechdiff.study.options import Options
from mechdiff.study.planner import Planner


class GraftingOptions(Options):
    presets: ClassVar = {"standard": {"points": 3, "report_prompts": 6, "greedy": False, "truncate": False}, "paper": {}}

    curves: bool = True  # each changed unit alone, and both cumulative curves
    points: Count | None = None  # of each cumulative curve: so many units, evenly spaced; none: every changed one
    report_prompts: Count | None = None  # test prompts on which weights are grafted; none: all
    greedy: bool = True  # nested sets, chosen on the validation split
    candidates: Count = 12  # units that the greedy search tries, and that are cut to a rank: the best alone
    picks: Count = 8  # units that the greedy search picks
    select_prompts: Count = 8  # prompts that it looks at
    truncate: bool = True  # the change cut to a rank


BLOCKS_A_CELL = 4
"""Blocks whose units are grafted in one cell."""


def needs(planner: Planner, options: GraftingOptions) -> Needs:
    """Both models' distributions over the answers, which grafted models read too."""
    return Needs(over_answers=())


def grafting_cells(planner: Planner) -> Iterator[Cell]:
    """The units of a few blocks a cell; then the greedy sets; then the ranks. All start from one trace of each model."""
    options = planner.study.asked(GraftingOptions)
    if not options:
        return
    if "report" not in planner.splits:
        planner.skip("grafting", "the study has no test prompts")
        return
    if planner.shapes["base"] != planner.shapes["tuned"]:
        planner.skip("grafting", "the two models' tensors have different shapes: weights of one do not fit into the other")
        return
    if why := planner.ungraftable:
        planner.skip("grafting", why)
        return
    if not planner.one_vocabulary:
        planner.skip(
            "grafting", "the two tokenizers number their tokens differently: embedding and unembedding do not fit into the other model"
        )
        return
    items = evenly_spaced(options.report_prompts or len(planner.whole("report")), planner.whole("report"))
    answered = [item for item in items if item in planner.answered]
    for answer in planner.answers if answered else (None,):
        yield from _grafted(planner, options, tuple(items if answer in (None, planner.answers[0]) else answered), answered, answer)


def _grafted(
    planner: Planner, options: GraftingOptions, items: tuple[Item, ...], answered: Sequence[Item], answer: dict[str, Any] | None
) -> Iterator[Cell]:
    """On these report prompts; `answer`: whose answers are read behind some of them. What a second model answers is read behind those alone."""
    chosen_on = evenly_spaced(options.select_prompts, planner.whole("select")) if "select" in planner.splits else ()
    behind = planner.study.answers.tokens * len(answered)
    tokens, few = sum(item.tokens for item in items) + behind, sum(item.tokens for item in chosen_on)
    n_layers = planner.shape.n_layers
    costs = {unit: 1 - max(0, _place(unit, n_layers)) / n_layers for unit in planner.touched}
    n_best = min(options.candidates, len(costs))
    first = {"stage": "grafting", "split": "report", "candidates": options.candidates}
    first |= {"report": [item.id for item in items], "select": [item.id for item in chosen_on]}
    if answer:
        first["answer"] = answer | {"ids": [item.id for item in answered]}

    def cell(runs: float, **what: Any) -> Cell:
        key = planner.key((*items, *chosen_on), **first, **what)
        return Cell(
            stage="grafting", key=key, items=items, side="base", flops=planner.flops(runs, runs / max(tokens, 1) * (len(items) + behind))
        )

    if options.curves:
        for number, low in enumerate(range(-1, n_layers + 1, BLOCKS_A_CELL)):
            here = [cost for unit, cost in costs.items() if low <= _place(unit, n_layers) < low + BLOCKS_A_CELL]
            cumulative = 2 * min(1.0, (options.points or len(costs)) / max(1, len(costs)))
            runs = tokens * ((1 + cumulative) * sum(here) + 2 * (number == 0))
            yield cell(runs, arm="curves", blocks=[low, low + BLOCKS_A_CELL], points=options.points)
    if not chosen_on:
        planner.skip("grafting condition greedy", "the study has no validation prompts, on which the sets are chosen")
    average = sum(costs.values()) / max(1, len(costs))
    if options.greedy and chosen_on:
        tried = len(costs) + sum(n_best - i for i in range(min(options.picks, n_best)))
        yield cell(few * (2 + tried * average) + tokens * min(options.picks, n_best) * average, arm="greedy", picks=options.picks)
    if options.truncate:
        yield cell(tokens * 3 * (n_best * average * bool(chosen_on) + 1), arm="truncate")


def _place(unit: tuple[int | None, str], n_layers: int) -> int:
    """Where a unit stands among the blocks: -1 for the embedding, `n_layers` for what comes after them."""
    return unit[0] if unit[0] is not None else -1 if unit[1] == "embed" else n_layers
