"""The numbers on attribution say what gradients estimate, how far to believe them, and which units they point to.

    estimate   attributed_logits: gradient of m times the difference of states, or integrated gradients along the way from one to the other
    effect     effect_logits: what m really changes by when the state is written; known for the heads that were patched, and for whole layers

An estimate is believed as far as it agrees with effects: the Spearman correlation over the patched heads (of the largest estimates and of a
random sample; the top alone would say nothing about what gradients miss), and the relative error sum |estimate - effect| / sum |effect|.
Integrated gradients have one more check that needs no choice of heads: over the heads of a layer they sum to the effect of all (completeness).

All means are over prompts. Intervals of correlations and errors are percentiles over resampled prompts, stretched to contain the value:
resampling adds noise to every head's mean, so those of correlations lean low.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float
from numpy import ndarray
from scipy.stats import rankdata

from mechdiff import labels
from mechdiff.report import difference
from mechdiff.report.difference import BREAKAGE
from mechdiff.rows import where
from mechdiff.shares import ANSWER, OF_THE_PAIR
from mechdiff.statistics import bootstrap, floors, intervals
from mechdiff.statistics import summary as statistics_summary
from mechdiff.statistics.intervals import FEWEST
from mechdiff.statistics.memory import once

ESTIMATES = ("grad_x_diff", "integrated_gradients")
TOP, RANDOM, TOGETHER = "top", "random", "together"
GRAIN = 1e-4
"""Of the largest value over the heads: what lies closer together is one rank, because rounding must not be ranked."""
LEAST = 1e-5
"""Of D: a mean effect under it is rounding of the logits, and stands for none."""
WORTH = 1e-3
"""A layer counts for completeness where its whole effect is at least this share of the largest layer's."""
RESAMPLES = 1000
PLACE = ["direction", "layer", "site", "unit", "arm"]


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """On how many prompts m is defined: `divergent` is not where both models choose the same token."""

    defined: int
    undefined: int


def real(rows: pl.DataFrame) -> pl.DataFrame:
    """The values per prompt of the reported split, with the `name` of the place: L26.head 3, L5.mlp_out."""
    found = _of_measure(rows).filter(pl.col("split").eq_missing(difference.reported(rows, "attribution")), pl.col("prompt").is_not_null())
    return found.with_columns(name=_name())


def prompts(rows: pl.DataFrame) -> Prompts:
    """How many prompts have a number, and how many have none."""
    by_prompt = real(rows).group_by("prompt").agg(undefined=pl.col("value").is_nan().any())["undefined"]
    return Prompts(defined=len(by_prompt) - int(by_prompt.sum()), undefined=int(by_prompt.sum()))


def means(rows: pl.DataFrame, summary: pl.DataFrame, metric: str, *, split: str | None = None) -> pl.DataFrame:
    """`direction layer site unit arm name n mean low high` of every place where the metric is a number, on the reported split."""
    split = split or difference.reported(rows, "attribution")
    found = _of_measure(summary).filter(pl.col("split").eq_missing(split), pl.col("metric") == metric, pl.col("mean").is_finite())
    return found.select(*PLACE, "n", "mean", low="ci_low", high="ci_high").with_columns(name=_name())


def validated(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict) -> pl.DataFrame:
    """The heads that were patched: `direction layer unit name group arm n estimate estimate_low estimate_high effect effect_low effect_high`.

    One row for each way of estimating, in network order; `group` is top or random, as the run chose them.
    """
    key = ["direction", "layer", "site", "unit", "name"]
    estimates = heads(means(rows, summary, "attributed_logits")).filter(pl.col("direction").is_in(labels.CROSSED))
    effects = heads(means(rows, summary, "effect_logits")).select(*key, effect="mean", effect_low="low", effect_high="high")
    both = estimates.rename({"mean": "estimate", "low": "estimate_low", "high": "estimate_high"}).join(effects, on=key, nulls_equal=True)
    both = both.join(_groups(manifest), on=["direction", "name"], how="left").with_columns(pl.col("group").fill_null(RANDOM))
    return both.drop("site").sort(pl.col("direction") != BREAKAGE, "arm", "layer", labels.head_number())


@once
def agreement(rows: pl.DataFrame, manifest: dict) -> pl.DataFrame:
    """`direction arm group heads nothing n rho rho_low rho_high error error_low error_high`: estimates against effects, over prompts and heads.

    For the top and the random heads, and both together. `nothing` counts the heads without an effect, which tie; numbers are null where the
    effects of a group do not differ, or are all nothing.
    """
    lines = []
    chosen = {(r["direction"], r["name"]): r["group"] for r in _groups(manifest).iter_rows(named=True)}
    for direction in labels.CROSSED:
        for arm in ESTIMATES:
            names, estimate, effect = _pairs(rows, direction, arm)
            if not names or not len(estimate):
                continue
            group = np.array([chosen.get((direction, name), RANDOM) for name in names])
            for word in (TOGETHER, TOP, RANDOM):
                members = np.flatnonzero(group == word) if word != TOGETHER else np.arange(len(names))
                if not len(members):
                    continue
                lines.append({"direction": direction, "arm": arm, "group": word, "heads": len(members), "n": len(estimate),
                              **_agree(estimate, effect, members)})  # fmt: skip
    return pl.DataFrame(lines, schema=_AGREEMENT)


def completeness(rows: pl.DataFrame) -> pl.DataFrame:
    """`direction arm layer summed whole error counts`: the sum of the estimates over a layer's heads against the effect of all its heads.

    `error` is the mean over prompts of |sum - effect| against that of |effect|; layers whose effect is next to nothing do not count.
    """
    found = real(rows).filter(pl.col("direction").is_in(labels.CROSSED), pl.col("site") == "attn_proj", pl.col("value").is_not_nan())
    estimates = heads(found).filter(pl.col("metric") == "attributed_logits")
    summed = estimates.group_by("direction", "arm", "layer", "prompt").agg(summed=pl.col("value").sum())
    whole = found.filter(pl.col("metric") == "effect_logits", pl.col("unit") == labels.ALL)
    both = summed.join(whole.select("direction", "layer", "prompt", whole="value"), on=["direction", "layer", "prompt"]).sort("prompt")
    table = both.group_by("direction", "arm", "layer").agg(
        pl.col("summed").mean(),
        pl.col("whole").mean(),
        missed=(pl.col("summed") - pl.col("whole")).abs().mean(),
        size=pl.col("whole").abs().mean(),
    )
    counts = (pl.col("size") > _least(rows)) & (pl.col("size") >= WORTH * pl.col("size").max().over("direction"))
    table = table.with_columns(counts=counts, error=pl.when(counts).then(pl.col("missed") / pl.col("size")))
    return table.drop("missed", "size").sort(pl.col("direction") != BREAKAGE, "arm", "layer")


def complete(table: pl.DataFrame) -> pl.DataFrame:
    """`direction arm layers median worst worst_layer` over the layers of `completeness` that count."""
    counted = table.filter("counts").sort("error", descending=True, maintain_order=True)
    grouped = counted.group_by("direction", "arm", maintain_order=True).agg(
        layers=pl.len(), median=pl.col("error").median(), worst=pl.col("error").first(), worst_layer=pl.col("layer").first()
    )
    return grouped.sort(pl.col("direction") != BREAKAGE, "arm")


def top_heads(rows: pl.DataFrame, summary: pl.DataFrame, direction: str) -> tuple[pl.DataFrame, str | None]:
    """All heads with `name estimate low high integrated effect effect_low effect_high rank`, the first first, and the split that ranked them.

    `estimate` is gradient times difference, on the reported split; `rank` is its size on the split that ranked: `select` where that was measured.
    """
    return _ranked(heads, rows, summary, direction)


def top_sites(rows: pl.DataFrame, summary: pl.DataFrame, direction: str) -> tuple[pl.DataFrame, str | None]:
    """As `top_heads`, of MLPs and other whole sites outside the residual stream (all whole sites if there are none)."""

    def sites(table: pl.DataFrame) -> pl.DataFrame:
        whole = table.filter(pl.col("unit").is_null())
        outputs = whole.filter(~pl.col("site").is_in(difference.STREAM))
        return whole if outputs.is_empty() else outputs

    return _ranked(sites, rows, summary, direction)


def graded(values: Float[ndarray, "... head"]) -> Float[ndarray, "... head"]:
    """The values in steps of GRAIN of the largest, so that what differs by rounding ties."""
    largest = np.abs(values).max(axis=-1, keepdims=True)
    return np.round(np.divide(values, GRAIN * largest, out=np.zeros_like(values), where=largest > 0))


def spearman(one: Float[ndarray, "... head"], other: Float[ndarray, "... head"]) -> Float[ndarray, "..."]:
    """Spearman's rank correlation over the last axis; ties share their rank; NaN where either side is constant."""
    ranks = [rankdata(values, axis=-1) for values in (one, other)]
    a, b = (r - r.mean(axis=-1, keepdims=True) for r in ranks)
    scale = np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))
    return np.divide((a * b).sum(axis=-1), scale, out=np.full(np.shape(scale), np.nan), where=scale > 0)


def heads(table: pl.DataFrame) -> pl.DataFrame:
    """The rows of single heads."""
    return table.filter(labels.is_head())


def side_by_side(one: pl.DataFrame, other: pl.DataFrame) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Two tables of values per prompt and name, over the names and prompts that both have."""
    one, other = (side.filter(pl.col("value").is_not_nan()) for side in (one, other))
    sides = [one.join(other, on="name", how="semi"), other.join(one, on="name", how="semi")]
    keyed = [side.select("prompt", "value", key=pl.format("{} {}", pl.lit(place), "name")) for place, side in enumerate(sides)]
    _, keys, table = statistics_summary.prompt_matrix(pl.concat(keyed), by="key")
    names = [key.partition(" ")[2] for key in keys[: len(keys) // 2]]
    return names, table[:, : len(names)], table[:, len(names) :]


def weights(n_prompts: int) -> Float[ndarray, "resample prompt"]:
    """How much each prompt weighs in the mean of each resample."""
    return bootstrap.resample_counts(n_prompts, resamples=RESAMPLES) / n_prompts


def interval(draws: np.ndarray, point: float, n_prompts: int) -> tuple[float | None, float | None]:
    """The ends of a number's 95 % interval, from its values in the resamples; none where it is not defined or for fewer than FEWEST prompts."""
    finite = draws[np.isfinite(draws)]
    if n_prompts < FEWEST or not len(finite) or not np.isfinite(point):
        return None, None
    low, high = np.quantile(finite, [(1 - intervals.LEVEL) / 2, (1 + intervals.LEVEL) / 2])
    return min(float(low), point), max(float(high), point)


def finite(value: float) -> float | None:
    """The value, or None if it is not a number."""
    return value if np.isfinite(value) else None


_AGREEMENT = {"direction": pl.String, "arm": pl.String, "group": pl.String, "heads": pl.Int64, "nothing": pl.Int64, "n": pl.Int64,
              **dict.fromkeys(["rho", "rho_low", "rho_high", "error", "error_low", "error_high"], pl.Float64)}  # fmt: skip


def _of_measure(table: pl.DataFrame) -> pl.DataFrame:
    here = where(table, measure="attribution").filter(pl.col("control").is_null(), pl.col("layer").is_not_null())
    return here.filter(~labels.is_over_answer())


@once
def as_at_first(table: pl.DataFrame) -> pl.DataFrame:
    """Rows or a summary in which what was attributed over answers stands where that of the next token stood, and so does D: all functions here
    read it so."""
    mine, first, along = pl.col("measure") == "attribution", floors.d_metric(table), floors.d_metric(table, ANSWER)
    of_pair = pl.col("measure") == OF_THE_PAIR
    d = of_pair & pl.col("metric").is_in([first, along])
    over = table.filter(mine, labels.is_over_answer()).with_columns(
        unit=labels.beside_answer(), metric=pl.col("metric").str.replace("_answer_logits", "_logits", literal=True)
    )
    size = table.filter(d, pl.col("metric") == along).with_columns(metric=pl.lit(first))
    return pl.concat([table.filter(~mine & ~of_pair), table.filter(of_pair & ~d), size, over])


def _name() -> pl.Expr:
    return pl.format("L{}.{}", "layer", pl.coalesce("unit", "site"))


def _groups(manifest: dict) -> pl.DataFrame:
    """`direction name group` of the heads that the run chose to patch."""
    chosen = (manifest.get("attribution") or {}).get("validated") or {}
    lines = [(direction, name, group) for direction, lists in chosen.items() for group in (TOP, RANDOM) for name in lists.get(group) or []]
    return pl.DataFrame(lines, schema=dict.fromkeys(["direction", "name", "group"], pl.String), orient="row")


def _pairs(rows: pl.DataFrame, direction: str, arm: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, estimates and effects [prompt, head] of the heads that have both, over the prompts on which all are numbers."""
    here = heads(real(rows)).filter(pl.col("direction") == direction)
    estimate = here.filter(pl.col("metric") == "attributed_logits", pl.col("arm") == arm)
    effect = here.filter(pl.col("metric") == "effect_logits")
    names, attributed, true = side_by_side(estimate, effect)
    return names, attributed, np.where(np.abs(true.mean(axis=0)) < _least(rows), 0.0, true) if len(true) else true


def _least(rows: pl.DataFrame) -> float:
    """The smallest mean effect that is one, in logits."""
    d = difference.d_per_prompt(rows)["d"]
    finite_d = d.filter(d.is_finite())
    return LEAST * float(finite_d.to_numpy().mean()) if len(finite_d) else 0.0


def _agree(estimate: np.ndarray, effect: np.ndarray, members: np.ndarray) -> dict[str, float | None]:
    """rho and error with their ends, over some of the heads; what ties is judged against the largest of all heads."""
    resampled = weights(len(estimate))
    point, drawn = (estimate.mean(axis=0), effect.mean(axis=0)), (resampled @ estimate, resampled @ effect)
    rhos = [spearman(*(graded(side)[..., members] for side in sides)) for sides in (point, drawn)]
    errors = [_error(*sides, members) for sides in (point, drawn)]
    found: dict[str, float | None] = {"nothing": int((graded(point[1])[members] == 0).sum())}
    for name, (value, draws) in {"rho": rhos, "error": errors}.items():
        low, high = interval(draws, float(value), len(estimate))
        found |= {name: finite(float(value)), f"{name}_low": low, f"{name}_high": high}
    return found


def _error(estimate: np.ndarray, effect: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Sum over heads of |estimate - effect| against that of |effect|; NaN where the effects are rounding beside the largest of all heads."""
    missed, size = np.abs(estimate - effect)[..., members].sum(axis=-1), np.abs(effect)[..., members].sum(axis=-1)
    largest = np.abs(effect).max(axis=-1)
    return np.divide(missed, size, out=np.full(np.shape(size), np.nan), where=size > GRAIN * largest * len(members))


def _ranked(
    part: Callable[[pl.DataFrame], pl.DataFrame], rows: pl.DataFrame, summary: pl.DataFrame, direction: str
) -> tuple[pl.DataFrame, str | None]:
    """The places that `part` keeps, with both estimates and the effect, by |gradient times difference| on the split that ranks."""
    here = pl.col("direction") == direction
    found = part(means(rows, summary, "attributed_logits").filter(here))
    first = found.filter(pl.col("arm") == "grad_x_diff").select("name", "layer", "site", "unit", "low", "high", estimate="mean")
    integrated = found.filter(pl.col("arm") == "integrated_gradients").select("name", integrated="mean")
    effect = part(means(rows, summary, "effect_logits").filter(here)).select("name", effect="mean", effect_low="low", effect_high="high")
    for split in ("select", difference.reported(rows, "attribution")):
        ranker = part(means(rows, summary, "attributed_logits", split=split).filter(here, pl.col("arm") == "grad_x_diff"))
        if not ranker.is_empty():
            break
    joined = first.join(integrated, on="name", how="left").join(effect, on="name", how="left")
    joined = joined.join(ranker.select("name", rank=pl.col("mean").abs()), on="name")
    ordered = joined.sort("rank", "layer", "name", descending=[True, False, False])
    return ordered, None if ranker.is_empty() else split
