"""A study file may set these options of steering; its cells are planned from them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from mechdiff import labels
from mechdiff.errors import StudyError
from mechdiff.measures.patching.selection import N_CLOSER, closer_cell, closer_over_answers
from mechdiff.measures.steering.doses import QUESTIONS
from mechdiff.study.cells import Cell, Item
from mechdiff.study.document import Count, whole_numbers
from mechdiff.study.experiment import Needs, PromptSet, Window
from mechdiff.study.options import CloserOptions, Kinds, read_strengths
from mechdiff.study.planner import Planner, possible, prompt_hashes

SEVERAL = 4
"""Dimensions of subspaces that are tried, as far as the plan can know."""


def steering_cells(planner: Planner) -> Iterator[Cell]:
    """Edits at the decision position, over whole sequences, on neutral prompts, and texts."""
    options = planner.study.asked(SteeringOptions)
    if not options or not possible(planner, "steering", options):
        return
    if options.contrast and not options.side_prompts:
        raise StudyError(
            "steering.contrast: takes off the mean difference on unrelated prompts, and side_prompts is 0. Give some, or no contrast."
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
    for direction in labels.WITHIN:
        for kind in kinds:
            what = {"direction": direction, "kind": kind, "seed": planner.study.seed, "floor": kind == kinds[0]}
            what["settings"] = options.model_dump(include={"strengths", "draws"})
            runs = (len(options.strengths) if direction == labels.WITHIN[0] else 0) + 1 + options.draws
            yield from closer_over_answers(planner, "steered_answers", what, options, runs, fitted="steering")
    if options.texts and kinds:
        items = planner.whole("report")[: options.texts]
        what = {"direction": "base<-base", "split": "report", "kind": kinds[0], "continuation": options.continuation} | on
        made = closer_cell(planner, items, "steered_texts", what, options, 0)
        tokens = len(items) * (SEVERAL - 1) * options.continuation + sum(item.tokens for item in items)
        steps = (SEVERAL - 1) * options.continuation
        yield Cell(stage="steered_texts", key=made.key, items=items, side=None, flops=planner.flops(tokens, tokens), steps=steps)


class SteeringOptions(CloserOptions):
    paths: ClassVar[Mapping[str, str]] = {"neutral": ""}

    sites: Kinds = ("resid_post",)  # where: kinds of site in every block
    strengths: Annotated[tuple[float, ...], BeforeValidator(read_strengths)] = (0.5, 1.5, 2.0)  # of add and amplify, beside 1
    windows: Annotated[tuple[int, ...], BeforeValidator(lambda given: whole_numbers(given, 2))] = ()  # widths, in layers
    draws: Annotated[int, Field(ge=0, le=1000)] = 5  # random vectors and subspaces, and label swaps
    contrast: bool = False  # take off the mean difference on unrelated prompts
    neutral: str | None = None  # prompts whose side effects are measured, as a file; none: those that come with mechdiff
    all_positions_layers: Count = 1  # of the selected layers: so many are steered at every position, where the mean difference is largest
    side_prompts: Annotated[int, Field(ge=0, le=100_000)] = 32  # how many of them, from the top; 0: no side effects
    texts: Annotated[int, Field(ge=0, le=64)] = 3  # test prompts that the steered base answers
    continuation: Count = 24  # tokens of each answer
    test_draws: Annotated[int, Field(ge=0, le=10_000)] = 39  # random directions that the largest harmless dose is compared with; 0: no test
    max_side_kl_nats: Annotated[float, Field(ge=0)] = 0.05  # the most that a direction of use may move unrelated prompts
    max_perplexity_ratio: Annotated[float, Field(ge=1)] = 1.05  # and worsen their perplexity


def prompts(options: SteeringOptions) -> tuple[PromptSet, ...]:
    """Neutral prompts, for side effects."""
    if not options.side_prompts:
        return ()
    return (PromptSet(split="neutral", file=options.neutral or NEUTRAL, n=options.side_prompts, unread=True),)


def needs(planner: Planner, options: SteeringOptions) -> Needs:
    """States at its sites; of neutral prompts too, where their mean difference is taken off."""
    contrast = options.contrast and "neutral" in planner.splits
    windows = (Window(split="neutral", kinds=options.sites),) if contrast else ()
    return Needs(sites=options.sites, windows=windows, over_answers=options.sites)


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
    if not options.side_prompts:
        return ()
    if "neutral" not in planner.splits:
        planner.skip("side effects of steering", "there are no unrelated prompts")
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


NEUTRAL = Path(__file__).parents[2] / "data" / "neutral.jsonl"
"""Everyday questions and instructions, for side effects."""
