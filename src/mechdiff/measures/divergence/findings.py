"""The numbers on whole texts give the divergence at every token of a prompt and its continuation.

Offsets count tokens from the decision position (0): negative in the prompt, positive in the continuation. The value at a
token is the divergence of the two laws of what follows it.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from mechdiff import labels
from mechdiff.report.difference import reported
from mechdiff.rows import where
from mechdiff.statistics import floors, intervals

BEFORE, AFTER = 60, 120
"""Offsets shown to the left and to the right."""
SAME_NUMBER = 1e-3
"""Relative difference up to which a token's divergence is that of the decision position, which another pass computed."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over prompts with its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, kw_only=True)
class Parting:
    """On how many prompts the two first choices differ for the first time ..."""

    before: int
    """... inside the prompt."""
    at: int
    """... at the decision position."""
    after: int
    """... in the continuation."""
    never: int


def offsets(rows: pl.DataFrame, manifest: dict) -> pl.DataFrame:
    """`prompt offset value`: D at every token of the reported split; prompts whose decision position is unknown are left out.

    The manifest says how long a prompt is; where it does not, the decision position is the token that has the prompt's D.
    """
    tokens = _of_tokens(rows, floors.d_metric(rows)).select("prompt", "value", place=pl.col("unit").str.slice(6).cast(pl.Int64))
    known = pl.DataFrame(list(decision_places(rows, manifest).items()), schema={"prompt": pl.String, "at": pl.Int64}, orient="row")
    placed = tokens.join(known, on="prompt").select("prompt", "value", offset=pl.col("place") - pl.col("at"))
    return placed.sort("prompt", "offset")


def decision_places(rows: pl.DataFrame, manifest: dict) -> dict[str, int]:
    """Index of the decision position in the tokens of each prompt, where it is known."""
    tokens = _of_tokens(rows, floors.d_metric(rows))
    whole = _whole(rows, floors.d_metric(rows)).select("prompt", d="value")
    found = tokens.join(whole, on="prompt").with_columns(
        place=pl.col("unit").str.slice(6).cast(pl.Int64), away=(pl.col("value") - pl.col("d")).abs()
    )
    found = found.filter(pl.col("away") <= SAME_NUMBER * pl.col("d"), pl.col("d") > 0).sort("prompt", "away", "place")
    places = dict(found.unique("prompt", keep="first", maintain_order=True).select("prompt", "place").iter_rows())
    stated = {text.get("prompt"): text.get("n_prompt_tokens") for text in manifest.get("texts") or []}
    stated |= manifest.get("n_prompt_tokens") or {}
    present = set(tokens["prompt"].to_list())
    return places | {str(name): int(n) - 1 for name, n in stated.items() if name in present and n}


def by_offset(rows: pl.DataFrame, manifest: dict) -> pl.DataFrame:
    """`offset n mean low high`: D at each offset that at least half of the prompts have, with 95 % intervals over prompts."""
    placed = offsets(rows, manifest).filter(pl.col("value").is_finite(), pl.col("offset").is_between(-BEFORE, AFTER))
    placed = _by_unit(placed, rows, manifest, "offset").sort("prompt", "offset")
    enough = max(2, placed["prompt"].n_unique() / 2)
    found = []
    for offset, part in placed.group_by("offset", maintain_order=True):
        if len(part) < enough:
            continue
        low, high = np.nan_to_num(intervals.mean_intervals(part["value"].to_numpy()[:, None]), nan=float(part["value"].to_numpy().mean()))
        found.append({"offset": offset[0], "n": len(part), "mean": part["value"].mean(), "low": float(low[0]), "high": float(high[0])})
    schema = {"offset": pl.Int64, "n": pl.Int64, "mean": pl.Float64, "low": pl.Float64, "high": pl.Float64}
    return pl.DataFrame(found, schema=schema).sort("offset")


def on_continuation(rows: pl.DataFrame, manifest: dict) -> Interval | None:
    """D a token behind the decision position, each prompt's mean counting once."""
    behind = offsets(rows, manifest).filter(pl.col("offset") > 0, pl.col("value").is_finite())
    of_prompt = behind.group_by("prompt", maintain_order=True).agg(pl.col("value").mean())
    return _interval(_by_unit(of_prompt, rows, manifest)["value"])


def _by_unit(of_prompt: pl.DataFrame, rows: pl.DataFrame, manifest: dict, *by: str) -> pl.DataFrame:
    """The table with the prompts of one cluster made one (`parts.load` puts their names into the manifest)."""
    split = reported(where(rows, measure="divergence"), "divergence")
    names = (manifest.get("units") or {}).get(split)
    if not names:
        return of_prompt
    named = of_prompt.with_columns(pl.col("prompt").replace(names))
    return named.group_by("prompt", *by, maintain_order=True).agg(pl.col("value").mean())


def bits_per_byte(rows: pl.DataFrame) -> dict[str, Interval]:
    """Bits per byte of the continuation under `base`, under `tuned`, and what the base needs `more`, over the same prompts."""
    sides = [_whole(rows, f"bits_per_byte_{side}").select("prompt", pl.col("value").alias(side)) for side in ("base", "tuned")]
    both = sides[0].join(sides[1], on="prompt").filter(pl.col("base").is_finite(), pl.col("tuned").is_finite()).sort("prompt")
    both = both.with_columns(more=pl.col("base") - pl.col("tuned"))
    found = {name: _interval(both[name]) for name in ("base", "tuned", "more")}
    return {name: interval for name, interval in found.items() if interval}


def partings(rows: pl.DataFrame, manifest: dict) -> pl.DataFrame:
    """`prompt offset`: where the two top-1 tokens differ for the first time, counted from the decision position; null where they never do."""
    places = decision_places(rows, manifest)
    first = _whole(rows, "first_divergence").filter(pl.col("prompt").is_in(list(places)) | pl.col("value").is_nan())
    known = pl.DataFrame(list(places.items()), schema={"prompt": pl.String, "at": pl.Int64}, orient="row")
    return first.join(known, on="prompt", how="left", maintain_order="left").select(
        "prompt", offset=(pl.col("value").fill_nan(None) - pl.col("at")).cast(pl.Int64)
    )


def parting(rows: pl.DataFrame, manifest: dict) -> Parting | None:
    """Where the two first choices differ for the first time; None where that was not measured."""
    if _whole(rows, "first_divergence").is_empty():
        return None
    away = partings(rows, manifest)["offset"]
    counts = {"before": (away < 0).sum(), "at": (away == 0).sum(), "after": (away > 0).sum(), "never": away.null_count()}
    return Parting(**{name: int(count) for name, count in counts.items()})


def _of_tokens(rows: pl.DataFrame, metric: str) -> pl.DataFrame:
    found = where(rows, measure="divergence", metric=metric, control=None)
    found = found.filter(labels.is_token(), pl.col("prompt").is_not_null())
    return found.filter(pl.col("split").eq_missing(reported(found, "divergence")))


def _whole(rows: pl.DataFrame, metric: str) -> pl.DataFrame:
    """`prompt value` of a metric of the whole text, on the reported split."""
    found = where(rows, measure="divergence", metric=metric, control=None)
    found = found.filter(pl.col("unit").is_null(), pl.col("prompt").is_not_null())
    return found.filter(pl.col("split").eq_missing(reported(found, "divergence"))).select("prompt", "value").sort("prompt")


def _interval(values: pl.Series) -> Interval | None:
    """The mean of one value a prompt, with its interval; None without values."""
    numbers = values.to_numpy().astype(float)
    if not len(numbers):
        return None
    low, high = intervals.mean_intervals(np.sort(numbers)[:, None])
    return Interval(mean=float(numbers.mean()), low=float(low[0]), high=float(high[0]), n=len(numbers))
