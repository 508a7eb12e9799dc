"""Are a run's numbers what they say? A sample of its rows, recomputed by whole forward passes; and every file, against its hash.

A row differs where its number is further from the recomputed one than rounding explains. The engine's noise floor f (nats, measured in the run) is a
KL of the second order in the rounding of the logits, so the logits themselves are off by about r = sqrt(2 f), and a KL of v nats by about
r (sqrt(v) + v). What is compared gets three times that; logits and their differences get 20 r, and the other numbers a share of themselves.
A sum of n scores (`Metric.terms`) gets n times as much, and of nats n times 3 r beside it, since scores that are not 0 may add up to 0.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import polars as pl

from mechdiff import labels, shares
from mechdiff.audit.distributions import LOGITS_APART, NotRecomputed, SecondWay
from mechdiff.audit.rerun import Rerun
from mechdiff.errors import RunError
from mechdiff.rows import COLUMNS, OVERLAP
from mechdiff.statistics.metric import Numbers, terms
from mechdiff.store.tables import read_rows

Answer = tuple[str, str, str, str]
"""(prompt, side, recorded, generated again)"""
ROWS = 200
TRIES = 6
"""Rows of a measure that are tried for each that is wanted: some cannot be recomputed another way."""
RELATIVE = 2e-4
"""Share of itself that a number may differ by which is no law's: of states, weights and maps, in float32."""


def tolerance(row: dict[str, Any], value: float, floor: float, n_terms: int) -> float:
    """How far a recorded number, a sum of so many scores, may be from the recomputed one."""
    metric, r = row["metric"], math.sqrt(2 * floor)
    size = abs(value) if math.isfinite(value) else 0.0
    if metric == "top1_same":
        return 0.6 if value == 0.5 else 1e-9
    if metric.startswith("cka") or metric == "procrustes_distance":
        return RELATIVE * max(1.0, size)
    if metric.endswith("_logits") or metric == "logit_diff_divergent" or metric.startswith("log_ratio_"):
        return n_terms * LOGITS_APART * r + RELATIVE * size
    if metric in (
        OVERLAP,
        *(shares.over(OVERLAP, what) for what in shares.OVER),
    ):  # linear in the logits, by weights that add up to at most 1 on either side
        return 3 * r * (1 + size) + RELATIVE * size
    if metric.endswith("_nats") or metric.startswith("bits_per_byte"):
        total = size + (row["value"] if math.isfinite(row["value"]) and row["value"] > 0 else 0.0)
        return n_terms * (3 * floor + 3 * r * (math.sqrt(total) + total + (1 if n_terms > 1 else 0)))
    return RELATIVE * size + 1e-12


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One row, once more."""

    row: dict[str, Any]
    recomputed: float
    tolerance: float

    @property
    def differs(self) -> bool:
        return not same(self.row["value"], self.recomputed, self.tolerance)

    @property
    def said(self) -> str:
        """The row in words."""
        named = {name: value for name, value in self.row.items() if value is not None and name != "value"}
        where = " ".join(f"{name}={value}" for name, value in named.items())
        return f"{where}: recorded {self.row['value']:.9g}, recomputed {self.recomputed:.9g}, tolerance {self.tolerance:.2g}"


@dataclass(kw_only=True)
class Verification:
    """What verifying a run found."""

    path: str
    n_rows: int
    measures: Sequence[str] = ()
    """Names of the measures that have a second way, in the order of the table."""
    files: list[str] = field(default_factory=list)
    """Files that are gone or not what was written, in words."""
    models: list[str] = field(default_factory=list)
    """Files of the models, and prompts, that are not what the run read."""
    compared: list[Compared] = field(default_factory=list)
    left_out: dict[str, dict[str, int]] = field(default_factory=dict)
    """Measure -> why rows of it were not recomputed -> how many of those drawn."""
    answers: list[Answer] = field(default_factory=list)
    """Every recorded answer beside the one that was generated again."""
    seconds: float = 0.0

    @property
    def differing(self) -> list[Compared]:
        return [one for one in self.compared if one.differs]

    @property
    def other_answers(self) -> list[Answer]:
        return [one for one in self.answers if one[2] != one[3]]

    @property
    def passed(self) -> bool:
        return bool(self.compared) and not (self.files or self.models or self.differing or self.other_answers)

    def table(self) -> list[tuple[str, int, int, float, int]]:
        """(measure, rows drawn that were recomputed, not recomputed, worst distance over tolerance, rows that differ)."""
        found = []
        for measure in self.measures:
            here = [one for one in self.compared if one.row["measure"] == measure]
            out = sum(self.left_out.get(measure, {}).values())
            if here or out:
                ratios = [distance(one.row["value"], one.recomputed) / one.tolerance for one in here]
                found.append((measure, len(here), out, max(ratios, default=0.0), sum(one.differs for one in here)))
        return found

    def in_brief(self) -> dict[str, Any]:
        """What a page says of it."""
        return {"passed": self.passed, "rows": len(self.compared), "differing": len(self.differing), "answers": len(self.answers),
                "other_answers": len(self.other_answers), "files": len(self.files) + len(self.models)}  # fmt: skip

    def to_json(self) -> str:
        """Everything, for other programs."""
        record = {
            "run": self.path, "passed": self.passed, "rows": self.n_rows, "files": self.files, "models": self.models,
            "compared": [{**asdict(one), "differs": one.differs} for one in self.compared], "left_out": self.left_out,
            "answers": [dict(zip(("prompt", "side", "recorded", "again"), one, strict=True)) for one in self.answers],
            "seconds": round(self.seconds, 1),
        }  # fmt: skip
        return json.dumps(record, indent=1, ensure_ascii=False)


def verify(
    run: Rerun, again: Mapping[str, SecondWay], answers: Mapping[str, Callable[[Rerun], list[Answer]]], numbers: Mapping[str, Numbers], *,
    n_rows: int | None = ROWS, seed: int = 0, progress: Callable[[str], None] = lambda what: None,
) -> Verification:  # fmt: skip
    """Recomputes `n_rows` rows of a finished run, drawn by the seed from every measure and metric alike; None: all rows.

    `again` is the second way of every measure, `answers` of those that record answers, and `numbers` say what metrics are sums of. Where a file of a
    model or the run's tables changed, nothing is recomputed: the numbers would be another pair's.
    """
    started = time.perf_counter()
    changed = [*run.changed_models(), *run.changed_prompts()]
    found = Verification(path=str(run.path), n_rows=0, measures=list(again), files=run.changed_files(), models=changed)
    if not found.models and not any(said.startswith("rows.parquet") for said in found.files):
        rows = read_rows(run.path)
        found.n_rows = len(rows)
        chosen = rows.with_columns(wanted=pl.len().over("measure")) if n_rows is None else sample(rows, n_rows, seed)
        done: dict[str, int] = {}
        sums = terms(numbers)
        for number, row in enumerate(chosen.iter_rows(named=True)):
            wanted, measure = row.pop("wanted"), row["measure"]
            if done.get(measure, 0) < wanted:
                if number % 10 == 0:
                    progress(f"{measure}: {done.get(measure, 0)} of {wanted} rows")
                done[measure] = done.get(measure, 0) + _compare(
                    run, row, again[measure], sums.get((measure, shares.over_base(row["metric"]) or row["metric"]), 1), found
                )
        progress("answers")
        found.answers = [one for generate in answers.values() for one in generate(run)]
    found.seconds = time.perf_counter() - started
    return found


def sample(rows: pl.DataFrame, n_rows: int, seed: int) -> pl.DataFrame:
    """Candidates from every measure, the first `wanted` that can be recomputed to be taken: arms, metrics and sites in turn, draws of a null last.

    Raises RunError for a number of rows that is not positive.
    """
    if n_rows < 1:
        raise RunError(f"--rows {n_rows}: expected at least 1. Give a number, or --all.")
    random = np.random.default_rng(seed)
    shuffled = rows.sort(COLUMNS)[random.permutation(len(rows))]
    draw = labels.is_draw().alias("draw")
    turn = pl.int_range(pl.len()).over("measure", "direction", "arm", "metric", "site", draw).alias("turn")
    turned = shuffled.with_columns(turn, draw)
    wanted = -(-n_rows // rows["measure"].n_unique())
    ordered = turned.sort("measure", "draw", "turn", maintain_order=True)
    return ordered.group_by("measure", maintain_order=True).head(TRIES * wanted).select(*COLUMNS, pl.lit(wanted).alias("wanted"))


def _compare(run: Rerun, row: dict[str, Any], second_way: SecondWay, n_terms: int, found: Verification) -> bool:
    """Whether the row was recomputed."""
    over_base = shares.over_base(row["metric"])
    plain = row | {"metric": over_base or row["metric"]}
    try:
        with run.answers_of("base") if over_base else nullcontext():
            again = second_way(run, plain)
    except NotRecomputed as why:
        reasons = found.left_out.setdefault(row["measure"], {})
        reasons[str(why)] = reasons.get(str(why), 0) + 1
        return False
    found.compared.append(Compared(row=row, recomputed=again, tolerance=tolerance(plain, again, run.floor, n_terms)))
    return True


def distance(recorded: float, again: float) -> float:
    """0 where both are NaN or the same infinity."""
    if recorded == again or (math.isnan(recorded) and math.isnan(again)):
        return 0.0
    return abs(recorded - again) if math.isfinite(recorded) and math.isfinite(again) else math.inf


def same(recorded: float, again: float, within: float) -> bool:
    return distance(recorded, again) <= within
