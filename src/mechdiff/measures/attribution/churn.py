"""Which heads does each model lean on, and which of them did the fine-tune bring or take away?

A head's attribution within one model is the estimate (gradient times difference) of what m changes by when the head's contribution is replaced by
its own mean. A head stands out where |z| of that over all heads is at least `OUTLIER`, or above the study's own threshold. Those that stand out in
both models stayed, in the tuned model only entered, in the base only left. A head near the limit does so by chance: two halves of one model's own
prompts "differ" by as many heads as two models. So `p` tests tuned - base of each head on the same prompts, among all heads together, and a head is
said to have entered or left only where it is at most WRONG. `holds` says in how many resamples of the prompts a head has the same state.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float
from numpy import ndarray

from mechdiff import labels
from mechdiff.measures.attribution import findings
from mechdiff.measures.attribution.findings import GRAIN, graded, heads, side_by_side, spearman
from mechdiff.report import spoken
from mechdiff.statistics.memory import once

MODELS = {"base": "base<-base", "tuned": "tuned<-tuned"}
"""The direction under which each model's own heads are attributed."""
OUTLIER = 2.0
TOP_K = (5, 10, 20)
WRONG = 0.05
SURE = 0.95
"""Share of resamples in which a head must do the same for that to be called sure."""


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """Spearman's rank correlation with its 95 % interval over prompts; None where it is not defined."""

    rho: float | None
    low: float | None
    high: float | None


def threshold(manifest: dict) -> float | None:
    """The |attribution| from which on a head stands out, if the study names one."""
    return (manifest.get("attribution") or {}).get("threshold")


@once
def churn(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict) -> pl.DataFrame:
    """Every head in both models: `name layer unit base base_low base_high z_base tuned tuned_low tuned_high z_tuned state holds p`.

    `state`: stayed, entered (stands out in the tuned model only), left (in the base only), or null; `holds`: the share of resamples of the
    prompts in which it is the same; `p`: of no difference between the models, family-wise over all heads.
    """
    names, values = _own(rows)
    if not names or not len(values["base"]):
        return pl.DataFrame(schema=_CHURN)
    limit = threshold(manifest)
    resampled = findings.weights(len(values["base"]))
    z = {model: z_scores(table.mean(axis=0)) for model, table in values.items()}
    out = {model: _stands_out(table.mean(axis=0), limit) for model, table in values.items()}
    drawn = {model: _stands_out(resampled @ table, limit) for model, table in values.items()}
    holds = np.mean((drawn["base"] == out["base"]) & (drawn["tuned"] == out["tuned"]), axis=0)
    code = out["base"] + 2 * out["tuned"]
    scored = pl.DataFrame(
        {
            "name": names,
            "z_base": z["base"],
            "z_tuned": z["tuned"],
            "holds": holds,
            "state": [_STATES[int(c)] for c in code],
            "p": _differ(rows, values["tuned"] - values["base"]),
        },
        schema_overrides={"state": pl.String},
    )
    of_heads = heads(findings.means(rows, summary, "attributed_logits")).filter(pl.col("arm") == "grad_x_diff")
    for model, direction in MODELS.items():
        one = of_heads.filter(pl.col("direction") == direction)
        kept = one.select("name", pl.col("mean").alias(model), pl.col("low").alias(f"{model}_low"), pl.col("high").alias(f"{model}_high"))
        scored = scored.join(kept, on="name", maintain_order="left")
    places = of_heads.select("name", "layer", "unit").unique()
    return (
        scored.join(places, on="name").sort("layer", labels.head_number()).select(pl.col(name).cast(kind) for name, kind in _CHURN.items())
    )


@once
def times_activation(rows: pl.DataFrame, summary: pl.DataFrame) -> pl.DataFrame:
    """Gradient times activation of every head in both models, the largest first: `name base base_low base_high tuned tuned_low tuned_high`."""
    of_heads = heads(findings.means(rows, summary, "attributed_logits")).filter(pl.col("arm") == "grad_x_act")
    kept = [
        of_heads.filter(pl.col("direction") == direction).select(
            "name", pl.col("mean").alias(model), pl.col("low").alias(f"{model}_low"), pl.col("high").alias(f"{model}_high")
        )
        for model, direction in MODELS.items()
    ]
    return kept[0].join(kept[1], on="name").sort(-pl.max_horizontal(pl.col("base", "tuned").abs()), "name")


def moved(table: pl.DataFrame) -> dict[str, int]:
    """By state, the heads of `churn` that entered or left and whose attribution is shown to differ between the models; `stayed` as they are."""
    sure = table.filter((pl.col("state") == "stayed") | (pl.col("p") <= WRONG))
    return {state: len(sure.filter(pl.col("state") == state)) for state in ("stayed", "entered", "left")}


def limits(table: pl.DataFrame, limit: float | None) -> dict[str, tuple[float, float]]:
    """The two attributions in each model from which on a head of `churn` stands out: where |z| is `OUTLIER`, or the study's threshold."""
    if limit is not None:
        return dict.fromkeys(MODELS, (-limit, limit))
    spread = {model: (table[model].to_numpy().mean(), OUTLIER * table[model].to_numpy().std()) for model in MODELS}
    return {model: (float(mean - reach), float(mean + reach)) for model, (mean, reach) in spread.items()}


def between_models(rows: pl.DataFrame) -> Correlation:
    """Spearman's correlation of the heads' attributions in the base with those in the tuned model."""
    names, values = _own(rows)
    if not names or not len(values["base"]):
        return Correlation(rho=None, low=None, high=None)
    resampled = findings.weights(len(values["base"]))
    rho = spearman(*(graded(values[model].mean(axis=0)) for model in MODELS))
    draws = spearman(*(graded(resampled @ values[model]) for model in MODELS))
    low, high = findings.interval(draws, float(rho), len(values["base"]))
    return Correlation(rho=findings.finite(float(rho)), low=low, high=high)


def overlap(table: pl.DataFrame) -> pl.DataFrame:
    """`k shared share chance`: of the k heads with the largest |attribution| in the base, those among the k of the tuned model; chance gives k/N."""
    tops = {model: table.sort(pl.col(model).abs(), descending=True, maintain_order=True)["name"].to_list() for model in MODELS}
    lines = []
    for k in (k for k in TOP_K if k < len(table)):
        shared = len(set(tops["base"][:k]) & set(tops["tuned"][:k]))
        lines.append({"k": k, "shared": shared, "share": shared / k, "chance": k / len(table)})
    return pl.DataFrame(lines, schema={"k": pl.Int64, "shared": pl.Int64, "share": pl.Float64, "chance": pl.Float64})


def z_scores(values: Float[ndarray, "... head"]) -> Float[ndarray, "... head"]:
    """Each head's distance from the mean over heads, in standard deviations; 0 where the heads do not differ."""
    spread = values.std(axis=-1, keepdims=True)
    centred = values - values.mean(axis=-1, keepdims=True)
    return np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 1e-12 * np.abs(values).max(axis=-1, keepdims=True))


_STATES = (None, "left", "entered", "stayed")
"""By: stands out in the base (1) + in the tuned model (2)."""
_CHURN = {"name": pl.String, "layer": pl.Int64, "unit": pl.String,
          **dict.fromkeys(["base", "base_low", "base_high", "z_base", "tuned", "tuned_low", "tuned_high", "z_tuned"], pl.Float64),
          "state": pl.String, "holds": pl.Float64, "p": pl.Float64}  # fmt: skip


def _own(rows: pl.DataFrame) -> tuple[list[str], dict[str, np.ndarray]]:
    """Names, and the attributions [prompt, head] in each model."""
    here = heads(findings.real(rows)).filter(pl.col("metric") == "attributed_logits", pl.col("arm") == "grad_x_diff")
    names, base, tuned = side_by_side(*(here.filter(pl.col("direction") == direction) for direction in MODELS.values()))
    return names, {"base": base, "tuned": tuned}


def _differ(rows: pl.DataFrame, differences: Float[ndarray, "prompt head"]) -> Float[ndarray, " head"]:
    """Family-wise p of each head's mean difference; NaN from too few prompts for their skew; 1 where a head's differences are all rounding."""
    size = np.abs(differences).max(axis=0)
    felt = size > GRAIN * size.max(initial=0.0)
    p = np.ones(differences.shape[1])
    if felt.any():
        p[felt] = spoken.family_p(rows, differences[:, felt])
    return p


def _stands_out(values: np.ndarray, limit: float | None) -> np.ndarray:
    return np.abs(z_scores(values)) >= OUTLIER if limit is None else np.abs(values) > limit
