"""A study as a list of cells (cells.py): what will be computed, in which order and packing, and what it will cost. No torch here."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from mechdiff.engine.families import Shape
from mechdiff.engine.prompts import SPLITS
from mechdiff.errors import StudyError
from mechdiff.labels import n_positions
from mechdiff.spacing import evenly_spaced
from mechdiff.study.cells import Cell, Item, Plan
from mechdiff.study.config import StudyConfig
from mechdiff.study.options import (
    DIRECTIONS,
    AttributionOptions,
    DivergenceOptions,
    FactorialOptions,
    GraftingOptions,
    HeadsOptions,
    PatchingOptions,
    RankOptions,
    SteeringOptions,
    TransportOptions,
    WeightsOptions,
)
from mechdiff.study.plan_behaviour import behaviour_cells
from mechdiff.study.plan_heads import attribution_cells, heads_cells
from mechdiff.study.plan_maps import rank_cells, transport_cells
from mechdiff.study.plan_steer import steering_cells
from mechdiff.study.planner import LAST_LEFT_OUT, MAX_ROWS, Planner, sizes

BLOCKS_A_CELL = 4
"""Blocks whose units are grafted in one cell."""

TEXTS_AT_A_TIME = 8
"""Prompts whose laws at every position are in memory together."""

SELFCHECK_TOKENS = 5
"""Tokens on which the self-check tries every site."""


def plan(
    study: StudyConfig,
    shapes: Mapping[str, Shape],
    kinds: Sequence[str],
    splits: Mapping[str, Sequence[Item]],
    *,
    identity: str = "",
    max_rows: int = MAX_ROWS,
    adapter: bool = False,
    touched: Sequence[tuple[int | None, str]] | None = None,
    one_vocabulary: bool = True,
    quantized: Sequence[str] = (),
    functions: Sequence[str] = (),
    left_out: Sequence[dict[str, str]] = (),
) -> Plan:
    """The cells of a study of two models of `shapes` ("base", "tuned") that have the site `kinds`.

    `identity` hashes the models and the dtype; `touched` are the (block, site) whose weights may have changed (default: all);
    `one_vocabulary`: a token id means the same to both; `quantized`: sides whose files hold quantised
    matrices; `functions`: what differs and is no weight; `left_out`: what is known already not to be done (what, why).
    """
    planner = Planner(study, shapes, kinds, splits, identity, max_rows, touched, adapter, one_vocabulary, quantized, functions)
    planner.skipped += left_out
    captures = [cell for side in ("base", "tuned") for cell in _captures(planner, side)]
    checks = [_selfcheck(planner, side) for side in ("base", "tuned") if planner.wanted]
    cells = [*checks, *captures, *_divergence(planner), *_texts(planner), *_weights(planner), *_grafting(planner)]
    cells += [*_similarity(planner), *_patching(planner), *_factorial(planner)]
    cells += [*transport_cells(planner), *rank_cells(planner), *steering_cells(planner), *heads_cells(planner), *attribution_cells(planner)]
    cells += behaviour_cells(planner)
    weights = [shape.weights_bytes(study.dtype) for shape in shapes.values()]
    states = sum(_states_bytes(planner, cell) for cell in captures)
    return Plan(
        cells=tuple(cells),
        skipped=tuple(planner.skipped),
        weights_bytes=weights[0] if adapter else sum(weights),
        shared_weights=adapter,
        states_bytes=states + sum(8 * len(items) * planner.shape.vocab for items in splits.values()),
        pass_bytes=max((4 * 3 * planner.shape.vocab * planner.rows(cell) for cell in cells if "n_variants" in cell.key), default=0),
    )


def _states_bytes(planner: Planner, cell: Cell) -> int:
    wide = sum(planner.shape.width(kind) for kind in cell.key["kinds"])
    return 4 * len(cell.items) * planner.n_pos(cell) * len(cell.key["layers"]) * wide


def _selfcheck(planner: Planner, side: str) -> Cell:
    """On one split's prompts: every site on a few tokens, each block once on a whole prompt, by each way."""
    split = next(iter(planner.splits))
    items = tuple(sorted(planner.splits[split], key=lambda item: (item.tokens, item.id)))
    tokens = planner.shape.n_layers * (items[0].tokens + SELFCHECK_TOKENS * 2 * len(planner.wanted))
    key = planner.key(items, stage="selfcheck", side=side, split=split, kinds=planner.wanted)
    return Cell(
        stage="selfcheck", key=key, items=items, side=side, flops=planner.flops(tokens, 2 * planner.shape.n_layers * len(planner.wanted))
    )


def _captures(planner: Planner, side: str) -> Iterator[Cell]:
    for split, position, kinds, layers in _states_needed(planner):
        for shard in planner.packed(split, position):
            what = {"split": split, "position": position, "kinds": kinds, "layers": layers}
            key = planner.key(shard, stage="capture", side=side, **what)
            yield Cell(stage="capture", key=key, items=shard, side=side, flops=planner.flops(sum(i.tokens for i in shard), len(shard)))


def _states_needed(planner: Planner) -> list[tuple[str, str, tuple[str, ...], tuple[int, ...]]]:
    """(split, position, site kinds, layers): the decision position of every split, wider windows where states are written there."""
    every = tuple(range(planner.shape.n_layers))
    needed = [(split, "decision", planner.wanted, every) for split in SPLITS if split in planner.splits]
    if planner.words and planner.similarity:
        needed.append(("report", "words", tuple(kind for kind in planner.wanted if kind in planner.similarity.sites), every))
    if "native" in planner.splits:
        needed.append(("native", "decision", (), ()))
    steering = planner.study.asked(SteeringOptions)
    if steering and steering.contrast and "neutral" in planner.splits:
        needed.append(("neutral", "decision", tuple(kind for kind in planner.wanted if kind in steering.sites), every))
    transport = planner.study.asked(TransportOptions)
    if transport and transport.rows_per_prompt > 1 and "fit" in planner.splits:
        short = min(planner.splits["fit"], key=lambda item: item.pairs)
        if short.pairs - LAST_LEFT_OUT < transport.rows_per_prompt:
            raise StudyError(
                f"transport.rows_per_prompt: given {transport.rows_per_prompt}, but the fit prompt {short.id!r} has {short.pairs} tokens that end "
                f"at the same byte for both models, of which {LAST_LEFT_OUT} before the last are left out. Give at most "
                f"{max(1, short.pairs - LAST_LEFT_OUT)}, or longer prompts."
            )
        kinds = tuple(kind for kind in planner.wanted if kind in transport.sites)
        needed.append(("fit", f"spread_{transport.rows_per_prompt}", kinds, transport.layer_numbers(planner.shape.n_layers)))
    wider = [position for position in (planner.patching.positions if planner.patching else ()) if position != "decision"]
    for position in wider:
        for split in ("fit", "report") if position != "all" else ("report",):
            if split in planner.splits and not planner.common_tail(position, split):
                needed.append((split, position, planner.wanted, every))
    whole = "report" in planner.splits and not planner.common_tail("all", "report")
    if planner.factorial and "all" in planner.factorial.positions and "all" not in wider and whole:
        needed.append(("report", "all", ("resid_post",), planner.factorial.layers_at("all", planner.shape.n_layers)))
    return needed


def _divergence(planner: Planner) -> Iterator[Cell]:
    asking = (
        DivergenceOptions, PatchingOptions, TransportOptions, RankOptions, SteeringOptions, HeadsOptions, AttributionOptions,
    )  # fmt: skip
    for split in SPLITS if any(planner.study.asked(kind) for kind in asking) else ():
        if split in planner.splits:
            items = planner.whole(split)
            yield Cell(stage="divergence", key=planner.key(items, stage="divergence", split=split), items=items, side=None, flops=0)
    if "native" in planner.splits:
        items = planner.whole("native")
        yield Cell(stage="native", key=planner.key(items, stage="native", split="report"), items=items, side=None, flops=0)


def _texts(planner: Planner) -> Iterator[Cell]:
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


def _weights(planner: Planner) -> Iterator[Cell]:
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
    yield Cell(stage="weights", key=key, items=items, side=None, flops=matrices * (7 if planner.adapter else 40) * low * low * high)


def _grafting(planner: Planner) -> Iterator[Cell]:
    """The units of a few blocks a cell; then the greedy sets; then the ranks. All start from one trace of each model."""
    options = planner.study.asked(GraftingOptions)
    if not options:
        return
    if "report" not in planner.splits:
        planner.skip("grafting", "the study has no report prompts")
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
    chosen_on = evenly_spaced(options.select_prompts, planner.whole("select")) if "select" in planner.splits else ()
    tokens, few = sum(item.tokens for item in items), sum(item.tokens for item in chosen_on)
    n_layers = planner.shape.n_layers
    costs = {unit: 1 - max(0, _place(unit, n_layers)) / n_layers for unit in planner.touched}
    n_best = min(options.candidates, len(costs))
    first = {"stage": "grafting", "split": "report", "candidates": options.candidates}
    first |= {"report": [item.id for item in items], "select": [item.id for item in chosen_on]}

    def cell(runs: float, **what: Any) -> Cell:
        key = planner.key((*items, *chosen_on), **first, **what)
        return Cell(stage="grafting", key=key, items=items, side="base", flops=planner.flops(runs, runs / max(tokens, 1) * len(items)))

    if options.curves:
        for number, low in enumerate(range(-1, n_layers + 1, BLOCKS_A_CELL)):
            here = [cost for unit, cost in costs.items() if low <= _place(unit, n_layers) < low + BLOCKS_A_CELL]
            cumulative = 2 * min(1.0, (options.points or len(costs)) / max(1, len(costs)))
            runs = tokens * ((1 + cumulative) * sum(here) + 2 * (number == 0))
            yield cell(runs, arm="curves", blocks=[low, low + BLOCKS_A_CELL], points=options.points)
    if not chosen_on:
        planner.skip("grafting arm greedy", "the study has no select prompts, on which the sets are chosen")
    average = sum(costs.values()) / max(1, len(costs))
    if options.greedy and chosen_on:
        tried = len(costs) + sum(n_best - i for i in range(min(options.picks, n_best)))
        yield cell(few * (2 + tried * average) + tokens * min(options.picks, n_best) * average, arm="greedy", picks=options.picks)
    if options.truncate:
        yield cell(tokens * 3 * (n_best * average * bool(chosen_on) + 1), arm="truncate")


def _factorial(planner: Planner) -> Iterator[Cell]:
    """The crossed runs of each model, then what is computed from both; on select too, at the decision position, where split points are chosen."""
    options = planner.factorial
    if not options:
        if planner.study.asked(FactorialOptions):
            planner.skip("factorial", "the two models differ in depth or width: a state of one does not fit into the other")
        return
    if "report" not in planner.splits:
        planner.skip("factorial", "the study has no report prompts")
        return
    for split, position in [("select", "decision"), *(("report", position) for position in options.positions)]:
        if split not in planner.splits or position not in options.positions:
            continue
        if why := planner.common_tail(position, split):
            planner.skip(f"factorial at {position} positions", why)
            continue
        layers = options.layers_at(position, planner.shape.n_layers)
        what = {"split": split, "position": position, "layers": layers}
        for direction in DIRECTIONS:
            for shard in planner.packed(split, position):
                yield planner.patch_cell(
                    shard, "crossing", what | {"direction": direction, "n_variants": len(layers)}, n_positions(position)
                )
        items = planner.whole(split)
        key = planner.key(items, stage="factorial", **what)
        yield Cell(stage="factorial", key=key, items=items, side=None, flops=0)


def _similarity(planner: Planner) -> Iterator[Cell]:
    if not planner.similarity:
        return
    if planner.shapes["base"].d_model != planner.shapes["tuned"].d_model:
        planner.skip("similarity: same_basis_change, procrustes_distance", "the two models' states have different widths")
    for split in ("select", "report"):
        if split not in planner.splits:
            planner.skip(f"similarity on {split}", f"the study has no {split} prompts")
            continue
        items = planner.whole(split)
        if len(items) < 4:
            planner.skip(f"similarity on {split}", f"debiased CKA needs 4 prompts, there are {len(items)}")
            continue
        layers = planner.similarity.layer_numbers(planner.shape.n_layers)
        for position in ("decision", "words") if split == "report" and planner.words else ("decision",):
            draws = planner.similarity.permutations if position == "decision" else 0
            for kind in planner.similarity.sites:
                if kind in planner.wanted:
                    what = {"kind": kind, "layers": layers, "position": position, "permutations": draws, "seed": planner.study.seed}
                    key = planner.key(items, stage="similarity", split=split, **what)
                    yield Cell(stage="similarity", key=key, items=items, side=None, flops=0)


def _patching(planner: Planner) -> Iterator[Cell]:
    options = planner.patching
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
    arms = [arm for arm in (options.arms if published else ("identity",)) if planner.possible(arm, split, position)]
    for number, shard in enumerate(planner.packed(split, position)):
        for width, kind, arm in product((1, *(options.windows if published else ())), kinds, arms):
            first = [layer for layer in layers if layer + width <= planner.shape.n_layers]
            what = {"direction": direction, "split": split, "position": position, "kind": kind, "arm": arm, "width": width}
            what |= {"layers": first, "shard": number, "n_variants": len(first), "seed": planner.study.seed}
            what["floor"] = (position, width, kind, arm) == (positions[0], 1, kinds[0], arms[0])
            yield planner.patch_cell(shard, "patching", what, n_pos)


def _place(unit: tuple[int | None, str], n_layers: int) -> int:
    """Where a unit stands among the blocks: -1 for the embedding, `n_layers` for what comes after them."""
    return unit[0] if unit[0] is not None else -1 if unit[1] == "embed" else n_layers
