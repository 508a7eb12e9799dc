""" "6 only in the tuned one, 7 only in the base": the base against itself, on two halves of its prompts, gives as many."""

import numpy as np
import polars as pl
import pytest

from mechdiff.measures.attribution import churn as attribution_churn
from mechdiff.measures.attribution import words as attribution_words
from mechdiff.measures.catalogue import NUMBERS
from mechdiff.statistics import summary as statistics_summary
from report.small_runs import divergence, heads_of

N, HEADS = 10, 60


def study(base: np.ndarray, tuned: np.ndarray) -> tuple[pl.DataFrame, pl.DataFrame]:
    table = pl.concat([heads_of(base, "base"), heads_of(tuned, "tuned"), divergence(np.ones(len(base)))])
    return table, statistics_summary.summarise(table, NUMBERS)


def noisy(own: np.ndarray, random: np.random.Generator, n: int = N) -> np.ndarray:
    """Attributions of one model to some prompts: heavy-tailed over heads, each prompt with noise of its own."""
    return own + random.normal(0, 0.4, (n, len(own))) * (0.2 + np.abs(own))


@pytest.mark.parametrize("n_studies", [20, pytest.param(60, marks=pytest.mark.ci)])
def test_one_model_against_itself_has_heads_near_the_limit_but_none_that_is_said_to_enter_or_leave(n_studies: int) -> None:
    random, raw, said = np.random.default_rng(0), [], []
    for _ in range(n_studies):
        own = random.standard_t(2, HEADS)
        table, summary = study(noisy(own, random), noisy(own, random))
        found = attribution_churn.churn(table, summary, {})
        raw.append(found["state"].is_in(["entered", "left"]).sum())
        moved = attribution_churn.moved(found)
        said.append(moved["entered"] + moved["left"] > 0)
    assert np.mean(raw) > 0.3, "by |z| alone, heads come and go"
    assert np.mean(said) <= 0.05 + 2 * (0.05 * 0.95 / n_studies) ** 0.5


def test_a_head_that_did_enter_is_still_found() -> None:
    random = np.random.default_rng(1)
    own = random.normal(0, 0.3, HEADS)
    new = own.copy()
    new[7] = 4.0
    table, summary = study(noisy(own, random, 24), noisy(new, random, 24))
    found = attribution_churn.churn(table, summary, {})
    assert attribution_churn.moved(found) == {"stayed": len(found.filter(pl.col("state") == "stayed")), "entered": 1, "left": 0}
    assert found.filter(pl.col("name") == "L0.head 7")["p"][0] <= 0.05
    (sentence,) = attribution_words.what_gradients_say(table, summary, {})
    assert "1 in the tuned one alone and 0 in the base alone" in sentence


def test_where_none_is_sure_the_sentence_says_that_none_could_be_shown() -> None:
    random = np.random.default_rng(2)
    own = np.zeros(HEADS)
    own[0], own[1] = 3.0, 1.2
    other = own.copy()
    other[1] = 0.9
    table, summary = study(noisy(own, random), noisy(other, random))
    (sentence,) = attribution_words.what_gradients_say(table, summary, {})
    assert "that any head stands out in one of them alone could not be shown" in sentence
    assert "only in the" not in sentence


def test_of_four_prompts_no_head_is_said_to_enter() -> None:
    random = np.random.default_rng(3)
    own, new = np.zeros(HEADS), np.zeros(HEADS)
    new[7] = 4.0
    table, summary = study(noisy(own, random)[:4], noisy(new, random)[:4])
    assert attribution_churn.moved(attribution_churn.churn(table, summary, {}))["entered"] == 0
