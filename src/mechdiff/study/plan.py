"""A study as a list of cells (cells.py): what will be computed, in which order and packing, and what it will cost. No torch here."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from mechdiff.engine.families import Shape
from mechdiff.engine.prompts import SPLITS
from mechdiff.engine.sites import KINDS
from mechdiff.study.cells import Cell, Item, Plan, n_positions, shards
from mechdiff.study.config import StudyConfig
from mechdiff.study.options import DIRECTIONS, PatchingOptions

MAX_ROWS = 512
"""Rows of one replayed pass, unless the user says otherwise."""

BLOCKS_A_CELL = 4
"""Blocks whose units are grafted in one cell."""

TEXTS_AT_A_TIME = 8
"""Prompts whose laws at every position are in memory together."""

SELFCHECK_TOKENS = 8
"""Tokens on which the self-check tries every site."""

NEED_FIT = ("shift", "mean")
NEED_COMMON_POSITIONS = ("shift", "mean", "resample")


def plan(
    study: StudyConfig,
    shapes: Mapping[str, Shape],
    kinds: Sequence[str],
    splits: Mapping[str, Sequence[Item]],
    *,
    identity: str = "",
    max_rows: int = MAX_ROWS,
    bytes_per_weight: int = 4,
    adapter: bool = False,
    touched: Sequence[tuple[int | None, str]] | None = None,
) -> Plan:
    """The cells of a study of two models of `shapes` ("base", "tuned") that have the site `kinds`.

    `identity` hashes the models and the dtype; `touched` are the (block, site) whose weights may have changed (default: all).
    """
    return _Planner(study, shapes, kinds, splits, identity, max_rows, touched).plan(bytes_per_weight, adapter)


class _Planner:
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
    ) -> None:
        self.study, self.shape, self.shapes, self.kinds, self.splits = study, shapes["base"], shapes, kinds, splits
        self.identity, self.max_rows = identity, max_rows
        self.skipped: list[dict[str, str]] = []
        every = [(layer, site) for layer in range(self.shape.n_layers) for site in ("attn", "mlp", "norm")]
        self.touched = [(None, "embed"), *every, (None, "final_norm"), (None, "head")] if touched is None else list(touched)
        self.patching = study.measures.patching
        self.similarity = study.measures.similarity
        self.factorial = study.measures.factorial if _sizes(shapes["base"]) == _sizes(shapes["tuned"]) else None

    def plan(self, bytes_per_weight: int, adapter: bool) -> Plan:
        self.adapter = adapter
        captures = [cell for side in ("base", "tuned") for cell in self._captures(side)]
        checks = [self._selfcheck(side) for side in ("base", "tuned") if self.wanted]
        cells = [*checks, *captures, *self._divergence(), *self._texts(), *self._weights(), *self._grafting()]
        cells += [*self._similarity(), *self._patching(), *self._factorial()]
        weights = [shape.parameters * bytes_per_weight for shape in self.shapes.values()]
        states = sum(self._states_bytes(cell) for cell in captures)
        return Plan(
            cells=tuple(cells),
            skipped=tuple(self.skipped),
            weights_bytes=weights[0] if adapter else sum(weights),
            shared_weights=adapter,
            states_bytes=states + sum(8 * len(items) * self.shape.vocab for items in self.splits.values()),
            pass_bytes=max((4 * 3 * self.shape.vocab * self._rows(cell) for cell in cells if "n_variants" in cell.key), default=0),
        )

    def _states_bytes(self, cell: Cell) -> int:
        wide = sum(self.shape.width(kind) for kind in cell.key["kinds"])
        return 4 * len(cell.items) * self._n_pos(cell) * len(cell.key["layers"]) * wide

    def _skip(self, what: str, why: str) -> None:
        entry = {"what": what, "why": why}
        if entry not in self.skipped:
            self.skipped.append(entry)

    def _n_pos(self, cell: Cell) -> int:
        n_pos = n_positions(cell.key["position"])
        return max(item.tokens for item in cell.items) if n_pos is None else n_pos

    def _rows(self, cell: Cell) -> int:
        return (1 + int(cell.key["n_variants"])) * len(cell.items)

    @property
    def wanted(self) -> tuple[str, ...]:
        """Site kinds whose states are captured at the decision position."""
        asked = {kind for options in (self.patching, self.similarity) if options for kind in options.sites}
        asked |= {"resid_post"} if self.factorial else set()
        for kind in sorted(asked - set(self.kinds), key=KINDS.index):
            self._skip(f"site {kind}", "these models add attention and MLP in parallel: the residual stream has no place between them")
        return tuple(kind for kind in KINDS if kind in asked and kind in self.kinds)

    def _packed(self, split: str, position: str) -> list[tuple[Item, ...]]:
        options = self.patching or PatchingOptions()
        return shards(self.splits[split], len(options.layer_numbers(self.shape.n_layers)), n_positions(position), self.max_rows)

    def _key(self, items: Sequence[Item], **what: Any) -> dict[str, Any]:
        return {"models": self.identity, "prompts": [item.sha256 for item in items], "ids": [item.id for item in items], **what}

    def _flops(self, tokens: float, decisions: float) -> float:
        body = self.shape.parameters - self.shape.vocab * self.shape.d_model
        return 2 * (body * tokens + self.shape.vocab * self.shape.d_model * decisions)

    def _selfcheck(self, side: str) -> Cell:
        """On one split's prompts: every site on a few tokens, each block once on a whole prompt, by each way."""
        split = next(iter(self.splits))
        items = tuple(sorted(self.splits[split], key=lambda item: (item.tokens, item.id)))
        tokens = self.shape.n_layers * (items[0].tokens + SELFCHECK_TOKENS * 2 * len(self.wanted))
        key = self._key(items, stage="selfcheck", side=side, split=split, kinds=self.wanted)
        return Cell(
            stage="selfcheck", key=key, items=items, side=side, flops=self._flops(tokens, 2 * self.shape.n_layers * len(self.wanted))
        )

    def _captures(self, side: str) -> Iterator[Cell]:
        for split, position, kinds, layers in self._states_needed():
            for shard in self._packed(split, position):
                what = {"split": split, "position": position, "kinds": kinds, "layers": layers}
                key = self._key(shard, stage="capture", side=side, **what)
                yield Cell(stage="capture", key=key, items=shard, side=side, flops=self._flops(sum(i.tokens for i in shard), len(shard)))

    def _states_needed(self) -> list[tuple[str, str, tuple[str, ...], tuple[int, ...]]]:
        """(split, position, site kinds, layers): the decision position of every split, wider windows where states are written there."""
        every = tuple(range(self.shape.n_layers))
        needed = [(split, "decision", self.wanted, every) for split in SPLITS if split in self.splits]
        wider = [position for position in (self.patching.positions if self.patching else ()) if position != "decision"]
        for position in wider:
            for split in ("fit", "report") if position != "all" else ("report",):
                if split in self.splits:
                    needed.append((split, position, self.wanted, every))
        if self.factorial and "all" in self.factorial.positions and "all" not in wider and "report" in self.splits:
            needed.append(("report", "all", ("resid_post",), self.factorial.layers_at("all", self.shape.n_layers)))
        return needed

    def _whole(self, split: str) -> tuple[Item, ...]:
        return tuple(item for shard in self._packed(split, "decision") for item in shard)

    def _divergence(self) -> Iterator[Cell]:
        for split in SPLITS if self.study.measures.divergence or self.patching else ():
            if split in self.splits:
                items = self._whole(split)
                yield Cell(stage="divergence", key=self._key(items, stage="divergence", split=split), items=items, side=None, flops=0)

    def _texts(self) -> Iterator[Cell]:
        options = self.study.measures.divergence
        if not options or not options.over_text:
            return
        if "report" not in self.splits:
            self._skip("divergence over text", "the study has no report prompts")
            return
        items = self._whole("report")
        for start in range(0, len(items), TEXTS_AT_A_TIME):
            shard = items[start : start + TEXTS_AT_A_TIME]
            tokens = sum(item.tokens for item in shard) + options.continuation * len(shard)
            key = self._key(shard, stage="texts", split="report", continuation=options.continuation)
            yield Cell(stage="texts", key=key, items=shard, side=None, flops=self._flops(2 * tokens, 2 * tokens))

    def _weights(self) -> Iterator[Cell]:
        """What enters the changed matrices on a few prompts, then every tensor of both models' files."""
        options = self.study.measures.weights
        if not options:
            return
        items = self._whole("report")[: options.input_prompts] if "report" in self.splits else ()
        if items:
            key = self._key(items, stage="inputs", split="report", side="base")
            yield Cell(stage="inputs", key=key, items=items, side="base", flops=self._flops(sum(item.tokens for item in items), len(items)))
        key = self._key(items, stage="weights", heads=options.heads, exact_up_to=options.exact_up_to)
        low, high = sorted((self.shape.d_model, self.shape.d_mlp))
        matrices = 7 * sum(site in ("attn", "mlp") for _, site in self.touched) / 2
        yield Cell(stage="weights", key=key, items=items, side=None, flops=matrices * (7 if self.adapter else 40) * low * low * high)

    def _grafting(self) -> Iterator[Cell]:
        """The units of a few blocks a cell; then the greedy sets; then the ranks. All start from one trace of each model."""
        options = self.study.measures.grafting
        if not options:
            return
        if "report" not in self.splits:
            self._skip("grafting", "the study has no report prompts")
            return
        if self.shapes["base"] != self.shapes["tuned"]:
            self._skip("grafting", "the two models' tensors have different shapes: weights of one do not fit into the other")
            return
        items = self._whole("report")
        chosen_on = self._whole("select")[: options.select_prompts] if "select" in self.splits else ()
        tokens, few = sum(item.tokens for item in items), sum(item.tokens for item in chosen_on)
        n_layers = self.shape.n_layers
        costs = {unit: 1 - max(0, _place(unit, n_layers)) / n_layers for unit in self.touched}
        n_best = min(options.candidates, len(costs))
        first = {"stage": "grafting", "split": "report", "select": [item.id for item in chosen_on], "candidates": options.candidates}

        def cell(runs: float, **what: Any) -> Cell:
            key = self._key((*items, *chosen_on), **first, **what)
            return Cell(stage="grafting", key=key, items=items, side="base", flops=self._flops(runs, runs / max(tokens, 1) * len(items)))

        if options.curves:
            for number, low in enumerate(range(-1, n_layers + 1, BLOCKS_A_CELL)):
                here = [cost for unit, cost in costs.items() if low <= _place(unit, n_layers) < low + BLOCKS_A_CELL]
                yield cell(tokens * (3 * sum(here) + 2 * (number == 0)), arm="curves", blocks=[low, low + BLOCKS_A_CELL])
        if not chosen_on:
            self._skip("grafting arm greedy", "the study has no select prompts, on which the sets are chosen")
        average = sum(costs.values()) / max(1, len(costs))
        if options.greedy and chosen_on:
            tried = len(costs) + sum(n_best - i for i in range(min(options.picks, n_best)))
            yield cell(few * (2 + tried * average) + tokens * min(options.picks, n_best) * average, arm="greedy", picks=options.picks)
        if options.truncate:
            yield cell(tokens * 3 * (n_best * average * bool(chosen_on) + 1), arm="truncate")

    def _factorial(self) -> Iterator[Cell]:
        """The crossed runs of each model, then what is computed from both."""
        options = self.factorial
        if not options:
            if self.study.measures.factorial:
                self._skip("factorial", "the two models differ in depth or width: a state of one does not fit into the other")
            return
        if "report" not in self.splits:
            self._skip("factorial", "the study has no report prompts")
            return
        for position in options.positions:
            layers = options.layers_at(position, self.shape.n_layers)
            what = {"split": "report", "position": position, "layers": layers}
            for direction in DIRECTIONS:
                for shard in self._packed("report", position):
                    yield self._patch_cell(
                        shard, "crossing", what | {"direction": direction, "n_variants": len(layers)}, n_positions(position)
                    )
            items = self._whole("report")
            key = self._key(items, stage="factorial", swaps=options.swaps, seed=self.study.seed, **what)
            yield Cell(stage="factorial", key=key, items=items, side=None, flops=0)

    def _similarity(self) -> Iterator[Cell]:
        if not self.similarity:
            return
        if self.shapes["base"].d_model != self.shapes["tuned"].d_model:
            self._skip("similarity: same_basis_change, procrustes_distance", "the two models' states have different widths")
        for split in ("select", "report"):
            if split not in self.splits:
                self._skip(f"similarity on {split}", f"the study has no {split} prompts")
                continue
            items = self._whole(split)
            if len(items) < 4:
                self._skip(f"similarity on {split}", f"debiased CKA needs 4 prompts, there are {len(items)}")
                continue
            for kind in self.similarity.sites:
                if kind in self.wanted:
                    layers = self.similarity.layer_numbers(self.shape.n_layers)
                    what = {"kind": kind, "layers": layers, "permutations": self.similarity.permutations, "seed": self.study.seed}
                    yield Cell(
                        stage="similarity", key=self._key(items, stage="similarity", split=split, **what), items=items, side=None, flops=0
                    )

    def _patching(self) -> Iterator[Cell]:
        options = self.patching
        if not options:
            return
        if _sizes(self.shapes["base"]) != _sizes(self.shapes["tuned"]):
            self._skip("patching", "the two models differ in depth or width: a state of one does not fit into the other")
            return
        for split in ("select", "report"):
            if split not in self.splits:
                what = "the choice of hot and control layers" if split == "select" else "patching"
                self._skip(what, f"the study has no {split} prompts")
        for direction in options.directions:
            for split in ("select", "report"):
                for position in options.positions if split == "report" else ("decision",):
                    if split in self.splits:
                        yield from self._swept(options, direction, split, position)

    def _swept(self, options: PatchingOptions, direction: str, split: str, position: str) -> Iterator[Cell]:
        n_pos, layers = n_positions(position), options.layer_numbers(self.shape.n_layers)
        short = [item for item in self.splits[split] if n_pos and item.tokens < n_pos]
        if short:
            self._skip(f"patching at {position}", f"{len(short)} {split} prompts have fewer tokens than that, the first {short[0].id!r}")
            return
        published = split == "report"
        positions = options.positions if published else ("decision",)
        kinds = [kind for kind in options.sites if kind in self.wanted]
        arms = [arm for arm in (options.arms if published else ("identity",)) if self._possible(arm, split, position)]
        for number, shard in enumerate(self._packed(split, position)):
            for width, kind, arm in product((1, *(options.windows if published else ())), kinds, arms):
                first = [layer for layer in layers if layer + width <= self.shape.n_layers]
                what = {"direction": direction, "split": split, "position": position, "kind": kind, "arm": arm, "width": width}
                what |= {"layers": first, "shard": number, "n_variants": len(first), "seed": self.study.seed}
                what["floor"] = (position, width, kind, arm) == (positions[0], 1, kinds[0], arms[0])
                yield self._patch_cell(shard, "patching", what, n_pos)

    def _patch_cell(self, shard: tuple[Item, ...], stage: str, what: dict[str, Any], n_pos: int | None) -> Cell:
        networks = 1 + sum(self.shape.n_layers - layer for layer in what["layers"]) / self.shape.n_layers  # rows, counted in whole networks
        tokens = sum(item.tokens if n_pos is None else n_pos for item in shard)
        arm = what.get("arm")
        others = (self._whole(what["split"]) if arm == "resample" else ()) + (self._whole("fit") if arm in NEED_FIT else ())
        return Cell(
            stage=stage,
            key=self._key(shard, stage=stage, states=[item.sha256 for item in others], **what),
            items=shard,
            side="tuned" if what["direction"] == "tuned<-base" else "base",
            flops=self._flops(tokens * networks, len(shard) * (1 + what["n_variants"])),
        )

    def _possible(self, arm: str, split: str, position: str) -> bool:
        if arm in NEED_FIT and "fit" not in self.splits:
            self._skip(f"patching arm {arm}", "the study has no fit prompts, whose mean states this arm writes")
        elif arm in NEED_COMMON_POSITIONS and position == "all":
            self._skip(f"patching arm {arm} at all positions", "states of prompts of different lengths have no common positions")
        elif arm == "resample" and len(self.splits[split]) < 2:
            self._skip("patching arm resample", "there is only one prompt, and this arm writes the state of another one")
        else:
            return True
        return False


def _place(unit: tuple[int | None, str], n_layers: int) -> int:
    """Where a unit stands among the blocks: -1 for the embedding, `n_layers` for what comes after them."""
    return unit[0] if unit[0] is not None else -1 if unit[1] == "embed" else n_layers


def _sizes(shape: Shape) -> tuple[int, int, int]:
    return shape.n_layers, shape.d_model, shape.n_heads * shape.d_head
