"""A study file may set these options of the weights; their cells are planned from them."""

from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Field

from mechdiff.spacing import evenly_spaced
from mechdiff.study.cells import Cell
from mechdiff.study.document import Count
from mechdiff.study.options import Options
from mechdiff.study.planner import Planner


class WeightsOptions(Options):
    presets: ClassVar = {"quick": {"input_prompts": 4}, "standard": {}, "paper": {}, "audit": {}}

    heads: bool = True  # each head's OV and QK products
    exact_up_to: Count = 1024  # matrices with both sides above this get the top of their spectrum, with its error
    input_prompts: Annotated[int, Field(ge=0, le=4096)] = 16  # test prompts whose states weigh each change; 0: none


def weights_cells(planner: Planner) -> Iterator[Cell]:
    """What enters the changed matrices on a few prompts, then every tensor of both models' files."""
    options = planner.study.asked(WeightsOptions)
    if not options:
        return
    items = evenly_spaced(options.input_prompts, planner.whole("report")) if "report" in planner.splits else ()
    if items:
        key = planner.key(items, stage="inputs", split="report", side="base")
        yield Cell(stage="inputs", key=key, items=items, side="base", flops=planner.flops(sum(item.tokens for item in items), len(items)))
    key = planner.key(items, stage="weights", heads=options.heads, exact_up_to=options.exact_up_to)
    low, high = sorted((planner.shape.d_model, planner.shape.d_mlp))
    matrices = 7 * sum(site in ("attn", "mlp") for _, site in planner.touched) / 2
    yield Cell(stage="weights", key=key, items=items, side=None, flops=matrices * (0.6 if planner.adapter else 40) * low * low * high)
