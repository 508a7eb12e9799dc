"""Attribution over whole answers: its rows against those of the patches that they estimate, its sentence, and its tables."""

from collections.abc import Iterator

import numpy as np
import polars as pl
import pytest

from mechdiff import labels
from mechdiff.labels import CROSSED
from mechdiff.measures.attribution import answers_page, findings, words
from mechdiff.measures.catalogue import CHAPTERS
from mechdiff.report import phrasing
from mechdiff.report.parts import Run
from mechdiff.report.sections import lead
from mechdiff.rows import where
from mechdiff.shares import OF_THE_PAIR
from mechdiff.statistics import floors
from mechdiff.validate import edits, made
from mechdiff.validate.planted import edited
from mechdiff.validate.studies import TEXTS, study


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    base = made.tiny_net()
    measures = ["divergence", {"patching": {"sites": ["mlp_out"], "arms": ["identity"], "map_prompts": 0}}]
    measures += [{"attribution": {"steps": 1, "validated": 4, "select_prompts": 4, "sites": ["mlp_out"]}}]
    with study(
        base, edited(base, edits.edit_attention), measures=measures, texts=[f"{one} {i}" for i, one in enumerate(TEXTS * 2)]
    ) as found:
        yield Run(rows=found.rows, summary=found.summary, manifest=found.record)


@pytest.mark.parametrize("direction", CROSSED)
def test_estimates_rank_sites_as_the_overlap_of_their_patches_does(run: Run, direction: str) -> None:
    """True effects on m are twice the Fisher overlap: patching has them of whole sites, over the same answers."""
    whole = {"direction": direction, "site": "mlp_out", "control": None, "split": "report"}
    estimate = where(run.rows, measure="attribution", metric="attributed_answer_logits", arm="grad_x_diff", **whole)
    patched = where(run.rows, measure="patching", metric="fisher_overlap_answer_nats", arm="identity", **whole)
    both = estimate.join(patched, on=["layer", "unit", "prompt"], suffix="_true").with_columns(
        pl.col("value_true") * (2 if labels.runner(direction) == "base" else -2)
    )
    assert len(both) == len(estimate) == len(patched) > 0
    below = both.filter(pl.col("layer") == 0)
    assert max(below["value"].abs().max(), below["value_true"].abs().max()) < 1e-5  # type: ignore[type-var]
    above = both.filter(pl.col("layer") >= 2)
    assert np.corrcoef(above["value"], above["value_true"])[0, 1] > 0.9


def test_the_sentence_and_the_tables_have_the_numbers_of_the_rows(run: Run) -> None:
    over = findings.as_at_first(run.rows)
    agreed = findings.agreement(over, run.manifest).filter(pl.col("group") == findings.TOGETHER)
    assert set(agreed["direction"]) == set(CROSSED)
    assert set(agreed["arm"]) == {"grad_x_diff"}
    lowest = agreed.sort("rho").row(0, named=True)
    (said,) = words.over_answers(run)
    at_first, again = lead(run, CHAPTERS["attribution"])
    assert phrasing.said_once([at_first, said]) == [at_first, again], "what the ends of an interval are is said once, in the first sentence"
    assert said.startswith("Over the first 16 tokens of the answers gradients ")
    sure = f"{lowest['rho']:.2f} [95 % CI: {lowest['rho_low']:.2f}, {lowest['rho_high']:.2f}]"
    assert f"attribution patching has a rank correlation of {sure} with the effects" in said
    correlations, heads = answers_page.parts(run)
    assert correlations["columns"][3] == "largest at the next token"
    assert [line[1] for line in correlations["rows"]] == [str(n) for n in agreed.sort("direction", descending=True)["heads"]]
    first = heads["rows"][0]
    values = where(over, measure="attribution", direction=CROSSED[0], metric="attributed_logits", arm="grad_x_diff", split="report")
    means = values.filter(labels.is_head()).group_by("layer", "unit").agg(pl.col("value").mean())
    largest = means.sort(pl.col("value").abs(), descending=True).row(0, named=True)
    assert first[0] == f"L{largest['layer']}H{largest['unit'].removeprefix('head ')}"
    assert float(first[2].split(" ")[0].replace("−", "-")) == pytest.approx(largest["value"], rel=0.01)


def test_what_is_of_answers_does_not_stand_among_what_is_of_the_next_token(run: Run) -> None:
    real = findings.real(run.rows)
    assert set(real["metric"]) == {"attributed_logits", "effect_logits"}
    assert real.filter(labels.is_over_answer()).is_empty()


def test_what_is_rounding_is_judged_by_d_over_answers(run: Run) -> None:
    """A D at the next token that is as large as a million of those over answers changes nothing."""
    first = (pl.col("measure") == OF_THE_PAIR) & (pl.col("metric") == floors.d_metric(run.rows))
    large = run.rows.with_columns(value=pl.when(first).then(1e6).otherwise("value"))
    here, there = (findings.agreement(findings.as_at_first(rows), run.manifest) for rows in (run.rows, large))
    assert here["rho"].null_count() == 0
    assert here.equals(there)
    assert findings.agreement(large, run.manifest)["rho"].null_count() > 0
