"""A study file may set these options of routing; its cells are planned from them."""

from collections.abc import Iterator
from typing import ClassVar

from mechdiff.study.cells import Cell
from mechdiff.study.options import LayeredOptions
from mechdiff.study.planner import Planner, lacks

TOP, SET, REPLACED, JS = "top1_expert_changed", "expert_set_changed", "experts_replaced", "gate_js_nats"
WEIGHTS_ALONE, INPUTS_ALONE = "router_weights_alone", "inputs_alone"
"""Controls: the tuned router on what the base's is given, and the base's router on what the tuned model's is given."""
AT_A_TIME = 8
"""Prompts whose routers' inputs are in memory together."""


class RoutingOptions(LayeredOptions):
    """`layers` and `stride`: blocks whose router is read, of those that have one."""

    presets: ClassVar = {"standard": {}, "paper": {}}


def cells(planner: Planner) -> Iterator[Cell]:
    """Shards of the select prompts, which choose the layer that is spoken of, and of the report prompts."""
    options = planner.study.asked(RoutingOptions)
    if not options:
        return
    if not any(planner.routers.values()):
        planner.skip("routing", _why_none(planner))
        return
    with_router = set.intersection(*(set(planner.routers[side]) for side in ("base", "tuned")))
    layers = sorted(with_router & set(options.layer_numbers(planner.shape.n_layers)))
    if not layers:
        planner.skip(
            "routing", f"none of the layers that are asked for has a router in both models; those with one are {sorted(with_router)}"
        )
        return
    controls = planner.shapes["base"].d_model == planner.shapes["tuned"].d_model
    if not controls:
        planner.skip("routing: routers' weights and inputs apart", "the two models' activations have different widths")
    for split in ("select", "report"):
        if split not in planner.splits:
            planner.skip(f"routing on {split}", lacks(split))
            continue
        items = planner.whole(split)
        for start in range(0, len(items), AT_A_TIME):
            shard = items[start : start + AT_A_TIME]
            tokens = 2 * sum(item.tokens for item in shard)
            key = planner.key(shard, stage="routing", split=split, layers=layers, controls=controls)
            yield Cell(stage="routing", key=key, items=shard, side=None, flops=planner.flops(tokens, 2 * len(shard)))


def _why_none(planner: Planner) -> str:
    if planner.mixture:
        return "these models have experts, and no module of their blocks that gives away a score of each expert beside those that it chose"
    return "these models have no experts"
