"""The record of a run: everything a reader needs to believe its numbers, or to get them again."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import polars as pl
import torch

from mechdiff.engine.families import shape_of
from mechdiff.engine.lineage import lineage
from mechdiff.engine.replay import engine_for
from mechdiff.engine.sources import resolve
from mechdiff.errors import ModelError
from mechdiff.study.prepare import Prepared
from mechdiff.study.record import environment
from mechdiff.study.selection import choose_layers


def run_record(
    prepared: Prepared,
    rows: pl.DataFrame,
    *,
    engines: Mapping[str, tuple[str, str]],
    selfcheck: Mapping[str, Any],
    seconds: Mapping[str, float],
    started: str,
) -> dict[str, Any]:
    """The manifest's content: what was asked, of which files, rendered how, computed by what, checked how, and what was left out."""
    study, options, pair = prepared.study, prepared.options, prepared.pair
    family = _lineage(prepared)
    tokens = sorted(len(one.ids_tuned) for prompts in prepared.rendered.values() for one in prompts.values())
    names = {side: name for side, (name, _) in engines.items()}
    return {
        "status": "finished",
        "config": study.model_dump(mode="json"),
        "config_hash": prepared.config_hash,
        "quick": options.quick,
        "pair": {side: _model_record(prepared, side) for side in ("base", "tuned")},
        "lineage": family,
        "prompts": {
            **study.prompts.model_dump(mode="json", include={"policy", "template", "position", "system", "date"}),
            "n": {split: len(prompts) for split, prompts in prepared.rendered.items()},
            "tokens": {"min": tokens[0], "median": tokens[len(tokens) // 2], "max": tokens[-1]},
            "rendered_sha256": {split: [one.sha256 for one in prompts.values()] for split, prompts in prepared.rendered.items()},
        },
        "engine": {
            "name": names["base"] if names["base"] == names["tuned"] else f"base {names['base']}, tuned {names['tuned']}",
            "reason": "; ".join(dict.fromkeys(reason for _, reason in engines.values())),
            "max_rows": options.max_rows,
            "variants": prepared.plan.replayed,
        },
        "selfcheck": selfcheck,
        "noise_floor": _noise_floor(rows),
        "selection": choose_layers(rows),
        "skipped": list(prepared.plan.skipped),
        "warnings": family["warnings"],
        "seconds": {stage: round(spent, 2) for stage, spent in seconds.items()},
        "device": str(pair.device),
        "dtype": study.dtype,
        "threads": torch.get_num_threads(),
        "seed": study.seed,
        "started": started,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **environment(),
    }


def engines(prepared: Prepared) -> dict[str, tuple[str, str]]:
    """Side -> the engine that its model gets, and why."""
    if prepared.options.engine == "full":
        return dict.fromkeys(("base", "tuned"), ("full", "asked for with --engine full"))
    return {side: engine_for(prepared.pair.config(side)) for side in ("base", "tuned")}


def _lineage(prepared: Prepared) -> dict[str, Any]:
    """The pair's lineage, held against the study's alternatives too; one that is not found is warned of and costs nobody a finished run."""
    pair, others, unread = prepared.pair, [], []
    for ref in prepared.study.pair.alternatives:
        try:
            others.append(resolve(ref))
        except ModelError as error:
            unread.append(f"lineage is not held against the alternative {ref}: {error}")
    found = lineage(pair.base, pair.tuned, others, prepared.tokens)
    return {**found, "warnings": [*found["warnings"], *unread]}


def _model_record(prepared: Prepared, side: Any) -> dict[str, Any]:
    source, config = prepared.pair.source(side), prepared.pair.config(side)
    shape = shape_of(config)
    sizes = {name: getattr(shape, name) for name in ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_head", "vocab", "parameters")}
    return {"ref": source.ref, "adapter": source.adapter is not None, "family": config.model_type, "files": prepared.hashes[side], **sizes}


def _noise_floor(rows: pl.DataFrame) -> dict[str, float]:
    """Direction -> the largest KL of an unedited replayed row against the model's own forward pass, in nats."""
    floor = rows.filter((pl.col("control") == "no_op") & (pl.col("metric") == "kl_own_nats"))
    return dict(floor.group_by("direction").agg(pl.col("value").max()).sort("direction").iter_rows())
