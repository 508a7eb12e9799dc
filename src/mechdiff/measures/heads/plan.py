"""A study file may set these options of heads; its cells are planned from them."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from mechdiff.labels import CROSSED
from mechdiff.measures.transport.plan import TransportOptions
from mechdiff.spacing import evenly_spaced
from mechdiff.study.cells import Cell, Item
from mechdiff.study.document import Count, listed
from mechdiff.study.experiment import Needs
from mechdiff.study.options import CloserOptions, LayeredOptions, read_strengths
from mechdiff.study.planner import Planner, prompt_hashes
from mechdiff.study.planner import possible as planner_possible

ACROSS = 12
"""Sizes of the nested sets across the network, as far as the plan can know."""


HEAD_SITES = ("z", "attn_proj", "mlp_out")
"""What a head reads and writes, and the MLPs that stand beside heads."""


def heads_cells(planner: Planner) -> Iterator[Cell]:
    """The map of all heads, sets of them, attention."""
    options = planner.study.asked(HeadsOptions)
    if not options or not possible(planner, "heads", options):
        return
    layers, shape = options.layer_numbers(planner.shape.n_layers), planner.shape
    singles = shape.n_heads + shape.n_kv_heads + 2
    chosen_on = select_items(planner, options.select_prompts)
    if not chosen_on:
        planner.skip("orders of heads, their sets across the network, and attention of the top heads",
                     "the study has no validation prompts, on which heads are chosen")  # fmt: skip
    attribution = planner.study.measures.get("attribution")  # a later measure, by which heads are put into an order too
    ranked = attribution.model_dump(include={"metric", "select_prompts", "layers", "stride"}) if attribution else None
    chosen: dict[str, Any] = {
        "closer": options.closer,
        "hot": options.hot,
        "layers": layers,
        "chosen_on": [item.sha256 for item in chosen_on],
        "attribution": ranked,
    }
    chosen["seed"] = planner.study.seed
    for direction in CROSSED:
        for split, shards in (("select", [chosen_on] if chosen_on else []), ("report", planner.packed("report", "decision"))):
            for number, shard in enumerate(shards):
                what = {"direction": direction, "split": split, "shard": number, "floor": number == 0, "layers": layers}
                yield run_cell(planner, shard, "heads", what, layers, singles)
        few = evenly_spaced(options.answer_layers or len(layers), layers)
        yield from planner.over_answers("heads_over_answers", {"direction": direction}, few, shape.n_heads + 1)
    for direction in CROSSED:
        if chosen_on:
            what = {"direction": direction, "split": "select", "picks": options.picks, "ways": True} | chosen
            yield run_cell(planner, chosen_on, "head_orders", what, _closer(planner, options), options.picks * shape.n_heads)
        settings = options.model_dump(include={"draws", "permutations", "exact_up_to", "picks", "top", "null_edits", "z_swap"})
        for number, shard in enumerate(planner.packed("report", "decision")):
            what = {"direction": direction, "split": "report", "shard": number, "settings": settings, "ways": True} | chosen
            what["noise_from"] = prompt_hashes(planner, "report")
            yield run_cell(planner, shard, "head_sets", what | _mapped(planner), _closer(planner, options), _sets(planner, options))
            if chosen_on:
                what = {"direction": direction, "split": "report", "shard": number, "draws": options.network_draws} | chosen
                what["projected"] = True
                yield run_cell(planner, shard, "head_network", what, [0], ACROSS * (4 + options.network_draws))
    if chosen_on and options.attention_prompts:
        items = evenly_spaced(options.attention_prompts, planner.whole("report"))
        for side in ("base", "tuned"):
            key = planner.key(items, stage="looks", side=side, split="report", position="decision", top=options.top, **chosen)
            tokens = sum(item.tokens for item in items)
            yield Cell(stage="looks", key=key, items=items, side=side, flops=planner.flops(tokens, 2 * len(items)))
        key = planner.key(items, stage="attention", split="report", top=options.top, **chosen)
        yield Cell(stage="attention", key=key, items=items, side=None, flops=0)


def select_items(planner: Planner, n: int) -> tuple[Item, ...]:
    """The select prompts on which heads are chosen, of all lengths; none where the study has no such split."""
    return evenly_spaced(n, planner.whole("select")) if "select" in planner.splits else ()


def run_cell(planner: Planner, items: Sequence[Item], stage: str, what: dict[str, Any], layers: Sequence[int], runs: int) -> Cell:
    """A cell of so many runs at each of these layers."""
    made = planner.patch_cell(tuple(items), stage, what | {"layers": list(layers) * runs, "n_variants": len(layers) * runs}, 1)
    key = {name: value for name, value in made.key.items() if name != "layers"}
    kept = {"layers": what["layers"]} if "layers" in what else {}
    return Cell(stage=stage, key={**key, **kept, "position": "decision"}, items=tuple(items), side=made.side, flops=made.flops)


def possible(planner: Planner, measure: str, options: LayeredOptions) -> bool:
    if "z" not in planner.kinds:
        planner.skip(measure, "some of these models' blocks mix tokens by something else than attention, so not every block has heads")
        return False
    return planner_possible(planner, measure, options, splits=("report",))


def _blend(given: object) -> tuple[float, ...]:
    return tuple(sorted({*read_strengths(given), *({1.0} if 1 in listed(given) else ())}))


class HeadsOptions(CloserOptions):
    presets: ClassVar = {
        "standard": {
            "hot": 1,
            "select_prompts": 4,
            "draws": 20,
            "permutations": 8,
            "exact_up_to": 4,
            "network_draws": 0,
            "null_edits": 3,
            "attention_prompts": 2,
        },
        "paper": {},
    }

    hot: Count = 2  # selected layers that the validation prompts choose: where all heads together do most
    select_prompts: Count = 16  # on which selected layers, orders of heads and top heads are chosen
    draws: Annotated[int, Field(ge=0, le=10_000)] = 200  # random sets of each size at a selected layer (all, where there are fewer)
    permutations: Annotated[int, Field(ge=2, multiple_of=2)] = 64  # sampled for Shapley values where there are more heads than exact_up_to
    exact_up_to: Annotated[int, Field(ge=1, le=16)] = 12  # heads of a block up to which every set of them is run
    picks: Count = 8  # heads that the greedy search picks
    top: Annotated[int, Field(ge=2, le=64)] = 6  # heads whose pairs are run, and whose attention is looked at
    null_edits: Annotated[int, Field(ge=0, le=1000)] = 10  # random edits that the effective number of heads is compared with
    network_draws: Annotated[int, Field(ge=0, le=10_000)] = 20  # random sets of each size across the network
    answer_layers: Count | None = None  # layers whose heads are swapped over answers, evenly spaced; none: all
    z_swap: Annotated[tuple[float, ...], BeforeValidator(_blend)] = ()  # strengths at which z alone is swapped, as others do it
    attention_prompts: Annotated[int, Field(ge=0, le=100_000)] = 8  # test prompts on which attention is looked at; 0: none


def needs(planner: Planner, options: HeadsOptions) -> Needs:
    """States of heads, where blocks have some."""
    return Needs(sites=HEAD_SITES, over_answers=("z",)) if "z" in planner.kinds else Needs()


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
