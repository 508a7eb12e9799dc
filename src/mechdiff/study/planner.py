"""The cells of every measure need the prompts and how they are packed, keys, costs, and the list of what is left out. No torch here."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mechdiff import labels
from mechdiff.architectures.sites import KINDS
from mechdiff.architectures.sizes import QUANTIZED, Shape, Weights
from mechdiff.errors import StudyError
from mechdiff.labels import n_positions
from mechdiff.study.cells import Cell, Item, shards
from mechdiff.study.config import StudyConfig
from mechdiff.study.options import LayeredOptions
from mechdiff.terms import of_split

MAX_ROWS = 512
"""Rows of one replayed pass, unless the user says otherwise."""

NEED_FIT = ("shift", "mean")
"""Arms that write mean states of the fit prompts."""

LAST_LEFT_OUT = 4
"""Of the positions spread over a prompt: the last few before the decision position, where templates stand."""


@dataclass(frozen=True, kw_only=True)
class PairFacts:
    """What the plan knows of a pair."""

    shapes: Mapping[str, Shape]
    """By side."""
    kinds: Sequence[str]
    """Site kinds that both models have."""
    weights: Mapping[str, Weights]
    """By side."""
    identity: str = ""
    """Hash of the models and the dtype."""
    adapter: bool = False
    """Whether the tuned model is an adapter on the base."""
    merges: bool = False
    """Whether it is merged into copies of the matrices that it changes: of all of them at most."""
    touched: Sequence[tuple[int | None, str]] | None = None
    """(block, site) whose weights may have changed; None: all."""
    tied: bool = False
    """Whether the unembedding is the embedding in both models: what changes is then called embed."""
    one_vocabulary: bool = True
    """Whether a token id means the same to both."""
    quantized: Sequence[str] = ()
    """Sides whose files hold quantised matrices."""
    functions: Sequence[str] = ()
    """What differs and is no weight."""
    routers: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """By side: the blocks whose router, which chooses each token's experts, is known."""
    in_turn: bool = False
    """Whether one of the two models is in memory at a time, and each is loaded anew whenever it is its turn."""
    unread: str = ""
    """Why tensors cannot be read again from the files while one model is in memory; empty where they can be, or need not."""


class Planner:
    """Walks through a study's measures; holds what every cell needs."""

    def __init__(self, study: StudyConfig, pair: PairFacts, splits: Mapping[str, Sequence[Item]], max_rows: int) -> None:
        self.study, self.splits, self.max_rows = study, splits, max_rows
        self.shape, self.shapes, self.kinds, self.identity = pair.shapes["base"], pair.shapes, pair.kinds, pair.identity
        self.adapter, self.tied, self.one_vocabulary, self.quantized = pair.adapter, pair.tied, pair.one_vocabulary, pair.quantized
        self.functions, self.unread, self.body = pair.functions, pair.unread, pair.weights["base"].body
        self.in_turn = pair.in_turn
        self.routers, self.mixture = pair.routers, any(one.active < one.stored for one in pair.weights.values())
        self.skipped: list[dict[str, str]] = []
        every = [(layer, site) for layer in range(self.shape.n_layers) for site in ("attn", "mlp", "norm")]
        self.touched = [(None, "embed"), *every, (None, "final_norm"), (None, "head")] if pair.touched is None else list(pair.touched)
        self.wanted: tuple[str, ...] = ()
        """Site kinds whose states are captured at the decision position."""
        self.side_by_side = self.shape.n_layers
        """Edits of one prompt that run side by side."""
        self.total_effect = False
        """Whether D of every split is computed."""
        self.answered: tuple[Item, ...] = ()
        """Report prompts whose answers both models read."""

    def capture(self, kinds: Collection[str]) -> None:
        """States of these kinds of site are wanted; what these models do not have is skipped."""
        for kind in sorted(set(kinds) - set(self.kinds), key=KINDS.index):
            self.skip(f"site {kind}", "these models add attention and MLP in parallel: the residual stream has no place between them")
        self.wanted = tuple(kind for kind in KINDS if kind in kinds and kind in self.kinds)

    @property
    def ungraftable(self) -> str:
        """Why no weights of one model are put into the other; empty where they can be."""
        if self.functions:
            return f"the two differ in more than weights, so the base with all tuned weights is not the tuned model ({self.functions[0]})"
        if self.study.dtype in QUANTIZED:
            return f"the matrices are held in {self.study.dtype}, whose rounding would count as change; give float32, bfloat16 or float16"
        return f"the files of {' and '.join(self.quantized)} hold quantised matrices, no plain numbers" if self.quantized else self.unread

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

    def packed(self, split: str, position: str) -> list[tuple[Item, ...]]:
        return shards(self.splits[split], self.side_by_side, n_positions(position), self.max_rows)

    def answer_shards(self) -> list[tuple[Item, ...]]:
        """The prompts whose answers are read, as they are packed."""
        return shards(self.answered, self.side_by_side, self.study.answers.tokens, self.max_rows) if self.answered else []

    @property
    def answers(self) -> list[dict[str, Any]]:
        """What of a cell's key says which answers it is about: an entry for each model whose answers are read, the tuned model's first."""
        told = self.study.answers
        return [{"tokens": told.tokens, "of": of} for of in (("tuned", "base") if told.of == "both" else (told.of,))]

    def key(self, items: Sequence[Item], **what: Any) -> dict[str, Any]:
        return {"models": self.identity, "prompts": [item.sha256 for item in items], "ids": [item.id for item in items], **what}

    def flops(self, tokens: float, decisions: float) -> float:
        return 2 * (self.body * tokens + self.shape.vocab * self.shape.d_model * decisions)

    def whole(self, split: str) -> tuple[Item, ...]:
        return tuple(item for shard in self.packed(split, "decision") for item in shard)

    def patch_cell(self, shard: tuple[Item, ...], stage: str, what: dict[str, Any], n_pos: int | None) -> Cell:
        networks = 1 + sum(self.shape.n_layers - layer for layer in what["layers"]) / self.shape.n_layers  # rows, counted in whole networks
        tokens = sum(item.tokens if n_pos is None else n_pos for item in shard)
        arm = what.get("arm")
        others = (self.whole(what["split"]) if arm == "resample" else ()) + (self.whole("fit") if arm in NEED_FIT else ())
        return Cell(
            stage=stage,
            key=self.key(shard, stage=stage, states=told_apart(others), **what),
            items=shard,
            side=labels.runner(what["direction"]),
            flops=self.flops(tokens * networks, (len(shard) if "answer" not in what else tokens) * (1 + what["n_variants"])),
        )

    def over_answers(self, stage: str, what: dict[str, Any], layers: Sequence[int], runs: int = 1) -> Iterator[Cell]:
        """Cells of runs that are edited at every position of the answers and scored over them (`Execution.scores`): so many at each of `layers`."""
        tokens = self.study.answers.tokens
        where = {"split": "report", "position": labels.answer_position(tokens)}
        for answer in self.answers:
            for number, shard in enumerate(self.answer_shards()):
                told = {**what, **where, "answer": answer, "layers": [*layers] * runs, "shard": number, "n_variants": len(layers) * runs}
                made = self.patch_cell(shard, stage, told, tokens)
                yield replace(made, key={**made.key, "layers": layers})

    def common_tail(self, position: str, split: str) -> str | None:
        """Why a window of last positions cannot be written on a split; None where it can: both models cut these tokens alike."""
        n_pos = n_positions(position)
        short = [item for item in self.splits[split] if n_pos and item.tokens < n_pos]
        if short:
            return f"{len(short)} {of_split(split)} prompts have fewer tokens than that, the first {short[0].id!r}"
        unlike = [item for item in self.splits[split] if item.tail < (n_pos or item.tokens)] if n_pos != 1 else []
        if unlike:
            return (
                f"the two models cut the end of {len(unlike)} {of_split(split)} prompts into different tokens, the first {unlike[0].id!r}"
            )
        return None


def sizes(shape: Shape) -> tuple[int, int, int]:
    return shape.n_layers, shape.d_model, shape.n_heads * shape.d_head


def prompt_hashes(planner: Planner, split: str) -> list[str]:
    """`told_apart` of a split; nothing where the study lacks it."""
    return told_apart(planner.whole(split)) if split in planner.splits else []


def told_apart(items: Sequence[Item]) -> list[str]:
    """Hashes of what the models read; behind them which prompts share a cluster, where some do: whose state stands in, and parts, are by cluster."""
    return [*(item.sha256 for item in items), *map(str, shared_clusters(items))]


def shared_clusters(items: Sequence[Item]) -> list[int]:
    """The number of each prompt's cluster, in the order in which they come; empty where no two prompts share one."""
    names = [item.cluster or item.id for item in items]
    order = list(dict.fromkeys(names))
    return [order.index(name) for name in names] if len(order) < len(names) else []


def lacks(split: str) -> str:
    """Why something is left out of a study that has no prompts of a split, by the name that the page gives them."""
    return f"the study has no {of_split(split)} prompts"


def possible(planner: Planner, measure: str, options: LayeredOptions, splits: Sequence[str] = ("fit", "report")) -> bool:
    """Whether states of one model fit into the other and there are the prompts that are needed (to fit on, to report).

    Raises StudyError for closer layers that are not among the measure's layers.
    """
    layers = options.layer_numbers(planner.shape.n_layers)
    closer = getattr(options, "closer", "hot")
    if missing := [layer for layer in closer if layer not in layers] if closer != "hot" else []:
        raise StudyError(
            f"{measure}: selected layers {missing} are asked for, which are not among its layers ({layers[0]} to {layers[-1]})."
        )
    if sizes(planner.shapes["base"]) != sizes(planner.shapes["tuned"]):
        planner.skip(measure, "the two models differ in depth or width: an activation of one does not fit into the other")
        return False
    for split in splits:
        if split not in planner.splits:
            planner.skip(measure, lacks(split))
            return False
    return True
