"""A study file may set these options of the factorial; its cells are planned from them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator

from mechdiff.labels import CROSSED, n_positions
from mechdiff.spacing import evenly_spaced
from mechdiff.study.cells import Cell
from mechdiff.study.document import Count
from mechdiff.study.experiment import Needs, Window
from mechdiff.study.options import LayeredOptions, read_positions
from mechdiff.study.planner import Planner, sizes


class FactorialOptions(LayeredOptions):
    gone: ClassVar[Mapping[str, str]] = {
        "swaps": "this option is gone, the p of a factorial draws no label swaps any more (docs/STATISTICS.md); leave it out."
    }

    positions: Annotated[tuple[Literal["decision", "all"], ...], BeforeValidator(read_positions)] = ("decision", "all")  # of tokens
    all_positions_layers: Count = 6  # at all positions: so many splits, evenly spaced (their states are kept on disk)

    def layers_at(self, position: str, n_layers: int) -> tuple[int, ...]:
        """The split points meant: all at the decision position, few where whole sequences are crossed."""
        layers = self.layer_numbers(n_layers)
        return layers if position == "decision" else evenly_spaced(self.all_positions_layers, layers)


def needs(planner: Planner, options: FactorialOptions) -> Needs:
    """The residual stream at the decision position, and of whole prompts where they are crossed."""
    if sizes(planner.shapes["base"]) != sizes(planner.shapes["tuned"]):
        return Needs()
    window = Window(split="report", position="all", kinds=("resid_post",), layers=options.layers_at("all", planner.shape.n_layers))
    whole = "all" in options.positions and "report" in planner.splits and not planner.common_tail("all", "report")
    return Needs(sites=("resid_post",), windows=(window,) if whole else (), over_answers=("resid_post",))


def factorial_cells(planner: Planner) -> Iterator[Cell]:
    """The crossed runs of each model, then what is computed from both; on select too, at the decision position, where split points are chosen."""
    options = planner.study.asked(FactorialOptions)
    if not options:
        return
    if sizes(planner.shapes["base"]) != sizes(planner.shapes["tuned"]):
        planner.skip("factorial", "the two models differ in depth or width: an activation of one does not fit into the other")
        return
    if "report" not in planner.splits:
        planner.skip("factorial", "the study has no test prompts")
        return
    for split, position in [("select", "decision"), *(("report", position) for position in options.positions)]:
        if split not in planner.splits or position not in options.positions:
            continue
        if why := planner.common_tail(position, split):
            planner.skip(f"factorial at {position} positions", why)
            continue
        layers = options.layers_at(position, planner.shape.n_layers)
        what = {"split": split, "position": position, "layers": layers}
        for direction in CROSSED:
            for shard in planner.packed(split, position):
                yield planner.patch_cell(
                    shard, "crossing", what | {"direction": direction, "n_variants": len(layers)}, n_positions(position)
                )
        items = planner.whole(split)
        key = planner.key(items, stage="factorial", **what)
        yield Cell(stage="factorial", key=key, items=items, side=None, flops=0)
    yield from _over_answers(planner, options.layer_numbers(planner.shape.n_layers))


def _over_answers(planner: Planner, layers: Sequence[int]) -> Iterator[Cell]:
    """The same with the residual stream of every position of the answers."""
    crossed = [cell for direction in CROSSED for cell in planner.over_answers("crossing", {"direction": direction}, layers)]
    yield from crossed
    for answer in planner.answers if crossed else ():
        what = {name: crossed[0].key[name] for name in ("split", "position", "layers")}
        key = planner.key(planner.answered, stage="factorial", **what, answer=answer)
        yield Cell(stage="factorial", key=key, items=planner.answered, side=None, flops=0)
