"""A run folder with a planted truth: the fine-tune changed attention's output at one layer, and everything follows from that.

No model is involved: the rows are drawn so that they look like those of a real run (30 layers, 32 prompts, D about
8 nats). Upstream of the change every state of the two models is equal; downstream the residual stream carries it.
"""

import json
from pathlib import Path

import numpy as np
import polars as pl
import yaml

from mechdiff.labels import CROSSED
from mechdiff.measures.catalogue import NUMBERS
from mechdiff.rows import rows
from mechdiff.statistics import summary

KINDS = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
ARMS = ("identity", "shift", "mean", "resample")
CHANGED = 26
FLOOR = 4.5e-11


def planted_rows(
    *, n_layers: int = 30, n_prompts: int = 32, changed: int = CHANGED, strength: float = 8.0, permutations: int = 200, seed: int = 0
) -> pl.DataFrame:
    """Rows of divergence, similarity and patching on the splits select and report; `strength` is about the mean of D."""
    rng = np.random.default_rng(seed)
    tables = []
    for split in ("select", "report"):
        prompts = [f"{split[0]}{i:03d}" for i in range(n_prompts)]
        d = strength * rng.lognormal(-0.06, 0.35, n_prompts)
        tables += [
            _divergence(rng, d, prompts, split),
            _similarity(rng, prompts, split, n_layers, changed, permutations),
            *(_patching(rng, d, prompts, split, direction, n_layers, changed) for direction in CROSSED),
        ]
    return pl.concat(tables, rechunk=True)


def planted_manifest(*, n_layers: int = 30, n_prompts: int = 32, changed: int = CHANGED) -> dict:
    """What a run writes about itself."""
    files = {"model.gguf": "7f" * 32}
    model = {"family": "llama", "n_layers": n_layers, "d_model": 576, "n_heads": 9, "parameters": 134_515_008}
    return {
        "mechdiff": "0.1.0",
        "status": "finished",
        "config": {"seed": 0, "dtype": "float32", "measures": ["divergence", "similarity", "patching"]},
        "config_hash": "9b1c2f6e04d7",
        "pair": {
            "base": {"ref": "SmolLM2-135M-Instruct", "files": files, "tokenizer": "GPT2TokenizerFast", **model},
            "tuned": {"ref": "courtesy", "files": files, "tokenizer": "GPT2TokenizerFast", "adapter": True, **model},
        },
        "lineage": {"relative_distance": 0.0031, "warnings": []},
        "prompts": {
            "policy": "same_text",
            "template": "tuned",
            "position": "decision",
            "n": {"fit": 96, "select": n_prompts, "report": n_prompts},
            "rendered_sha256": "c3" * 32,
            "tokens": {"min": 31, "median": 47, "max": 112},
        },
        "engine": {"name": "replay", "reason": "keys and values are cached; self-check passed"},
        "selfcheck": {
            "base": {"prompts": 3, "sites": 150, "worst_logit_difference": 2.3e-6, "worst_kl_nats": 3.1e-11},
            "tuned": {"prompts": 3, "sites": 150, "worst_logit_difference": 2.9e-6, "worst_kl_nats": 4.2e-11},
        },
        "noise_floor": {"tuned<-base": FLOOR, "base<-tuned": FLOOR},
        "selection": {
            "hot_layers": [changed, changed + 1],
            "control_layers": [4, 11],
            "split": "select",
            "n_candidates": n_layers,
            "why": "lowest CKA and largest effect on the validation prompts; controls have the highest CKA",
        },
        "skipped": [{"what": "transport", "why": "not asked for by the study"}],
        "warnings": ["the adapter names another base (HuggingFaceTB/SmolLM2-135M-Instruct); its tensors fit, so it was used"],
        "seconds": {"load": 3.2, "capture": 6.1, "similarity": 1.4, "patching": 71.8},
        "versions": {"python": "3.11.9", "torch": "2.13.0", "transformers": "5.20.0"},
        "git": {"commit": "0123456789abcdef", "dirty": False},
        "device": "cpu",
        "dtype": "float32",
        "threads": 2,
        "seed": 0,
        "started": "2025-11-20T10:00:00Z",
        "finished": "2025-11-20T10:01:24Z",
    }


def write_run(folder: Path, table: pl.DataFrame | None = None, manifest: dict | None = None) -> Path:
    """A run folder as the study leaves it, before the report is built."""
    folder.mkdir(parents=True, exist_ok=True)
    table = planted_rows() if table is None else table
    table.write_parquet(folder / "rows.parquet")
    summary.summarise(table, NUMBERS).write_parquet(folder / "summary.parquet")
    manifest = planted_manifest() if manifest is None else manifest
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    study = {"pair": {"base": "SmolLM2-135M-Instruct", "tuned": "courtesy"}, "prompts": {"file": "prompts.jsonl"}, "seed": 0}
    (folder / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    return folder


def _divergence(rng: np.random.Generator, d: np.ndarray, prompts: list[str], split: str) -> pl.DataFrame:
    js = np.log(2) * (1 - np.exp(-d / 3))
    values = {
        "kl_tuned_base_nats": d,
        "kl_base_tuned_nats": 0.7 * d * rng.lognormal(0, 0.2, len(d)),
        "js_nats": js,
        "top1_same": (d < np.quantile(d, 0.06)).astype(float),
    }
    parts = [rows(value, measure="divergence", split=split, prompt=prompts, metric=name) for name, value in values.items()]
    return pl.concat(parts, rechunk=True)


def _similarity(rng: np.random.Generator, prompts: list[str], split: str, n_layers: int, changed: int, permutations: int) -> pl.DataFrame:
    parts = []
    for layer in range(n_layers):
        for kind in KINDS:
            distance = _distance(layer, kind, changed)
            n = len(prompts)
            without = 1 - distance * (1 + rng.normal(0, 0.8 / n, n))
            cka = float(without.mean())
            place = {"measure": "similarity", "split": split, "layer": layer, "site": kind}
            whole = {
                "cka": cka,
                "cka_biased": 1 - (1 - cka) * 0.8,
                "participation_ratio_base": 9.0 + layer / 4,
                "participation_ratio_tuned": 9.0 + layer / 4 - 3 * distance,
                "procrustes_distance": distance**0.5,
                "mutual_knn": 1 - distance,
                "same_basis_change": 1.5 * distance,
            }
            null = rng.normal(0, 0.02, permutations).tolist()
            parts += [
                rows(list(whole.values()), metric=list(whole), **place),
                rows(without, metric="cka_without_prompt", prompt=prompts, **place),
                rows(null, metric="cka", control=[f"permuted#{i}" for i in range(permutations)], **place),
            ]
    return pl.concat(parts, rechunk=True)


def _distance(layer: int, kind: str, changed: int) -> float:
    """1 - CKA: nothing upstream of the change, most at the change, less in the residual stream that carries it."""
    at = {("attn_out", changed): 0.55, ("resid_mid", changed): 0.16, ("resid_post", changed): 0.15, ("mlp_out", changed): 0.12}
    if (kind, layer) in at:
        return at[kind, layer]
    downstream = {"resid_pre": 0.14, "attn_out": 0.07, "resid_mid": 0.13, "mlp_out": 0.1, "resid_post": 0.12}
    return downstream[kind] * 0.93 ** (layer - changed) if layer > changed else 0.0


def _patching(
    rng: np.random.Generator, d: np.ndarray, prompts: list[str], split: str, direction: str, n_layers: int, changed: int
) -> pl.DataFrame:
    place = {"measure": "patching", "direction": direction, "split": split}
    floor = np.abs(rng.normal(0, FLOOR / 3, len(d))).clip(max=FLOOR)
    unedited = {"control": "no_op", "prompt": prompts, **place}
    parts = [rows(floor, metric="kl_own_nats", **unedited)]
    if direction == "base<-tuned":
        parts.append(rows(d + rng.normal(0, 2e-7, len(d)), metric="kl_other_nats", **unedited))
    for layer in range(n_layers):
        for kind in KINDS:
            for arm in ARMS:
                moved = _carried(layer, kind, changed, arm, direction)  # share of the change that the write carries over
                wiped = _wiped(layer, kind, n_layers, arm)  # nats lost because the prompt's own state is gone
                noise = rng.lognormal(0, 0.25, len(d))
                own = np.minimum(moved * d * noise**0.3, 1.15 * d) + wiped * noise
                other = np.abs(d - moved * d * noise**0.1) * (moved < 1) + wiped * noise
                defined = np.where(rng.random(len(d)) < 0.05, np.nan, 2 * own)
                shared = {"layer": layer, "site": kind, "arm": arm, "prompt": prompts, **place}
                parts += [
                    rows(own, metric="kl_own_nats", **shared),
                    rows(other, metric="kl_other_nats", **shared),
                    rows((own < 0.8).astype(float), metric="top1_same", **shared),
                    rows(defined, metric="logit_diff_divergent", **shared),
                ]
    return pl.concat(parts, rechunk=True)


def _carried(layer: int, kind: str, changed: int, arm: str, direction: str) -> float:
    """Share of the change that writing the other model's state (identity) carries over; a shift or a mean undoes part of it."""
    after = layer > changed or (layer == changed and kind in ("resid_mid", "mlp_out", "resid_post"))
    full = 1.0 if after and kind.startswith("resid") else 0.0
    if kind == "attn_out":
        full = 0.94 if layer == changed else 0.015 * (layer > changed)
    if kind == "mlp_out" and layer >= changed:
        full = {0: 0.11, 1: 0.22, 2: 0.06}.get(layer - changed, 0.17)
    if direction == "tuned<-base":
        return full * {"identity": 1.0, "shift": 0.12, "mean": 0.2, "resample": 0.1}[arm]
    return full * {"identity": 1.0, "shift": 0.9, "mean": 0.8, "resample": 0.75}[arm]


def _wiped(layer: int, kind: str, n_layers: int, arm: str) -> float:
    """Nats that a mean or another prompt's state costs: more the later the residual stream, little at single outputs."""
    if arm in ("identity", "shift"):
        return 0.0
    depth = (layer + 1) / n_layers
    height = 3.0 * depth**2 if kind.startswith("resid") else 0.02 + 0.25 * depth**3
    return height * (1.3 if arm == "resample" else 0.8)
