"""The numbers on self-repair are what an output writes by itself, what comes of it, and what later blocks take off, as parts of the way in logits."""

from typing import Any

import numpy as np
import polars as pl

from mechdiff import labels
from mechdiff.measures.self_repair.plan import DIRECT, TOTAL
from mechdiff.report import difference, effect_shares, spoken
from mechdiff.report.difference import BREAKAGE, RECOVERY
from mechdiff.rows import OVERLAP, where
from mechdiff.statistics import floors, intervals
from mechdiff.statistics.memory import once

ENDS = ("", "_low", "_high")
SCHEMA = {
    "direction": pl.String, "name": pl.String, "n": pl.Int64, "written": pl.Boolean, "p": pl.Float64, "sure": pl.Boolean,
    **{f"{what}{end}": pl.Float64 for what in (DIRECT, TOTAL, "repaired") for end in ENDS},
}  # fmt: skip
SURE = 0.05
NOTHING = 1e-6
"""Part of the way that rounding makes of an output that both models have alike, at least: less than that is nothing written, so nothing to test."""


@once
def sites(rows: pl.DataFrame) -> pl.DataFrame:
    """A line a direction and site (SCHEMA): `direct`, `total` and `repaired` as parts of the way in logits, with ends; `p` of `repaired` against 0.

    `written`: the two models' outputs differ there, by more than rounding moves an unedited run (three noise floors of the overlap); null where
    an effect is not finite on some prompt. Else than where it is true there is no p, and the line is no part of the family. `sure`: after Holm
    over all lines with a p it is at most SURE, and the interval leaves 0 out.
    """
    lines: list[dict[str, Any]] = []
    for direction in (RECOVERY, BREAKAGE):
        both = {arm: _overlaps(rows, direction, arm) for arm in (DIRECT, TOTAL)}
        undefined = pl.concat(both.values()).filter(~pl.col("value").is_finite())["name"].unique().sort().to_list()
        lines += [{"direction": direction, "name": name, "n": 0, "written": None, "p": np.nan, "sure": False} for name in undefined]
        known = [one.filter(~pl.col("name").is_in(undefined)) for one in both.values()]
        direct, total = (effect_shares.overlaps(rows, one) for one in known)
        if direct is None or total is None or direct[0] != total[0]:
            continue
        columns = {DIRECT: direct[1], TOTAL: total[1], "repaired": direct[1] - total[1]}
        shares = {what: intervals.share_intervals(matrix, direct[2]) for what, matrix in columns.items()}
        least = max(NOTHING * direct[2].mean(), _floor(rows, labels.runner(direction)))
        for i, name in enumerate(direct[0]):
            moved = max(np.abs(columns[arm][:, i]).mean() for arm in (DIRECT, TOTAL))
            written = bool(moved > least)
            p = spoken.mean_p(rows, columns["repaired"][:, i]) if written else np.nan
            line = {f"{what}{end}": float(one[i]) for what, found in shares.items() for end, one in zip(ENDS, found, strict=True)}
            lines.append({"direction": direction, "name": name, "n": len(direct[2]), "written": written, "p": p, "sure": False, **line})
    tested = [line for line in lines if not np.isnan(line["p"])]
    for line, p in zip(tested, intervals.holm(np.array([line["p"] for line in tested])) if tested else (), strict=True):
        line["sure"] = bool(p <= SURE and line["repaired_low"] * line["repaired_high"] > 0)
    return pl.DataFrame(lines, schema=SCHEMA).with_columns(pl.col(pl.Float64).fill_nan(None))


def _floor(rows: pl.DataFrame, runner: str) -> float:
    """Three noise floors of the overlap where a model runs, in nats; 0 where no unedited run was scored."""
    split = difference.reported(rows, "self_repair")
    of_overlap = floors.noise_floors(rows).filter(pl.col("metric") == OVERLAP, pl.col("split").eq_missing(split))
    found = of_overlap.filter(pl.col("runner") == runner)
    return floors.FLOORS * max(found["floor"].to_list(), default=0.0)


def _overlaps(rows: pl.DataFrame, direction: str, arm: str) -> pl.DataFrame:
    split = difference.reported(rows, "self_repair")
    here = where(rows, measure="self_repair", metric=OVERLAP, direction=direction, arm=arm, control=None, split=split)
    return here.with_columns(name=difference.site_name())
