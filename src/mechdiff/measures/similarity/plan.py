"""A study file may set these options of similarity; its cells are planned from them."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from mechdiff.study.cells import Cell
from mechdiff.study.options import Kinds, LayeredOptions
from mechdiff.study.planner import Planner


class SimilarityOptions(LayeredOptions):
    sites: Kinds = ("attn_out", "mlp_out", "resid_post")
    permutations: Annotated[int, Field(ge=0, le=1_000_000)] = 500  # null draws a site; 0: none
    words: bool | None = None  # also states averaged over each prompt's words; none: where the two models cut the prompts differently


def similarity_cells(planner: Planner) -> Iterator[Cell]:
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
