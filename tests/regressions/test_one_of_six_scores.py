"""Any of six scores, each tested at 5 %, was a headline: seen in a third of studies in which nothing differs. And "more soft refusal" of models that
never refuse was said to be "in its answers"."""

import numpy as np
import polars as pl
import pytest

from mechdiff.measures.behaviour import findings as behaviour_findings
from mechdiff.measures.behaviour.words import headlines, what_they_do
from mechdiff.measures.catalogue import NUMBERS
from mechdiff.report.headlines import admit
from mechdiff.statistics import summary
from mechdiff.validate import nulls
from report.small_runs import answered, asked, divergence
from said import refused, verdict

N = 10


def soft(per_token: float, per_byte: float, *, refusals: int = 0) -> pl.DataFrame:
    """The tuned model's margin of refusals is higher by so much; it refuses on a few prompts."""
    random = np.random.default_rng(0)
    own, stray = random.normal(-0.5, 0.2, N), random.normal(0, 0.1, N)
    scores = {"refusal_soft_nats": per_token, "refusal_soft_per_byte_nats": per_byte}
    base = {"refusal": np.zeros(N), **dict.fromkeys(scores, own)}
    tuned = {"refusal": np.arange(N) < refusals, **{metric: own + by * (1 + stray) for metric, by in scores.items()}}
    return pl.concat([answered(base, tuned), divergence(np.linspace(0.1, 0.2, N))])


@pytest.mark.parametrize("n_studies", [100, pytest.param(400, marks=pytest.mark.ci)])
def test_two_models_alike_in_law_are_seldom_seen_to_differ_in_any_score(n_studies: int) -> None:
    found = list(nulls.behaviour_of_twins(n_studies, np.random.default_rng(3)))
    assert [rate.what.rpartition("(")[2] for rate in found] == [f"Holm, {n} prompts)" for n in (8, 12, 24, 48)]
    for rate in found:
        assert rate.holds, f"{rate.what}: {rate.found:.1%}"


def test_a_real_difference_is_still_seen_among_six_scores() -> None:
    random = np.random.default_rng(5)
    rows = nulls._twins(24, random)
    more = (pl.col("metric") == "style_per_100_words") & (pl.col("unit") == "tuned")
    rows = rows.with_columns(value=pl.when(more).then(pl.col("value") + 8.0).otherwise("value"))
    rows = rows.with_columns(prompt=pl.col("prompt").str.replace("p", "r"))
    said = headlines(rows, asked(24))
    assert any("more style markers per 100 words" in one.text for one in said)


def test_more_soft_refusal_of_two_models_that_never_refuse_is_no_headline() -> None:
    rows = soft(0.0257, 0.01)
    (sentence,) = verdict(rows, summary.summarise(rows, NUMBERS), asked(N))
    assert "margin" not in sentence
    assert "no difference in refusals could be shown" in sentence, "of what the models say, and no more"
    (kept, *_) = refused(rows, summary.summarise(rows, NUMBERS), asked(N))
    assert "refusal log-probability margin is 0.02" in kept
    assert kept.endswith("neither model ever does what this scores")
    section = what_they_do(rows, asked(N))
    assert "refusal log-probability margin" not in section[0], "it is not in their answers"
    assert section[1].startswith(
        "The refusal log-probability margin, of refusals that are put to both models rather than said by them, is 0.02"
    )


def test_a_margin_that_changes_its_sign_with_the_way_of_counting_length_is_no_headline() -> None:
    rows = soft(0.0257, -0.0029, refusals=3)
    gates = [admit(one) for one in headlines(rows, asked(N)) if "margin" in one.text]
    assert [gate.name for gate in gates if gate] == ["length"]
    assert "per token and per byte it does not have the same sign" in " ".join(what_they_do(rows, asked(N)))


@pytest.mark.parametrize("refusals", [1, 5])
def test_a_margin_that_agrees_is_spoken_of_where_a_model_refuses_but_never_as_in_its_answers(refusals: int) -> None:
    rows = soft(0.4, 0.1, refusals=refusals)
    (sentence,) = verdict(rows, summary.summarise(rows, NUMBERS), asked(N))
    assert "the tuned model's refusal log-probability margin is 0.38" in sentence
    assert "in its answers the tuned model has 0.4" not in sentence


def test_every_spoken_score_is_tested_among_those_that_happened() -> None:
    rows = soft(0.4, 0.1)
    group = behaviour_findings.Group(name="report", language=None, rows=rows.filter(pl.col("measure") == "behaviour"))
    spoken = behaviour_findings.to_the_point(group, behaviour_findings.compared(group.rows), "refusal_soft_nats")
    assert {one.metric: (one.family, one.holm is None) for one in spoken} == {"refusal": (1, True), "refusal_soft_nats": (1, False)}
