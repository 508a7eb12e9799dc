"""A study file may set these options of rank; its cells are planned from them."""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from mechdiff.measures.patching.selection import choice, closer_cell
from mechdiff.measures.transport.plan import MAPPED
from mechdiff.study.cells import Cell
from mechdiff.study.experiment import Needs
from mechdiff.study.options import CloserOptions, Kinds, read_strengths
from mechdiff.study.planner import Planner, possible, prompt_hashes


class RankOptions(CloserOptions):
    sites: Kinds = ("attn_out", "mlp_out", "resid_post")  # where: kinds of site in every block
    strengths: Annotated[tuple[float, ...], BeforeValidator(read_strengths)] = (0.5, 1.5)  # beside 1, at each rank
    fisher_samples: Annotated[int, Field(ge=0, le=1024)] = 4  # gradients a training prompt for the Fisher-weighted variant; 0: none
    draws: Annotated[int, Field(ge=0, le=1000)] = 3  # random subspaces at each rank


def needs(planner: Planner, options: RankOptions) -> Needs:
    return Needs(sites=options.sites)


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
        tokens = sum(item.tokens for item in fit) + 3 * options.fisher_samples * len(fit)  # gradients are of copies of the last token
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
