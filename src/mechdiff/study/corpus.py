"""Two models are compared over a corpus larger than memory, by sums at a few sites, shard by shard.

A shard is so many lines of a JSON Lines file. Both models read its texts, bare; the states at tokens where both have read the same bytes (but the
first, whose state is another kind of thing) go into the sums of maps/moments.py, those of a text into one of FOLDS folds. A shard's sums are a
cell: stored once, whole or not at all, found again by the next command. The centre that all shards share is the mean over the first one. Then cells
that are neighbours are merged, MERGED to one, and these again, until one holds all: each merge is a cell too, and any process may compute it.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechdiff.architectures.lookup import family_of, shape_of
from mechdiff.architectures.sites import Site
from mechdiff.engine.activations import capture
from mechdiff.errors import PromptError, StudyError
from mechdiff.maps.moments import SUMS, Moments, chosen, merged
from mechdiff.models.pair import SIDES, Pair
from mechdiff.prompts.rendering import Rendered, render
from mechdiff.prompts.sets import Prompt, read_line
from mechdiff.prompts.templates import PromptPolicy
from mechdiff.rows import empty
from mechdiff.store.run_folder import RunFolder, cell_hash
from mechdiff.study.cells import Cell
from mechdiff.study.prepare import ENGINE_VERSION

FOLDS = 5
MERGED = 16
"""Cells whose sums go into one of the next level."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """What is summed: which texts, at which sites, at which tokens."""

    pair: Pair
    path: Path
    sites: tuple[Site, ...]
    positions: str = "all"
    """all: every token but the first; last: the last one."""
    longest: int = 512
    """Tokens of a text that are read."""
    shard: int = 1024
    """Texts of a shard."""
    starts: list[int] = field(default_factory=list)
    """Where each shard begins in the file, in bytes."""

    def __post_init__(self) -> None:
        if self.positions not in ("all", "last"):
            raise StudyError(f"--positions {self.positions}: expected all or last.")
        for side in ("base", "tuned"):
            config = self.pair.config(side)
            there, n_layers = family_of(config, self.pair.base.ref).kinds(config), shape_of(config).n_layers
            for site in self.sites:
                if site.kind not in there or site.layer >= n_layers:
                    raise StudyError(f"--sites {site}: the {side} model has blocks 0 to {n_layers - 1} and the kinds {', '.join(there)}.")

    @cached_property
    def levels(self) -> tuple[tuple[Cell, ...], ...]:
        """A cell for each shard, the first one first; then the merges, level by level, up to one."""
        models = {side: self.pair.source(side).files() for side in ("base", "tuned")}
        key = {
            "stage": "moments", "models": cell_hash(models), "dtype": self.pair.dtype, "version": ENGINE_VERSION, "corpus": self.sha256,
            "sites": [str(site) for site in self.sites], "positions": self.positions, "longest": self.longest, "shard": self.shard,
        }  # fmt: skip
        levels, width = [[{**key, "number": i} for i in range(len(self.starts))]], 1
        while len(levels[-1]) > 1:
            width *= MERGED
            starts = range(0, len(self.starts), width)
            levels.append([{**key, "stage": "merged", "first": i, "last": min(i + width, len(self.starts)) - 1} for i in starts])
        return tuple(tuple(Cell(stage=str(k["stage"]), key=k, items=(), side=None, flops=1.0) for k in level) for level in levels)

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        return tuple(cell for level in self.levels for cell in level)

    def below(self, cell: Cell) -> tuple[Cell, ...]:
        """The cells that are merged into one."""
        number, place = next((i, level.index(cell)) for i, level in enumerate(self.levels) if cell in level)
        return self.levels[number - 1][place * MERGED : (place + 1) * MERGED]

    @cached_property
    def sha256(self) -> str:
        """Of the file; reads it once, and finds where shards begin."""
        found, at, texts = hashlib.sha256(), 0, 0
        try:
            with self.path.open("rb") as stream:
                for line in stream:
                    found.update(line)
                    if line.strip():
                        if texts % self.shard == 0:
                            self.starts.append(at)
                        texts += 1
                    at += len(line)
        except OSError as error:
            raise PromptError(f"{self.path} cannot be read ({error.strerror}). Give a JSON Lines file, a `text` in every line.") from error
        if not texts:
            raise PromptError(f"{self.path} holds no texts. Write one JSON object a line, with a `text`.")
        return found.hexdigest()

    @property
    def hash(self) -> str:
        """Of all that decides the numbers."""
        return cell_hash({**self.cells[0].key, "stage": "corpus"})

    def text(self) -> str:
        """What is summed, in YAML, for the folder."""
        asked = {"base": self.pair.base.ref, "tuned": self.pair.tuned.ref, "corpus": str(self.path), "corpus_sha256": self.sha256}
        return "".join(
            f"{name}: {json.dumps(value)}\n" for name, value in
            {**asked, "sites": [str(s) for s in self.sites], "positions": self.positions, "longest": self.longest, "shard": self.shard}.items()
        )  # fmt: skip

    @property
    def bytes(self) -> float:
        """Memory of one process: both models and half as much again, a shard's states, and its sums."""
        shapes = [shape_of(self.pair.config(side)) for side in SIDES]
        d = max(shape.d_model for shape in shapes)
        rows = self.shard * (self.longest if self.positions == "all" else 1)
        weights = 1.5 * sum(self.pair.weights(side).bytes(self.pair.dtype) for side in SIDES)
        return weights + len(self.sites) * (2 * 4 * rows * d + FOLDS * 3 * 8 * d * d)

    def texts(self, number: int) -> Iterator[Prompt]:
        """Those of one shard."""
        with self.path.open("rb") as stream:
            stream.seek(self.starts[number])
            n = 0
            for line in stream:
                if line.strip() and n < self.shard:
                    n += 1
                    yield read_line(line, n, f"{self.path}, text {number * self.shard + n}")

    def rendered(self, number: int) -> list[Rendered]:
        base, tuned, limit = self.pair.tokenizer("base"), self.pair.tokenizer("tuned"), 1 << 62
        return render(list(self.texts(number)), base, tuned, PromptPolicy(policy="raw"), max_base=limit, max_tuned=limit)

    def states(self, number: int) -> dict[Site, list[tuple[Tensor, Tensor]]]:
        """By site, the pair of states of each text of a shard, `[row, d]`, in the order of the texts."""
        found: dict[str, list[dict[Site, Tensor]]] = {}
        read = self.rendered(number)
        for side in self.pair.in_turn:
            which = 0 if side == "base" else 1
            with self.pair.use(side) as model:
                longest, found[side] = min(self.longest, model.shape.context), []
                for one in read:
                    pairs = [pair for pair in one.positions if max(pair) < longest and min(pair) > 0] or [one.positions[0]]
                    kept = pairs if self.positions == "all" else pairs[-1:]
                    ids = (one.ids_base if side == "base" else one.ids_tuned)[:longest]
                    found[side].append({site: state.float().cpu() for site, state in
                                        capture(model, ids, self.sites, [pair[which] for pair in kept]).states.items()})  # fmt: skip
        return {site: [(base[site], tuned[site]) for base, tuned in zip(found["base"], found["tuned"], strict=True)] for site in self.sites}

    def fold(self, number: int, text: int) -> int:
        """Of a text of a shard: whole texts are dealt out."""
        return (number * self.shard + text) % FOLDS


def open_corpus(pair: Pair, path: str, sites: Sequence[str], *, positions: str, longest: int, shard: int) -> Corpus:
    """A corpus to be read by a pair. Raises MechdiffError for what a user can put right."""
    named = tuple(sorted({Site.parse(site) for site in sites}))
    return Corpus(pair=pair, path=Path(path), sites=named, positions=positions, longest=longest, shard=shard)


def compute_sums(corpus: Corpus, folder: RunFolder, cell: Cell) -> None:
    """Puts the sums of a shard, or of cells that are there, into the store."""
    if cell.stage == "merged":
        tensors, name = _merge(corpus, folder, corpus.below(cell)), f"shards {cell.key['first']} to {cell.key['last']}"
    else:
        tensors, name = _sum(corpus, folder, cell), f"shard {cell.key['number']}"
    folder.store(cell.key, empty(), tensors)
    folder.log("computed", cell=name, name=cell_hash(cell.key)[:12])


def _sum(corpus: Corpus, folder: RunFolder, cell: Cell) -> dict[str, np.ndarray]:
    """One shard at every site. All but the first need the first one's centre."""
    number = cell.key["number"]
    first = None if number == 0 else folder.load(corpus.levels[0][0].key).tensors
    tensors: dict[str, np.ndarray] = {}
    for site, pairs in corpus.states(number).items():
        base, tuned = (torch.cat([one[which] for one in pairs]).double() for which in (0, 1))
        centre = (base.mean(0), tuned.mean(0)) if first is None else tuple(torch.from_numpy(first[f"{site}/centre_{w}"]) for w in "xy")
        folds = torch.cat([torch.full((len(one[0]),), corpus.fold(number, text)) for text, one in enumerate(pairs)])
        for fold in range(FOLDS):
            tensors |= _stored(Moments.of(base[folds == fold], tuned[folds == fold], centre), site, fold)  # type: ignore[arg-type]
    return tensors


def _merge(corpus: Corpus, folder: RunFolder, cells: Sequence[Cell]) -> dict[str, np.ndarray]:
    """At every site, a cell at a time in memory beside the sums."""
    sums: dict[Site, list[Moments]] = {}
    for cell in cells:
        held = folder.load(cell.key).tensors
        for site in corpus.sites:
            here = folds_of(held, site)
            sums[site] = [one + other for one, other in zip(sums[site], here, strict=True)] if site in sums else here
    tensors: dict[str, np.ndarray] = {}
    for site, folds in sums.items():
        for fold, one in enumerate(folds):
            tensors |= _stored(one, site, fold)
    return tensors


def _stored(sums: Moments, site: Site, fold: int) -> dict[str, np.ndarray]:
    centre = {f"{site}/centre_{w}": getattr(sums, f"centre_{w}").numpy() for w in "xy"}
    return centre | {f"{site}/{fold}/{name}": getattr(sums, name).numpy() for name in SUMS} | {f"{site}/{fold}/n": np.array(sums.n)}


@dataclass
class Here:
    """This process computes, one cell after the other."""

    folder: RunFolder
    compute_cell: Callable[[RunFolder, Cell], None]

    def compute(self, cells: Sequence[Cell], started: Callable[[Cell], None]) -> Iterator[Cell]:
        for cell in cells:
            started(cell)
            self.compute_cell(self.folder, cell)
            yield cell


def folds_of(held: Mapping[str, np.ndarray], site: Site) -> list[Moments]:
    """The sums at a site that a cell's tensors are, by fold."""
    centres = {f"centre_{w}": torch.from_numpy(held[f"{site}/centre_{w}"]) for w in "xy"}
    return [
        Moments(n=int(held[f"{site}/{fold}/n"]), **{name: torch.from_numpy(held[f"{site}/{fold}/{name}"]) for name in SUMS}, **centres)
        for fold in range(FOLDS)
    ]


def says(folds: Sequence[Moments]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the sums at one site say, and the maps of the change by name."""
    whole = merged(list(folds))
    found = chosen([fold for fold in folds if fold.n])
    length = float(whole.length) / whole.n
    spread = whole.change_scatter().diagonal().sum()
    moved = whole.n * whole.mean_difference().square().sum()
    values = torch.linalg.eigvalsh(whole.change_scatter()).clamp_min(0)
    maps = {"anchored_ridge": whole.map(found.lam), "rrr": whole.map(found.lam_of_ranks, found.rank)}
    return {
        "rows": whole.n,
        "cka": whole.cka(),
        "cka_biased": whole.cka(debiased=False),
        "mean_difference_over_state": float(whole.mean_difference().norm()) / length,
        "share_of_the_change_that_is_its_mean": float(moved / (moved + spread)),
        "participation_ratio_of_the_change": float(values.sum() ** 2 / values.square().sum()) if values.any() else float("nan"),
        "ridge_lambda": found.lam,
        "ridge_r2_held_out": found.r2,
        "rank": found.rank,
    }, maps


def write(corpus: Corpus, folder: RunFolder, out: Path) -> dict[str, Any]:
    """moments.json and, by site, the sums, the maps and the mean difference; returns the record."""
    sites, held = {}, folder.load(corpus.levels[-1][0].key).tensors
    for site in corpus.sites:
        folds = folds_of(held, site)
        sites[str(site)], maps = says(folds)
        merged(folds).save(out / f"{site}.safetensors", site=str(site))
        for name, one in maps.items():
            one.save(out / f"{site}.{name}.base_to_tuned.safetensors", site=str(site), direction="base_to_tuned")
    record = {
        "base": corpus.pair.base.ref, "tuned": corpus.pair.tuned.ref, "corpus": str(corpus.path), "corpus_sha256": corpus.sha256,
        "positions": corpus.positions, "longest": corpus.longest, "folds": FOLDS, "shards": len(corpus.levels[0]), "sites": sites,
    }  # fmt: skip
    (out / "moments.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record
