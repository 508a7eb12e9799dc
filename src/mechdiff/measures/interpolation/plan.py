"""A study file may set these options of interpolation; its cells are planned from them."""

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from mechdiff import labels
from mechdiff.errors import StudyError
from mechdiff.measures.patching.selection import choice
from mechdiff.measures.steering.plan import NEUTRAL
from mechdiff.spacing import evenly_spaced
from mechdiff.study.cells import Cell, Item
from mechdiff.study.document import Count, listed, some_of, wrong
from mechdiff.study.experiment import Needs, PromptSet, Window
from mechdiff.study.options import CloserOptions
from mechdiff.study.planner import Planner, possible

WEIGHTS, LOGITS, STATES = FORMS = ("weights_path", "logits_path", "states_path")
"""Arms: what is moved from the base's to the tuned model's and beyond."""
KIND = "resid_post"
"""Where activations are moved."""
SPLITS = ("report", "neutral")
REPEATED = "repeated_4grams"
OF_TUNED = "top1_same_as_tuned"


def read_grid(given: object) -> tuple[float, ...]:
    for item in (items := listed(given)):
        if isinstance(item, bool) or not isinstance(item, (int, float)) or not -10 <= item <= 10:
            raise wrong(item, "numbers from -10 to 10, such as [-0.5, 0.25, 0.5, 1.5, 2]")
    return tuple(sorted({float(item) for item in items} | {0.0, 1.0}))


def read_said(given: object) -> tuple[float, ...]:
    return tuple(sorted({a for a in read_grid(given) if a in [float(item) for item in listed(given)]}))


PART = re.compile(r"L(0|[1-9]\d{0,5})(\.(attn|mlp|norm))?|attn|mlp|norm|embed|final_norm|head")
"""One part of a group: a block, a module of a block, or all modules of a kind."""


def read_modules(given: object) -> tuple[str, ...]:
    """Groups of modules, each as one text; their parts in one order."""
    groups = []
    for item in listed(given):
        parts: list[str] = labels.set_of(item) if isinstance(item, str) else [""]
        if wrongly := [part for part in parts if not PART.fullmatch(part)]:
            raise wrong(
                item if len(parts) == 1 else wrongly[0],
                "modules such as L8.mlp, L8.attn, L8 (a whole block), mlp (of all blocks), embed, final_norm, head, or several joined by +",
            )
        ordered: list[str] = sorted(set(parts), key=_place)
        groups.append(labels.set_unit(ordered))
    return tuple(sorted(set(groups)))


def _place(part: str) -> tuple[int, str]:
    """Blocks in their order, then what is of all blocks."""
    found = re.match(r"L(\d+)", part)
    return int(found[1]) if found else 1 << 30, part


def holds(group: str, layer: int | None, kind: str) -> bool:
    """Whether a module is in a group."""
    names = {kind} if layer is None else {f"L{layer}", f"L{layer}.{kind}", kind}
    return not names.isdisjoint(labels.set_of(group))


class InterpolationOptions(CloserOptions):
    """`closer`: blocks of which the middle one's output is moved; hot: those that the select prompts choose, without them the middle block."""

    forms: Annotated[tuple[str, ...], BeforeValidator(some_of(FORMS))] = FORMS  # what is interpolated
    strengths: Annotated[tuple[float, ...], BeforeValidator(read_grid)] = (
        -0.5,
        0.0,
        0.25,
        0.5,
        0.75,
        1.0,
        1.5,
        2.0,
    )  # 0 and 1 are always there
    report_prompts: Count | None = None  # test prompts that are run; none: all
    side_prompts: Annotated[int, Field(ge=0, le=100_000)] = 32  # unrelated prompts (those of steering, where it has some), from the top
    answers: Annotated[int, Field(ge=0, le=64)] = 3  # test prompts that are answered with weights in between and beyond
    answer_strengths: Annotated[tuple[float, ...], BeforeValidator(read_said)] = (0.0, 0.5, 1.0, 1.5, 2.0)  # it answers at these
    continuation: Count = 48  # tokens of each answer
    modules: Annotated[
        tuple[str, ...], BeforeValidator(read_modules)
    ] = ()  # L8.mlp, L8, mlp, L8.attn+L9.mlp, ...: weights of these alone, too


def prompts(options: InterpolationOptions) -> tuple[PromptSet, ...]:
    """Neutral prompts, by which the forms are matched."""
    return (PromptSet(split="neutral", file=NEUTRAL, n=options.side_prompts, unread=True),) if options.side_prompts else ()


def needs(planner: Planner, options: InterpolationOptions) -> Needs:
    """What both models say next to neutral prompts, and the activations that are moved."""
    kinds = (KIND,) if STATES in options.forms else ()
    return Needs(sites=kinds, windows=(Window(split="neutral", kinds=kinds),) if options.side_prompts else ())


def cells(planner: Planner) -> Iterator[Cell]:
    """A cell a form and split; the activations' in shards of prompts that run side by side; then the answers."""
    options = planner.study.asked(InterpolationOptions)
    if not options:
        return
    if "report" not in planner.splits:
        planner.skip("interpolation", "the study has no test prompts")
        return
    if not planner.one_vocabulary:
        planner.skip(
            "interpolation", "the two tokenizers number their tokens differently: there is no way from the one's logits to the other's"
        )
        return
    forms = _possible(planner, options)
    for split, items in _prompts(planner, options).items():
        on = {"split": split, "position": "decision", "strengths": list(options.strengths)}
        for form in forms:
            if form == STATES:
                yield from _states(planner, items, on, options)
                continue
            for group in (None, *(_groups(planner, options) if form == WEIGHTS else ())):
                runs, tokens = _networks(planner, options, group) * (form == WEIGHTS), sum(item.tokens for item in items)
                key = planner.key(items, stage="interpolation", arm=form, **on, **({"modules": group} if group else {}))
                flops = planner.flops(runs * tokens, runs * len(items))
                yield Cell(stage="interpolation", key=key, items=items, side="base" if form == WEIGHTS else None, flops=flops)
    if options.answers and options.answer_strengths and WEIGHTS in forms:
        yield _answers(planner, evenly_spaced(options.answers, planner.whole("report")), options)


def _possible(planner: Planner, options: InterpolationOptions) -> list[str]:
    """The forms that this pair allows; why not the others."""
    left_out = set()
    if WEIGHTS in options.forms:
        why = planner.ungraftable
        if planner.shapes["base"] != planner.shapes["tuned"]:
            why = "the two models' tensors have different shapes: there is nothing between them"
        if why:
            planner.skip("interpolation of weights", why)
            left_out.add(WEIGHTS)
    if STATES in options.forms and not possible(planner, "interpolation of activations", options, ("report",)):
        left_out.add(STATES)
    return [form for form in FORMS if form in options.forms and form not in left_out]


def _groups(planner: Planner, options: InterpolationOptions) -> Iterator[str]:
    """The groups of modules in which something may have changed. Raises StudyError for a block that is not there."""
    n_layers = planner.shape.n_layers
    for group in options.modules:
        if missing := [part for part in labels.set_of(group) if (found := re.match(r"L(\d+)", part)) and int(found[1]) >= n_layers]:
            raise StudyError(
                f"interpolation.modules: given {missing[0]}; the model has {n_layers} blocks, L0 to L{n_layers - 1}. Name one of these."
            )
        if any(holds(group, layer, site) for layer, site in planner.touched):
            yield group
        else:
            tied = planner.tied and "head" in labels.set_of(group)
            why = "; the unembedding is the embedding, one tied tensor, and moves with embed" if tied else ""
            planner.skip(f"interpolation of {group}", f"no weight of its own changed{why}")


def _networks(planner: Planner, options: InterpolationOptions, group: str | None) -> float:
    """Passes of a whole network that the weights' way takes: below the lowest block that moves one serves all strengths."""
    n_layers = planner.shape.n_layers
    moved = [(layer, site) for layer, site in planner.touched if group is None or holds(group, layer, site)]
    first = min((n_layers if layer is None else layer for layer, site in moved if site != "embed"), default=n_layers)
    below = 0 if (None, "embed") in moved else first
    return (len(options.strengths) - 1) * (1 - below / n_layers) + (below > 0)


def _prompts(planner: Planner, options: InterpolationOptions) -> dict[str, tuple[Item, ...]]:
    """The prompts of each split that are run."""
    report = evenly_spaced(options.report_prompts or len(planner.whole("report")), planner.whole("report"))
    found = {"report": tuple(report)}
    if options.side_prompts and "neutral" in planner.splits:
        found["neutral"] = tuple(planner.splits["neutral"][: options.side_prompts])
    elif options.side_prompts:
        planner.skip("interpolation on unrelated prompts", "there are no unrelated prompts")
    return found


def _states(planner: Planner, items: Sequence[Item], on: dict[str, Any], options: InterpolationOptions) -> Iterator[Cell]:
    middle = planner.shape.n_layers // 2
    for shard in planner.packed(on["split"], "decision"):
        here = tuple(item for item in shard if item in items)
        if here:
            runs = len(options.strengths)
            what = on | {"direction": "base<-tuned", "arm": STATES, "kind": KIND, "n_variants": runs, "layers": [middle] * runs}
            made = planner.patch_cell(here, "interpolation", what, 1)
            key = {name: value for name, value in made.key.items() if name != "layers"} | choice(planner, options)
            yield Cell(stage="interpolation", key=key, items=here, side="base", flops=made.flops)


def _answers(planner: Planner, items: Sequence[Item], options: InterpolationOptions) -> Cell:
    what = options.model_dump(include={"answer_strengths", "continuation"})
    key = planner.key(items, stage="interpolated_answers", split="report", arm=WEIGHTS, **what)
    runs, tokens = len(options.answer_strengths), sum(item.tokens for item in items)
    said = len(items) * options.continuation
    flops = planner.flops(runs * (tokens + said), runs * said)
    return Cell(stage="interpolated_answers", key=key, items=tuple(items), side="base", flops=flops, steps=runs * options.continuation)
