"""The cells of every measure need the prompts and how they are packed, keys, costs, and the list of what is left out. No torch here."""

from collections.abc import Mapping, Sequence
from typing import Any

from mechdiff import labels
from mechdiff.errors import StudyError
from mechdiff.labels import n_positions
from mechdiff.models.families import QUANTIZED, Shape
from mechdiff.models.sites import KINDS
from mechdiff.study.cells import Cell, Item, shards
from mechdiff.study.config import StudyConfig
from mechdiff.study.options import LayeredOptions

MAX_ROWS = 512
"""Rows of one replayed pass, unless the user says otherwise."""

NEED_FIT = ("shift", "mean")
NEED_COMMON_POSITIONS = ("shift", "mean", "resample")


HEAD_SITES = ("z", "attn_proj", "mlp_out")
"""What a head reads and writes, and the MLPs that stand beside heads."""

LAST_LEFT_OUT = 4
"""Of the positions spread over a prompt: the last few before the decision position, where templates stand."""


class Planner:
    """Walks through a study's measures; holds what every cell needs."""

    def __init__(
        self,
        study: StudyConfig,
        shapes: Mapping[str, Shape],
        kinds: Sequence[str],
        splits: Mapping[str, Sequence[Item]],
        identity: str,
        max_rows: int,
        touched: Sequence[tuple[int | None, str]] | None,
        adapter: bool,
        one_vocabulary: bool,
        quantized: Sequence[str],
        functions: Sequence[str],
    ) -> None:
        self.study, self.shape, self.shapes, self.kinds, self.splits = study, shapes["base"], shapes, kinds, splits
        self.identity, self.max_rows, self.adapter = identity, max_rows, adapter
        self.one_vocabulary, self.quantized, self.functions = one_vocabulary, quantized, functions
        self.skipped: list[dict[str, str]] = []
        every = [(layer, site) for layer in range(self.shape.n_layers) for site in ("attn", "mlp", "norm")]
        self.touched = [(None, "embed"), *every, (None, "final_norm"), (None, "head")] if touched is None else list(touched)
        from mechdiff.measures.factorial.plan import FactorialOptions
        from mechdiff.measures.patching.plan import PatchingOptions
        from mechdiff.measures.similarity.plan import SimilarityOptions

        self.patching = study.asked(PatchingOptions)
        self.similarity = study.asked(SimilarityOptions)
        self.factorial = study.asked(FactorialOptions) if sizes(shapes["base"]) == sizes(shapes["tuned"]) else None

    @property
    def ungraftable(self) -> str:
        """Why no weights of one model are put into the other; empty where they can be."""
        if self.functions:
            return f"the two differ in more than weights, so the base with all tuned weights is not the tuned model ({self.functions[0]})"
        if self.study.dtype in QUANTIZED:
            return f"the matrices are held in {self.study.dtype}, whose rounding would count as change; give float32, bfloat16 or float16"
        return f"the files of {' and '.join(self.quantized)} hold quantised matrices, no plain numbers" if self.quantized else ""

    def skip(self, what: str, why: str) -> None:
        entry = {"what": what, "why": why}
        if entry not in self.skipped:
            self.skipped.append(entry)

    def n_pos(self, cell: Cell) -> int:
        n_pos = n_positions(cell.key["position"])
        return max(item.tokens for item in cell.items) if n_pos is None else n_pos

    def rows(self, cell: Cell) -> int:
        """Rows of the largest pass of a cell."""
        return min((1 + int(cell.key["n_variants"])) * len(cell.items), max(self.max_rows, 2 * len(cell.items)))

    @property
    def wanted(self) -> tuple[str, ...]:
        """Site kinds whose states are captured at the decision position."""
        from mechdiff.measures.behaviour.plan import BehaviourOptions
        from mechdiff.measures.rank.plan import RankOptions
        from mechdiff.measures.steering.plan import SteeringOptions
        from mechdiff.measures.transport.plan import TransportOptions

        study = self.study
        mapped = (study.asked(TransportOptions), study.asked(RankOptions), study.asked(SteeringOptions), study.asked(BehaviourOptions))
        asked = {kind for options in (self.patching, self.similarity, *mapped) if options for kind in options.sites}
        asked |= {"resid_post"} if self.factorial else set()
        asked |= set(self.head_sites)
        for kind in sorted(asked - set(self.kinds), key=KINDS.index):
            self.skip(f"site {kind}", "these models add attention and MLP in parallel: the residual stream has no place between them")
        return tuple(kind for kind in KINDS if kind in asked and kind in self.kinds)

    @property
    def head_sites(self) -> tuple[str, ...]:
        """Site kinds that heads and attribution read; none where blocks have no heads."""
        from mechdiff.measures.attribution.plan import AttributionOptions
        from mechdiff.measures.heads.plan import HeadsOptions

        heads, attribution = self.study.asked(HeadsOptions), self.study.asked(AttributionOptions)
        if not (heads or attribution) or "z" not in self.kinds:
            return ()
        return (*HEAD_SITES, *(attribution.sites if attribution else ()))

    def packed(self, split: str, position: str) -> list[tuple[Item, ...]]:
        from mechdiff.measures.patching.plan import PatchingOptions

        options = self.patching or PatchingOptions()
        return shards(self.splits[split], len(options.layer_numbers(self.shape.n_layers)), n_positions(position), self.max_rows)

    def key(self, items: Sequence[Item], **what: Any) -> dict[str, Any]:
        return {"models": self.identity, "prompts": [item.sha256 for item in items], "ids": [item.id for item in items], **what}

    def flops(self, tokens: float, decisions: float) -> float:
        body = self.shape.matrices
        return 2 * (body * tokens + self.shape.vocab * self.shape.d_model * decisions)

    def whole(self, split: str) -> tuple[Item, ...]:
        return tuple(item for shard in self.packed(split, "decision") for item in shard)

    def patch_cell(self, shard: tuple[Item, ...], stage: str, what: dict[str, Any], n_pos: int | None) -> Cell:
        networks = 1 + sum(self.shape.n_layers - layer for layer in what["layers"]) / self.shape.n_layers  # rows, counted in whole networks
        tokens = sum(item.tokens if n_pos is None else n_pos for item in shard)
        arm = what.get("arm")
        others = (self.whole(what["split"]) if arm == "resample" else ()) + (self.whole("fit") if arm in NEED_FIT else ())
        return Cell(
            stage=stage,
            key=self.key(shard, stage=stage, states=[item.sha256 for item in others], **what),
            items=shard,
            side=labels.runner(what["direction"]),
            flops=self.flops(tokens * networks, len(shard) * (1 + what["n_variants"])),
        )

    @property
    def words(self) -> bool:
        """Whether states averaged over words are compared too."""
        if not self.similarity or "report" not in self.splits:
            return False
        unlike = any(item.tail < item.tokens for item in self.splits["report"])
        return unlike if self.similarity.words is None else self.similarity.words

    def common_tail(self, position: str, split: str) -> str | None:
        """Why a window of last positions cannot be written on a split; None where it can: both models cut these tokens alike."""
        n_pos = n_positions(position)
        short = [item for item in self.splits[split] if n_pos and item.tokens < n_pos]
        if short:
            return f"{len(short)} {split} prompts have fewer tokens than that, the first {short[0].id!r}"
        unlike = [item for item in self.splits[split] if item.tail < (n_pos or item.tokens)] if n_pos != 1 else []
        if unlike:
            return f"the two models cut the end of {len(unlike)} {split} prompts into different tokens, the first {unlike[0].id!r}"
        return None

    def possible(self, arm: str, split: str, position: str) -> bool:
        if arm in NEED_FIT and "fit" not in self.splits:
            self.skip(f"patching arm {arm}", "the study has no fit prompts, whose mean states this arm writes")
        elif arm in NEED_FIT and (why := self.common_tail(position, "fit")):
            self.skip(f"patching arm {arm} at {position}", why)
        elif arm in NEED_COMMON_POSITIONS and position == "all":
            self.skip(f"patching arm {arm} at all positions", "states of prompts of different lengths have no common positions")
        elif arm == "resample" and len(self.splits[split]) < 2:
            self.skip("patching arm resample", "there is only one prompt, and this arm writes the state of another one")
        else:
            return True
        return False


def sizes(shape: Shape) -> tuple[int, int, int]:
    return shape.n_layers, shape.d_model, shape.n_heads * shape.d_head


def prompt_hashes(planner: Planner, split: str) -> list[str]:
    """Of what the models read, in a split; nothing where the study lacks it."""
    return [item.sha256 for item in planner.whole(split)] if split in planner.splits else []


def possible(planner: Planner, measure: str, options: LayeredOptions, splits: Sequence[str] = ("fit", "report")) -> bool:
    """Whether states of one model fit into the other and there are the prompts that are needed (to fit on, to report).

    Raises StudyError for closer layers that are not among the measure's layers.
    """
    layers = options.layer_numbers(planner.shape.n_layers)
    closer = getattr(options, "closer", "hot")
    if missing := [layer for layer in closer if layer not in layers] if closer != "hot" else []:
        raise StudyError(f"{measure}: closer layers {missing} are asked for, which are not among its layers ({layers[0]} to {layers[-1]}).")
    if sizes(planner.shapes["base"]) != sizes(planner.shapes["tuned"]):
        planner.skip(measure, "the two models differ in depth or width: a state of one does not fit into the other")
        return False
    for split in splits:
        if split not in planner.splits:
            planner.skip(measure, f"the study has no {split} prompts")
            return False
    return True
