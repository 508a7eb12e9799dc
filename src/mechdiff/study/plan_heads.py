"""The cells of heads and attribution. No torch here.

First every head of every layer on the select prompts, both directions: what the closer layers, the orders of heads and the top heads are chosen
by. Then the same on the report prompts, sets of heads at the closer layers and across the network, attention, and gradients.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from mechdiff.spacing import evenly_spaced
from mechdiff.study.cells import Cell, Item
from mechdiff.study.options import DIRECTIONS, AttributionOptions, HeadsOptions, LayeredOptions, TransportOptions
from mechdiff.study.plan_maps import possible, prompt_hashes
from mechdiff.study.planner import Planner

ACROSS = 12
"""Sizes of the nested sets across the network, as far as the plan can know."""


def heads_cells(planner: Planner) -> Iterator[Cell]:
    """The map of all heads, sets of them, attention."""
    options = planner.study.asked(HeadsOptions)
    if not options or not _possible(planner, "heads", options):
        return
    layers, shape = options.layer_numbers(planner.shape.n_layers), planner.shape
    singles = shape.n_heads + shape.n_kv_heads + 2
    chosen_on = select_items(planner, options.select_prompts)
    if not chosen_on:
        planner.skip("orders of heads, their sets across the network, and attention of the top heads",
                     "the study has no select prompts, on which heads are chosen")  # fmt: skip
    attribution = planner.study.asked(AttributionOptions)
    ranked = attribution.model_dump(include={"metric", "select_prompts", "layers", "stride"}) if attribution else None
    chosen: dict[str, Any] = {
        "closer": options.closer,
        "hot": options.hot,
        "layers": layers,
        "chosen_on": [item.sha256 for item in chosen_on],
        "attribution": ranked,
    }
    chosen["seed"] = planner.study.seed
    for direction in DIRECTIONS:
        for split, shards in (("select", [chosen_on] if chosen_on else []), ("report", planner.packed("report", "decision"))):
            for number, shard in enumerate(shards):
                what = {"direction": direction, "split": split, "shard": number, "floor": number == 0, "layers": layers}
                yield run_cell(planner, shard, "heads", what, layers, singles)
    for direction in DIRECTIONS:
        if chosen_on:
            what = {"direction": direction, "split": "select", "picks": options.picks} | chosen
            yield run_cell(planner, chosen_on, "head_orders", what, _closer(planner, options), options.picks * shape.n_heads)
        settings = options.model_dump(include={"draws", "permutations", "exact_up_to", "picks", "top", "null_edits", "z_swap"})
        for number, shard in enumerate(planner.packed("report", "decision")):
            what = {"direction": direction, "split": "report", "shard": number, "settings": settings} | chosen
            what["noise_from"] = prompt_hashes(planner, "report")
            yield run_cell(planner, shard, "head_sets", what | _mapped(planner), _closer(planner, options), _sets(planner, options))
            if chosen_on:
                what = {"direction": direction, "split": "report", "shard": number, "draws": options.network_draws} | chosen
                yield run_cell(planner, shard, "head_network", what, [0], ACROSS * (4 + options.network_draws))
    if chosen_on and options.attention_prompts:
        items = evenly_spaced(options.attention_prompts, planner.whole("report"))
        for side in ("base", "tuned"):
            key = planner.key(items, stage="looks", side=side, split="report", position="decision", top=options.top, **chosen)
            tokens = sum(item.tokens for item in items)
            yield Cell(stage="looks", key=key, items=items, side=side, flops=planner.flops(tokens, 2 * len(items)))
        key = planner.key(items, stage="attention", split="report", top=options.top, **chosen)
        yield Cell(stage="attention", key=key, items=items, side=None, flops=0)


def attribution_cells(planner: Planner) -> Iterator[Cell]:
    """Gradients of heads, MLPs and sites: ranked on select, given on report, and held against true patches."""
    options = planner.study.asked(AttributionOptions)
    if not options or not _possible(planner, "attribution", options):
        return
    if "fit" not in planner.splits:
        planner.skip("churn of heads", "the study has no fit prompts, whose mean contributions stand for a head that is gone")
    layers = options.layer_numbers(planner.shape.n_layers)
    settings = options.model_dump(include={"metric", "sites", "steps", "validated"})
    chosen_on = select_items(planner, options.select_prompts)
    on = {"seed": planner.study.seed, "layers": layers, "settings": settings, "mean_of": prompt_hashes(planner, "fit")}
    for direction in DIRECTIONS:
        for split, shards in (("select", [chosen_on] if chosen_on else []), ("report", planner.packed("report", "decision"))):
            for number, shard in enumerate(shards):
                what = {"direction": direction, "split": split, "shard": number} | on
                what["ranked_on"] = [item.sha256 for item in chosen_on]
                runs = 1 if split == "select" else 3 * 2 * options.steps + 1
                yield run_cell(planner, shard, "attribution", what, layers, runs)


def select_items(planner: Planner, n: int) -> tuple[Item, ...]:
    """The select prompts on which heads are chosen, of all lengths; none where the study has no such split."""
    return evenly_spaced(n, planner.whole("select")) if "select" in planner.splits else ()


def run_cell(planner: Planner, items: Sequence[Item], stage: str, what: dict[str, Any], layers: Sequence[int], runs: int) -> Cell:
    """A cell of so many runs at each of these layers."""
    made = planner.patch_cell(tuple(items), stage, what | {"layers": list(layers) * runs, "n_variants": len(layers) * runs}, 1)
    key = {name: value for name, value in made.key.items() if name != "layers"}
    kept = {"layers": what["layers"]} if "layers" in what else {}
    return Cell(stage=stage, key={**key, **kept, "position": "decision"}, items=tuple(items), side=made.side, flops=made.flops)


def _possible(planner: Planner, measure: str, options: LayeredOptions) -> bool:
    if "z" not in planner.kinds:
        planner.skip(measure, "some of these models' blocks mix tokens by something else than attention, so not every block has heads")
        return False
    return possible(planner, measure, options, splits=("report",))


def _closer(planner: Planner, options: HeadsOptions) -> list[int]:
    return list(options.closer) if options.closer != "hot" else [planner.shape.n_layers // 2] * options.hot


def _sets(planner: Planner, options: HeadsOptions) -> int:
    """Runs at one layer."""
    n = planner.shape.n_heads
    sets = 2**n if n <= options.exact_up_to else options.permutations * n + 12 * options.draws
    return sets + (2 * n + 1) * options.null_edits // 2 + (2 + len(options.z_swap)) * (n + 1)


def _mapped(planner: Planner) -> dict[str, Any]:
    """What maps of z are made of, where transport fits some."""
    transport = planner.study.asked(TransportOptions)
    if not transport or "z" not in transport.sites or "fit" not in planner.splits:
        return {}
    return {"maps": transport.model_dump(), "fitted_on": prompt_hashes(planner, "fit")}
