"""The cells of the measures that fit maps of states: transport and rank. No torch here.

First the maps of every layer and site, from captured states alone; then what they do in each running model; then, at a few layers chosen on the
select prompts, what is too much for every layer. Which layers these are is known only when the select cells are done, so their keys hold what
the choice is made from instead.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from mechdiff.errors import StudyError
from mechdiff.study.cells import Cell, Item
from mechdiff.study.options import CloserOptions, LayeredOptions, PatchingOptions, RankOptions, SimilarityOptions, TransportOptions
from mechdiff.study.planner import Planner, sizes

N_CLOSER = 4
"""Layers that are looked at more closely, as far as the plan can know."""

MAPPED = ("tuned<-base", "base<-base", "tuned<-tuned")
"""Directions of mapped patches: closeness, transport proper, and the change removed."""

LEARN_NOTHING = ("identity", "shift", "mean", "resample")


def transport_cells(planner: Planner) -> Iterator[Cell]:
    """Fits of every site, then their mapped patches, then the closer look."""
    options = planner.study.asked(TransportOptions)
    if not options or not possible(planner, "transport", options):
        return
    layers = options.layer_numbers(planner.shape.n_layers)
    kinds = [kind for kind in options.sites if kind in planner.wanted]
    if len(planner.splits["report"]) < 2:
        planner.skip("transport arm resample", "there is only one report prompt, and this arm writes the state of another one")
    for kind in kinds:
        yield _fits(planner, options, kind, layers)
    for direction in (*MAPPED, "base<-tuned"):
        arms = _arms(planner, options, direction)
        for number, shard in enumerate(planner.packed("report", "decision")):
            for kind in kinds:
                for arm in arms:
                    what: dict[str, Any] = {"direction": direction, "split": "report", "position": "decision", "kind": kind, "arm": arm}
                    what["layers"] = layers
                    what |= {
                        "shard": number,
                        "n_variants": len(layers),
                        "floor": (kind, arm) == (kinds[0], arms[0]),
                    }
                    yield planner.patch_cell(shard, "transport", what | _fitted_on(planner, options), 1)
    for direction in MAPPED[:2]:
        for split in ("fit", "select", "report"):
            for number, shard in enumerate(planner.packed(split, "decision") if split in planner.splits else ()):
                for kind in kinds:
                    what = {"direction": direction, "split": split, "position": "decision", "kind": kind, "shard": number}
                    yield closer_cell(planner, shard, "closer", what | _fitted_on(planner, options), options, _closer_runs(options, split))


def _closer_runs(options: TransportOptions, split: str) -> int:
    """Variants at one layer: strengths of every map; on fit the maps alone; on report the controls too."""
    learned = len(options.maps) + 1
    if split == "fit":
        return learned + 1
    return learned * len(options.strengths) + (len(options.maps) * (N_CLOSER + 4) if split == "report" else learned)


def _arms(planner: Planner, options: TransportOptions, direction: str) -> list[str]:
    """The arms that say something in a direction: a model that is given its own state back says what it said before."""
    if direction == "base<-tuned":
        return ["identity"]
    learn_nothing = LEARN_NOTHING if direction == "tuned<-base" else LEARN_NOTHING[1:]
    return [arm for arm in learn_nothing if arm != "resample" or len(planner.splits["report"]) > 1] + list(options.maps)


def _fits(planner: Planner, options: TransportOptions, kind: str, layers: Sequence[int]) -> Cell:
    items = planner.whole("report")
    key = planner.key(items, stage="fits", kind=kind, layers=layers, permutations=options.permutations,
                      **_fitted_on(planner, options))  # fmt: skip
    rows, width = len(planner.splits["fit"]) * options.rows_per_prompt, planner.shape.width(kind)
    small = min(rows, width)
    one = small * width * (12 * small + 40 * rows) + 60.0 * (2 * small) ** 3
    return Cell(stage="fits", key=key, items=items, side=None, flops=2 * len(layers) * len(options.maps) * one)


def _fitted_on(planner: Planner, options: TransportOptions) -> dict[str, Any]:
    """What maps are made of: prompts by their texts, and every setting."""
    settings = options.model_dump(include={"maps", "rows_per_prompt", "dimensions", "clusters"})
    on = {"fitted_on": prompt_hashes(planner, "fit"), "chosen_on": prompt_hashes(planner, "select"), "seed": planner.study.seed}
    return {**on, "settings": settings}


def prompt_hashes(planner: Planner, split: str) -> list[str]:
    """Of what the models read, in a split; nothing where the study lacks it."""
    return [item.sha256 for item in planner.whole(split)] if split in planner.splits else []


def rank_cells(planner: Planner) -> Iterator[Cell]:
    """Ranks of every site, gradients for the Fisher metric, then what maps of each rank do at the closer layers."""
    options = planner.study.asked(RankOptions)
    if not options or not possible(planner, "rank", options):
        return
    layers = options.layer_numbers(planner.shape.n_layers)
    kinds = [kind for kind in options.sites if kind in planner.wanted]
    fit, items = planner.whole("fit"), planner.whole("report")
    on = {"fitted_on": prompt_hashes(planner, "fit"), "chosen_on": prompt_hashes(planner, "select"), "seed": planner.study.seed}
    for kind in kinds:
        key = planner.key(items, stage="rank", kind=kind, layers=layers, **on)
        yield Cell(stage="rank", key=key, items=items, side=None, flops=len(layers) * 200.0 * len(fit) ** 2 * planner.shape.width(kind))
    if options.fisher_samples:
        key = planner.key(fit, stage="fisher", split="fit", kinds=kinds, samples=options.fisher_samples, **on, **choice(planner, options))
        tokens = sum(item.tokens for item in fit) * (1 + 2 * options.fisher_samples)
        yield Cell(stage="fisher", key=key, items=fit, side="tuned", flops=planner.flops(tokens, tokens / 10))
    n_ranks = 2 + max(1, min(len(fit), planner.shape.d_model)).bit_length()
    runs = n_ranks * (2 + bool(options.fisher_samples) + options.draws + len(options.strengths))
    for direction in MAPPED[:2]:
        for number, shard in enumerate(planner.packed("report", "decision")):
            for kind in kinds:
                what: dict[str, Any] = {"direction": direction, "split": "report", "position": "decision", "kind": kind, "shard": number}
                what |= on
                what |= options.model_dump(include={"strengths", "fisher_samples", "draws"})
                yield closer_cell(planner, shard, "rank_curve", what, options, runs)


def closer_cell(planner: Planner, shard: tuple[Item, ...], stage: str, what: dict[str, Any], options: CloserOptions, runs: int) -> Cell:
    """A cell of `runs` variants at each of the closer layers."""
    layers = list(options.closer) if options.closer != "hot" else [planner.shape.n_layers // 2] * N_CLOSER
    made = planner.patch_cell(shard, stage, what | {"layers": layers * runs, "n_variants": len(layers) * runs}, 1)
    key = {name: value for name, value in made.key.items() if name != "layers"}
    return Cell(stage=stage, key={**key, **choice(planner, options)}, items=shard, side=made.side, flops=made.flops)


def choice(planner: Planner, options: CloserOptions) -> dict[str, Any]:
    """What decides which layers are looked at more closely."""
    if options.closer != "hot":
        return {"closer": options.closer}
    patching, similarity = planner.study.asked(PatchingOptions), planner.study.asked(SimilarityOptions)
    by = {name: one.model_dump() for name, one in (("patching", patching), ("similarity", similarity)) if one}
    return {
        "closer": "hot",
        "closer_by": by,
        "closer_on": prompt_hashes(planner, "select"),
        "closer_of": options.layer_numbers(planner.shape.n_layers),
    }


def possible(planner: Planner, measure: str, options: LayeredOptions, splits: Sequence[str] = ("fit", "report")) -> bool:
    """Whether states of one model fit into the other and there are the prompts that are needed (to fit on, to report).

    Raises StudyError for closer layers that are not among the measure's layers.
    """
    layers = options.layer_numbers(planner.shape.n_layers)
    closer = getattr(options, "closer", "hot")
    if missing := [layer for layer in closer if layer not in layers] if closer != "hot" else []:
        raise StudyError(f"{measure}: closer layers {missing} are asked for, which are not among its layers ({layers[0]} to {layers[-1]}).")
    if sizes(planner.shapes["base"]) != sizes(planner.shapes["tuned"]):
        planner.skip(measure, "the two models differ in depth or width: a state of one does not fit into the other")
        return False
    for split in splits:
        if split not in planner.splits:
            planner.skip(measure, f"the study has no {split} prompts")
            return False
    return True
