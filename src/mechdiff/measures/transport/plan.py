"""A study file may set these options of transport; its cells are planned from them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from mechdiff.errors import StudyError
from mechdiff.labels import BASE_INTO_TUNED, MAPS, PATCHES, TUNED_INTO_BASE, WITHIN, n_positions
from mechdiff.measures.patching.selection import N_CLOSER, closer_cell, closer_over_answers
from mechdiff.study.cells import Cell
from mechdiff.study.document import Count, listed, some_of, whole_numbers, wrong
from mechdiff.study.experiment import Needs, Window
from mechdiff.study.options import CloserOptions, Kinds, read_positions, read_strengths
from mechdiff.study.planner import LAST_LEFT_OUT, Planner, lacks, possible, prompt_hashes, shared_clusters

CONSTANT = ("shift", "mean")
"""What is written without a map that learns, where maps are fitted on answers."""
MAPPED = (BASE_INTO_TUNED, *WITHIN)
"""Directions of mapped patches: closeness, transport proper, and the change removed."""
CUTTABLE = ("procrustes", "whitened_procrustes")
"""Maps that can be fitted between the first principal components of each side."""
FULL = "full"
"""A study's word for a map between all principal components."""


def transport_cells(planner: Planner) -> Iterator[Cell]:
    """Fits of every site, then their mapped patches, then the closer look."""
    options = planner.study.asked(TransportOptions)
    if not options or not possible(planner, "transport", options):
        return
    layers = options.layer_numbers(planner.shape.n_layers)
    kinds = [kind for kind in options.sites if kind in planner.wanted]
    if len(planner.splits["report"]) < 2:
        planner.skip(
            "transport condition resample", "there is only one test prompt, and this condition writes the activation of another one"
        )
    for kind in kinds:
        yield _fits(planner, options, kind, layers)
    for direction in (*MAPPED, TUNED_INTO_BASE):
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
    for kind in kinds:
        yield from _cuts(planner, options, kind)
        yield from _at_positions(planner, options, kind)
    yield from _over_answers(planner, options, kinds)


def _from_nothing(given: object) -> tuple[float, ...]:
    """With 0 where there are any: a curve of strengths shows what writing nothing does."""
    return tuple(sorted({0.0, *found})) if (found := read_strengths(given)) else ()


def _read_cuts(given: object) -> tuple[int | str, ...]:
    """Whole numbers ascending, then `FULL`."""
    items = listed(given)
    if wrongly := [item for item in items if item != FULL and (type(item) is not int or item < 1)]:
        raise wrong(wrongly[0], f"numbers of principal components from 1, and {FULL} for all of them, such as [1, 8, 32, {FULL}]")
    return (*whole_numbers([item for item in items if item != FULL], 1), *([FULL] if FULL in items else []))


def _several(given: object) -> tuple[str, ...]:
    """Positions beside the decision position, each the same number of tokens on every prompt."""
    found = read_positions(given) if given else ()
    if "all" in found:
        raise wrong("all", "last_2, last_3, ...: maps are patched in at the same number of positions on every prompt")
    return tuple(one for one in found if one != "decision")


class TransportOptions(CloserOptions):
    sites: Kinds = ("attn_out", "mlp_out", "resid_post")  # where: kinds of site in every block
    maps: Annotated[tuple[str, ...], BeforeValidator(some_of(MAPS))] = MAPS[:4]  # beside identity, shift, mean and resample
    strengths: Annotated[tuple[float, ...], BeforeValidator(_from_nothing)] = (
        0.0,
        0.25,
        0.5,
        0.75,
        1.5,
    )  # at the selected layers, beside 0 and 1
    rows_per_prompt: Count = 1  # aligned positions of each training prompt that maps are fitted on; the last prompt token is one
    permutations: Annotated[int, Field(ge=0, le=100_000)] = 200  # refits on permuted pairs; a tenth for Procrustes
    dimensions: Count = 64  # of pca and the logit subspaces
    clusters: Count = 4  # of per_cluster
    shrinkage: Annotated[float, Field(ge=0, lt=1)] = 0.1  # of whitened_procrustes: of covariances, towards a multiple of the identity
    cut: Count | None = None  # of procrustes and whitened_procrustes: so many principal components of each side; none: all
    cuts: Annotated[
        tuple[int | str, ...], BeforeValidator(_read_cuts)
    ] = ()  # a sweep: these maps with each of these cuts, at every strength
    positions: Annotated[
        tuple[str, ...], BeforeValidator(_several)
    ] = ()  # last_2, ...: at the selected layers maps are fitted and patched there too

    @model_validator(mode="after")
    def _something_to_cut(self) -> "TransportOptions":
        if self.cuts and not self.cut_maps:
            raise wrong(list(self.cuts), f"cuts only with {' or '.join(CUTTABLE)} among the maps")
        return self

    @property
    def cut_maps(self) -> tuple[str, ...]:
        """The maps of the sweep."""
        return tuple(arm for arm in self.maps if arm in CUTTABLE)


def needs(planner: Planner, options: TransportOptions) -> Needs:
    """States at its sites; of each fit prompt several positions, where maps are fitted on more than one."""
    _refuse_other_widths(planner, options)
    layers = options.layer_numbers(planner.shape.n_layers)
    windows = [
        Window(split=split, position=position, kinds=options.sites, layers=layers)
        for position in options.positions
        if not _no_window(planner, position)
        for split in ("fit", "report")
    ]
    if options.rows_per_prompt == 1 or "fit" not in planner.splits:
        return Needs(sites=options.sites, windows=tuple(windows), over_answers=options.sites)
    short = min(planner.splits["fit"], key=lambda item: item.pairs)
    if short.pairs - LAST_LEFT_OUT < options.rows_per_prompt:
        raise StudyError(
            f"transport.rows_per_prompt: given {options.rows_per_prompt}, but the training prompt {short.id!r} has {short.pairs} tokens that end "
            f"at the same byte for both models, of which {LAST_LEFT_OUT} before the last are left out. Give at most "
            f"{max(1, short.pairs - LAST_LEFT_OUT)}, or longer prompts."
        )
    windows.append(Window(split="fit", position=f"spread_{options.rows_per_prompt}", kinds=options.sites, layers=layers))
    return Needs(sites=options.sites, windows=tuple(windows), over_answers=options.sites)


def _refuse_other_widths(planner: Planner, options: TransportOptions) -> None:
    """Raises StudyError where a map reads states by the unembedding that are not as wide as what it reads (heads, several residual streams)."""
    d_model = planner.shape.d_model
    other = [kind for kind in options.sites if kind in planner.kinds and planner.shape.width(kind) != d_model]
    by_logits = [name for name in options.maps if name.startswith("logit_subspace")]
    if other and by_logits:
        raise StudyError(
            f"transport.maps: given {by_logits[0]} and the site {other[0]}, whose activations are {planner.shape.width(other[0])} wide; it takes "
            f"directions of the unembedding, which reads {d_model}. Leave the map out, or the site out of transport.sites."
        )


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
    learn_nothing = PATCHES if direction == BASE_INTO_TUNED else PATCHES[1:]
    return [arm for arm in learn_nothing if arm != "resample" or len(planner.splits["report"]) > 1] + list(options.maps)


def _cuts(planner: Planner, options: TransportOptions, kind: str) -> Iterator[Cell]:
    """Every cut at every strength, on the prompts of the fit and on those of the report; on these beside what a cut does between equals."""
    spanned = min(len(planner.splits["fit"]) * options.rows_per_prompt - 1, planner.shape.width(kind))
    allowed = allowed_cuts(options.cuts, spanned)
    if beyond := [str(cut) for cut in options.cuts if cut not in allowed]:
        planner.skip(
            f"transport cut at {', '.join(beyond)}, {kind}", f"what the maps are fitted on spans {spanned} principal components at most"
        )
    if not allowed:
        return
    strengths = [*(one for one in options.strengths if one), 1.0]
    for direction in MAPPED[:2]:
        for split in ("fit", "report"):
            for number, shard in enumerate(planner.packed(split, "decision")):
                what: dict[str, Any] = {"direction": direction, "split": split, "position": "decision", "kind": kind, "shard": number}
                what |= {"cut_maps": options.cut_maps, "cuts": allowed, "strengths": sorted(strengths)}
                runs = len(options.cut_maps) * len(allowed) * len(strengths) * (2 if split == "report" else 1)
                yield closer_cell(planner, shard, "cuts", what | _fitted_on(planner, options), options, runs)


def allowed_cuts(cuts: Sequence[int | str], spanned: int) -> list[int | str]:
    """Those of no more components than there are; beside the full map of fewer, for at all of them it is that map."""
    most = spanned - (FULL in cuts)
    return [cut for cut in cuts if cut == FULL or int(cut) <= most]


def _at_positions(planner: Planner, options: TransportOptions, kind: str) -> Iterator[Cell]:
    """Maps written at the last few positions of the report prompts together."""
    for position in options.positions:
        if why := _no_window(planner, position):
            planner.skip(f"transport at {position}", why)
            continue
        for direction in (*MAPPED, TUNED_INTO_BASE):
            arms = _arms(planner, options, direction)
            for number, shard in enumerate(planner.packed("report", position)):
                what = {"direction": direction, "split": "report", "position": position, "kind": kind, "shard": number, "arms": arms}
                fitted_on = _fitted_on(planner, options, position) | {"others": prompt_hashes(planner, "report")}
                made = closer_cell(planner, shard, "mapped_positions", what | fitted_on, options, len(arms))
                yield replace(made, flops=made.flops * (n_positions(position) or 1))


def _no_window(planner: Planner, position: str) -> str | None:
    """Why maps cannot be fitted or written at a window of last positions."""
    split = next((one for one in ("fit", "report") if one not in planner.splits), None)
    return lacks(split) if split else planner.common_tail(position, "report") or planner.common_tail(position, "fit")


def _over_answers(planner: Planner, options: TransportOptions, kinds: Sequence[str]) -> Iterator[Cell]:
    """The base's own states, as maps of other prompts' answers make them, at every position of the answers."""
    settings = options.model_dump(include={"maps", "dimensions", "clusters", "shrinkage", "cut"})
    for kind in kinds:
        what = {"direction": WITHIN[0], "kind": kind, "settings": settings, "seed": planner.study.seed, "floor": kind == kinds[0]}
        yield from closer_over_answers(planner, "mapped_answers", what, options, len(CONSTANT) + len(options.maps), fitted="transport")


def _fits(planner: Planner, options: TransportOptions, kind: str, layers: Sequence[int]) -> Cell:
    items = planner.whole("report")
    shared = shared_clusters(items)  # states of other prompts are of other clusters
    key = planner.key(items, stage="fits", kind=kind, layers=layers, permutations=options.permutations,
                      **_fitted_on(planner, options), **({"clusters": shared} if shared else {}))  # fmt: skip
    rows, width = len(planner.splits["fit"]) * options.rows_per_prompt, planner.shape.width(kind)
    small = min(rows, width)
    one = small * width * (12 * small + 40 * rows) + 60.0 * (2 * small) ** 3
    return Cell(stage="fits", key=key, items=items, side=None, flops=2 * len(layers) * len(options.maps) * one)


def _fitted_on(planner: Planner, options: TransportOptions, window: str | None = None) -> dict[str, Any]:
    """What maps are made of: prompts by their texts, and every setting; `window`: at which last positions, where it is there."""
    settings = options.model_dump(include={"maps", "rows_per_prompt", "dimensions", "clusters", "shrinkage", "cut"})
    if window:
        settings["rows_per_prompt"] = n_positions(window)
        return {"fitted_on": prompt_hashes(planner, "fit"), "fitted_at": window, "seed": planner.study.seed, "settings": settings}
    on = {"fitted_on": prompt_hashes(planner, "fit"), "chosen_on": prompt_hashes(planner, "select"), "seed": planner.study.seed}
    return {**on, "settings": settings}
