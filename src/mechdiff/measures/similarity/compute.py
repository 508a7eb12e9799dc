"""Activations of the two models are compared, site by site."""

from collections.abc import Mapping

import polars as pl
from torch import Tensor

from mechdiff import labels
from mechdiff.architectures.sites import Site
from mechdiff.measures.similarity import formula
from mechdiff.measures.similarity.geometry import pairings
from mechdiff.models.pair import Model
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution, States
from mechdiff.study.experiment import Result


def compare_states(run: Execution, cell: Cell, model: Model | None) -> Result:
    split, kind, position = cell.key["split"], cell.key["kind"], cell.key["position"]
    captured = {side: run.states(side, split, position) for side in ("base", "tuned")}
    base, tuned = ({Site(layer, kind): one.kinds[kind][layer, :, 0] for layer in cell.key["layers"]} for one in captured.values())
    orders = pairings(run.clusters(split, cell.key["ids"]), cell.key["permutations"], cell.key["seed"])
    found = formula.measure(base, tuned, cell.key["ids"], split, orders=orders, normed=_normed(captured, base, tuned))
    return found.with_columns(unit=pl.lit(labels.window_unit(1, position), pl.String)), {}


def _normed(captured: Mapping[str, States], base: formula.States, tuned: formula.States) -> tuple[formula.States, formula.States]:
    """The states after each model's norm that reads them, at the sites where both have one."""
    found: tuple[dict[Site, Tensor], dict[Site, Tensor]] = ({}, {})
    for site in base:
        if site.kind not in captured["base"].norms or site.kind not in captured["tuned"].norms:
            continue
        x = captured["base"].norms[site.kind].apply(site.layer, base[site])
        y = captured["tuned"].norms[site.kind].apply(site.layer, tuned[site])
        if x is not None and y is not None:
            found[0][site], found[1][site] = x.float(), y.float()  # no more exact than the states: what does not vary must not seem to
    return found
