"""The numbers on the factorial are of runs with blocks up to L from one model and those above from the other, in all four pairings.

What turning the upstream half from base to tuned brings (`upstream_effect`, the mean over both downstream halves), the same for the downstream half,
and what both together bring beyond the sum (`interaction`), in one of three scores. In `nats` of KL(p_tuned || run) the two effects sum to D, but
halves that merely add have an interaction there. In `linear_nats` they have none, and the two effects sum to KL(tuned || base) + KL(base || tuned);
`logits`, the gap of the two top tokens, is linear too, and undefined where both models have the same one. Whether halves build on each other or are
redundant is said from a linear score alone, at a split point that other prompts chose, or with bands and p values that hold for all split points at
once.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from mechdiff import labels, shares
from mechdiff.report import difference, spoken
from mechdiff.rows import where
from mechdiff.statistics import floors, intervals
from mechdiff.statistics import summary as statistics_summary
from mechdiff.statistics.memory import once

EFFECTS = {"upstream_effect": "upstream", "downstream_effect": "downstream", "interaction": "interaction"}
TERMS = 4
"""Runs that an effect is a sum over."""
LINEAR = ("linear_nats", "logits")
"""Scores in which halves that merely add have no interaction, the better one first."""


@dataclass(frozen=True, kw_only=True)
class Interaction:
    """What both halves bring beyond their sum at one split point, in a linear score; with its sign."""

    layer: int
    mean: float
    low: float
    high: float
    p: float
    """Of the mean against 0: of this split point alone where other prompts chose it, else family-wise over all."""
    whole: float
    """What both halves bring together, on the same prompts."""
    score: str
    """One of `LINEAR`."""
    n: int
    candidates: int
    selected_on: str | None
    """The split whose prompts chose the split point; None where it is the largest on the reported ones, with a band and p for all of them."""


@dataclass(frozen=True, kw_only=True)
class Halves:
    """Where one half surely does more than the other, by a 95 % band over all split points."""

    upper_until: int | None
    """The last split point up to which, at every one, the upper half does more; None if not at the first."""
    lower_from: int | None
    """The first split point from which on, at every one, the lower half does more; None if not at the last."""


@once
def effects(rows: pl.DataFrame, summary: pl.DataFrame, unit: str | None, metric: str = "nats") -> pl.DataFrame:
    """`layer effect mean low high p q n counts`: the three effects at each split point, on the reported split, in the order of `EFFECTS`.

    Where too few prompts give no interval, its ends are null.
    """
    names = {_metric(name, metric, unit): word for name, word in EFFECTS.items()}
    found = where(
        summary, measure="factorial", metric=list(names), split=difference.reported(rows, "factorial"), unit=unit, control=None, arm=None
    ).filter(pl.col("layer").is_not_null(), pl.col("mean").is_finite())
    found = found.with_columns(effect=pl.col("metric").replace_strict(names, return_dtype=pl.Enum(list(EFFECTS.values()))))
    found = found.sort("effect", "layer").with_columns(pl.col("effect").cast(pl.String))
    return found.select(
        "layer", "effect", "mean", pl.col("ci_low").alias("low"), pl.col("ci_high").alias("high"), "p", "q", "n",
        counts=~pl.col("flag").fill_null("").str.contains("below_floor"),
    )  # fmt: skip


@once
def units(rows: pl.DataFrame, summary: pl.DataFrame) -> list[str | None]:
    """The positions that were exchanged: `None` for the decision position alone, then `all_pos`, then those of the answers."""
    answered = where(rows, measure="factorial").filter(labels.is_over_answer())["unit"].unique().to_list()
    known = (None, labels.ALL_POSITIONS, *answered)
    return [unit for unit in known if not effects(rows, summary, unit, shown_score(rows, unit)).is_empty()]


def over_answer(unit: str | None) -> bool:
    """Whether a unit is the positions of an answer, and scores are means over them."""
    return unit not in (None, labels.ALL_POSITIONS)


def where_exchanged(unit: str | None) -> str:
    """The positions of a unit, in words."""
    return {None: "the last prompt token", labels.ALL_POSITIONS: "all positions"}.get(unit, "every position of the answer")


def _metric(effect: str, score: str, unit: str | None) -> str:
    """The name of an effect in one score, as rows have it."""
    name = f"{effect}_{score}"
    return shares.over(name, shares.ANSWER) if over_answer(unit) else name


def linear(rows: pl.DataFrame, unit: str | None) -> str | None:
    """The linear score that was measured; None without one."""
    measured = where(rows, measure="factorial").filter(pl.col("unit").eq_missing(unit))["metric"].unique().to_list()
    return next((score for score in LINEAR if _metric("interaction", score, unit) in measured), None)


def shown_score(rows: pl.DataFrame, unit: str | None) -> str:
    """The score of the figure: linear where it is defined on every prompt, else nats of KL."""
    return "linear_nats" if linear(rows, unit) == "linear_nats" else "nats"


def per_prompt(rows: pl.DataFrame, unit: str | None, effect: str, score: str, split: str | None) -> tuple[list[int], np.ndarray]:
    """Split points, and one effect's values [prompt, split point]; prompts without a value are left out."""
    found = where(rows, measure="factorial", split=split, unit=unit, control=None, arm=None).filter(
        pl.col("metric") == _metric(effect, score, unit), pl.col("layer").is_not_null()
    )
    _, layers, table = statistics_summary.prompt_matrix(found)
    return layers, table


@once
def halves(rows: pl.DataFrame, unit: str | None) -> Halves | None:
    """Where one half surely does more, in the linear score (in nats of KL without one); None with fewer than `intervals.FEWEST` prompts."""
    score, split = linear(rows, unit) or "nats", difference.reported(rows, "factorial")
    layers, lower = per_prompt(rows, unit, "upstream_effect", score, split)
    same, upper = per_prompt(rows, unit, "downstream_effect", score, split)
    if len(lower) < intervals.FEWEST or lower.shape != upper.shape or layers != same:
        return None
    low, high = intervals.simultaneous_bands(lower - upper)
    ahead, behind = np.append(low > 0, True), np.append(True, high < 0)
    first = len(layers) - int(ahead[::-1].cumprod().sum()) + 1
    last = int(behind.cumprod().sum()) - 2
    return Halves(upper_until=layers[last] if last >= 0 else None, lower_from=layers[first] if first < len(layers) else None)


@once
def interaction(rows: pl.DataFrame, unit: str | None) -> Interaction | None:
    """The interaction at the split point where it is largest on the select prompts, reported on the others; see `Interaction`.

    None without a linear score, or with fewer than `intervals.FEWEST` prompts that have one.
    """
    score, split = linear(rows, unit), difference.reported(rows, "factorial")
    if score is None:
        return None
    layers, table = per_prompt(rows, unit, "interaction", score, split)
    whole = sum(per_prompt(rows, unit, effect, score, split)[1].mean() for effect in ("upstream_effect", "downstream_effect"))
    if len(table) < intervals.FEWEST:
        return None
    candidates, chosen_by = per_prompt(rows, unit, "interaction", score, "select") if split != "select" else ([], np.zeros((0, 0)))
    if len(chosen_by) and candidates == layers:
        place = int(np.abs(chosen_by.mean(axis=0)).argmax())
        column = table[:, place : place + 1]
        low, high, p = (*(ends[0] for ends in intervals.mean_intervals(column)), spoken.mean_p(rows, column[:, 0]))
    else:
        place = int(np.abs(table.mean(axis=0)).argmax())
        low, high, p = (*(ends[place] for ends in intervals.simultaneous_bands(table)), spoken.family_p(rows, table)[place])
    return Interaction(
        layer=layers[place], mean=float(table[:, place].mean()), low=float(low), high=float(high), p=float(p), whole=float(whole), score=score,
        n=len(table), candidates=len(layers), selected_on="select" if len(chosen_by) and candidates == layers else None,
    )  # fmt: skip


def with_crossing_floors(summary: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """The summary, effects in nats held against four times what one unedited row strays: they are sums of four scores."""
    key = ["split", "unit", "what"]
    found = summary.with_columns(what=_what()).join(_crossing_floors(rows), on=key, how="left", nulls_equal=True, maintain_order="left")
    of_four = (pl.col("measure") == "factorial") & (pl.col("floor_of") == "size")
    return found.with_columns(floor=pl.when(of_four).then(TERMS * pl.col("floor_of_crossing")).otherwise("floor")).drop("what")


def _crossing_floors(rows: pl.DataFrame) -> pl.DataFrame:
    """`split unit what floor_of_crossing`: how far KL(p_tuned || run) of an unedited row strays from D (where the base runs) and from 0."""
    names = {floors.d_metric(rows, what): what or "" for what in floors.OVER}
    d = floors.of_the_pair(rows).filter(pl.col("metric").is_in(list(names)))
    d = d.select("split", "prompt", clean="value", what=pl.col("metric").replace_strict(names))
    unedited = where(rows, measure="factorial").filter(pl.col("control") == "no_op").with_columns(what=_what())
    unedited = unedited.join(d, on=["split", "prompt", "what"], how="left")
    strays = (pl.col("value") - pl.when(pl.col("arm") == "bb").then("clean").otherwise(0.0)).abs()
    found = unedited.with_columns(strays=strays).filter(pl.col("strays").is_finite())
    return found.group_by("split", "unit", "what").agg(floor_of_crossing=pl.col("strays").max())


def _what() -> pl.Expr:
    """What a row's metric is of: one of `shares.OVER`, or "" at the decision position."""
    return pl.col("metric").str.extract(f"_({'|'.join(shares.OVER)})_nats$").fill_null("")
