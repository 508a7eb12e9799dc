"""Activations written at the decision position, and along answers, are held against the running model's own: a cell a model and kind of site."""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field

from mechdiff.labels import answer_position, runner
from mechdiff.measures.heads.plan import HeadsOptions
from mechdiff.measures.patching.plan import PatchingOptions
from mechdiff.measures.patching.selection import choice
from mechdiff.measures.steering.plan import SteeringOptions
from mechdiff.measures.transport.plan import TransportOptions
from mechdiff.study.cells import Cell
from mechdiff.study.options import Options
from mechdiff.study.planner import Planner, prompt_hashes, sizes, told_apart

SPLITS = ("fit", "select", "report")
"""Whose prompts own activations are of, as far as a study has them."""
FEWEST = 6
"""Prompts under which nothing is measured."""


class OffManifoldOptions(Options):
    folds: Annotated[int, Field(ge=2)] = 10  # parts of the prompts: a write is compared with own activations on the other parts


def cells(planner: Planner) -> Iterator[Cell]:
    """One cell for each model that runs and kind of site that something is written at."""
    options = planner.study.asked(OffManifoldOptions)
    if not options:
        return
    patching, transport, steering = (
        planner.study.asked(PatchingOptions),
        planner.study.asked(TransportOptions),
        planner.study.asked(SteeringOptions),
    )
    heads = planner.study.asked(HeadsOptions) if "z" in planner.wanted else None
    at_sites = [one for one in (patching, transport, steering) if one]
    asked: list[Options] = [*at_sites, *([heads] if heads else [])]
    if not asked:
        why = "the study asks for none of patching, transport, steering and heads, which write the activations it looks at"
        planner.skip("off_manifold", why)
        return
    if "report" not in planner.splits or sizes(planner.shapes["base"]) != sizes(planner.shapes["tuned"]):
        planner.skip(
            "off_manifold", "nothing is patched in: there are no test prompts, or an activation of one model does not fit into the other"
        )
        return
    n = sum(len(planner.splits[split]) for split in SPLITS if split in planner.splits)
    if n < FEWEST:
        planner.skip("off_manifold", f"{n} prompt{'s' * (n != 1)} give{'s' * (n == 1)} no covariance of activations; {FEWEST} are needed")
        return
    kinds = [kind for kind in planner.wanted if any(kind in one.sites for one in at_sites) or (heads and kind == "attn_proj")]
    items = planner.whole("report")
    on = {split: [[item.id, item.sha256, item.told] for item in planner.whole(split)] for split in SPLITS if split in planner.splits}
    neutral = prompt_hashes(planner, "neutral") if steering and steering.contrast else []
    layers = [choice(planner, one) for one in (transport, steering) if one]
    for side in planner.shapes:
        for kind in kinds:
            what = {
                "runs": side,
                "kind": kind,
                "split": "report",
                "position": "decision",
                "folds": options.folds,
                "seed": planner.study.seed,
            }
            what |= {"own": on, "neutral": neutral, "written": [_what_writes(one) for one in asked], "closer": layers}
            flops = 40.0 * planner.shape.n_layers * len(items) * n * planner.shape.width(kind)
            yield Cell(stage="off_manifold", key=planner.key(items, stage="off_manifold", **what), items=items, side=None, flops=flops)
    if patching:
        yield from _along_answers(planner, options, patching)


def _what_writes(options: Options) -> dict[str, Any]:
    """The options that decide what is written at single sites: of patching not those of windows, pairs and the map of positions."""
    of_one_site = {"sites", "layers", "stride", "arms", "directions", "positions"}
    return options.model_dump(mode="json", include=of_one_site if isinstance(options, PatchingOptions) else None)


def _along_answers(planner: Planner, options: OffManifoldOptions, patching: PatchingOptions) -> Iterator[Cell]:
    """The same of what patches write at every position of the answers: at their sites and layers, into the models that run in their directions."""
    items, tokens = planner.answered, planner.study.answers.tokens
    layers = patching.layer_numbers(planner.shape.n_layers)
    for answer in planner.answers if items else ():
        what = {
            "split": "report",
            "position": answer_position(tokens),
            "answer": answer,
            "folds": options.folds,
            "beside": told_apart(items),
            "layers": layers,
        }
        for side in map(runner, patching.directions):
            for kind in (kind for kind in patching.sites if kind in planner.wanted):
                key = planner.key(items, stage="off_manifold_answers", runs=side, kind=kind, **what)
                flops = 40.0 * len(layers) * (tokens * len(items)) ** 2 * planner.shape.width(kind)
                yield Cell(stage="off_manifold_answers", key=key, items=items, side=None, flops=flops)
