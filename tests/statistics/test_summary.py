"""The summary table, against plain loops over the rows and against what was planted."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.stats import false_discovery_control

import mechdiff
from mechdiff.measures.catalogue import NUMBERS
from mechdiff.measures.divergence import words as divergence_words
from mechdiff.report import difference
from mechdiff.rows import empty, rows
from mechdiff.statistics import intervals, nulls
from mechdiff.statistics import summary as statistics_summary
from report.conftest import CHANGED

D = np.array([2.0, 4.0, 6.0, 8.0])
PROMPTS = ["a", "b", "c", "d"]
OWN = {"measure": "patching", "direction": "tuned<-base", "split": "report", "metric": "kl_own_nats", "prompt": PROMPTS}
OTHER = {**OWN, "direction": "base<-tuned", "metric": "kl_other_nats"}
PLACE = {"layer": 1, "site": "attn_out"}


def d_rows(values: np.ndarray = D) -> pl.DataFrame:
    return rows(values, measure="divergence", split="report", prompt=PROMPTS, metric="kl_tuned_base_nats")


def one(table: pl.DataFrame, **where: object) -> dict:
    found = statistics_summary.summarise(table, NUMBERS).filter(*(pl.col(name).eq_missing(pl.lit(value)) for name, value in where.items()))
    assert len(found) == 1
    return found.row(0, named=True)


def test_no_torch_in_the_report() -> None:
    source = Path(mechdiff.__file__).parent
    paths = [path for folder in ("statistics", "report", "compare") for path in (source / folder).glob("*.py")]
    paths += [
        path for path in (source / "measures").glob("*/*.py") if path.stem in ("plan", "findings", "charts", "words", "page", "compare")
    ]
    names = [".".join(path.relative_to(source).with_suffix("").parts) for path in paths if path.stem != "__init__"]
    code = "import sys; " + "; ".join(f"import mechdiff.{name}" for name in names) + "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("by", ["layer", "site", "strength"])
def test_the_table_of_prompts_holds_each_value_in_its_place(by: str) -> None:
    """Beside a loop over rows that lack some values, have others that are no numbers, and lie in any order."""
    rng = np.random.default_rng(3)
    places = {"layer": [11, 2, 5], "site": ["z", "attn_out", "mlp_out"], "strength": [1.0, 0.25, 10.0]}[by]
    told = [(prompt, place, value) for prompt in "dbca" for place, value in zip(places, rng.normal(size=3), strict=True)]
    told = [(p, place, {("a", places[1]): np.nan, ("b", places[0]): np.inf}.get((p, place), value)) for p, place, value in told]
    del told[1]  # d lacks a place
    rng.shuffle(told)
    table = pl.concat(
        rows([v], measure="patching", split="report", prompt=[p], metric="kl_own_nats", **{by: place}) for p, place, v in told
    )
    prompts, names, values = statistics_summary.prompt_matrix(table, by=by)
    known = {(p, place): v for p, place, v in told}
    assert (prompts, names) == (["b", "c"], sorted(places))
    assert values.tolist() == [[known[prompt, place] for place in names] for prompt in prompts]


def test_two_values_of_a_prompt_in_one_place_are_refused() -> None:
    with pytest.raises(AssertionError, match="two values of one layer"):
        statistics_summary.prompt_matrix(pl.concat([rows(D, **{**OWN, **PLACE})] * 2))


def test_the_table_has_the_contract_s_columns_and_one_row_a_group(rows: pl.DataFrame, summary: pl.DataFrame) -> None:
    assert summary.columns == list(statistics_summary.SUMMARY)
    assert summary.columns[11:] == [
        "n",
        "mean",
        "sd",
        "ci_low",
        "ci_high",
        "log_mean",
        "median",
        "share",
        "drop",
        "p",
        "q",
        "floor",
        "flag",
        "log_low",
        "log_high",
        "detectable",
        "coverage",
    ]
    draws = pl.col("control").str.starts_with("permuted#").fill_null(False)
    assert len(summary) == rows.filter(~draws).select(nulls.GROUP).n_unique()
    assert summary.filter(draws).is_empty()  # a draw is one number: what all of them say is p
    assert statistics_summary.summarise(empty(), NUMBERS).columns == summary.columns


def test_means_against_plain_loops(rows: pl.DataFrame, summary: pl.DataFrame) -> None:
    groups = rows.filter(pl.col("metric") == "kl_own_nats", pl.col("arm") == "mean").group_by(nulls.GROUP).agg("value")
    both = groups.join(summary, on=nulls.GROUP, nulls_equal=True)
    assert len(both) == len(groups) == 2 * 2 * 7 * 5
    for row in both.head(30).iter_rows(named=True):
        values = np.array(row["value"])
        expected = [len(values), values.mean(), values.std(ddof=1), np.median(values), np.exp(np.log(values).mean())]
        np.testing.assert_allclose([row[name] for name in ("n", "mean", "sd", "median", "log_mean")], expected)
        low, high = intervals.mean_intervals(np.sort(values)[:, None])
        assert row["ci_low"] <= row["mean"] <= row["ci_high"]
        assert row["ci_high"] - row["ci_low"] == pytest.approx(float(high[0] - low[0]), rel=0.15)


def test_the_same_seed_and_any_order_of_rows_give_the_same_bytes(rows: pl.DataFrame, summary: pl.DataFrame) -> None:
    shuffled = statistics_summary.summarise(rows.sample(fraction=1, shuffle=True, seed=1), NUMBERS)
    assert shuffled.equals(summary)
    assert not statistics_summary.summarise(rows, NUMBERS, seed=1).equals(summary)


def test_share_and_drop_are_ratios_of_means_over_the_same_prompts() -> None:
    own = np.array([1.0, 1.0, 2.0, 2.0])
    table = pl.concat(
        [
            d_rows(),
            rows(own, arm="identity", **PLACE, **OWN),
            rows(own / 4, arm="shift", **PLACE, **OWN),
            rows(D / 5, arm="identity", **PLACE, **OTHER),
            rows(own[:2], **{**OWN, "prompt": PROMPTS[:2]}, layer=2, site="attn_out", arm="identity"),
        ]
    )
    assert one(table, direction="tuned<-base", layer=1, arm="identity")["share"] == pytest.approx(6 / 20)
    assert one(table, direction="base<-tuned", arm="identity")["share"] == pytest.approx(0.8)
    assert one(table, layer=2)["share"] == pytest.approx(2 / 6)  # D of its two prompts alone
    shift = one(table, arm="shift")
    assert shift["drop"] == pytest.approx(0.75)
    assert one(table, direction="tuned<-base", layer=1, arm="identity")["drop"] is None


def test_share_interval_is_that_of_the_ratio_of_means() -> None:
    share, low, high = (end[0] for end in intervals.share_intervals((D / 2 + [0.1, -0.1, 0.2, 0.0])[:, None], D))
    assert np.isnan([low, high]).all(), "four prompts have no interval"
    assert share == pytest.approx((10 + 0.2) / 20)
    share, low, high = (end[0] for end in intervals.share_intervals(np.array([*D / 2, 5.0])[:, None], np.array([*D, 9.0])))
    assert share == pytest.approx(15 / 29)
    assert low < share < high


def test_the_floor_flags_cells_and_refuses_ratios() -> None:
    floor = {"control": "no_op", **OWN}
    table = pl.concat(
        [
            d_rows(),
            rows([1e-9, 2e-9, 3e-9, 1e-9], **floor),
            rows([8e-9] * 4, arm="identity", **PLACE, **OWN),
            rows([4e-9] * 4, arm="shift", **PLACE, **OWN),
        ]
    )
    cell = one(table, arm="identity")
    assert (cell["floor"], cell["flag"]) == (3e-9, "below_floor;few_prompts")
    assert one(table, arm="shift")["drop"] is None
    assert one(table, measure="divergence")["flag"] == "few_prompts"
    nothing = pl.concat([d_rows(D * 1e-9), *(table.filter(pl.col("measure") == "patching"),)])
    assert "no_effect" in one(nothing, measure="divergence")["flag"]
    cell = one(nothing, arm="identity")
    assert cell["share"] is None
    assert "no_effect" in cell["flag"]


def test_recovery_is_held_against_its_own_floor() -> None:
    """An unedited base row is D away from the tuned model, not 0: what counts is how far rounding moves it from D."""
    table = pl.concat(
        [
            d_rows(),
            rows(D + 1e-6, **{**OTHER, "control": "no_op"}),
            rows(D + 2e-6, arm="identity", **PLACE, **OTHER),
            rows(D / 1e9, arm="identity", layer=2, site="attn_out", **OTHER),
        ]
    )
    nothing, everything = one(table, layer=1), one(table, layer=2)
    assert nothing["floor"] == pytest.approx(1e-6)
    assert nothing["flag"] == "below_floor;few_prompts"
    assert everything["flag"] == "few_prompts"
    assert everything["share"] == pytest.approx(1)


def test_a_write_into_the_tuned_model_is_held_against_what_it_is_from_the_base() -> None:
    """Unedited, the tuned model is KL(base || tuned) away from the base, not D: near D it may have moved far."""
    other = {**OTHER, "direction": "tuned<-base"}
    reverse = rows(D / 2, measure="divergence", split="report", prompt=PROMPTS, metric="kl_base_tuned_nats")
    per_position = [
        rows([9.0] * 4, measure="divergence", split="report", prompt=PROMPTS, metric=name, unit="token 17")
        for name in ("kl_tuned_base_nats", "kl_base_tuned_nats")
    ]
    table = pl.concat(
        [
            d_rows(),
            reverse,
            *per_position,
            rows(D / 2 + 1e-6, **{**other, "control": "no_op"}),
            rows(D, arm="identity", **PLACE, **other),
            rows(D / 2, arm="identity", layer=2, site="attn_out", **other),
        ]
    )
    moved, still = one(table, layer=1), one(table, layer=2)
    assert moved["floor"] == pytest.approx(1e-6)
    assert (moved["flag"], still["flag"]) == ("few_prompts", "below_floor;few_prompts")
    assert moved["share"] is None


@pytest.mark.parametrize("floor", [0.0, None])
def test_equal_models_have_no_effect_and_no_ratio_even_without_a_floor(floor: float | None) -> None:
    """Whole forward passes of equal models differ by exactly nothing: 0 is not a share of 0."""
    nothing = np.zeros(4)
    parts = [
        d_rows(nothing),
        rows(np.ones(4), measure="divergence", split="report", prompt=PROMPTS, metric="top1_same"),
        rows(nothing, arm="identity", **PLACE, **OWN),
        rows(nothing, arm="shift", **PLACE, **OWN),
        rows(nothing, arm="identity", **PLACE, **OTHER),
    ]
    if floor is not None:
        parts.append(rows([floor] * 4, control="no_op", **OWN))
    table = pl.concat(parts, rechunk=True)
    assert "no_effect" in one(table, metric="kl_tuned_base_nats")["flag"]
    assert one(table, measure="divergence", metric="top1_same")["flag"] == "few_prompts"
    cells = statistics_summary.summarise(table, NUMBERS).filter(pl.col("arm").is_not_null())
    assert cells["share"].null_count() == cells["drop"].null_count() == len(cells) == 3
    assert cells["flag"].str.contains("no_effect").all()
    found = difference.difference(table, statistics_summary.summarise(table, NUMBERS))
    assert divergence_words.how_different(found) == "There is no effect to explain: D = 0 nats, on 4 prompts. No share is given below."


def test_undefined_prompts_are_left_out_and_named() -> None:
    where = {**OWN, "metric": "logit_diff_divergent", "arm": "identity", **PLACE}
    part = one(pl.concat([d_rows(), rows([1.0, np.nan, 3.0, np.nan], **where)]), metric="logit_diff_divergent")
    assert (part["n"], part["mean"], part["log_mean"]) == (2, 2.0, None)
    assert part["flag"] == "same_top_token;few_prompts"  # a prompt is never left out without the reason
    none = one(pl.concat([d_rows(), rows([np.nan] * 4, **where)]), metric="logit_diff_divergent")
    assert np.isnan(none["mean"])
    assert (none["n"], none["flag"]) == (0, "same_top_token")
    assert none["ci_low"] is None


def test_a_share_of_infinite_d_is_taken_on_shared_tokens() -> None:
    shared = rows(D / 2, measure="divergence", split="report", prompt=PROMPTS, metric="kl_shared_nats")
    own = [rows(D * part, arm="identity", **PLACE, **OWN | {"metric": f"kl_own{cut}_nats"}) for part, cut in ((40, ""), (0.25, "_shared"))]
    table = pl.concat([d_rows(np.array([1.0, np.inf, 2.0, 3.0])), shared, *own])
    assert one(table, metric="kl_tuned_base_nats")["flag"] == "infinite;few_prompts"
    cell = one(table, metric="kl_own_shared_nats")
    assert cell["share"] == pytest.approx(0.5)
    assert "shared_tokens" in cell["flag"]
    whole = one(table, metric="kl_own_nats")
    assert whole["share"] is None, "over all tokens it is no share of D on the shared ones"
    assert "shared_tokens" not in whole["flag"]


def test_shares_of_prompts_have_wilson_intervals() -> None:
    cell = one(rows([0.0] * 4, measure="divergence", split="report", prompt=PROMPTS, metric="top1_same"), metric="top1_same")
    assert (cell["mean"], cell["ci_low"]) == (0, 0)
    assert cell["ci_high"] == pytest.approx(0.4899, abs=1e-4)


def test_cka_takes_its_interval_from_the_delete_one_values(rows: pl.DataFrame, summary: pl.DataFrame) -> None:
    where = [pl.col("split") == "report", pl.col("layer") == CHANGED, pl.col("site") == "attn_out"]
    without = rows.filter(*where, pl.col("metric") == "cka_without_prompt")["value"].to_numpy()
    cell = summary.filter(*where, pl.col("metric") == "cka", pl.col("control").is_null()).row(0, named=True)
    n = len(without)
    error = np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())
    assert cell["n"] == n
    reach = 2.0687 * error / (1 - cell["mean"] ** 2)  # t with 23 degrees of freedom, on Fisher's scale
    assert np.arctanh(cell["ci_high"]) - np.arctanh(cell["mean"]) == pytest.approx(reach, rel=1e-4)
    assert np.arctanh(cell["mean"]) - np.arctanh(cell["ci_low"]) == pytest.approx(reach, rel=1e-4)
    assert cell["ci_low"] <= cell["mean"] <= cell["ci_high"]
    assert summary.filter(pl.col("metric") == "cka_without_prompt")["ci_low"].null_count() == 2 * 7 * 5


def test_an_undefined_delete_one_value_leaves_no_interval() -> None:
    """Without one prompt the states have no variance: what is left is no jackknife."""
    cell = {"measure": "similarity", "split": "report", "layer": 0, "site": "attn_out"}
    without = rows([0.5, np.nan, 0.6, 0.7], metric="cka_without_prompt", prompt=PROMPTS, **cell)
    table = pl.concat([rows([0.6], metric="cka", **cell), without])
    found = one(table, metric="cka")
    assert (found["n"], found["ci_low"], found["ci_high"]) == (4, None, None)
    assert one(table, metric="cka_without_prompt")["flag"] == "undefined;few_prompts"


def test_p_counts_null_draws_and_q_is_within_a_site() -> None:
    draws = [0.1, 0.5, 0.9, 0.2, *np.linspace(0.11, 0.4, 16)]
    cell = {"measure": "similarity", "split": "report", "layer": 0, "site": "attn_out"}
    permuted = [f"permuted#{i}" for i in range(20)]
    table = pl.concat(
        [
            rows([0.5], metric="cka", **cell),
            rows(draws, metric="cka", control=permuted, **cell),
            rows([0.2], metric="procrustes_distance", **cell),
            rows([0.3, 0.4, 0.1, 0.5, *np.linspace(0.21, 0.4, 16)], metric="procrustes_distance", control=permuted, **cell),
        ]
    )
    assert one(table, metric="cka", control=None)["p"] == pytest.approx(3 / 21)  # 0.5 itself counts
    assert one(table, metric="procrustes_distance", control=None)["p"] == pytest.approx(2 / 21)  # smaller is closer
    assert len(statistics_summary.summarise(table, NUMBERS)) == 2


def test_q_is_within_measure_metric_direction_split_and_site(summary: pl.DataFrame) -> None:
    tested = summary.filter(pl.col("p").is_not_null())
    assert len(tested) == 2 * 7 * 5
    for _, family in tested.group_by("split", "site"):
        np.testing.assert_allclose(family["q"], false_discovery_control(family["p"].to_numpy()))


def test_the_planted_truth_is_in_the_summary(summary: pl.DataFrame) -> None:
    real = summary.filter(
        pl.col("split") == "report", pl.col("control").is_null(), pl.col("arm") == "identity", pl.col("site") == "attn_out"
    )
    breakage = real.filter(pl.col("direction") == "tuned<-base", pl.col("metric") == "kl_own_nats").sort("layer")
    recovery = real.filter(pl.col("direction") == "base<-tuned", pl.col("metric") == "kl_other_nats").sort("layer")
    for table in (breakage, recovery):
        assert table["share"].arg_max() == CHANGED
        assert table["share"][CHANGED] == pytest.approx(0.94, abs=0.05)
        assert set(table.head(CHANGED)["flag"]) == {"below_floor"}


@pytest.mark.slow
def test_a_million_rows_take_seconds() -> None:
    n_prompts, n_groups = 32, 31_250
    values = np.random.default_rng(0).lognormal(0, 0.5, n_prompts * n_groups)
    group = np.repeat(np.arange(n_groups), n_prompts)
    place = {"measure": "heads", "direction": "tuned<-base", "split": "report", "metric": "kl_own_nats", "arm": "contribution"}
    units = pl.Series(group // 30).cast(pl.String).to_list()
    table = rows(values, layer=group % 30, unit=units, prompt=[f"p{i}" for i in range(n_prompts)] * n_groups, **place)
    start = time.process_time()
    assert len(statistics_summary.summarise(table, NUMBERS)) == n_groups
    assert time.process_time() - start < 10


def test_tokens_are_one_row_a_metric_over_the_prompts_means() -> None:
    """Thousands of positions do not become thousands of lines; a share of tokens has no interval of a share of prompts."""
    lengths = {"a": 2, "b": 3, "c": 4, "d": 5, "e": 6}
    token = {"measure": "divergence", "split": "report"}
    parts = [d_rows()]
    for metric in ("kl_tuned_base_nats", "top1_same"):
        for prompt, n in lengths.items():
            values = [float(i == 0) for i in range(n)]
            parts.append(rows(values, unit=[f"token {i}" for i in range(n)], prompt=prompt, metric=metric, **token))
    table = pl.concat(parts, rechunk=True)
    found = statistics_summary.summarise(table, NUMBERS)
    assert found["unit"].to_list() == ["tokens", "tokens", None]
    expected = np.mean([1 / n for n in lengths.values()])
    for metric in ("kl_tuned_base_nats", "top1_same"):
        cell = one(table, metric=metric, unit="tokens")
        assert (cell["n"], cell["mean"]) == (5, pytest.approx(expected))
        assert cell["ci_low"] == pytest.approx(float(intervals.mean_intervals(np.array([[1 / n] for n in lengths.values()]))[0][0]))
    assert one(table, unit=None)["mean"] == D.mean()
    assert statistics_summary.summarise(table.sample(fraction=1, shuffle=True, seed=3), NUMBERS).equals(found)


def test_a_factorial_s_effects_are_tested_by_the_bootstrap_t_and_by_no_exchange_of_names() -> None:
    values = np.random.default_rng(0).lognormal(0, 1, (12, 2)) - [0.3, 1.6]
    cell = {"measure": "factorial", "split": "report", "layer": 3, "prompt": [f"p{i:02}" for i in range(12)]}
    names = ("upstream_effect_nats", "interaction_nats")
    table = pl.concat([rows(values[:, i], metric=name, **cell) for i, name in enumerate(names)])
    for i, name in enumerate(names):
        assert one(table, metric=name)["p"] == pytest.approx(float(intervals.mean_p(values)[i]))
    skewed = rows(np.exp(2.5 * np.arange(12)), measure="divergence", split="report", metric="kl_tuned_base_nats", prompt=cell["prompt"])
    silent = one(pl.concat([table, skewed]), metric=names[0])
    assert silent["p"] is None
    assert "untestable" in silent["flag"], "where one prompt has most of D, so small p are too often chance"
    few = one(table.filter(pl.col("prompt") < "p04"), metric=names[0])
    assert few["p"] is few["q"] is few["ci_low"] is None
    assert "untestable" in few["flag"]


def test_a_graft_s_share_is_what_it_recovers_of_d() -> None:
    graft = {"measure": "grafting", "split": "report", "metric": "kl_other_nats", "prompt": PROMPTS}
    table = pl.concat([d_rows(), rows(D, arm="none", **graft), rows(D / 4, arm="alone", layer=1, site="attn", **graft)])
    assert one(table, arm="alone")["share"] == pytest.approx(0.75)
    assert one(table, arm="none")["share"] == pytest.approx(0)
    assert one(table, arm="none")["flag"] == "few_prompts"
    nothing = pl.concat([d_rows(D * 0), rows(D * 0, arm="all", **graft)])
    assert one(nothing, arm="all")["share"] is None


def test_effects_of_a_factorial_that_are_rounding_are_flagged() -> None:
    """Four times what an unedited row strays: from D where the base runs, from 0 where the tuned model does."""
    prompts, place = ["a", "b"], {"split": "report"}
    parts = [
        rows([2.0, 3.0], measure="divergence", metric="kl_tuned_base_nats", prompt=prompts, **place),
        rows([2.0, 3.0 + 1e-6], measure="factorial", arm="bb", control="no_op", metric="kl_tuned_nats", prompt=prompts, **place),
        rows([1e-9, 0.0], measure="factorial", arm="tt", control="no_op", metric="kl_tuned_nats", prompt=prompts, **place),
        rows([1e-6, 1e-6], measure="factorial", layer=0, metric="interaction_nats", prompt=prompts, **place),
        rows([1e-4, 2e-4], measure="factorial", layer=1, metric="interaction_nats", prompt=prompts, **place),
    ]
    found = (
        statistics_summary.summarise(pl.concat(parts, rechunk=True), NUMBERS).filter(pl.col("metric") == "interaction_nats").sort("layer")
    )
    assert found["floor"].to_list() == pytest.approx([4e-6, 4e-6])
    assert ["below_floor" in flag for flag in found["flag"]] == [True, False]


def test_a_metric_that_no_measure_declares_is_an_error_that_names_it() -> None:
    with pytest.raises(KeyError, match=r"patching: loss_nats"):
        statistics_summary.summarise(rows([1.0, 2.0], measure="patching", metric="loss_nats", split="report", prompt=["a", "b"]), NUMBERS)
