"""From values per prompt to `summary.parquet`: means, intervals, shares, p values and flags, made in this one place.

Each group of rows that differ only in `prompt` becomes one row: the key without `prompt`, then the columns below. Draws
of a null distribution that are one number for the whole set (`permuted#3`) get no row: together they make `p`.
Values of single tokens (`divergence`, unit `token 17`) get no row each either: their mean over a prompt's tokens is that prompt's
value in one row with the unit `tokens`, so that `n`, intervals and the rest are over prompts there too.

| column | meaning |
|---|---|
| `n` | units with a defined value: prompts, or clusters of prompts (`units.py`); for similarity those the states came from |
| `mean`, `sd` | over prompts; for a value of the whole set `mean` is the value |
| `ci_low`, `ci_high` | 95 %: bootstrap-t over prompts for means (none under FEWEST), Wilson for shares of prompts, delete-one jackknife for CKA |
| `log_mean` | geometric mean exp(mean log x), in nats: only for `*_nats` metrics that are positive on every prompt |
| `median` | over prompts |
| `share` | of D = KL(p_tuned || p_base), ratio of means: KL increase kl_own/D (tuned runs), recovery 1 - kl_other/D (base runs, grafts): shares.py |
| `drop` | 1 - kl_own(condition)/kl_own(identity), at the same strength, where the other model's activation is patched in |
| `p`, `q` | permuted pairs (`nulls.py`); of a factorial's effects the bootstrap-t's. q within measure, metric, direction, split, site |
| `floor` | numerical noise of the metric in that direction: how far an unedited replayed row strays (see `noise_floors`) |
| `flag` | words of `FLAGS`, joined by ";"; null if there is nothing to say |
| `log_low`, `log_high` | t interval of `log_mean` on the scale of logarithms: the one that keeps its coverage at skew (docs/STATISTICS.md) |
| `coverage` | how often such an interval held the truth in simulations, at this skew and n (`simulated.py`): of values that are never negative |
| `detectable` | the smallest mean that would have been told from 0 with 80 % power at 5 %, two-sided: of metrics with a sign, such as differences |

No share where D is not above three floors of the noisier model, no drop where the condition identity is not: a ratio of noise is not a number.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl

from mechdiff import labels, shares
from mechdiff.rows import KEY, SCHEMA
from mechdiff.statistics import intervals, simulated
from mechdiff.statistics.clusters import Prompts, clustered, delete_one
from mechdiff.statistics.floors import (
    FLOORS,
    OVER,
    TOTALS,
    between_models,
    differs_outside,
    noise_floors,
    of_the_pair,
    on_shared,
    totals_of,
)
from mechdiff.statistics.intervals import FEW, FEWEST
from mechdiff.statistics.metric import Numbers, facts, refuse_undeclared
from mechdiff.statistics.nulls import GROUP, permutation_p, with_q

STATISTICS: dict[str, Any] = {
    "n": pl.Int64,
    **dict.fromkeys(["mean", "sd", "ci_low", "ci_high", "log_mean", "median", "share", "drop", "p", "q", "floor"], pl.Float64),
    "flag": pl.String,
    **dict.fromkeys(["log_low", "log_high", "detectable", "coverage"], pl.Float64),
}
SUMMARY: dict[str, Any] = {name: SCHEMA[name] for name in GROUP} | STATISTICS
"""Columns and types of summary.parquet."""


FLAGS = {
    "below_floor": "the effect is below 3 × numerical noise: it cannot be distinguished from rounding",
    "no_effect": "D is below 3 × numerical noise: there is nothing to take a share of",
    "outside_only": "the models differ in tokens that one of them lacks; D on the shared ones is below 3 × numerical noise: no share",
    "same_top_token": "undefined where both models choose the same token: those prompts are left out, n counts the others",
    "undefined": "undefined, for too few prompts or states without variance; n counts the prompts with a value",
    "infinite": "infinite on at least one prompt: a token that only one model can emit",
    "shared_tokens": "the vocabularies differ: the share is of D on the tokens that both models have",
    "untestable": "cannot be tested with so few prompts (or clusters, or refits that differ): p cannot reach 0.05, or would too often by chance",
    "few_prompts": f"fewer than {FEW} prompts: the interval is short, or there is none (under {FEWEST})",
}


def summarise(rows: pl.DataFrame, numbers: Mapping[str, Numbers], *, prompts: Prompts = (), seed: int = 0) -> pl.DataFrame:
    """The summary table of a run's rows, one a prompt; `numbers` say what each measure's metrics are, `prompts` (lines of prompts.jsonl) which of
    the prompts are one unit.

    The order of the rows changes no byte of it. Raises KeyError where the rows have a metric that no measure declares.
    """
    if shares.both_answers(rows):  # as two studies would have it: floors and families are each answer's own
        tuned, base = (shares.answers_of(rows, side) for side in ("tuned", "base"))
        base = base.filter((pl.col("measure") == shares.OF_THE_PAIR) | shares.is_over_answer())
        tables = [summarise(one, numbers, prompts=prompts, seed=seed) for one in (tuned, base)]
        return pl.concat([tables[0], shares.as_of_base(tables[1])])
    known = facts(numbers)
    refuse_undeclared(rows, known)
    rows = clustered(_tokens_together(rows.rechunk()), prompts)
    codes = rows.select(pl.col("prompt").unique().drop_nulls().sort()).with_row_index("code")
    coded = rows.filter(~_null_draw()).join(codes, on="prompt", how="left", maintain_order="left").sort("code")
    groups = coded.group_by(GROUP).agg("code", "value").sort(GROUP, nulls_last=True)
    groups = groups.join(known, on=["measure", "metric"], how="left", maintain_order="left", validate="m:1")
    table = pl.concat([groups.drop("code", "value"), _per_group(groups, _totals(coded, len(codes)), seed)], how="horizontal")
    table = _with_floors(table, rows)
    for name, of in numbers.items():
        if name in rows["measure"]:
            table = of.refine(table, rows)
    table = table.join(permutation_p(rows, known), on=GROUP, how="left", nulls_equal=True, maintain_order="left")
    table = with_q(table.with_columns(pl.coalesce("p", "p_of_mean").alias("p")))
    table = table.with_columns(elsewhere=pl.col("split").is_in(differs_outside(table)))
    table = _with_drop(_with_share(table, shared=on_shared(rows)))
    table = table.with_columns(detectable=_detectable(table))
    return table.with_columns(flag=_flag()).select([pl.col(name).cast(kind) for name, kind in SUMMARY.items()])


def _tokens_together(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of single tokens (`token 17`) become one per prompt: their mean over the prompt's tokens, under the unit `tokens`."""
    of_token = labels.is_token()
    tokens = rows.filter(of_token)
    if tokens.is_empty():
        return rows
    tokens = tokens.sort("measure", "metric", "split", "control", "prompt", "unit").with_columns(unit=pl.lit("tokens"))
    means = tokens.group_by(KEY, maintain_order=True).agg(pl.col("value").mean())
    return pl.concat([rows.filter(~of_token), means.select(rows.columns)])


def prompt_matrix(rows: pl.DataFrame, by: str = "layer") -> tuple[list[str], list[Any], np.ndarray]:
    """Prompt ids, the sorted values of `by`, and the table [prompt, by] of `value`; prompts that lack one are left out."""
    prompt, value = rows["prompt"].to_numpy(), rows["value"].to_numpy()
    there = ~np.isnan(value) & np.array([name is not None for name in prompt], bool)
    prompts, line = np.unique(prompt[there], return_inverse=True)  # not a pivot: pages ask hundreds of times, each for a few rows
    names, column = np.unique(rows[by].to_numpy()[there], return_inverse=True)
    assert len(set(zip(line, column, strict=True))) == len(line), f"a prompt has two values of one {by}"
    table = np.full((len(prompts), len(names)), np.nan)
    table[line, column] = value[there]
    whole = ~np.isnan(table).any(axis=1)
    return prompts[whole].tolist(), names.tolist(), np.asfortranarray(table[whole])  # a column is what is summed


def _null_draw() -> pl.Expr:
    """One draw of a null distribution that is a value of the whole set."""
    return pl.col("prompt").is_null() & labels.is_draw()


def _totals(coded: pl.DataFrame, n_codes: int) -> dict[tuple[str, str], np.ndarray]:
    """Each prompt's divergence, by (one of TOTALS, split): NaN where it was not measured."""
    found = {}
    pair = of_the_pair(coded)
    named = [pair for what in OVER for pair in zip(totals_of(what), between_models(coded, what).values(), strict=True)]
    for name, metric in named:
        for (split,), part in pair.filter(pl.col("metric") == metric).group_by("split"):
            values = np.full(n_codes, np.nan)
            values[part["code"].to_numpy()] = part["value"].to_numpy()
            found[name, str(split)] = values
    return found


def _per_group(groups: pl.DataFrame, totals: dict[tuple[str, str], np.ndarray], seed: int) -> pl.DataFrame:
    """n, mean, sd, interval, log_mean, median and the mean D over the same prompts, one row per group; `partial`: NaN on a prompt."""
    names = ("n", "mean", "sd", "ci_low", "ci_high", "log_mean", "log_low", "log_high", "median", "coverage", "p_of_mean", *TOTALS)
    groups_over = _over(groups)
    found = {name: np.full(len(groups), np.nan) for name in names}
    whole = groups.select(pl.col("code").list.first().is_null()).to_series().to_numpy()
    found["n"][~whole] = 0
    found["mean"][whole] = groups.filter(pl.Series(whole))["value"].list.first().to_numpy()
    splits = groups["split"].to_list()
    of_one_answer = ~pl.col("unit").fill_null("").str.contains("^tokens$|sampled")
    is_binary = groups.select(pl.col("binary") & of_one_answer).to_series().to_numpy()
    crossed = groups["tested"].to_numpy()
    for members, codes, values in _tables(groups, whole):
        for name, content in _statistics(values, seed).items():
            found[name][members] = content
        binary = members[is_binary[members] & np.isin(values, (0, 1)).all(axis=0)]  # the mean of a cluster is neither
        found["ci_low"][binary], found["ci_high"][binary] = intervals.wilson(found["mean"][binary], len(values))
        found["coverage"][binary] = np.nan
        of_split = {split: _speaks(totals, split, codes) for split in {splits[member] for member in members[crossed[members]]}}
        spoken = np.array([of_split.get(splits[member], False) for member in members], bool)
        tested = crossed[members] & spoken & np.isfinite(values).all(axis=0)
        found["p_of_mean"][members[tested]] = intervals.mean_p(values[:, tested], seed=seed)
        mean_d = {key: d[codes].mean() for key, d in totals.items()}
        for place, name in enumerate(TOTALS):
            found[name][members] = [mean_d.get((totals_of(groups_over[m])[place], str(splits[m])), np.nan) for m in members]
    positive = groups["in_nats"].to_numpy()
    for name in ("log_mean", "log_low", "log_high"):
        found[name][~positive] = np.nan
    undefined = groups.select(undefined=delete_one())["undefined"]  # delete-one values are no sample: only their spread is used
    for name in ("ci_low", "ci_high", "coverage"):
        found[name][undefined.to_numpy()] = np.nan
    partial = groups.select(partial=pl.col("value").list.eval(pl.element().is_nan()).list.any())
    return pl.DataFrame(found).with_columns(pl.exclude("mean").fill_nan(None)).with_columns(partial)


def _over(groups: pl.DataFrame) -> list[str | None]:
    """What each group's metric is of: one of OVER."""
    return [next((what for what in shares.OVER if name.endswith(f"_{what}_nats")), None) for name in groups["metric"].to_list()]


def _speaks(totals: dict[tuple[str, str], np.ndarray], split: str | None, codes: np.ndarray) -> bool:
    """Whether a test of the mean may be spoken of on these prompts: by the skew of D, which their effects are parts of, where D is known."""
    d = totals.get(("total", str(split)))
    skew = np.nan if d is None else float(simulated.cv_of(d[codes][:, None])[0])
    return simulated.speaks("mean_p", len(codes), 0.0 if skew != skew else skew)


def _tables(groups: pl.DataFrame, whole: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Groups that share their prompts, as one table: (group indices, prompt codes, values [prompt, group])."""
    flat = (
        groups.select("code", "value")
        .with_row_index("group")
        .filter(~pl.Series(whole))
        .explode("code", "value")
        .filter(pl.col("value").is_not_nan())
    )
    group, code, value = (flat[name].to_numpy() for name in ("group", "code", "value"))
    members, starts, sizes = np.unique(group, return_index=True, return_counts=True)
    if not len(members):
        return
    # The sum of one random 64-bit word per prompt names the set of prompts.
    words = np.random.default_rng(0).integers(1, 2**63, size=int(code.max()) + 1, dtype=np.uint64)
    signature = np.add.reduceat(words[code], starts)
    for key in np.unique(np.stack([sizes.astype(np.uint64), signature]), axis=1).T:
        same = np.flatnonzero((sizes == key[0]) & (signature == key[1]))
        places = starts[same][None, :] + np.arange(int(key[0]))[:, None]
        yield members[same], code[places[:, 0]], value[places]


def _statistics(values: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    finite = np.isfinite(values).all(axis=0)
    positive = (values > 0).all(axis=0) & finite
    found = {name: np.full(values.shape[1], np.nan) for name in ("sd", "ci_low", "ci_high", "log_mean", "log_low", "log_high", "coverage")}
    found["n"] = np.full(values.shape[1], len(values))
    found["median"] = np.median(values, axis=0)
    found["mean"] = np.where(finite, np.where(finite, values, 0).mean(axis=0), values.max(axis=0))
    found["ci_low"][finite], found["ci_high"][finite] = intervals.mean_intervals(values[:, finite], seed=seed)
    found["coverage"][finite] = simulated.coverages(simulated.cv_of(values[:, finite]), np.array(len(values)))
    for name, content in zip(("log_mean", "log_low", "log_high"), intervals.geometric(values[:, positive]), strict=True):
        found[name][positive] = content
    if len(values) > 1:
        found["sd"][finite] = values[:, finite].std(axis=0, ddof=1)
    return found


def _with_floors(table: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """`floor`, by running model and split; `floor_either`, the larger of both models, for divergences between the two."""
    floors = noise_floors(rows)
    on_both = pl.col("metric").str.contains("^(kl|js)_own_shared|^kl_shared") | (
        pl.lit(on_shared(rows)) & (pl.col("metric") == shares.OTHER)
    )
    over = pl.col("metric").str.extract(f"(_(?:{'|'.join(shares.OVER)}))_nats$").fill_null("")
    own_of = pl.col("metric").str.extract("^(kl|js)_") + "_own" + pl.when(on_both).then(pl.lit("_shared")).otherwise(over) + "_nats"
    table = table.with_columns(labels.runner_column(), kl_or_js=own_of)
    of_metric = floors.rename({"floor": "floor_of_metric"})
    table = table.join(of_metric, on=["runner", "split", "metric"], how="left", maintain_order="left")
    own = floors.rename({"metric": "kl_or_js", "floor": "floor_own"})
    table = table.join(own, on=["runner", "split", "kl_or_js"], how="left", maintain_order="left")
    either = own.group_by("split", "kl_or_js").agg(floor_either=pl.col("floor_own").max())
    table = table.join(either, on=["split", "kl_or_js"], how="left", maintain_order="left")
    any_split = own.group_by("kl_or_js").agg(floor_anywhere=pl.col("floor_own").max())  # a split on which no unedited row was replayed
    table = table.join(any_split, on="kl_or_js", how="left", maintain_order="left")
    table = table.with_columns(pl.coalesce("floor_either", "floor_anywhere").alias("floor_either"))
    one_models = pl.col("floor_of").is_in(["own", "other", "size"])
    floor = pl.when(pl.col("floor_of") == "either").then("floor_either").when(one_models).then(pl.coalesce("floor_of_metric", "floor_own"))
    return table.with_columns(floor=floor)


def _with_share(table: pl.DataFrame, *, shared: bool) -> pl.DataFrame:
    """`share`, and `reduced`: the effect in nats that is held against the floor."""
    breakage = (pl.col("share_of") == "breakage") & pl.col("metric").is_in([shares.own(shared=shared, what=what) for what in OVER])
    recovery = pl.col("share_of") == "recovery"
    of_d = (breakage & (pl.col("runner") == "tuned")) | (recovery & pl.col("runner").ne_missing("tuned"))
    clean_other = pl.when(pl.col("runner") == "tuned").then("total_reverse").otherwise("total")
    distance, size = pl.col("floor_of").is_in(["own", "either", "zero"]), pl.col("floor_of") == "size"
    effect = pl.when(distance).then("mean").when(size).then(pl.col("mean").abs())
    effect = effect.when(pl.col("floor_of") == "other").then((clean_other - pl.col("mean")).abs())
    explained = pl.col("edited") | pl.col("share_of").is_not_null()
    no_total = explained & (pl.col("total") <= FLOORS * pl.col("floor_either").fill_null(0))
    table = table.with_columns(effect=effect, no_total=no_total.fill_null(False), on_shared=of_d & shared)
    ratio = pl.col("mean") / pl.col("total")
    share = pl.when(of_d & breakage).then(ratio).when(of_d & recovery).then(1 - ratio)
    countable = ~pl.col("no_total") & (pl.col("total") > 0) & (pl.col("control").is_null() | (pl.col("control") != "no_op"))
    return table.with_columns(share=pl.when(countable & share.is_finite()).then(share))


def _with_drop(table: pl.DataFrame) -> pl.DataFrame:
    """How much of the identity arm's damage another arm avoids, at the same site and at the same strength.

    Only where the other model's state is written: a model that is given its own state back is not damaged. The measure's own identity
    arm where it has one, else that of another measure at the same place (`rank` has none); a Fisher-weighted map (unit `fisher`) has the
    whole site's. Of one measure or another, the identity's rank is null or 0.
    """
    place = ["direction", "split", "layer", "site", "of_unit", "strength", "metric"]
    own = pl.col("drops") & pl.col("direction").is_in(labels.CROSSED)
    table = table.with_columns(of_unit=pl.when(pl.col("unit").ne_missing("fisher")).then("unit"))
    plain = pl.col("control").is_null() & (pl.col("rank").fill_null(0) == 0)
    identity = table.filter(own, pl.col("arm") == "identity", plain, pl.col("mean") > FLOORS * pl.col("floor").fill_null(0))
    for name, key in (("identity_same", ["measure", *place]), ("identity_any", place)):
        one = identity.sort("measure", "rank").unique(key, keep="first", maintain_order=True).select(*key, pl.col("mean").alias(name))
        table = table.join(one, on=key, how="left", nulls_equal=True, maintain_order="left")
    mapped = own & (pl.col("arm") != "identity")
    identity_mean = pl.coalesce("identity_same", "identity_any")
    return table.with_columns(drop=pl.when(mapped.fill_null(False)).then(1 - pl.col("mean") / identity_mean))


def _detectable(table: pl.DataFrame) -> pl.Series:
    """Of values that can be of either sign, such as differences of logits."""
    smallest = simulated.detectable(table["sd"].fill_null(np.nan).to_numpy(), table["n"].fill_null(0).to_numpy())
    return pl.Series(np.where(table["signed"].to_numpy(), smallest, np.nan)).fill_nan(None)


_D_OVER = [shares.total("base", shared=False, what=what) for what in shares.OVER]


def _flag() -> pl.Expr:
    """The words of FLAGS that hold, joined by ";"."""
    undefined = pl.col("mean").is_nan() | pl.col("partial")
    no_token = pl.col("undefined_as") == "same_top_token"
    unedited = (pl.col("control") == "no_op").fill_null(False) | (pl.col("arm") == "none").fill_null(False)
    quiet = pl.col("effect") <= FLOORS * pl.col("floor").fill_null(0)
    nothing = (pl.col("no_total") & ~unedited) | (pl.col("metric").is_in([*shares.BETWEEN["base"], *_D_OVER]) & quiet)
    holds = {
        "below_floor": quiet & ~unedited,
        "no_effect": nothing & ~pl.col("elsewhere").fill_null(False),
        "outside_only": nothing & pl.col("elsewhere"),
        "same_top_token": undefined & no_token,
        "undefined": undefined & ~no_token,
        "infinite": pl.col("mean").is_infinite(),
        "shared_tokens": pl.col("on_shared"),
        "untestable": pl.col("untestable") | (pl.col("tested") & (pl.col("n") > 0) & pl.col("p").is_null() & pl.col("mean").is_finite()),
        "few_prompts": pl.col("n").is_between(1, FEW - 1),
    }
    words = [pl.when(condition.fill_null(False)).then(pl.lit(word)) for word, condition in holds.items()]
    joined = pl.concat_str(words, separator=";", ignore_nulls=True)
    return pl.when(joined != "").then(joined)
