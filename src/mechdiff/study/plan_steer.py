"""The cells of steering. No torch here.

At the closer layers only. First every edit at the decision position of the report prompts, in each of the four directions; then fewer of them, at
fewer of these layers, over whole sequences: on the report prompts and, for side effects, on neutral prompts; then random directions of the largest
dose that neutral prompts allow; last a few texts that the steered base writes.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from mechdiff import labels
from mechdiff.errors import StudyError
from mechdiff.measures.doses import QUESTIONS
from mechdiff.study.cells import Cell, Item
from mechdiff.study.options import SteeringOptions
from mechdiff.study.plan_maps import N_CLOSER, closer_cell, possible, prompt_hashes
from mechdiff.study.planner import Planner

SEVERAL = 4
"""Dimensions of subspaces that are tried, as far as the plan can know."""


def steering_cells(planner: Planner) -> Iterator[Cell]:
    """Edits at the decision position, over whole sequences, on neutral prompts, and texts."""
    options = planner.study.asked(SteeringOptions)
    if not options or not possible(planner, "steering", options):
        return
    if options.contrast and not options.side_prompts:
        raise StudyError(
            "steering.contrast: takes off the mean difference on neutral prompts, and side_prompts is 0. Give some, or no contrast."
        )
    kinds = [kind for kind in options.sites if kind in planner.wanted]
    neutral = _neutral(planner, options)
    on = {"seed": planner.study.seed, "position": "decision", "settings": options.model_dump(include={"strengths", "draws", "contrast"})}
    on |= {"fitted_on": prompt_hashes(planner, "fit"), "contrast_with": [item.sha256 for item in neutral] if options.contrast else []}
    everywhere = options.model_dump(include={"windows", "all_positions_layers"})
    for number, shard in enumerate(planner.packed("report", "decision")):  # one prompt's clean runs serve all that follows
        for direction in ("base<-base", "base<-tuned", "tuned<-tuned", "tuned<-base"):
            for kind in kinds:
                what = {"direction": direction, "split": "report", "kind": kind, "shard": number} | on
                yield closer_cell(planner, shard, "steering", what, options, _runs(options, direction))
                if direction in labels.WITHIN:
                    yield _whole(planner, shard, "steered", what | everywhere, options)
    for direction in labels.WITHIN if neutral else ():
        for kind in kinds:
            what = {"direction": direction, "split": "neutral", "kind": kind} | on
            yield _whole(planner, neutral, "side_effects", what | everywhere, options)
    if neutral and options.test_draws:
        yield from _tests(planner, options, kinds, on | everywhere, neutral)
    if options.texts and kinds:
        items = planner.whole("report")[: options.texts]
        what = {"direction": "base<-base", "split": "report", "kind": kinds[0], "continuation": options.continuation} | on
        made = closer_cell(planner, items, "steered_texts", what, options, 0)
        tokens = len(items) * (SEVERAL - 1) * options.continuation + sum(item.tokens for item in items)
        steps = (SEVERAL - 1) * options.continuation
        yield Cell(stage="steered_texts", key=made.key, items=items, side=None, flops=planner.flops(tokens, tokens), steps=steps)


def _tests(planner: Planner, options: SteeringOptions, kinds: Sequence[str], on: dict[str, Any], neutral: Sequence[Item]) -> Iterator[Cell]:
    """Random directions at the dose that the side effects choose: the key holds what they are made from."""
    limits = options.model_dump(include={"max_side_kl_nats", "max_perplexity_ratio", "test_draws"})
    chosen_on = {"limits": limits, "neutral": [item.sha256 for item in neutral]}
    for number, shard in enumerate(planner.packed("report", "decision")):
        for direction in QUESTIONS:
            for kind in kinds:
                what = {"direction": direction, "split": "report", "kind": kind, "shard": number} | on | chosen_on
                yield _whole(planner, shard, "steered_controls", what, options, options.test_draws)


def _neutral(planner: Planner, options: SteeringOptions) -> tuple[Item, ...]:
    if "neutral" not in planner.splits:
        if options.side_prompts:
            planner.skip("side effects of steering", "there are no neutral prompts")
        return ()
    return tuple(sorted(planner.splits["neutral"], key=lambda item: (item.tokens, item.id)))


def _runs(options: SteeringOptions, direction: str) -> int:
    """Variants at one place, as far as the plan can know."""
    strengths = 1 + len(options.strengths)
    if direction == "base<-base":
        return strengths + 2 * options.draws
    random = SEVERAL * options.draws
    return SEVERAL * (strengths + 1) + 2 * random if direction == "tuned<-tuned" else SEVERAL + random


def _whole(
    planner: Planner, items: Sequence[Item], stage: str, what: dict[str, Any], options: SteeringOptions, runs: int | None = None
) -> Cell:
    """A cell of runs over whole sequences, at some of the closer layers: of every edit, or so many."""
    strengths = 1 + len(options.strengths)
    every = strengths if what["direction"] == "base<-base" else 2 * SEVERAL + strengths - 1
    made = closer_cell(planner, tuple(items), stage, what, options, runs or every * (1 + len(options.windows)))
    tokens = sum(item.tokens for item in items) / len(items)
    share = min(options.all_positions_layers, N_CLOSER) / N_CLOSER
    return Cell(stage=stage, key=made.key, items=tuple(items), side=made.side, flops=made.flops * tokens * share / 2)
