"""A study becomes a list of cells: what will be computed, in which order and packing, and what it will cost. No torch here."""

from collections.abc import Iterator, Mapping, Sequence

from mechdiff.errors import StudyError
from mechdiff.measures.attribution.plan import attribution_cells
from mechdiff.measures.behaviour.plan import behaviour_cells
from mechdiff.measures.divergence.plan import divergence_cells, texts_cells
from mechdiff.measures.factorial.plan import factorial_cells
from mechdiff.measures.grafting.plan import grafting_cells
from mechdiff.measures.heads.plan import heads_cells
from mechdiff.measures.patching.plan import patching_cells
from mechdiff.measures.rank.plan import rank_cells
from mechdiff.measures.similarity.plan import similarity_cells
from mechdiff.measures.steering.plan import SteeringOptions, steering_cells
from mechdiff.measures.transport.plan import TransportOptions, transport_cells
from mechdiff.measures.weights.plan import weights_cells
from mechdiff.models.families import Shape
from mechdiff.prompts.sets import SPLITS
from mechdiff.study.cells import Cell, Item, Plan
from mechdiff.study.config import StudyConfig
from mechdiff.study.planner import LAST_LEFT_OUT, MAX_ROWS, Planner

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
    cells = [*checks, *captures, *divergence_cells(planner), *texts_cells(planner), *weights_cells(planner), *grafting_cells(planner)]
    cells += [*similarity_cells(planner), *patching_cells(planner), *factorial_cells(planner)]
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
