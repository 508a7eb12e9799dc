"""What a user saw: "this study could detect 0.3", by the power of a t test, where the test that was used found 0.3 in half of such studies."""

import numpy as np
import pytest

from mechdiff.measures.behaviour import findings as behaviour_findings
from mechdiff.measures.behaviour import words as behaviour_words
from mechdiff.measures.catalogue import NUMBERS
from mechdiff.measures.factorial import findings as factorial_findings
from mechdiff.report import phrasing
from mechdiff.rows import rows
from mechdiff.statistics import intervals, simulated, summary


@pytest.mark.parametrize("family", [1, 2, 3, 6])
@pytest.mark.parametrize("n", [6, 8, 12, 16, 20, 32, 48, 200])
def test_the_smallest_effect_is_found_in_four_of_five_studies_by_the_test_that_is_used(n: int, family: int) -> None:
    wrong = 0.05 / family
    size = float(simulated.detectable(np.array(1.0), n, level=1 - wrong))
    found = (intervals.mean_p(np.random.default_rng([n, family]).normal(size, 1, (n, 2000))) <= wrong).mean()
    assert 0.77 <= found <= 0.84


def test_more_is_needed_than_a_t_test_would_need_and_the_more_the_fewer_prompts() -> None:
    errors = [float(simulated.detectable(np.array(1.0), n)) * n**0.5 for n in (5, 8, 16, 32, 64, 10**6)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == pytest.approx(3.08, abs=0.01), "a fourth of 5 % on the side of the mean"
    assert [round(one, 1) for one in errors[1:4]] == [4.7, 3.5, 3.2], "Student's t takes 3.3, 3.0 and 2.9"


@pytest.mark.parametrize("n", [0, 2, 4])
def test_nothing_is_called_detectable_of_fewer_prompts_than_have_a_p(n: int) -> None:
    assert np.isnan(simulated.detectable(np.array(1.0), n))


def test_nothing_is_called_detectable_at_a_level_that_was_not_simulated() -> None:
    assert np.isnan(simulated.detectable(np.array(1.0), 16, level=0.9999))


@pytest.mark.parametrize("n", [8, 24])
def test_a_score_in_which_no_difference_is_shown_says_what_its_own_test_would_have_found(n: int) -> None:
    random = np.random.default_rng(n)
    values = {"base": random.normal(size=n), "tuned": random.normal(size=n)}
    parts = [
        rows(value, measure="behaviour", split="report", unit=side, metric=metric, prompt=[f"p{i}" for i in range(n)])
        for metric in ("mc_margin_per_byte_nats", "style_per_100_words")
        for side, value in values.items()
    ]
    one = behaviour_findings.together(behaviour_findings.compared(summary.pl.concat(parts, rechunk=True)))[0]
    difference = values["tuned"] - values["base"]
    size = float(simulated.detectable(difference.std(ddof=1), n, level=0.975))
    assert one.detectable == pytest.approx(size)
    assert f"this study could detect {phrasing.nats(size)}" in behaviour_words._unseen(one)


def test_effects_of_a_factorial_of_too_few_prompts_have_no_interval() -> None:
    names = [f"p{i}" for i in range(4)]
    d = rows([1.0] * 4, measure="divergence", split="report", metric="kl_tuned_base_nats", prompt=names)
    effect = rows([0.5, 0.6, 0.4, 0.5], measure="factorial", split="report", metric="upstream_effect_nats", layer=[2] * 4, prompt=names)
    table = summary.pl.concat([d, effect])
    found = factorial_findings.effects(table, summary.summarise(table, NUMBERS), None)
    assert found["mean"].to_list() == [0.5]
    assert found["low"].to_list() == found["high"].to_list() == [None], "both were 0.5: an interval of no width"
