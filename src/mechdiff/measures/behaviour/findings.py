"""The numbers on behaviour say what both models do, and what edits of their activations change about it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

import numpy as np
import polars as pl
from scipy.stats import spearmanr

from mechdiff import labels
from mechdiff.measures.behaviour.answers import BINARY
from mechdiff.rows import where
from mechdiff.statistics import intervals, simulated
from mechdiff.statistics.floors import FLOORS
from mechdiff.statistics.memory import once

RIGHT = ("exact_match", "mc_correct", "mc_margin_per_byte_nats")
SPOKEN = ("refusal", *RIGHT, "style_per_100_words")
"""What is spoken of, in this order, beside the soft refusal."""
CHANGED = ("refusal_soft_nats", "mc_margin_per_byte_nats", "refusal", "mc_correct")
"""What edits are looked at for."""
FEW = 6
"""Prompts from which an interval of a mean, a correlation or a profile is given."""
WRONG = 0.05
SOFT = ("refusal_soft_nats", "refusal_soft_per_byte_nats")
"""Of texts that are put to both models, not of what they answer."""
STREAM = "resid_post"
EDIT = ["direction", "layer", "site", "arm", "rank", "strength", "unit"]

Estimate = tuple[float, float, float]
"""A mean and the ends of its interval; NaN where there is none."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One metric of both models on the same prompts."""

    metric: str
    style: str | None
    """The class of markers."""
    n: int
    base: Estimate
    tuned: Estimate
    difference: Estimate
    """tuned - base, paired."""
    binary: bool
    """Whether every value is 0 or 1."""
    p: float
    """McNemar's exact test of what is 0 or 1, else the test of a mean difference of 0; 1 from fewer than FEW prompts."""
    spread: float
    """Standard deviation of the differences."""
    family: int = 1
    """Scores that are tested together with this one, itself among them."""
    holm: float | None = None
    """p among its family; None of what is not tested, as what neither model ever did."""

    @property
    def counts(self) -> bool:
        """Whether the difference is seen, among all that its family tests."""
        return (self.p if self.holm is None else self.holm) <= WRONG

    @property
    def detectable(self) -> float:
        """The smallest mean difference that would have been seen with 80 % power in this family; NaN from fewer than FEW prompts."""
        if self.n < FEW:
            return np.nan
        return float(simulated.detectable(np.array(self.spread), self.n, level=1 - WRONG / self.family))

    @property
    def smallest(self) -> int | None:
        """On how many prompts the two models must differ, all in one direction, to be seen; None if not even all prompts would do."""
        least = next(k for k in range(1, 64) if self.family * intervals.mcnemar(0, k) <= WRONG)
        return least if least <= self.n else None

    @property
    def happened(self) -> bool:
        """Whether either model has anything but 0."""
        return bool(self.base[0] or self.tuned[0])


@dataclass(frozen=True, kw_only=True)
class Group:
    """Prompts that are looked at together, clean runs of both models."""

    name: str
    """ "report" (the study's own prompts), or what the probes' `meta.kind` says."""
    language: str | None
    """None: all languages."""
    rows: pl.DataFrame


@once
def groups(rows: pl.DataFrame, manifest: dict) -> list[Group]:
    """The study's report prompts, each kind of probe, and behind each of these the same by language where there are several."""
    clean = where(rows, measure="behaviour").filter(pl.col("direction").is_null(), pl.col("prompt").is_not_null())
    units = (manifest.get("units") or {}).get("report", {})
    found = []
    for name, by_language in ((manifest.get("behaviour") or {}).get("groups") or {}).items():
        own = clean.filter(pl.col("split") == "report" if name == "report" else pl.col("split").is_null())
        if name == "report":  # prompts of one cluster go by its name
            by_language = {language: sorted({units.get(prompt, prompt) for prompt in prompts}) for language, prompts in by_language.items()}
        everyone = [prompt for prompts in by_language.values() for prompt in prompts]
        parts = {None: everyone, **(by_language if len(by_language) > 1 else {})}
        held = ((language, own.filter(pl.col("prompt").is_in(prompts))) for language, prompts in parts.items())
        found += [Group(name=name, language=language, rows=part) for language, part in held if not part.is_empty()]
    return found


@once
def compared(rows: pl.DataFrame) -> list[Compared]:
    """Every metric that both models have in these rows, in the order of SPOKEN, then of the others."""
    wide = by_model(rows)
    found = []
    for (metric, style), part in wide.group_by("metric", "style", maintain_order=True):
        values = part.select("base", "tuned").drop_nulls().drop_nans().to_numpy()
        if len(values):
            found.append(_compared(str(metric), None if style is None else str(style), values))
    places = {metric: place for place, metric in enumerate(SPOKEN)}
    return sorted(found, key=lambda one: (places.get(one.metric, len(places)), one.metric, one.style or ""))


def soft_metric(manifest: dict) -> str:
    """The soft refusal to read: per byte between two tokenizers."""
    relation = (manifest.get("tokenizers") or {}).get("relation", "equal")
    return "refusal_soft_nats" if relation in ("equal", "permuted") else "refusal_soft_per_byte_nats"


def to_the_point(group: Group, every: Sequence[Compared], soft: str) -> list[Compared]:
    """What is spoken of in a group: one soft refusal; of probes that have right answers whether these are given."""
    spoken = [one for one in every if one.style is None and (one.metric == soft or one.metric in SPOKEN)]
    right = [one for one in spoken if one.metric in RIGHT]
    chosen = together(right if right and group.name != "report" else spoken)
    cut = any(one.metric == "exact_match" for one in chosen)
    by_metric = {(one.metric, one.style): one for one in chosen}
    found = [by_metric.get((one.metric, one.style), one if one.metric == "cut_off" and cut else None) for one in every]
    return [one for one in found if one is not None]


def together(chosen: Sequence[Compared]) -> list[Compared]:
    """The same scores with Holm's p: among all that are spoken of and could differ at all, a false alarm is had in 5 % of studies."""
    tested = [one for one in chosen if one.happened]
    p = intervals.holm(np.array([one.p for one in tested])) if tested else np.empty(0)
    known = {id(one): float(value) for one, value in zip(tested, p, strict=True)}
    return [replace(one, family=max(1, len(tested)), holm=known.get(id(one))) for one in chosen]


def both_lengths(every: Sequence[Compared]) -> bool:
    """Whether soft refusal moves in one direction per token and per byte; of one that was not measured, nothing is said."""
    signs = {np.sign(one.difference[0]) for one in every if one.metric in SOFT and one.style is None}
    return len(signs) <= 1


def refused(rows: pl.DataFrame) -> bool:
    """Whether any answer of either model refuses, drawn ones among them."""
    return bool((rows.filter(pl.col("metric") == "refusal")["value"].fill_nan(0.0) > 0).any())


def by_model(rows: pl.DataFrame) -> pl.DataFrame:
    """`metric style prompt base tuned`; the style of drawn answers is "drawn", and what is masked is left out."""
    told = rows.with_columns(side=labels.answer_side(), style=labels.answer_kind().replace(labels.SAMPLED, "drawn"))
    told = told.filter(pl.col("style").ne_missing(labels.SHARED_TOKENS))
    sides = [
        told.filter(pl.col("side") == side).select("metric", "style", "prompt", value=pl.col("value").alias(side))
        for side in ("base", "tuned")
    ]
    named = [part.rename({"value": side}) for part, side in zip(sides, ("base", "tuned"), strict=True)]
    return named[0].join(named[1], on=["metric", "style", "prompt"], nulls_equal=True).sort("metric", "style", "prompt")


def _compared(metric: str, style: str | None, values: np.ndarray) -> Compared:
    base, tuned = values[:, 0], values[:, 1]
    binary = metric in BINARY and np.isin(values, (0, 1)).all()
    ends = [_wilson(one) if binary else _mean(one) for one in (base, tuned)]
    if binary:
        p = intervals.mcnemar(int(((base == 1) & (tuned == 0)).sum()), int(((base == 0) & (tuned == 1)).sum()))
    else:
        p = float(intervals.mean_p((tuned - base)[:, None])[0]) if len(values) >= FEW else 1.0
    return Compared(
        metric=metric,
        style=style,
        n=len(values),
        base=ends[0],
        tuned=ends[1],
        difference=_mean(tuned - base),
        binary=bool(binary),
        p=p,
        spread=float((tuned - base).std(ddof=1)) if len(values) > 1 else 0.0,
    )


def _mean(values: np.ndarray) -> Estimate:
    mean = float(values.mean())
    if len(values) < FEW:
        return mean, np.nan, np.nan
    low, high = (float(end[0]) for end in intervals.mean_intervals(values[:, None]))
    least = 1e-12 * float(np.abs(values).max())  # a mean of zeros and few others has ends that are 0 but for rounding
    return mean, low if abs(low) > least else 0.0, high if abs(high) > least else 0.0


def _wilson(values: np.ndarray) -> Estimate:
    low, high = intervals.wilson(np.array([values.mean()]), len(values))
    return float(values.mean()), float(low[0]), float(high[0])


def masked(rows: pl.DataFrame) -> pl.DataFrame:
    """`model metric n plain masked coverage`: what the cut to shared tokens makes of each number, and the mass that it keeps."""
    clean = where(rows, measure="behaviour").filter(pl.col("direction").is_null(), pl.col("unit").is_not_null())
    told = clean.with_columns(model=labels.answer_side(), cut=labels.answer_kind())
    cut = told.filter(pl.col("cut") == labels.SHARED_TOKENS)
    if cut.is_empty():
        return pl.DataFrame()
    key = ["model", "split", "prompt"]
    coverage = cut.filter(pl.col("metric") == "mask_coverage").group_by("model").agg(coverage=pl.col("value").mean())
    plain = told.filter(pl.col("cut").is_null()).select(*key, "metric", plain="value")
    both = cut.filter(pl.col("metric") != "mask_coverage").join(plain, on=[*key, "metric"], nulls_equal=True)
    means = both.group_by("model", "metric").agg(n=pl.len(), plain=pl.col("plain").mean(), masked=pl.col("value").mean())
    return means.join(coverage, on="model", how="left").sort("metric", "model")


# ---- under intervention ------------------------------------------------------------------------------------------------------------


def changes(rows: pl.DataFrame, metrics: Sequence[str] = CHANGED) -> pl.DataFrame:
    """EDIT, `metric n mean low high`: how far each edit moves each metric from the unedited run of the same model, over prompts, paired."""
    table = per_prompt(rows).filter(pl.col("metric").is_in(metrics))
    found = []
    for key, part in table.group_by(*EDIT, "metric", maintain_order=True):
        values = part["change"].drop_nulls().drop_nans().to_numpy()
        if len(values):
            found.append((*key, len(values), *_mean(values)))
    return _table({name: table.schema[name] for name in EDIT} | {"metric": pl.String(), "n": pl.Int64()}, found)


def _table(schema: dict[str, pl.DataType], found: list[tuple]) -> pl.DataFrame:
    return pl.DataFrame(found, schema=schema | dict.fromkeys(("mean", "low", "high"), pl.Float64()), orient="row")


def per_prompt(rows: pl.DataFrame) -> pl.DataFrame:
    """EDIT, `split prompt metric value clean change`: each prompt under each edit, and in the unedited run of the same model; in network order."""
    under = where(rows, measure="behaviour").filter(pl.col("direction").is_not_null(), pl.col("prompt").is_not_null())
    key = ["direction", "split", "prompt", "metric"]
    clean = under.filter(pl.col("control") == "no_op").select(*key, clean="value").unique(key)
    edited = under.filter(pl.col("control").is_null()).select(*EDIT, "split", "prompt", "metric", "value")
    both = edited.join(clean, on=key, nulls_equal=True)
    order = ["metric", "arm", "unit", "site", "direction", "layer", "rank", "strength", "split", "prompt"]
    return both.with_columns(change=pl.col("value") - pl.col("clean")).sort(order, nulls_last=False)


def profile(rows: pl.DataFrame, metric: str) -> pl.DataFrame:
    """`direction layer n mean low high` of plain patches of the residual stream (or of the one site that was patched), with simultaneous bands."""
    found = where(per_prompt(rows), metric=metric, arm="identity", unit=None).filter(pl.col("layer").is_not_null())
    sites = found["site"].unique().sort().to_list()
    lines = []
    for (direction,), part in found.filter(pl.col("site") == (STREAM if STREAM in sites else min(sites, default=""))).group_by(
        "direction", maintain_order=True
    ):
        wide = part.sort("layer").pivot("layer", index=["split", "prompt"], values="change").drop("split", "prompt").drop_nulls()
        values = wide.to_numpy()
        values = values[np.isfinite(values).all(1)]
        if len(values) < FEW:
            continue
        low, high = intervals.simultaneous_bands(values)
        ends = zip(map(int, wide.columns), values.mean(0), low, high, strict=True)
        lines += [(direction, layer, len(values), float(mean), float(a), float(b)) for layer, mean, a, b in ends]
    return _table({"direction": pl.String(), "layer": pl.Int64(), "n": pl.Int64()}, lines)


def agreement(rows: pl.DataFrame, manifest: dict) -> pl.DataFrame:
    """`direction layer site n rho low high`: over prompts, the rank correlation (Spearman) of what a patch does to the next token (its KL from the
    clean run) and the size of what it does to the soft refusal, where the effect is above three noise floors. Intervals by Fisher's transformation
    with the variance of Fieller et al. 1957."""
    inside = where(rows, measure="patching", metric="kl_own_nats", arm="identity").filter(
        pl.all_horizontal(pl.col("control", "unit", "strength").is_null())
    )
    inside = inside.select("direction", "layer", "site", "split", "prompt", kl="value")
    outside = per_prompt(rows).filter(pl.col("metric") == soft_metric(manifest), pl.col("arm") == "identity", pl.col("unit").is_null())
    floor = max((manifest.get("noise_floor") or {}).values(), default=0.0)
    both = outside.join(inside, on=["direction", "layer", "site", "split", "prompt"]).filter(pl.col("change").is_finite())
    found = []
    for key, part in both.group_by("direction", "layer", "site", maintain_order=True):
        kl, moved = part["kl"].to_numpy(), part["change"].abs().to_numpy()
        if len(part) >= FEW and kl.mean() > FLOORS * floor and np.ptp(kl) > 0 and np.ptp(moved) > 0:
            rho = float(spearmanr(kl, moved).statistic)
            reach = 1.96 * np.sqrt(1.06 / (len(part) - 3))
            low, high = np.tanh(np.arctanh(np.clip(rho, -0.9999, 0.9999)) + np.array([-reach, reach]))
            found.append((*key, len(part), rho, float(low), float(high)))
    return _table({"direction": pl.String(), "layer": pl.Int64(), "site": pl.String(), "n": pl.Int64()}, found).rename({"mean": "rho"})


# ---- texts -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Span:
    """Some words of a text."""

    text: str
    differs: bool
    """Whether they stand in the text alone, not in the other one."""


def texts(manifest: dict) -> list[dict]:
    """Prompts with what both models said, and what they said under edits; those with edits first, the report prompts before probes."""
    return sorted((manifest.get("behaviour") or {}).get("texts") or [], key=lambda one: (not one["patched"], one["split"] is None))


def spans(text: str, other: str) -> list[Span]:
    """A text, cut where it parts from another, word by word."""
    ours, theirs = (re.findall(r"\S+\s*|^\s+", one) for one in (text, other))
    bare = [[word.strip() for word in words] for words in (ours, theirs)]
    found = []
    for kind, start, stop, _, _ in SequenceMatcher(None, bare[0], bare[1], autojunk=False).get_opcodes():
        if start < stop:
            found.append(Span(text="".join(ours[start:stop]), differs=kind != "equal"))
    return found
