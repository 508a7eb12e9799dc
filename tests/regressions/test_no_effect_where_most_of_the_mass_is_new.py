"""Only the unembedding grew, and 65 % of the mass went to the new rows: "There is no effect to explain: D = 1.2e-15". Every measure was off."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from grown import CAUSAL, HEADS, OTHER, a_pair, studied

from mechdiff.api import Run
from mechdiff.comparison.comparable import load
from mechdiff.comparison.words import _nothing as nothing
from mechdiff.measures.catalogue import CHAPTERS, NUMBERS
from mechdiff.measures.divergence.words import how_different, why_no_share
from mechdiff.report import difference as report_difference
from mechdiff.report.difference import Difference
from mechdiff.report.parts import Run as Content
from mechdiff.report.sections import all_sections
from mechdiff.rows import rows as made
from mechdiff.statistics import summary as statistics_summary
from said import leads, verdict

pytestmark = pytest.mark.ci

PROMPTS = [f"p{i}" for i in range(12)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same hidden states in both models; 32 new rows of the unembedding, which take most of the mass."""
    return studied(a_pair(tmp_path_factory.mktemp("outside"), read=0, written=0, mass=18.0), [*CAUSAL, HEADS, *OTHER])


def difference(run: Run) -> Difference:
    found = report_difference.difference(run.rows(), run.summary())
    assert found
    return found


def test_the_verdict_said_no_effect_where_most_of_the_mass_was_new(run: Run) -> None:
    found = difference(run)
    assert found.mean < 1e-9, "on the shared tokens the two models are one"
    assert found.mass_outside is not None
    assert found.mass_outside > 0.5
    assert (found.counts, found.divides) == (True, False)
    first = verdict(run.rows(), run.summary(), run.manifest())[0]
    assert "no effect" not in first
    assert f"the tuned model gives {100 * found.mass_outside:.0f} % of its probability mass to tokens that the base lacks" in first
    assert "KL(tuned ‖ base) of the next byte is" in first
    assert "no share of D is given below" in first
    assert found.byte is not None
    assert found.byte > 0.5
    flags = run.summary().filter(measure="divergence", metric="kl_shared_nats", split="report")["flag"][0].split(";")
    assert "outside_only" in flags
    assert "no_effect" not in flags
    assert not run.summary()["flag"].fill_null("").str.contains("no_effect").any()


def test_no_share_of_nothing_is_given_and_the_page_says_why(run: Run) -> None:
    assert run.summary()["share"].drop_nulls().is_empty()
    content = Content(manifest=run.manifest(), rows=run.rows(), summary=run.summary())
    sections = {section.id: section for section in all_sections(content, CHAPTERS)}
    why = why_no_share(difference(run))
    assert "only in tokens that one of them lacks" in why
    for name in ("patching", "transport", "rank", "steering", "heads", "attribution"):
        assert any(why in str(part.get("text", "")) for part in sections[name].parts if isinstance(part, dict)), name
    assert len(sections["patching"].parts) > 1, "what each patch does in nats is shown"
    assert len(sections["similarity"].parts) >= 1
    assert not {"patching", "grafting", "transport", "steering", "heads"} & set(leads(content.rows, content.summary, content.manifest))


def test_the_function_was_said_not_to_have_changed(run: Run) -> None:
    """Beside 65 % of new mass: "on these prompts the function did not change with the weights"."""
    said = " ".join([*verdict(run.rows(), run.summary(), run.manifest()), *leads(run.rows(), run.summary(), run.manifest())["weights"]])
    assert "did not change" not in said
    assert "same weights" not in said
    assert "compared in part" in said
    assert not [warning for warning in run.manifest()["warnings"] if "no change to find" in warning]


def test_a_share_of_rounding_was_given_on_a_split_without_a_floor(run: Run) -> None:
    """On `fit`, where no unedited row is replayed, closeness was "2169 of D"."""
    fit = run.summary().filter(pl.col("split") == "fit", measure="transport", metric="kl_own_shared_nats")
    assert len(fit)
    assert fit["share"].is_null().all()
    assert fit["flag"].str.contains("outside_only").all()


def test_a_comparison_says_that_the_models_differ_all_the_same(run: Run, tmp_path: Path) -> None:
    one = load([run.path, studied(a_pair(tmp_path, read=0, written=0.6), CAUSAL, page=False).path])[0]
    assert not one.counts
    assert "its models differ in tokens that one of them lacks" in nothing([one])


# ---- by which numbers there is an effect ---------------------------------------------------------------------------------------------


def measured(**means: float) -> pl.DataFrame:
    """Rows of a pair of two vocabularies with a floor of 1e-7 nats in both models."""
    metrics = {"kl_tuned_base_nats": np.inf, "kl_base_tuned_nats": 1.0, "kl_shared_nats": 0.0, "js_nats": 0.0, "mass_outside": 0.0, **means}
    own = ("kl_own_nats", "js_own_nats", "kl_own_shared_nats", "js_own_shared_nats")
    parts = [made([value] * 12, measure="divergence", split="report", prompt=PROMPTS, metric=name) for name, value in metrics.items()]
    for direction in ("tuned<-base", "base<-tuned"):
        place = {"measure": "patching", "split": "report", "prompt": PROMPTS, "direction": direction}
        parts += [made([1e-7] * 12, control="no_op", metric=name, **place) for name in own]
        parts += [made([value] * 12, layer=0, site="resid_post", arm="identity", metric="kl_own_shared_nats", **place) for value in (1e-3,)]
    return pl.concat(parts, rechunk=True)


@pytest.mark.parametrize(
    ("means", "counts", "divides"),
    [
        ({}, False, False),
        ({"kl_shared_nats": 2.9e-7}, False, False),
        ({"kl_shared_nats": 3.1e-7}, True, True),
        ({"mass_outside": 2.9e-7}, False, False),
        ({"mass_outside": 3.1e-7}, True, False),
        ({"mass_outside_base": 0.2}, True, False),
        ({"js_nats": 2.9e-7}, False, False),
        ({"js_nats": 3.1e-7}, True, False),
        ({"kl_shared_nats": 0.5, "mass_outside": 0.6, "js_nats": 0.3}, True, True),
    ],
)
def test_an_effect_is_one_where_any_of_d_js_and_the_mass_outside_is_above_its_floor(means: dict, counts: bool, divides: bool) -> None:
    rows = measured(**means)
    summary = statistics_summary.summarise(rows, NUMBERS)
    found = report_difference.difference(rows, summary)
    assert found
    assert (found.counts, found.divides) == (counts, divides)
    given = summary.filter(pl.col("share").is_not_null())
    assert given.is_empty() != divides
    assert bool(why_no_share(found)) != divides
    flag = summary.filter(metric="kl_own_shared_nats", direction="tuned<-base", layer=0)["flag"][0] or ""
    assert ("no_effect" in flag, "outside_only" in flag) == (not counts, counts and not divides)


def test_shares_are_said_to_be_of_the_smaller_part_where_more_lies_outside() -> None:
    for mass, smaller in ((0.6, True), (0.1, False)):
        rows = measured(kl_shared_nats=0.5, mass_outside=mass, js_nats=0.3, kl_byte_nats=0.7)
        found = report_difference.difference(rows, statistics_summary.summarise(rows, NUMBERS))
        said = how_different(found)
        assert ("shares of D are of the smaller part" in said) == smaller
        assert f"the tuned model gives {100 * mass:.0f} % of its probability mass" in said
        assert "of the next byte is 0.700 nats" in said


def test_one_vocabulary_is_judged_by_d_alone() -> None:
    rows = measured(kl_tuned_base_nats=2e-7, js_nats=0.3).filter(~pl.col("metric").str.contains("shared|outside"))
    found = report_difference.difference(rows, statistics_summary.summarise(rows, NUMBERS))
    assert found
    assert (found.counts, found.outside) == (False, 0)
