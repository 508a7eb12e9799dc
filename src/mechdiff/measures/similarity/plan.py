"""A study file may set these options of similarity; its cells are planned from them."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field

from mechdiff.study.cells import Cell, Item
from mechdiff.study.experiment import Needs, Window
from mechdiff.study.options import Kinds, LayeredOptions
from mechdiff.study.planner import Planner, lacks, shared_clusters
from mechdiff.terms import of_split


class SimilarityOptions(LayeredOptions):
    presets: ClassVar = {"standard": {"permutations": 100}, "paper": {}}

    sites: Kinds = ("attn_out", "mlp_out", "resid_post")  # where: kinds of site in every block
    permutations: Annotated[int, Field(ge=0, le=1_000_000)] = 500  # null draws a site; 0: none
    words: bool | None = None  # also states averaged over each prompt's words; none: where the two models cut the prompts differently


def needs(planner: Planner, options: SimilarityOptions) -> Needs:
    """States at its sites; also averaged over words where they are compared."""
    return Needs(
        sites=options.sites, windows=(Window(split="report", position="words", kinds=options.sites),) if _words(planner, options) else ()
    )


def _words(planner: Planner, options: SimilarityOptions) -> bool:
    """Whether states averaged over words are compared too."""
    if "report" not in planner.splits:
        return False
    return any(item.tail < item.tokens for item in planner.splits["report"]) if options.words is None else options.words


def _paired_by(items: Sequence[Item], draws: int) -> dict[str, Any]:
    """Which prompts share a cluster, where some do: pairings exchange whole ones."""
    shared = shared_clusters(items) if draws else []
    return {"clusters": shared} if shared else {}


def similarity_cells(planner: Planner) -> Iterator[Cell]:
    options = planner.study.asked(SimilarityOptions)
    if not options:
        return
    if planner.shapes["base"].d_model != planner.shapes["tuned"].d_model:
        planner.skip("similarity: same_basis_change, procrustes_distance", "the two models' activations have different widths")
    for split in ("select", "report"):
        if split not in planner.splits:
            planner.skip(f"similarity on the {of_split(split)} prompts", lacks(split))
            continue
        items = planner.whole(split)
        if len(items) < 4:
            planner.skip(f"similarity on the {of_split(split)} prompts", f"debiased CKA needs 4 prompts, there are {len(items)}")
            continue
        layers = options.layer_numbers(planner.shape.n_layers)
        for position in ("decision", "words") if split == "report" and _words(planner, options) else ("decision",):
            draws = options.permutations if position == "decision" else 0
            for kind in options.sites:
                if kind in planner.wanted:
                    what = {"kind": kind, "layers": layers, "position": position, "permutations": draws, "seed": planner.study.seed}
                    key = planner.key(items, stage="similarity", split=split, **what, **_paired_by(items, draws))
                    yield Cell(stage="similarity", key=key, items=items, side=None, flops=0)
