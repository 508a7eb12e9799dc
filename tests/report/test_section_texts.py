"""The section on texts, against what was planted: the decision position stands out, and text from a model stays text."""

import json

import numpy as np
import polars as pl
import pytest

from mechdiff.measures.divergence import findings as divergence_findings
from mechdiff.measures.divergence import kinds
from mechdiff.measures.divergence import texts_page as divergence_texts_page
from mechdiff.measures.divergence import words as divergence_words
from mechdiff.measures.divergence.formula import kind_of
from mechdiff.report import drawing, phrasing
from mechdiff.report.parts import Drawn, Run
from report.planted_sections import CONTINUATION, d_of, prompt_length
from report.test_figures import descriptions


@pytest.fixture(scope="module")
def run(full_rows: pl.DataFrame, full_summary: pl.DataFrame, full_manifest: dict) -> Run:
    return Run(rows=full_rows, summary=full_summary, manifest=full_manifest)


def test_the_decision_position_is_found_with_and_without_the_manifest(full_rows: pl.DataFrame, full_manifest: dict) -> None:
    prompts, _ = d_of(full_rows, "report")
    expected = {prompt: prompt_length(i) - 1 for i, prompt in enumerate(prompts)}
    assert divergence_findings.decision_places(full_rows, {}) == expected
    assert divergence_findings.decision_places(full_rows, full_manifest) == expected
    stated = {"n_prompt_tokens": {prompts[0]: 3}}
    assert divergence_findings.decision_places(full_rows, stated) == expected | {prompts[0]: 2}


def test_the_profile_is_the_mean_over_prompts_at_each_place(full_rows: pl.DataFrame) -> None:
    profile = divergence_findings.by_offset(full_rows, {})
    at = {row["offset"]: row for row in profile.iter_rows(named=True)}
    assert at[0]["mean"] == pytest.approx(d_of(full_rows, "report")[1].mean())
    assert at[0]["n"] == 24
    for place in range(1, CONTINUATION + 1):
        assert at[place]["mean"] == pytest.approx(0.5 * np.exp(-(place - 1) / 6))
    assert max(at) == CONTINUATION
    assert min(at) == -15  # 17 tokens at most: the longest prompts' first token has too few companions
    assert (profile["low"] <= profile["mean"] + 1e-12).all()


def test_the_numbers_of_the_caption_are_those_planted(run: Run) -> None:
    section = divergence_texts_page.texts(run)
    drawn = section.parts[0]
    assert isinstance(drawn, Drawn)
    behind = 0.5 * np.exp(-np.arange(CONTINUATION) / 6).mean()
    assert f"after it {phrasing.nats(behind)} nats" in drawn.caption
    assert "at the last prompt token on 22, later on 1, already inside the prompt on 0, nowhere on 1." in drawn.caption
    bits = next(part for part in section.parts if isinstance(part, dict) and part["kind"] == "table")["rows"]
    assert [row[1].partition(" ")[0] for row in bits] == [phrasing.nats(1.5 + 0.115), phrasing.nats(1.0 + 0.115), "0.500"]
    said = divergence_words.how_it_goes_on(run.rows, run.manifest)[0]
    assert f"{phrasing.nats(behind)} nats" in said
    assert "the base needs 0.500 bits per byte more" in said


def test_tokens_are_shaded_by_their_divergence() -> None:
    assert [divergence_texts_page.level(kl) for kl in (0, 0.02, 0.1, 0.5, 1, 3, float("inf"))] == ["k0", "k1", "k2", "k3", "k4", "k5", "k5"]


def test_texts_with_odd_entries_are_shown(run: Run) -> None:
    odd = {"texts": [{"prompt": "p", "tokens": [{"text": "a\u202eb\n", "kl": None}, {"kl": float("nan")}]}, {"prompt": "q", "tokens": []}]}
    parts = divergence_texts_page._texts(odd)
    assert [part["kind"] for part in parts] == ["key", "text"]
    assert [token["text"] for token in parts[1]["tokens"]] == ["a\\u202eb↵\n", ""]
    assert parts[1]["tokens"][0]["says"] == "not measured"


def test_infinite_values_are_left_out_of_the_figure(run: Run) -> None:
    token = pl.col("unit") == "token 3"
    rows = run.rows.with_columns(value=pl.when(token, pl.col("prompt") == "r003").then(float("inf")).otherwise("value"))
    svg = drawing.to_svg(divergence_texts_page.kl_by_position(rows, run.summary, run.manifest))
    assert "Infinity" not in svg
    json.dumps(divergence_findings.by_offset(rows, run.manifest).to_dicts(), allow_nan=False)


def test_texts_that_were_not_measured_are_a_sentence(rows: pl.DataFrame, summary: pl.DataFrame) -> None:
    section = divergence_texts_page.texts(Run(rows=rows, summary=summary, manifest={}))
    assert [part["kind"] for part in section.parts] == ["note"]


def test_the_histogram_counts_each_prompt_where_it_parts(run: Run) -> None:
    found = divergence_findings.partings(run.rows, run.manifest)
    assert len(found) == 24
    counts = dict(found.group_by("offset").len().iter_rows())
    assert (counts[0], counts[None]) == (22, 1)
    part = next(one for one in divergence_texts_page.texts(run).parts if isinstance(one, Drawn) and one.name == "first_divergence")
    assert "over 24 prompts: on 22 the first of the answer or before, on 1 none." in part.caption
    said = descriptions(drawing.to_svg(kinds.first_divergence(run.rows, run.summary, run.manifest)), "bar")
    heights = {one.partition(":")[0]: int(one.split()[-2]) for one in said}
    assert sum(heights.values()) == 24
    assert (heights["1"], heights["never"]) == (22, 1)


def test_kinds_of_tokens_are_told_apart_and_each_prompt_has_its_dot(run: Run) -> None:
    told = {
        " 12": "digits",
        "\n": "spaces and line ends",
        " the": "words",
        "сау": "words",
        ".": "punctuation",
        "4th": "words",
        "—": "punctuation",
        " <0xD2>": "parts of characters",
        "<0x9F>.": "punctuation",
    }
    assert {text: kind_of(text) for text in told} == told
    sizes = {"first token": 1.0, "digits": 0.01}
    kept = [{"prompt": f"p{i}", "kind": kind, "n": 1 + i, "kl": size * (1 + i)} for kind, size in sizes.items() for i in range(3)]
    manifest = {"kl_by_kind": [*kept, {"prompt": "p3", "kind": "digits", "n": 2, "kl": 0.0}]}
    (part,) = kinds.parts(Run(rows=run.rows.filter(pl.col("measure") == "weights"), summary=run.summary, manifest=manifest))
    assert "first token 2.00 (3 prompts) and digits 0.0150 (4 prompts)" in part.caption
    svg = drawing.to_svg(kinds.kl_by_kind(run.rows, run.summary, manifest))
    assert "p2, digits: 0.0300 nats, 3 tokens" in descriptions(svg, "circle")
    assert len(descriptions(svg, "circle")) == 6, "a log scale has no place for 0"
    assert kinds.kl_by_kind(run.rows, run.summary, {}) is None
