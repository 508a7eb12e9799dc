"""What the page says, against what was planted."""

import numpy as np
import polars as pl
import pytest

from mechdiff.measures.catalogue import NUMBERS
from mechdiff.measures.patching import findings as patching_findings
from mechdiff.measures.patching import page as patching_page
from mechdiff.measures.patching import words as patching_words
from mechdiff.report import difference, phrasing
from mechdiff.report.difference import BREAKAGE, RECOVERY
from mechdiff.report.parts import Run
from mechdiff.statistics import summary as statistics_summary
from report.conftest import CHANGED
from report.planted_run import planted_rows
from said import leads as said_leads
from said import verdict


def test_d_and_its_relatives(rows: pl.DataFrame, summary: pl.DataFrame) -> None:
    found = difference.difference(rows, summary)
    d = difference.d_per_prompt(rows)
    assert found
    assert found.split == "report"
    assert found.counts
    assert found.mean == pytest.approx(d["d"].mean())
    assert found.other_token == d["same"].not_().sum()
    assert d["d"].is_sorted()


def test_every_share_is_the_summary_s_and_lies_in_its_interval(rows: pl.DataFrame, summary: pl.DataFrame) -> None:
    shares = patching_findings.site_shares(rows, summary)
    assert len(shares) == 2 * 7 * 5
    assert (shares["low"] <= shares["share"] + 1e-12).all()
    assert (shares["share"] <= shares["high"] + 1e-12).all()
    cell = shares.filter(pl.col("layer") == CHANGED, pl.col("site") == "attn_out", pl.col("direction") == BREAKAGE).row(0, named=True)
    d = difference.difference(rows, summary)
    assert d
    assert cell["nats"] == pytest.approx(cell["share"] * d.mean)


def test_the_strongest_site_is_found_on_select_and_reported_on_report(rows: pl.DataFrame, summary: pl.DataFrame) -> None:
    ranked, ranking = patching_findings.ranked_outputs(rows, summary)
    assert ranking == "select"
    assert ranked["name"][0] == f"L{CHANGED}.attn_out"
    assert not set(ranked["site"]) & set(difference.STREAM)
    spoilt = rows.with_columns(  # another site wins on report: it must not be chosen there
        value=pl.when(pl.col("split") == "report", pl.col("site") == "mlp_out", pl.col("layer") == 0, pl.col("metric") == "kl_own_nats")
        .then(20.0)
        .otherwise("value")
    )
    assert patching_findings.ranked_outputs(spoilt, statistics_summary.summarise(spoilt, NUMBERS))[0]["name"][0] == f"L{CHANGED}.attn_out"


@pytest.mark.parametrize("direction", [BREAKAGE, RECOVERY])
def test_half_of_d_is_passed_right_after_the_planted_change(rows: pl.DataFrame, direction: str) -> None:
    crossing = patching_findings.half_way(rows, direction)
    assert crossing
    assert crossing.site == crossing.earliest == crossing.latest == f"L{CHANGED}.resid_mid"


def test_the_verdict_is_true_of_the_planted_run(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict) -> None:
    said = verdict(rows, summary, manifest)
    d = difference.difference(rows, summary)
    assert d
    assert len(said) == 2, "divergence and patching: two of the five questions"
    assert said[0].startswith(f"On 24 report prompts the two models' next-token distributions differ by D = {phrasing.nats(d.mean)} nats")
    assert f"Patches of the residual stream carry more than half of D from L{CHANGED}.resid_mid on, in both directions" in said[1]
    assert f"strongest output: L{CHANGED}.attn_out (selected on other prompts), KL increase 0.9" in said[1]
    leads = said_leads(rows, summary, manifest)
    assert f"in shape at L{CHANGED}.attn_out (lowest on the select prompts; " in leads["similarity"][0]
    (beside,) = patching_words.is_it_where_similarity_is_lowest(rows, summary)
    assert beside == f"The strongest output, L{CHANGED}.attn_out, is also where CKA is lowest."
    everything = " ".join([*said, *(sentence for lead in leads.values() for sentence in lead)])
    assert "None" not in everything
    assert "nan" not in everything


def test_the_verdict_of_every_measure_is_one_sentence_a_question(full_rows: pl.DataFrame, manifest: dict) -> None:
    said = verdict(full_rows, statistics_summary.summarise(full_rows, NUMBERS), manifest)
    assert [sentence.split(" ")[0] for sentence in said] == ["On", "The", "Patches"]
    assert f"of single modules, the tuned weights of L{CHANGED}.attn (chosen on these prompts" in said[1]


def test_no_effect_is_said_and_no_share_is_given(manifest: dict) -> None:
    rows = planted_rows(n_layers=5, n_prompts=12, changed=2, permutations=5)
    real = pl.col("metric").str.starts_with("kl_") & pl.col("control").is_null()
    rows = rows.with_columns(value=pl.when(real).then(pl.col("value") * 1e-11).otherwise("value"))
    summary = statistics_summary.summarise(rows, NUMBERS)
    (said,) = verdict(rows, summary, manifest)
    assert said.startswith("There is no effect to explain: D = ")
    assert "patching" not in said_leads(rows, summary, manifest)
    assert patching_findings.site_shares(rows, summary)["share"].null_count() == 2 * 5 * 5


def test_rounding_noise_is_not_ranked(rows: pl.DataFrame, manifest: dict) -> None:
    """Upstream of the change CKA is 1 and the effect 0, but for rounding: its order must not move the rank correlation."""
    upstream = (pl.col("layer") < CHANGED) & pl.col("metric").is_in(["cka", "kl_own_nats"]) & pl.col("control").is_null()
    noise = pl.Series(np.random.default_rng(0).normal(0, 1e-9, len(rows))).abs()
    noisy = rows.with_columns(value=pl.when(upstream).then(pl.col("value") + noise).otherwise("value"))
    captions = []
    for table in (rows, noisy):
        section = patching_page.agreement(Run(rows=table, summary=statistics_summary.summarise(table, NUMBERS), manifest=manifest))
        captions.append(section.parts[0].caption)
    assert "Rank correlation" in captions[0]
    assert captions[0] == captions[1]


def test_absent_measures_leave_nothing_out_of_order(rows: pl.DataFrame) -> None:
    for measure in ("divergence", "similarity", "patching"):
        part = rows.filter(pl.col("measure") == measure)
        assert verdict(part, statistics_summary.summarise(part, NUMBERS), {})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7.686, "7.69"),
        (10.0, "10.0"),
        (123.4, "123"),
        (0.0, "0"),
        (4.23e-11, "4.2 × 10⁻¹¹"),
        (-2e-6, "−2.0 × 10⁻⁶"),
        (-0.5, "−0.500"),
        (float("inf"), "infinite"),
        (float("nan"), "not defined"),
        (2.6e11, "2.6 × 10¹¹"),
    ],
)
def test_nats_in_words(value: float, text: str) -> None:
    assert phrasing.nats(value) == text


def test_shares_and_lists_in_words() -> None:
    assert [phrasing.share(value) for value in (0.974, -0.001, -0.2, None)] == ["0.97", "0.00", "−0.20", "–"]
    assert phrasing.with_interval(0.97, 0.966, 0.973, digits=2) == "0.970 (95 %: 0.966 to 0.973)"
    assert [phrasing.listed(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["none", "a", "a and b", "a, b and c"]
