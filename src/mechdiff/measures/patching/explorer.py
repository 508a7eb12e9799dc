"""The explorer of the causal map has every condition, direction and metric of every site, and its values prompt by prompt.

The page's script reads it; without a script the drawn map stands alone. Numbers have four digits: the whole ones are in rows.parquet.
"""

from typing import Any

import polars as pl

from mechdiff import labels, shares, terms
from mechdiff.architectures.sites import KINDS
from mechdiff.measures.patching import findings
from mechdiff.report import difference
from mechdiff.report.parts import Run
from mechdiff.rows import where
from mechdiff.statistics import floors

METRICS = terms.labels_of(
    terms.METRICS, "share", "kl_own_nats", "kl_other_nats", "js_own_nats", "top1_same", "logit_diff_divergent", "kl_own_shared_nats",
    "js_own_shared_nats",
)  # fmt: skip
QUIET = {"below_floor", "no_effect", "outside_only"}
"""Flags of a cell whose effect is not drawn as one."""
BY_PROMPT = (*shares.OWN, shares.OTHER)
DIRECTIONS = terms.labels_of(terms.DIRECTIONS)


def explorer(run: Run) -> dict | None:
    """The part of the page, with its data; None where patching was not run."""
    split = difference.reported(run.rows, "patching")
    plain = (pl.col(name).is_null() for name in ("control", "rank", "strength"))
    here = [pl.col("split").eq_missing(split), pl.col("layer").is_not_null(), *plain]
    here += [~labels.is_over_answer(), ~labels.is_position()]
    cells = where(run.summary, measure="patching").filter(*here, pl.col("metric").is_in(list(METRICS)))
    if cells.is_empty():
        return None
    d = difference.d_per_prompt(run.prompt_rows).sort("prompt")
    prompts = d["prompt"].to_list()
    values = (
        where(run.prompt_rows, measure="patching")
        .filter(*here, pl.col("metric").is_in(list(BY_PROMPT)), pl.col("prompt").is_in(prompts))
        .sort("prompt")
    )
    key = ["direction", "arm", "unit", "site", "layer"]
    by_prompt = values.group_by([*key, "metric"]).agg("prompt", "value")
    each = {tuple(row[name] for name in (*key, "metric")): _in_order(row, prompts) for row in by_prompt.iter_rows(named=True)}
    found: dict[str, dict[str, Any]] = {}
    for row in cells.iter_rows(named=True):
        cell = found.setdefault("|".join(str(row[name] or "") if name != "layer" else str(row[name]) for name in key), {"m": {}})
        cell["m"][row["metric"]] = [_short(row[name]) for name in ("mean", "ci_low", "ci_high")]
        if row["metric"] == floors.effect_metric(run.rows, row["direction"]):
            cell["share"] = _short(row["share"])
            cell["quiet"] = bool(QUIET & set((row["flag"] or "").split(";")))
        if row["metric"] in BY_PROMPT and (of := each.get((*(row[name] for name in key), row["metric"]))):
            cell.setdefault("p", {})[row["metric"]] = of
    texts = _texts(run, split)
    _with_intervals(run, found)
    data = {
        "layers": sorted(set(cells["layer"].to_list())),
        "sites": [kind for kind in KINDS if kind in cells["site"].unique().to_list()],
        "directions": {name: words for name, words in DIRECTIONS.items() if name in cells["direction"].unique().to_list()},
        "arms": [arm for arm in terms.CONDITIONS if arm in cells["arm"].unique().to_list()],
        "metrics": {name: words for name, words in METRICS.items() if name == "share" or name in cells["metric"].unique().to_list()},
        "units": sorted({unit or "" for unit in cells["unit"].unique().to_list()}),
        "floors": floors.FLOORS,
        "prompts": [{"id": name, "text": texts.get(name, ""), "d": _short(value)} for name, value in d.select("prompt", "d").iter_rows()],
        "effect": {name: floors.effect_metric(run.rows, name) for name in DIRECTIONS},
        "cells": found,
    }  # fmt: skip
    return {"kind": "explorer", "data": data}


def _texts(run: Run, split: str | None) -> dict[str, str]:
    """What each prompt says, without the template's words: the lines and special tokens that all of them begin and end with."""
    texts = {one["id"]: one.get("text_base") or one.get("text") or "" for one in run.prompts if one["split"] == split}
    if len(texts) < 2:
        return texts
    first = next(iter(texts.values()))
    before = first[: _common(list(texts.values()))]
    start = max((place + len(mark) for mark in ("\n", "|>") if (place := before.rfind(mark)) >= 0), default=0)
    shared = _common([text[start:][::-1] for text in texts.values()])
    behind = first[len(first) - shared :]
    end = shared - min((place for mark in ("\n", "<|") if (place := behind.find(mark)) >= 0), default=shared)
    return {name: text[start : len(text) - end] for name, text in texts.items()}


def _common(texts: list[str]) -> int:
    """With how many letters all of them begin."""
    first, last = min(texts), max(texts)
    return next((i for i, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), min(len(first), len(last)))


def _with_intervals(run: Run, found: dict[str, dict[str, Any]]) -> None:
    """The intervals of the shares, which the summary does not hold, of the identity arm."""
    for unit in [None, *findings.units(run.rows)]:
        for row in findings.site_shares(run.rows, run.summary, unit=unit).iter_rows(named=True):
            cell = found.get(f"{row['direction']}|identity|{unit or ''}|{row['site']}|{row['layer']}")
            if cell is not None:
                cell["ends"] = [_short(row["low"]), _short(row["high"])]


def _in_order(row: dict, prompts: list[str]) -> list[float | None]:
    values = dict(zip(row["prompt"], row["value"], strict=True))
    return [_short(values.get(name)) for name in prompts]


def _short(value: float | None) -> float | None:
    """Four digits; None for what is no number."""
    return None if value is None or value != value or value in (float("inf"), float("-inf")) else float(f"{value:.4g}")
