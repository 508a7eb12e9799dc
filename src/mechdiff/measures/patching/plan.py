"""A study file may set these options of patching; its cells are planned from them."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field

from mechdiff.labels import CROSSED, POSITIONS, n_positions
from mechdiff.spacing import evenly_spaced
from mechdiff.study.cells import Cell
from mechdiff.study.document import Count, some_of, whole_numbers
from mechdiff.study.experiment import Needs, Window
from mechdiff.study.options import ARMS, Kinds, LayeredOptions, read_directions, read_positions
from mechdiff.study.planner import NEED_FIT, Planner, lacks, prompt_hashes, sizes

OUTPUTS = ("attn_out", "mlp_out")
"""What adds to the residual stream."""
NEED_COMMON_POSITIONS = ("shift", "mean", "resample")


class PatchingOptions(LayeredOptions):
    presets: ClassVar = {
        "standard": {
            "sites": ["attn_out", "mlp_out", "resid_post"],
            "arms": ["identity", "mean"],
            "pairs": 0,
            "map_prompts": 2,
            "map_layers": 4,
        },
        "paper": {},
    }

    sites: Kinds = ("attn_out", "resid_mid", "mlp_out", "resid_post")  # resid_pre is the resid_post of the block before
    arms: Annotated[tuple[str, ...], BeforeValidator(some_of(ARMS))] = ("identity", "shift", "mean", "resample")
    """How a patched-in activation is made."""
    directions: Annotated[tuple[str, ...], BeforeValidator(read_directions)] = CROSSED
    """Both, or one: the model that runs <- the model whose activation is patched in."""
    positions: Annotated[tuple[str, ...], BeforeValidator(read_positions)] = ("decision",)
    """`decision`: the last prompt token; `last_4`: it and the three before it; `all`."""
    windows: Annotated[tuple[int, ...], BeforeValidator(lambda given: whole_numbers(given, 2))] = ()  # widths, in layers
    pairs: Annotated[int, Field(ge=0, le=32)] = 4
    """Strongest outputs, chosen on validation prompts, of which every two are patched together; 0: none."""
    map_prompts: Annotated[int, Field(ge=0)] = 6  # test prompts of the map of positions, by parts of the prompt; 0: no map
    map_tokens: Annotated[int, Field(ge=0)] = 0  # of these, so many also token by token
    map_layers: Count = 8  # layers of that map, evenly spaced


def needs(planner: Planner, options: PatchingOptions) -> Needs:
    """States wherever some are written."""
    sites: tuple[str, ...] = options.sites
    windows = [
        Window(split=split, position=position)
        for position in options.positions
        if position != "decision"
        for split in (("fit", "report") if position != "all" else ("report",))
        if split in planner.splits and not planner.common_tail(position, split)
    ]
    side_by_side = len(options.layer_numbers(planner.shape.n_layers))
    if mapped(planner, options):
        windows.append(Window(split="report", position="all", kinds=("resid_post",), layers=map_layers(planner, options)))
        sites = (*options.sites, *(("resid_post",) if "resid_post" not in options.sites else ()))
    return Needs(sites=sites, windows=tuple(windows), side_by_side=side_by_side, over_answers=options.sites)


def map_layers(planner: Planner, options: PatchingOptions) -> tuple[int, ...]:
    return evenly_spaced(options.map_layers, options.layer_numbers(planner.shape.n_layers))


def mapped(planner: Planner, options: PatchingOptions) -> bool:
    """Whether the map of positions can be made: both models read the same tokens."""
    if not options.map_prompts or "report" not in planner.splits or sizes(planner.shapes["base"]) != sizes(planner.shapes["tuned"]):
        return False
    if why := planner.common_tail("all", "report"):
        planner.skip("the map of positions", why)
        return False
    return True


def patching_cells(planner: Planner) -> Iterator[Cell]:
    options = planner.study.asked(PatchingOptions)
    if not options:
        return
    if sizes(planner.shapes["base"]) != sizes(planner.shapes["tuned"]):
        planner.skip("patching", "the two models differ in depth or width: an activation of one does not fit into the other")
        return
    for split in ("select", "report"):
        if split not in planner.splits:
            what = "the choice of selected and control layers" if split == "select" else "patching"
            planner.skip(what, lacks(split))
    for direction in options.directions:
        for split in ("select", "report"):
            for position in options.positions if split == "report" else ("decision",):
                if split in planner.splits:
                    yield from _swept(planner, options, direction, split, position)
        yield from _over_answers(planner, options, direction)
        yield from _pairs(planner, options, direction)
        if mapped(planner, options):
            yield from _positions(planner, options, direction)


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


def _pairs(planner: Planner, options: PatchingOptions, direction: str) -> Iterator[Cell]:
    """Every two of the strongest outputs at the decision position, on the report prompts; they are known when the select prompts are done."""
    kinds, layers = (
        [kind for kind in OUTPUTS if kind in options.sites and kind in planner.wanted],
        options.layer_numbers(planner.shape.n_layers),
    )
    n = min(options.pairs, len(kinds) * len(layers))
    if n < 2 or "report" not in planner.splits or "decision" not in options.positions:
        return
    if "select" not in planner.splits:
        planner.skip("pairs of the strongest outputs", "the study has no validation prompts, on which they are chosen")
        return
    runs = n * (n - 1) // 2
    for number, shard in enumerate(planner.packed("report", "decision")):
        what = {"direction": direction, "split": "report", "position": "decision", "arm": "identity", "kinds": kinds, "strongest": n}
        what |= {
            "chosen_on": prompt_hashes(planner, "select"),
            "chosen_by": sorted(options.directions),
            "shard": number,
            "n_variants": runs,
            "layers": [0] * runs,
        }
        made = planner.patch_cell(shard, "pairs", what, 1)
        yield replace(made, key={**made.key, "layers": layers})


def _positions(planner: Planner, options: PatchingOptions, direction: str) -> Iterator[Cell]:
    """The residual stream of one part of a prompt at a time, a prompt a cell."""
    layers, items = map_layers(planner, options), evenly_spaced(options.map_prompts, planner.whole("report"))
    for number, item in enumerate(items):
        what = {"direction": direction, "split": "report", "position": "all", "layers": layers, "n_variants": len(layers) * len(POSITIONS)}
        what |= {"tokens": number < options.map_tokens, "arm": "identity", "beside": [one.sha256 for one in planner.whole("report")]}
        made = planner.patch_cell((item,), "position_map", what, item.tokens)
        yield replace(made, flops=made.flops * (item.tokens if what["tokens"] else len(POSITIONS)))


def _over_answers(planner: Planner, options: PatchingOptions, direction: str) -> Iterator[Cell]:
    """The other model's states at every position of the answers, and at the one alone where the two models part."""
    layers, kinds = options.layer_numbers(planner.shape.n_layers), [kind for kind in options.sites if kind in planner.wanted]
    for kind in kinds:
        what = {"direction": direction, "kind": kind, "arm": "identity", "width": 1, "seed": planner.study.seed, "floor": kind == kinds[0]}
        yield from planner.over_answers("patching", what, layers)
    if kinds:
        what = {"direction": direction, "kinds": kinds, "arm": "identity"}
        for made in planner.over_answers("divergent_patching", what, layers, len(kinds)):
            yield replace(made, flops=made.flops / planner.study.answers.tokens)


def _possible(planner: Planner, arm: str, split: str, position: str) -> bool:
    if arm in NEED_FIT and "fit" not in planner.splits:
        planner.skip(f"patching condition {arm}", "the study has no training prompts, whose mean activations this condition writes")
    elif arm in NEED_FIT and (why := planner.common_tail(position, "fit")):
        planner.skip(f"patching condition {arm} at {position}", why)
    elif arm in NEED_COMMON_POSITIONS and position == "all":
        planner.skip(f"patching condition {arm} at all positions", "activations of prompts of different lengths have no common positions")
    elif arm == "resample" and len(planner.splits[split]) < 2:
        planner.skip("patching condition resample", "there is only one prompt, and this condition writes the activation of another one")
    else:
        return True
    return False
