"""Which weights changed, and in how many directions, for a reader who has a minute; and how much, layer by layer."""

from mechdiff.measures.weights import findings
from mechdiff.report.headlines import Candidate, Number, told
from mechdiff.report.overview.strips import Strip
from mechdiff.report.parts import Run

FEW = 3
"""Matrices up to which they are worth a sentence: more are no place."""
LOW = 64
"""Rank up to which an update is called of low rank."""
MODULES = {"attn": "attention", "mlp": "MLP"}


def where(run: Run) -> list[Candidate]:
    """Which matrix changed, where it is one of a few."""
    found = findings.how_many(run.summary)
    if found is None or not 0 < found.changed <= FEW:
        return []
    changed = Number(shown=f"{found.changed} of {found.tensors}", value=found.changed / found.tensors, of="tensors with any changed entry")
    top = findings.tensors(run.summary).row(0, named=True)
    most = ": " if found.changed == 1 else ", most "
    return [told("Only ", changed, f" weight tensors changed{most}{findings.short_tensor(top['unit'])}.")]


def how_complicated(run: Run) -> list[Candidate]:
    """The rank of the weights' change, where every changed matrix has a low one."""
    found = findings.tensors(run.summary)
    if found.is_empty() or "numerical_rank" not in found.columns:
        return []
    ranks = found.filter(found["relative_norm"] > 0)["numerical_rank"].drop_nulls().to_list()
    if not ranks or not 0 < max(ranks) <= LOW:
        return []
    rank = Number(
        shown=f"{max(ranks):.0f}", value=max(ranks), of=f"largest numerical rank of the change among {len(ranks)} changed matrices"
    )
    each = "Its one changed matrix" if len(ranks) == 1 else "Each changed matrix"
    return [told(f"{each} has a change of rank {'' if len(ranks) == 1 else 'at most '}", rank, ".")]


def strips(run: Run) -> list[Strip]:
    """How much each block's attention and MLP changed."""
    found, whole = findings.modules(run.summary)
    number = "‖ΔW‖ / ‖W‖" if whole else "largest ‖ΔW‖ / ‖W‖ of a matrix"
    made = []
    for place, (site, name) in enumerate(MODULES.items()):
        here = found.filter(found["site"] == site).drop_nulls("layer")
        values = dict(here.select("layer", "change").iter_rows())
        made.append(Strip(group="Weights changed", number=number, name=name, values=values, place=1 + place / 10, whole=False))
    return [strip for strip in made if any(strip.values.values())]
