"""A study file may set these options of attribution; its cells are planned from them."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from mechdiff.labels import CROSSED
from mechdiff.measures.heads.plan import HEAD_SITES, possible, run_cell, select_items
from mechdiff.study.cells import Cell
from mechdiff.study.document import Count
from mechdiff.study.experiment import Needs
from mechdiff.study.options import Kinds, LayeredOptions
from mechdiff.study.planner import Planner, prompt_hashes

PASSES = 4
"""Runs that forward and backward pass over an answer take as long as."""


class AttributionOptions(LayeredOptions):
    metric: Literal["law", "divergent", "label"] = "law"  # what is attributed, linear in the logits: see measures/attribution/formula.py
    sites: Kinds = ("attn_out", "mlp_out", "resid_post")  # whole sites beside heads and MLPs
    steps: Count = 3  # midpoints of the path of integrated gradients
    validated: Annotated[int, Field(ge=2, le=1000)] = 20  # top heads, and as many random ones, whose effect is measured by true patches
    threshold: Annotated[float | None, Field(gt=0)] = None  # attribution (in logits) from which a head counts as important; none: |z| >= 2
    select_prompts: Count = 16  # on which heads are ranked


def needs(planner: Planner, options: AttributionOptions) -> Needs:
    """States of heads and of its whole sites, where blocks have heads."""
    if "z" not in planner.kinds:
        return Needs()
    return Needs(sites=(*HEAD_SITES, *options.sites), over_answers=("z", *options.sites) if options.metric == "law" else None)


def attribution_cells(planner: Planner) -> Iterator[Cell]:
    """Gradients of heads, MLPs and sites: ranked on select, given on report, and held against true patches."""
    options = planner.study.asked(AttributionOptions)
    if not options or not possible(planner, "attribution", options):
        return
    if "fit" not in planner.splits:
        planner.skip("churn of heads", "the study has no training prompts, whose mean contributions stand for a head that is gone")
    layers = options.layer_numbers(planner.shape.n_layers)
    settings = options.model_dump(include={"metric", "sites", "steps", "validated"})
    chosen_on = select_items(planner, options.select_prompts)
    on = {"seed": planner.study.seed, "layers": layers, "settings": settings, "mean_of": prompt_hashes(planner, "fit"), "activation": True}
    for direction in CROSSED:
        for split, shards in (("select", [chosen_on] if chosen_on else []), ("report", planner.packed("report", "decision"))):
            for number, shard in enumerate(shards):
                what = {"direction": direction, "split": split, "shard": number} | on
                what["ranked_on"] = [item.sha256 for item in chosen_on]
                runs = 1 if split == "select" else 3 * 2 * options.steps + 1
                yield run_cell(planner, shard, "attribution", what, layers, runs)
        what = {"direction": direction, "settings": options.model_dump(include={"sites", "validated"}), "seed": planner.study.seed}
        what["ranked_on"] = [item.sha256 for item in chosen_on]
        if options.metric == "law":
            for made in planner.over_answers("attribution_over_answers", what, layers, 3 + 2 * options.validated // len(layers)):
                yield replace(made, flops=made.flops * (PASSES + 2 * options.validated) / made.key["n_variants"])
    if options.metric != "law" and planner.answered:
        planner.skip("attribution over answers", f"its metric there is law, and the study asks for {options.metric}")
