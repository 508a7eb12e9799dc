"""A study file may set these options of patching; its cells are planned from them."""

from collections.abc import Iterator
from itertools import product
from typing import Annotated

from pydantic import BeforeValidator

from mechdiff.labels import CROSSED, n_positions
from mechdiff.study.cells import Cell
from mechdiff.study.document import some_of, whole_numbers
from mechdiff.study.experiment import Needs, Window
from mechdiff.study.options import ARMS, Kinds, LayeredOptions, read_directions, read_positions
from mechdiff.study.planner import NEED_FIT, Planner, sizes

NEED_COMMON_POSITIONS = ("shift", "mean", "resample")


class PatchingOptions(LayeredOptions):
    sites: Kinds = ("attn_out", "resid_mid", "mlp_out", "resid_post")  # resid_pre is the resid_post of the block before
    arms: Annotated[tuple[str, ...], BeforeValidator(some_of(ARMS))] = ("identity", "shift", "mean", "resample")
    directions: Annotated[tuple[str, ...], BeforeValidator(read_directions)] = CROSSED
    positions: Annotated[tuple[str, ...], BeforeValidator(read_positions)] = ("decision",)
    windows: Annotated[tuple[int, ...], BeforeValidator(lambda given: whole_numbers(given, 2))] = ()  # widths, in layers


def needs(planner: Planner, options: PatchingOptions) -> Needs:
    """States wherever some are written."""
    windows = [
        Window(split=split, position=position)
        for position in options.positions
        if position != "decision"
        for split in (("fit", "report") if position != "all" else ("report",))
        if split in planner.splits and not planner.common_tail(position, split)
    ]
    return Needs(sites=options.sites, windows=tuple(windows), side_by_side=len(options.layer_numbers(planner.shape.n_layers)))


def patching_cells(planner: Planner) -> Iterator[Cell]:
    options = planner.study.asked(PatchingOptions)
    if not options:
        return
    if sizes(planner.shapes["base"]) != sizes(planner.shapes["tuned"]):
        planner.skip("patching", "the two models differ in depth or width: a state of one does not fit into the other")
        return
    for split in ("select", "report"):
        if split not in planner.splits:
            what = "the choice of hot and control layers" if split == "select" else "patching"
            planner.skip(what, f"the study has no {split} prompts")
    for direction in options.directions:
        for split in ("select", "report"):
            for position in options.positions if split == "report" else ("decision",):
                if split in planner.splits:
                    yield from _swept(planner, options, direction, split, position)


def _swept(planner: Planner, options: PatchingOptions, direction: str, split: str, position: str) -> Iterator[Cell]:
    n_pos, layers = n_positions(position), options.layer_numbers(planner.shape.n_layers)
    if why := planner.common_tail(position, split):
        planner.skip(f"patching at {position}", why)
        return
    published = split == "report"
    positions = options.positions if published else ("decision",)
    kinds = [kind for kind in options.sites if kind in planner.wanted]
    arms = [arm for arm in (options.arms if published else ("identity",)) if _possible(planner, arm, split, position)]
    for number, shard in enumerate(planner.packed(split, position)):
        for width, kind, arm in product((1, *(options.windows if published else ())), kinds, arms):
            first = [layer for layer in layers if layer + width <= planner.shape.n_layers]
            what = {"direction": direction, "split": split, "position": position, "kind": kind, "arm": arm, "width": width}
            what |= {"layers": first, "shard": number, "n_variants": len(first), "seed": planner.study.seed}
            what["floor"] = (position, width, kind, arm) == (positions[0], 1, kinds[0], arms[0])
            yield planner.patch_cell(shard, "patching", what, n_pos)


def _possible(planner: Planner, arm: str, split: str, position: str) -> bool:
    if arm in NEED_FIT and "fit" not in planner.splits:
        planner.skip(f"patching arm {arm}", "the study has no fit prompts, whose mean states this arm writes")
    elif arm in NEED_FIT and (why := planner.common_tail(position, "fit")):
        planner.skip(f"patching arm {arm} at {position}", why)
    elif arm in NEED_COMMON_POSITIONS and position == "all":
        planner.skip(f"patching arm {arm} at all positions", "states of prompts of different lengths have no common positions")
    elif arm == "resample" and len(planner.splits[split]) < 2:
        planner.skip("patching arm resample", "there is only one prompt, and this arm writes the state of another one")
    else:
        return True
    return False
