"""The record of a run has everything a reader needs to believe its numbers, or to get them again."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import polars as pl
import torch

from mechdiff.architectures.lookup import family_of, shape_of
from mechdiff.engine.choice import engine_for
from mechdiff.errors import ModelError
from mechdiff.models.devices import SPLIT
from mechdiff.models.lineage import lineage
from mechdiff.models.pair import SIDES
from mechdiff.models.sources import resolve
from mechdiff.prompts.cuts import same_cut
from mechdiff.prompts.sets import cluster_names, fields_of
from mechdiff.store.record import environment
from mechdiff.study.prepare import Prepared
from mechdiff.study.presets import PRESETS


def run_record(
    prepared: Prepared,
    rows: pl.DataFrame,
    *,
    engines: Mapping[str, tuple[str, str]],
    selfcheck: Mapping[str, Any],
    seconds: Mapping[str, float],
    started: str,
) -> dict[str, Any]:
    """The manifest's content but for the lineage: what was asked, of which files, rendered how, computed by what, checked how, what was left out."""
    study, options, pair = prepared.study, prepared.options, prepared.pair
    tokens = sorted(len(one.ids_tuned) for prompts in prepared.rendered.values() for one in prompts.values())
    listed = prepared.tokens
    names = {side: name for side, (name, _) in engines.items()}
    return {
        "status": "finished",
        "config": study.model_dump(mode="json"),
        "config_hash": prepared.config_hash,
        "quick": options.quick,
        **_preset_record(prepared),
        "pair": {side: _model_record(prepared, side) for side in ("base", "tuned")},
        "prompts": {
            **study.prompts.model_dump(mode="json", include={"policy", "template", "position", "system", "date", "answer"}),
            "n": {split: len(prompts) for split, prompts in prepared.rendered.items()},
            "tokens": {"min": tokens[0], "median": tokens[len(tokens) // 2], "max": tokens[-1]},
            "rendered_sha256": {split: [one.sha256 for one in prompts.values()] for split, prompts in prepared.rendered.items()},
        },
        "tokenizers": {
            "relation": listed.relation,
            "said": listed.said(),
            "kinds": {side: vocabulary.kind for side, vocabulary in prepared.vocabularies.items()},
            "n_shared": listed.n_shared,
            "n_tokens": {side: int(listed.has(side).sum()) for side in ("base", "tuned")},
            "same_cut": sum(same_cut(one, listed) for one in prepared.rendered.get("report", {}).values()),
        },
        "engine": {
            "name": names["base"] if names["base"] == names["tuned"] else f"base {names['base']}, tuned {names['tuned']}",
            "reason": "; ".join(dict.fromkeys(reason for _, reason in engines.values())),
            "max_rows": options.max_rows,
            "variants": prepared.plan.replayed,
        },
        "selfcheck": selfcheck,
        "noise_floor": _noise_floor(rows),
        "skipped": list(prepared.plan.skipped),
        "warnings": [*filter(None, [listed.said_of_renamed()]), *prepared.said],
        "seconds": {stage: round(spent, 2) for stage, spent in seconds.items()},
        "device": str(pair.device or SPLIT),
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
    every = [one for prompts in prepared.rendered.values() for one in prompts.values()]
    longest = {"base": max(len(one.ids_base) for one in every), "tuned": max(len(one.ids_tuned) for one in every)}
    return {side: engine_for(prepared.pair.config(side), longest[side]) for side in ("base", "tuned")}


def rendered_lines(prepared: Prepared) -> Iterator[dict[str, Any]]:
    """Every prompt as both models saw it: its cluster, the short texts of its `meta`, texts, token ids, and their hash.

    The tuned model's are left out where they are the base's, and `fields` where there are none.
    """
    for split, prompts in prepared.rendered.items():
        clusters = cluster_names([one.prompt for one in prompts.values()])
        for (name, one), cluster in zip(prompts.items(), clusters, strict=True):
            line: dict[str, Any] = {
                "split": split,
                "id": name,
                "cluster": cluster,
                "sha256": one.sha256,
                "text_base": one.text_base,
                "ids_base": one.ids_base,
            }
            if fields := fields_of(one.prompt):
                line["fields"] = fields
            if (one.text_base, one.ids_base) != (one.text_tuned, one.ids_tuned):
                line |= {"text_tuned": one.text_tuned, "ids_tuned": one.ids_tuned, "aligned": one.positions}
            yield line


def lineage_of(prepared: Prepared) -> dict[str, Any]:
    """The pair's lineage, held against the study's alternatives too; one that is not found is warned of and costs nobody a finished run."""
    pair, others, unread = prepared.pair, [], []
    for ref in prepared.study.pair.alternatives:
        try:
            others.append(resolve(ref))
        except ModelError as error:
            unread.append(f"lineage is not compared with the alternative {ref}: {error}")
    found = lineage(pair.base, pair.tuned, others, prepared.tokens, {side: pair.config(side) for side in SIDES})
    return {**found, "warnings": [*found["warnings"], *unread]}


def _model_record(prepared: Prepared, side: Any) -> dict[str, Any]:
    source, config = prepared.pair.source(side), prepared.pair.config(side)
    shape, weights = shape_of(config), prepared.pair.weights(side)
    sizes = {name: getattr(shape, name) for name in ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_head", "vocab")}
    sizes |= {"parameters": weights.stored, "active_parameters": weights.active}
    row = "proposed and proved" if family_of(config).by_layer else "listed"
    return {
        "ref": source.ref,
        "adapter": source.adapter is not None,
        "family": config.model_type,
        "row": row,
        "files": prepared.hashes[side],
        **sizes,
    }


def _noise_floor(rows: pl.DataFrame) -> dict[str, float]:
    """Direction -> the largest KL of an unedited replayed row against the model's own forward pass, in nats."""
    floor = rows.filter((pl.col("control") == "no_op") & (pl.col("metric") == "kl_own_nats"))
    return dict(floor.group_by("direction").agg(pl.col("value").max()).sort("direction").iter_rows())


def _preset_record(prepared: Prepared) -> dict[str, Any]:
    """Under "preset", where the study has one."""
    study, options = prepared.study, {name: one.options for name, one in prepared.experiments.items()}
    return {"preset": PRESETS[study.preset].record(tuple(study.measures), options)} if study.preset else {}
