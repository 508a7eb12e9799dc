"""The page's sentences say which weights changed, and whether the function changed with them."""

import polars as pl

from mechdiff.measures.weights import findings
from mechdiff.report import difference
from mechdiff.report.difference import Difference
from mechdiff.report.headlines import Candidate
from mechdiff.report.parts import Run
from mechdiff.report.phrasing import nats

NO_CHANGE = 1e-8
"""Nats under which two float32 networks say the same, however far their weights lie apart."""


def lead(run: Run) -> list[str]:
    """Which weights changed."""
    return which_weights(run.summary, run.manifest, difference.difference(run.rows, run.summary))


def clause(run: Run) -> list[Candidate]:
    """How much of the network changed, and whether the function changed with it."""
    changed = findings.how_many(run.summary)
    if changed is None:
        return []
    if not changed.changed:
        return [Candidate(text=findings.unchanged(changed, run.manifest))]
    top = findings.tensors(run.summary).row(0, named=True)
    most = f"{findings.short_tensor(top['unit'])}, by {nats(top['relative_norm'])} of its norm"
    of_rank = f", rank {top['numerical_rank']:.0f}" if top.get("numerical_rank") else ""
    layers = f"in {changed.layers_changed} of {changed.layers} layers"
    only = "" if changed.changed == 1 else "most: "
    said = [f"the fine-tune changed {changed.changed} of {changed.tensors} tensors, {layers} ({only}{most}{of_rank})"]
    said += [beside] if (beside := findings.beside_weights(run.manifest)) else []
    found = difference.difference(run.rows, run.summary)
    if found and reparametrised(found):
        said.append("on these prompts the function did not change with them: they are reparametrised, or the change does not reach here")
    return [Candidate(text=text) for text in said]


def which_weights(summary: pl.DataFrame, manifest: dict, of: Difference | None = None) -> list[str]:
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
          if of and reparametrised(of) else []),
    ]  # fmt: skip


def reparametrised(found: Difference) -> bool:
    """Whether the function stayed as it was, however far the weights lie apart."""
    return not found.counts or (found.mean < NO_CHANGE and found.outside < NO_CHANGE)
