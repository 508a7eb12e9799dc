"""The section on behaviour, against what was planted: refusals that only the tuned model gives, and edits that move what they must."""

import html
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechdiff.measures.behaviour import findings as behaviour_findings
from mechdiff.measures.behaviour import page as behaviour_page
from mechdiff.measures.behaviour import refusals as behaviour_refusals
from mechdiff.measures.behaviour.findings import Compared, spans
from mechdiff.measures.catalogue import CHAPTERS, NUMBERS
from mechdiff.report import drawing
from mechdiff.report.page import build_report
from mechdiff.report.parts import Drawn, Run
from mechdiff.statistics import intervals
from mechdiff.statistics import summary as statistics_summary
from report import planted_behaviour as planted
from report.conftest import CHANGED
from report.planted_run import write_run
from report.planted_sections import d_of
from said import leads

N_LAYERS, N = 7, 24


@pytest.fixture(scope="module")
def run(rows: pl.DataFrame, manifest: dict) -> Run:
    both = pl.concat(
        [
            rows.filter(pl.col("measure").is_in(["divergence", "patching"])),
            planted.planted_behaviour(rows, n_layers=N_LAYERS, changed=CHANGED),
        ]
    )
    told = {**manifest, **planted.behaviour_manifest(rows, n_layers=N_LAYERS, changed=CHANGED)}
    return Run(rows=both, summary=statistics_summary.summarise(both, NUMBERS), manifest=told)


@pytest.fixture(scope="module")
def page(run: Run, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = write_run(tmp_path_factory.mktemp("answers"), run.rows, run.manifest)
    build_report(folder, CHAPTERS)
    return (folder / "report.html").read_text()


def of(run: Run, group: str, language: str | None = None) -> dict[tuple[str, str | None], Compared]:
    (found,) = (one for one in behaviour_findings.groups(run.rows, run.manifest) if (one.name, one.language) == (group, language))
    return {(one.metric, one.style): one for one in behaviour_findings.compared(found.rows)}


def test_both_models_are_compared_prompt_by_prompt(run: Run) -> None:
    report = of(run, "report")
    refusal = report["refusal", None]
    assert (refusal.base[0], refusal.tuned[0]) == (0, planted.REFUSED / N)
    assert refusal.p == pytest.approx(2 * 0.5**planted.REFUSED)
    assert refusal.tuned[1] < planted.REFUSED / N < refusal.tuned[2]
    soft = report["refusal_soft_nats", None]
    assert soft.difference[0] == pytest.approx(planted.SOFT, abs=0.02)
    assert soft.difference[2] - soft.difference[1] < 0.1 < soft.base[2] - soft.base[1], "the difference is paired"
    assert report["style_per_100_words", "courtesy"].difference[0] == pytest.approx(planted.COURTESY, abs=1e-9)
    assert [report[key].counts for key in (("refusal", None), ("refusal_soft_nats", None), ("style_per_100_words", None))] == [
        True,
        True,
        False,
    ]
    choice = of(run, "choice")["mc_correct", None]
    assert (choice.base[0], choice.tuned[0], choice.p, choice.counts) == (0.75, 0.75, 1, False)


def test_groups_are_told_by_language_where_there_are_several(run: Run) -> None:
    found = [(one.name, one.language) for one in behaviour_findings.groups(run.rows, run.manifest)]
    assert found == [("report", None), ("report", "en"), ("report", "kk"), ("choice", None)]
    assert of(run, "report", "kk")["refusal", None].n == N - N // 2


def test_edits_are_held_against_the_unedited_run_of_the_same_prompts(run: Run) -> None:
    found = behaviour_findings.changes(run.rows)
    refusal = {(r["direction"], r["layer"]): r["mean"] for r in found.filter(pl.col("metric") == "refusal").iter_rows(named=True)}
    assert refusal == {(d, layer): by for layer in range(CHANGED, N_LAYERS) for d, by in (("base<-tuned", 1.0), ("tuned<-base", -1.0))}
    for direction, sign in (("base<-tuned", 1), ("tuned<-base", -1)):
        line = behaviour_findings.profile(run.rows, "refusal_soft_nats").filter(pl.col("direction") == direction)
        assert line["layer"].to_list() == list(range(N_LAYERS))
        assert line.filter(pl.col("layer") < CHANGED)["mean"].abs().max() < 1e-12  # type: ignore[operator]
        moved = line.filter(pl.col("layer") >= CHANGED)
        assert (moved["mean"] * sign > 0).all()
        pointwise = found.filter(pl.col("metric") == "refusal_soft_nats", pl.col("direction") == direction, pl.col("layer") == CHANGED)
        wide = moved.row(0, named=True)
        assert wide["high"] - wide["low"] > pointwise["high"][0] - pointwise["low"][0], "the bands hold at all layers at once"


def test_effects_by_layer_stand_in_one_table(run: Run) -> None:
    """Points of refusals and nats of the next token, both directions of a layer in one line; where no answer changes, what would not have shown."""
    found = behaviour_refusals.per_layer(run.rows)
    assert {(r["direction"], r["layer"]): r["points"] for r in found.iter_rows(named=True)} == {
        (direction, layer): points
        for layer in range(CHANGED, N_LAYERS)
        for direction, points in (("base<-tuned", 100), ("tuned<-base", -100))
    }
    kl = run.rows.filter(
        pl.col("measure") == "patching", pl.col("metric") == "kl_own_nats", pl.col("arm") == "identity", pl.col("split") == "report",
        pl.col("site") == "resid_post", pl.col("layer") == CHANGED, pl.col("direction") == "base<-tuned",
        pl.col("control").is_null(), pl.col("unit").is_null(), pl.col("strength").is_null(),
    )["value"].to_numpy()  # fmt: skip
    at = found.filter(pl.col("layer") == CHANGED, pl.col("direction") == "base<-tuned")
    assert at["kl"].to_list() == pytest.approx([kl.mean()])
    [table] = behaviour_refusals.effects_by_layer(run)
    assert [line[0] for line in table["rows"]] == [f"L{layer}.resid_post" for layer in range(CHANGED, N_LAYERS)]
    assert [line[3:] for line in table["rows"]] == [["−100", "+100"]] * (N_LAYERS - CHANGED)
    assert "rule of three" not in table["title"]
    still = run.rows.with_columns(value=pl.when(pl.col("metric") == "refusal").then(0.0).otherwise("value"))
    [table] = behaviour_refusals.effects_by_layer(Run(rows=still, summary=run.summary, manifest=run.manifest))
    assert [line[3:] for line in table["rows"]] == [["0", "0"]] * (N_LAYERS - CHANGED)
    assert f"up to {100 * intervals.rule_of_three(planted.SPOKEN):.0f} points" in table["title"]


def test_a_planted_agreement_is_found_where_there_is_an_effect(run: Run) -> None:
    found = behaviour_findings.agreement(run.rows, run.manifest)
    assert set(found["layer"]) == set(range(CHANGED, N_LAYERS))
    assert found["rho"].to_list() == pytest.approx([1.0] * len(found))
    assert found["n"].unique().to_list() == [planted.SCORED]


def test_between_two_tokenizers_the_soft_refusal_is_per_byte() -> None:
    relations = {"equal": "refusal_soft_nats", "permuted": "refusal_soft_nats", "extended": "refusal_soft_per_byte_nats"}
    for relation, metric in relations.items():
        assert behaviour_findings.soft_metric({"tokenizers": {"relation": relation}}) == metric


@given(st.text(max_size=60), st.text(max_size=60))
def test_the_spans_of_a_text_are_the_text(text: str, other: str) -> None:
    found = spans(text, other)
    assert "".join(span.text for span in found) == text
    assert not any(span.differs for span in spans(text, text))


def test_the_words_that_differ_are_marked() -> None:
    found = [(span.text, span.differs) for span in spans("I cannot tell you that.", "I can tell you that, friend.")]
    assert found == [("I ", False), ("cannot ", True), ("tell you ", False), ("that.", True)]


def test_the_section_says_what_was_planted(run: Run, page: str) -> None:
    section = behaviour_page.answers(run)
    main, note = section.parts[:2]
    lines = {(line[0], line[1]): line for line in main["rows"]}
    assert tuple(lines["test prompts", "refusals"][3:]) == (
        "0\u00a0%\n[0,\u00a014]", "38\u00a0%\n[21,\u00a057]", lines["test prompts", "refusals"][5], "0.0039", "0.0078",
    )  # fmt: skip
    assert ("", "style markers per 100 words: courtesy") in lines
    assert note["kind"] == "table" or "rule of three" not in note["text"], "the tuned model did refuse"
    drawn = {part.name: part for part in section.parts if isinstance(part, Drawn)}
    assert set(drawn) == {"refusal_by_layer"}, "no choice was scored under edits"
    assert f"leave out 0, the first L{CHANGED}" in drawn["refusal_by_layer"].caption
    said = " ".join(leads(run.rows, run.summary, run.manifest)["behaviour"])
    assert f"the tuned model has {planted.REFUSED} refusals where the base has 0 (McNemar p = 0.0039, 0.0078 of 3 scores)" in said
    assert "The refusal log-probability margin, of refusals that are put to both models rather than said by them, is 0.39" in said
    assert "no difference could be shown in style markers per 100 words" in said
    assert '<p class="who">tuned patched into base' in page
    marked = [html.unescape(part.split("</mark>")[0]) for part in page.split("<mark>")[1:]]
    assert any(part.strip() == "third" for part in marked), "the edited base's answer, beside its own"


def test_texts_are_untrusted(page: str) -> None:
    assert "<script>alert" not in page
    assert html.escape("<script>alert(1)</script>") in page


@pytest.mark.parametrize("width", [drawing.WIDE, drawing.NARROW])
def test_the_figure_is_drawn_at_both_widths(run: Run, width: int) -> None:
    svg = drawing.to_svg(behaviour_page.behaviour_by_layer(run.rows, run.summary, run.manifest, width=width))
    assert f"L{CHANGED}, tuned patched into base" in svg
    assert behaviour_page.behaviour_by_layer(run.rows, run.summary, run.manifest, metric="mc_margin_per_byte_nats") is None


def test_few_prompts_have_no_interval_and_it_is_said(run: Run) -> None:
    few = run.rows.filter(pl.col("prompt").is_null() | pl.col("prompt").is_in(d_of(run.rows, "report")[0][:4]))
    said = " ".join(leads(few, statistics_summary.summarise(few, NUMBERS), run.manifest)["behaviour"])
    assert "not defined" not in said
    assert said.endswith("Of test prompts 4 were asked: too few to compare the two models' answers.")


def test_what_was_not_measured_is_said(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict) -> None:
    (part,) = behaviour_page.answers(Run(rows=rows, summary=summary, manifest=manifest)).parts
    assert part["text"] == "Behaviour was not measured in this run."


def test_mcnemar_and_the_rule_of_three_are_what_they_say() -> None:
    assert intervals.mcnemar(0, 0) == 1
    assert intervals.mcnemar(1, 6) == intervals.mcnemar(6, 1) == pytest.approx(2 * (1 + 7) / 2**7)
    for n in (1, 10, 1000):
        assert (1 - intervals.rule_of_three(n)) ** n == pytest.approx(0.05)
    assert intervals.rule_of_three(1000) == pytest.approx(3 / 1000, rel=0.01)
