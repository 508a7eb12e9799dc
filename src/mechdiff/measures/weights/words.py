"""The page's sentences say which weights changed, and whether the function changed with them."""

import polars as pl

from mechdiff.measures.weights import findings
from mechdiff.report.difference import Difference
from mechdiff.report.phrasing import nats

NO_CHANGE = 1e-8
"""Nats under which two float32 networks say the same, however far their weights lie apart."""


def which_weights(summary: pl.DataFrame, manifest: dict, difference: Difference | None = None) -> list[str]:
    """How many tensors changed, and the most changed one; and whether the function changed with them."""
    found = findings.how_many(summary)
    if found is None:
        return []
    if not found.changed:
        said = findings.unchanged(found, manifest)
        return [f"{said[0].upper()}{said[1:]}."]
    top = findings.tensors(summary).row(0, named=True)
    rank = top.get("numerical_rank")
    of_rank = f", in a change of rank {rank:.0f}" if rank else ""
    name = findings.short_tensor(top["unit"])
    only = "It is" if found.changed == 1 else "Most changed is"
    return [
        f"The fine-tune changed {found.changed} of {found.tensors} tensors, in {found.layers_changed} of {found.layers} layers. "
        f"{only} {name}, by {nats(top['relative_norm'])} of its norm{of_rank}.",
        *([f"{beside[0].upper()}{beside[1:]}."] if (beside := findings.beside_weights(manifest)) else []),
        *(["On these prompts the function did not change with the weights: they are reparametrised, or the change does not reach here."]
          if difference and reparametrised(difference) else []),
    ]  # fmt: skip


def reparametrised(found: Difference) -> bool:
    """Whether the function stayed as it was, however far the weights lie apart."""
    return not found.counts or (found.mean < NO_CHANGE and found.outside < NO_CHANGE)
