"""What the page says, against what was planted."""

import re

import numpy as np
import polars as pl
import pytest

from mechdiff.measures.catalogue import NUMBERS
from mechdiff.measures.patching import findings as patching_findings
from mechdiff.measures.patching import page as patching_page
from mechdiff.measures.patching import pairs
from mechdiff.measures.patching import words as patching_words
from mechdiff.report import difference, phrasing
from mechdiff.report.difference import BREAKAGE, RECOVERY
from mechdiff.report.parts import Run
from mechdiff.rows import OVERLAP, TOTAL
from mechdiff.rows import rows as rows_of
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
    assert said[0].startswith(f"On 24 test prompts the two models' next-token distributions differ by D = {phrasing.nats(d.mean)} [")
    assert f"Patches of the residual stream carry more than half of D from L{CHANGED}.resid_mid on, in both directions" in said[1]
    assert f"strongest output: L{CHANGED}.attn_out (selected on other prompts), KL increase 94 % [" in said[1]
    leads = said_leads(rows, summary, manifest)
    assert f"in shape at L{CHANGED}.attn_out (lowest CKA on the validation prompts; " in leads["similarity"][0]
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
    assert [phrasing.share(value) for value in (0.974, -0.001, -0.2, None)] == ["97 %", "−0.1 %", "−20 %", "–"]
    assert phrasing.with_interval(0.97, 0.966, 0.973, digits=2) == "97.0 % [95 % CI: 96.6, 97.3]"
    assert [phrasing.listed(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["none", "a", "a and b", "a, b and c"]


# ---- shares that add ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def on_the_way(rows: pl.DataFrame, summary: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, np.ndarray]]:
    """The planted run with overlaps: each output moves either model a part of the way, one of them half of it; and these parts by site, by prompt."""
    plain = rows.filter(measure="patching", metric="kl_own_nats", arm="identity", split="report", direction=RECOVERY)
    plain = plain.filter(
        pl.all_horizontal(pl.col("unit", "control", "rank", "strength").is_null()), pl.col("site").is_in(["attn_out", "mlp_out"])
    )
    cells, prompts = plain.select("layer", "site").unique(maintain_order=True), plain["prompt"].unique().sort().to_list()
    generator = np.random.default_rng(0)
    total = generator.uniform(1, 3, len(prompts))
    more = [rows_of(total, measure="divergence", metric=TOTAL, split="report", prompt=prompts)]
    parts = {}
    for layer, site in cells.iter_rows():
        parts[f"L{layer}.{site}"] = (0.5 if f"L{layer}.{site}" == f"L{CHANGED}.attn_out" else 0.05) + 0.01 * generator.standard_normal(
            len(prompts)
        )
        for direction in (BREAKAGE, RECOVERY):
            place = {"measure": "patching", "metric": OVERLAP, "split": "report", "direction": direction, "arm": "identity", "layer": layer}
            more.append(rows_of(total * parts[f"L{layer}.{site}"], site=site, prompt=prompts, **place))
    return pl.concat([rows, *more]), parts | {"total": total}


def test_a_part_of_the_way_is_a_ratio_of_means(on_the_way: tuple[pl.DataFrame, dict[str, np.ndarray]]) -> None:
    rows, parts = on_the_way
    total = parts.pop("total")
    found = {row["name"]: row for row in patching_findings.way(rows, RECOVERY).iter_rows(named=True)}
    assert set(found) == set(parts)
    for name, part in parts.items():
        assert found[name]["additive"] == pytest.approx((part * total).mean() / total.mean(), rel=1e-12)
        assert found[name]["additive_low"] < found[name]["additive"] < found[name]["additive_high"]


def test_the_verdict_speaks_in_shares_that_add_and_the_table_shows_how_a_divergence_bends(
    on_the_way: tuple[pl.DataFrame, dict[str, np.ndarray]], summary: pl.DataFrame, manifest: dict
) -> None:
    rows, parts = on_the_way
    total = parts.pop("total")
    said = verdict(rows, summary, manifest)[1]
    name, number = rf"strongest output: L{CHANGED}\.attn_out \(selected on other prompts\)", r"(?:50|49)(?:\.\d)? % \[.*?\]"
    assert re.search(rf"{name}, {number} of the way in logits, {number} back", said)
    assert "KL increase" not in said
    n_effective = sum(part.mean() for part in parts.values()) ** 2 / sum(part.mean() ** 2 for part in parts.values())
    spread = patching_findings.spread_of_outputs(rows)
    assert spread is not None
    assert spread.number.value == pytest.approx(n_effective, rel=0.05)
    assert f"spread over {spread.number.value:.1f} [90 % CI: " in patching_words.over_how_many(rows)
    run = Run(rows=rows, summary=summary, manifest=manifest)
    (table,) = [part for part in patching_page.patching(run).parts if isinstance(part, dict) and "part of the way" in part.get("title", "")]
    line = [cell.partition(" %")[0] for cell in next(row for row in table["rows"] if row[0] == f"L{CHANGED}.attn_out")]
    s = (parts[f"L{CHANGED}.attn_out"] * total).mean() / total.mean()
    assert (line[1], line[2], line[4]) == (f"{100 * s:.1f}", f"{100 * (1 - (1 - s) ** 2):.1f}", f"{100 * s**2:.1f}")


# ---- neighbouring blocks ---------------------------------------------------------------------------------------------------------------


def test_what_two_neighbours_do_beyond_each_alone_is_in_parts_of_the_way() -> None:
    """Planted: at blocks 1 and 2 both together do 0.3 of the way more than each alone, at 2 and 3 the sum; a residual stream is no output."""
    total = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    names = [f"p{i}" for i in range(len(total))]

    def moved(share: float, layer: int, site: str = "attn_out", unit: str | None = None) -> pl.DataFrame:
        at = {"measure": "patching", "split": "report", "direction": "base<-tuned", "arm": "identity", "metric": "fisher_overlap_nats"}
        return rows_of(share * total, layer=layer, site=site, unit=unit, prompt=names, **at)

    both = [
        moved(0.7, 1, unit="window 2"),
        moved(0.5, 2, unit="window 2"),
        moved(0.9, 1, "resid_post", "window 2"),
        moved(0.9, 1, "resid_post"),
    ]
    whole = rows_of(total, measure="divergence", split="report", prompt=names, metric="fisher_total_nats")
    found = pairs.of_neighbours(pl.concat([whole, moved(0.3, 1), moved(0.1, 2), moved(0.4, 3), *both]))
    assert found["name"].to_list() == ["L1.attn_out and L2.attn_out", "L2.attn_out and L3.attn_out"]
    assert found["value"].to_list() == pytest.approx([0.3, 0.0])
    assert found["first"].to_list() == pytest.approx([0.3, 0.1])
    assert found["second"].to_list() == pytest.approx([0.1, 0.4])
    assert found["value_low"].to_list() == pytest.approx([0.3, 0.0], abs=1e-9)
    assert pairs.of_neighbours(pl.concat([whole, moved(0.3, 1)])).is_empty()
