"""A study file may set these options of self-repair; its cells are planned from them."""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BeforeValidator

from mechdiff.labels import CROSSED
from mechdiff.measures.patching.selection import closer_cell
from mechdiff.study.cells import Cell
from mechdiff.study.document import some_of
from mechdiff.study.experiment import Needs
from mechdiff.study.options import CloserOptions
from mechdiff.study.planner import Planner, possible

OUTPUTS = ("attn_out", "mlp_out")
"""What blocks add to the residual stream, in the order of computation."""
TOTAL, DIRECT = "total", "direct"
"""Arms: what a patch does, and what it does where later outputs stay as they were."""


class SelfRepairOptions(CloserOptions):
    sites: Annotated[tuple[str, ...], BeforeValidator(some_of(OUTPUTS))] = OUTPUTS  # whose output is patched


def needs(planner: Planner, options: SelfRepairOptions) -> Needs:
    return Needs(sites=OUTPUTS)


def cells(planner: Planner) -> Iterator[Cell]:
    """Both arms at the outputs of the closer layers, in both directions, on the report prompts."""
    options = planner.study.asked(SelfRepairOptions)
    if not options:
        return
    if missing := [kind for kind in OUTPUTS if kind not in planner.wanted]:
        planner.skip(
            "self_repair", f"not all that blocks add to the residual stream is known ({', '.join(missing)}), so it cannot be held as it was"
        )
        return
    if not possible(planner, "self_repair", options, ("report",)):
        return
    for direction in CROSSED:
        for number, shard in enumerate(planner.packed("report", "decision")):
            what: dict[str, Any] = {
                "direction": direction,
                "split": "report",
                "position": "decision",
                "kinds": options.sites,
                "shard": number,
            }
            yield closer_cell(planner, shard, "self_repair", what, options, 2 * len(options.sites))
