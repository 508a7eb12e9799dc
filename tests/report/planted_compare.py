"""Runs whose fine-tunes are spread as planted, small enough that comparing them takes a second.

`Planted.sites` are the shares of D that each block's writes carry, `ranks` what the first k directions of the weights' change recover.
Everything else follows: the residual stream carries the sum, a module alone recovers its sites' share.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from mechdiff.labels import CROSSED
from mechdiff.rows import OVERLAP, TOTAL, rows
from report.planted_run import planted_manifest, write_run

N_LAYERS = 6
KINDS = {"attn_out": "attn", "mlp_out": "mlp"}
LOCAL = {(4, "attn_out"): 0.95}
SPREAD = {(layer, kind): 0.1 for layer in range(N_LAYERS) for kind in KINDS}
RANK_1 = {1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0}
RANK_8 = {1: 0.12, 2: 0.25, 4: 0.5, 8: 1.0}


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A truth, and the draws that hide it."""

    sites: dict[tuple[int, str], float] = field(default_factory=lambda: LOCAL)
    ranks: dict[int, float] = field(default_factory=lambda: RANK_1)
    n: int = 16
    seed: int = 0
    strength: float = 3.0
    noise: float = 0.3
    texts: str = "asked"
    """Prompts of one name are the same texts."""


def planted(truth: Planted) -> pl.DataFrame:
    """Rows of divergence, patching (identity) and grafting on `select` and `report`."""
    rng = np.random.default_rng(truth.seed)
    tables = []
    for split in ("select", "report"):
        prompts = [f"{split}-{i:03d}" for i in range(truth.n)]
        d = truth.strength * rng.lognormal(0, 0.2, truth.n)
        for metric in ("kl_tuned_base_nats", TOTAL):
            tables.append(rows(d, measure="divergence", split=split, metric=metric, prompt=prompts))
        for direction in CROSSED:
            unedited = {"measure": "patching", "direction": direction, "split": split, "prompt": prompts, "control": "no_op"}
            tables.append(rows(np.full(truth.n, 1e-10), metric="kl_own_nats", **unedited))
            tables += [_write(rng, truth, d, prompts, split, direction, layer) for layer in range(N_LAYERS)]
        tables.append(_grafts(rng, truth, d, prompts, split))
    return pl.concat(tables, rechunk=True)


def _noisy(rng: np.random.Generator, truth: Planted, share: float) -> np.ndarray:
    return share * rng.lognormal(-(truth.noise**2) / 2, truth.noise, truth.n)


def _write(
    rng: np.random.Generator, truth: Planted, d: np.ndarray, prompts: list[str], split: str, direction: str, layer: int
) -> pl.DataFrame:
    below = sum(share for (at, _), share in truth.sites.items() if at <= layer)
    shares = {kind: _noisy(rng, truth, truth.sites.get((layer, kind), 0.0)) for kind in KINDS}
    shares["resid_post"] = np.full(truth.n, min(below / sum(truth.sites.values()), 1.0))
    parts = []
    for kind, share in shares.items():
        place = {
            "measure": "patching",
            "direction": direction,
            "split": split,
            "layer": layer,
            "site": kind,
            "arm": "identity",
            "prompt": prompts,
        }
        metric, value = ("kl_own_nats", share * d) if direction == CROSSED[0] else ("kl_other_nats", d * (1 - share))
        parts += [rows(value, metric=metric, **place), rows(share * d, metric=OVERLAP, **place)]
    return pl.concat(parts, rechunk=True)


def _grafts(rng: np.random.Generator, truth: Planted, d: np.ndarray, prompts: list[str], split: str) -> pl.DataFrame:
    def graft(share: np.ndarray | float, **named: object) -> pl.DataFrame:
        values = {"kl_other_nats": d * (1 - share), OVERLAP: d * share}
        found = (rows(value, measure="grafting", split=split, metric=metric, prompt=prompts, **named) for metric, value in values.items())
        return pl.concat(found, rechunk=True)

    parts = [graft(0.0, arm="none"), graft(1.0, arm="all"), graft(0.0, arm="truncate", unit="all", rank=0)]
    parts += [graft(_noisy(rng, truth, share), arm="alone", layer=at, site=KINDS[kind]) for (at, kind), share in truth.sites.items()]
    parts += [graft(np.minimum(_noisy(rng, truth, share), 1.0), arm="truncate", unit="all", rank=k) for k, share in truth.ranks.items()]
    reached = np.cumsum(sorted(truth.sites.values(), reverse=True)) / sum(truth.sites.values())
    names = [f"L{at}.{KINDS[kind]}" for at, kind in truth.sites]
    parts += [graft(share, arm="greedy", rank=k, unit="+".join(names[:k])) for k, share in enumerate(reached, start=1)]
    return pl.concat(parts, rechunk=True)


def manifest_of(name: str, **changed: object) -> dict:
    """A record whose tuned model has this name."""
    manifest = planted_manifest(n_layers=N_LAYERS, n_prompts=16, changed=4)
    manifest["pair"]["tuned"]["ref"] = name
    return manifest | changed


def write_planted(folder: Path, truth: Planted, *, manifest: dict | None = None, table: pl.DataFrame | None = None) -> Path:
    """The run's folder with its prompts."""
    table = planted(truth) if table is None else table
    write_run(folder, table, manifest_of(folder.name) if manifest is None else manifest)
    lines = [
        {"split": split, "id": f"{split}-{i:03d}", "sha256": hashlib.sha256(f"{truth.texts} {split} {i}".encode()).hexdigest()}
        for split in ("select", "report")
        for i in range(truth.n)
    ]
    (folder / "prompts.jsonl").write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return folder


def with_overlaps(table: pl.DataFrame) -> pl.DataFrame:
    """The same with shares that add, as if each run that recovers a share of D had moved the logits by that share; in place of others."""
    place = ["split", "prompt"]
    table = table.filter(pl.col("metric") != OVERLAP)
    d = table.filter(pl.col("measure") == "divergence", pl.col("metric") == "kl_tuned_base_nats", pl.col("unit").is_null())
    total = d.with_columns(metric=pl.lit(TOTAL))
    towards = pl.col("direction").fill_null("base<-tuned").is_in(["base<-tuned", "base<-base"])
    runs = table.filter(
        pl.col("measure").is_in(["patching", "grafting", "heads", "rank"]),
        pl.col("metric") == "kl_other_nats", towards, pl.col("control").is_null(),
    )  # fmt: skip
    runs = runs.join(d.select(*place, d="value").unique(place), on=place, how="inner", maintain_order="left")
    moved = runs.with_columns(metric=pl.lit(OVERLAP), value=pl.col("d") - pl.col("value")).select(table.columns)
    return pl.concat([table, total, moved])
