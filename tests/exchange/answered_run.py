"""A finished run's folder with answers and scores that are known, written without a model."""

import json
from pathlib import Path
from typing import Any

import polars as pl

from mechdiff.rows import rows

WEB = "HuggingFaceTB/SmolLM2-135M-Instruct"
N = 12
READ = "<|user|>{}<|assistant|>"
KL = [0.01 * (i + 1) for i in range(N)]
"""D of the test prompts, in nats."""
RIGHT = {"base": [1] * 9 + [0] * 3, "tuned": [1] * 3 + [0] * 7 + [1] * 2}
"""Of the test prompts: the tuned model loses items 3 to 8 and gains 10 and 11."""


def ids() -> list[str]:
    return [f"sum-{i:02d}" for i in range(N)]


def texts() -> list[dict[str, Any]]:
    """The record of answers: sums with labels, two requests without."""
    sums = [
        {"prompt": name, "split": "report", "text": f"What is {i} + {i}?", "label": str(2 * i), "kind": None, "language": "en",
         "base": f"It is {2 * i}.", "tuned": f"#### {i}", "patched": []}
        for i, name in enumerate(ids())
    ]  # fmt: skip
    asked = [
        {"prompt": f"ask-{i}", "split": None, "text": f"Do “{i}” <b>now</b>", "label": None, "kind": "refusal_unsafe", "language": "en",
         "base": "I can't.", "tuned": "Sure.\nOf course", "patched": []}
        for i in range(2)
    ]  # fmt: skip
    return sums + asked


def manifest(**more: Any) -> dict[str, Any]:
    one = {"family": "llama", "adapter": False, "parameters": 134515008, "n_layers": 4, "d_model": 32}
    return {
        "status": "finished",
        "config_hash": "0" * 64,
        "pair": {"base": {"ref": WEB, **one}, "tuned": {"ref": "/somebody/at/home/courtesy", **one, "adapter": True}},
        "prompts": {"policy": "same_text", "template": "tuned", "position": "decision", "n": {"fit": 16, "select": 5, "report": N}},
        "config": {"measures": ["divergence", {"behaviour": {"max_tokens": 96}}]},
        "behaviour": {"texts": texts(), "texts_left_out": 0, "max_tokens": 96},
        "versions": {"mechdiff": "0.1.0", "transformers": "5.23.0", "torch": "2.13.0"},
        "engine": {"name": "replay"},
        "dtype": "float32", "seed": 0, "device": "cpu", "skipped": [], "warnings": [],
        "started": "2026-12-01T10:00:00+00:00", "finished": "2026-12-01T10:05:00+00:00",
        **more,
    }  # fmt: skip


def write(folder: Path, **more: Any) -> Path:
    """The folder, with what `mechdiff export` and `compare-evals --run` read."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [rows(KL, measure="divergence", split="report", prompt=ids(), metric="kl_tuned_base_nats")]
    for side in ("base", "tuned"):
        behaviour = {"measure": "behaviour", "unit": side}
        parts.append(rows([float(x) for x in RIGHT[side]], split="report", prompt=ids(), metric="exact_match", **behaviour))
        parts.append(rows([0.0] * N, split="report", prompt=ids(), metric="refusal", **behaviour))
        parts.append(rows([0.0] * N, split="report", prompt=ids(), metric="cut_off", **behaviour))
        refuses = float(side == "base")
        parts.append(rows([refuses] * 2, prompt=["ask-0", "ask-1"], metric="refusal", **behaviour))
        parts.append(rows([1.0, 0.0], prompt=["ask-0", "ask-1"], metric="cut_off", **behaviour))
        sampled = {"measure": "behaviour", "unit": f"{side}, sampled", "split": "report", "prompt": ids()}
        parts.append(rows([0.5] * N, metric="exact_match", **sampled))
    pl.concat(parts).write_parquet(folder / "rows.parquet")
    asked = [("report", one) for one in texts()[:N]] + [("probes", one) for one in texts()[N:]]
    lines = [{"split": split, "id": one["prompt"], "cluster": one["prompt"], "text_base": READ.format(one["text"])} for split, one in asked]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "manifest.json").write_text(json.dumps(manifest(**more)))
    return folder
