"""A study becomes a list of cells: what will be computed, in which order and packing, and what it will cost. No torch here."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mechdiff import labels
from mechdiff.prompts.sets import SPLITS
from mechdiff.spacing import evenly_spaced
from mechdiff.study.cells import Cell, Item, Plan
from mechdiff.study.config import StudyConfig
from mechdiff.study.experiment import Experiment, Window, asked
from mechdiff.study.planner import MAX_ROWS, PairFacts, Planner

SELFCHECK_TOKENS = 2
"""Tokens on which the self-check tries every site."""


def plan(
    study: StudyConfig,
    experiments: Mapping[str, Experiment],
    pair: PairFacts,
    splits: Mapping[str, Sequence[Item]],
    *,
    max_rows: int = MAX_ROWS,
    left_out: Sequence[dict[str, str]] = (),
) -> Plan:
    """The cells of a study; `left_out`: what is known already not to be done (what, why)."""
    planner = Planner(study, pair, splits, max_rows)
    planner.skipped += left_out
    measures = asked(study, experiments)
    needs = [experiment.needs(planner, options) for experiment, options in measures]
    planner.capture({kind for one in needs for kind in one.sites})
    planner.side_by_side = max((one.side_by_side for one in needs if one.side_by_side is not None), default=planner.shape.n_layers)
    planner.total_effect = any(experiment.total_effect for experiment, _ in measures)
    windows = [*(Window(split=split) for split in SPLITS), *(window for one in needs for window in one.windows)]
    captures = [cell for side in ("base", "tuned") for cell in _captures(planner, side, windows)]
    answers = list(_answers(planner, [one.over_answers for one in needs if one.over_answers is not None]))
    captures += (cell for cell in answers if cell.stage == "answer_states")
    checks = [_selfcheck(planner, side) for side in ("base", "tuned") if planner.wanted]
    cells = [
        *checks,
        *(cell for cell in answers if cell.stage == "answer"),
        *captures,
        *(cell for experiment in experiments.values() for cell in experiment.cells(planner)),
    ]
    weights = [one.bytes(study.dtype) for one in pair.weights.values()]
    states = sum(_states_bytes(planner, cell) for cell in captures)
    return Plan(
        cells=tuple(cells),
        skipped=tuple(planner.skipped),
        weights_bytes=weights[0] if pair.adapter and not pair.merges else sum(weights),
        shared_weights=pair.adapter and not pair.merges,
        states_bytes=states + sum(8 * len(items) * planner.shape.vocab for items in splits.values()),
        pass_bytes=max((4 * 3 * planner.shape.vocab * planner.rows(cell) for cell in cells if "n_variants" in cell.key), default=0),
    )


def _states_bytes(planner: Planner, cell: Cell) -> int:
    wide = sum(planner.shape.width(kind) for kind in cell.key["kinds"])
    logits = planner.shape.vocab if "answer" in cell.key else 0
    return 4 * len(cell.items) * planner.n_pos(cell) * (len(cell.key["layers"]) * wide + logits)


def _selfcheck(planner: Planner, side: str) -> Cell:
    """On one split's prompts: every site on a few tokens, each block once on a whole prompt, by each way."""
    split = next(iter(planner.splits))
    items = tuple(sorted(planner.splits[split], key=lambda item: (item.tokens, item.id)))
    tokens = planner.shape.n_layers * (items[0].tokens + SELFCHECK_TOKENS * 2 * len(planner.wanted))
    key = planner.key(items, stage="selfcheck", side=side, split=split, kinds=planner.wanted)
    return Cell(
        stage="selfcheck", key=key, items=items, side=side, flops=planner.flops(tokens, 2 * planner.shape.n_layers * len(planner.wanted))
    )


def _captures(planner: Planner, side: str, windows: Sequence[Window]) -> Iterator[Cell]:
    for (split, position), (kinds, layers) in _joined(planner, windows).items():
        for shard in planner.packed(split, position):
            what = {"split": split, "position": position, "kinds": kinds, "layers": layers}
            key = planner.key(shard, stage="capture", side=side, **what)
            yield Cell(stage="capture", key=key, items=shard, side=side, flops=planner.flops(sum(i.tokens for i in shard), len(shard)))


def _answers(planner: Planner, asked: Sequence[tuple[str, ...]]) -> Iterator[Cell]:
    """The answers to some report prompts, and both models' reading of them, where a measure asks for it (with these kinds of site)."""
    told = planner.study.answers
    if not asked or not told.tokens:
        return
    if "report" not in planner.splits:
        planner.skip("answers", "the study has no test prompts")
        return
    if planner.study.prompts.position == "last_user":
        planner.skip("answers", "the prompts end where the user's own text ends (position last_user), and no answer begins there")
        return
    context = min(shape.context for shape in planner.shapes.values())
    fit = [item for item in planner.whole("report") if item.longest + told.tokens <= context]
    if len(fit) < len(planner.whole("report")):
        planner.skip(
            "answers to some prompts", f"after {len(planner.whole('report')) - len(fit)} test prompts {told.tokens} tokens have no room"
        )
    planner.answered = items = evenly_spaced(told.prompts, fit)
    if not items:
        return
    kinds = tuple(kind for kind in planner.wanted if any(kind in one for one in asked))
    for answer in planner.answers:
        yield from _read(planner, answer, kinds)


def _read(planner: Planner, answer: dict[str, Any], kinds: tuple[str, ...]) -> Iterator[Cell]:
    """One model's answers, and both models' reading of them."""
    told, items = planner.study.answers, planner.answered
    what: dict[str, Any] = {"split": "report", "position": "decision", "answer": answer}
    tokens = sum(item.tokens for item in items)
    yield Cell(
        stage="answer", key=planner.key(items, stage="answer", **what), items=items, side=answer["of"],
        flops=planner.flops(tokens + told.tokens * len(items), told.tokens * len(items)), steps=told.tokens,
    )  # fmt: skip
    what |= {"position": labels.answer_position(told.tokens), "kinds": kinds, "layers": tuple(range(planner.shape.n_layers))}
    for side in ("base", "tuned"):
        for shard in planner.answer_shards():
            n_tokens = sum(item.tokens + told.tokens for item in shard)
            key = planner.key(shard, stage="answer_states", side=side, **what)
            yield Cell(stage="answer_states", key=key, items=shard, side=side, flops=planner.flops(n_tokens, told.tokens * len(shard)))


def _joined(planner: Planner, windows: Sequence[Window]) -> dict[tuple[str, str], tuple[tuple[str, ...], tuple[int, ...]]]:
    """(split, position) -> site kinds and layers that any measure asks for there."""
    found: dict[tuple[str, str], tuple[tuple[str, ...], tuple[int, ...]]] = {}
    for window in windows:
        if window.split not in planner.splits:
            continue
        kinds, layers = found.get((window.split, window.position), ((), ()))
        kinds += planner.wanted if window.kinds is None else window.kinds
        layers += tuple(range(planner.shape.n_layers)) if window.layers is None else window.layers
        found[window.split, window.position] = tuple(kind for kind in planner.wanted if kind in kinds), tuple(sorted(set(layers)))
    return found
