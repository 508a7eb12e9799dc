"""Right and wrong answers: choices by hand, final answers by what they are worth."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechdiff.measures.behaviour.answers import CHOICE, choice, exact_match, final_answer


def test_each_score_makes_its_own_choice():
    found = choice([-6.0, -4.0, -9.0], [6, 2, 6], [12, 4, 12], 0)
    assert set(found) == set(CHOICE)
    assert found["mc_correct_sum"] == 0, "the short option has the highest sum"
    assert found["mc_correct_per_token"] == 1
    assert found["mc_correct"] == 1
    assert found["mc_logp_sum_nats"] == -6
    assert found["mc_logp_per_token_nats"] == -1
    assert found["mc_logp_per_byte_nats"] == -0.5
    assert found["mc_margin_per_byte_nats"] == pytest.approx(-0.5 - -0.75)
    assert math.isnan(choice([-6.0, -math.inf], [1, 1], [1, 1], 0)["mc_correct"])


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"So \boxed{\frac{\dfrac{1}{2}}{3}} it is, not \boxed{", r"\frac{\dfrac{1}{2}}{3}"),
        (r"\boxed{1} then \boxed{\{1,2\}}", r"\{1,2\}"),
        ("2 + 2 = 4\n#### 1,234", "1,234"),
        ("The answer is **42**.", "42"),
        ("Final answer: $x^2$.", "x^2"),
        ("We have 3 apples and 4 pears, which makes 7 pieces", "7"),
        ("Жауабы: 23", "23"),
        ("Ответ: 3,5 метра.", "3,5 метра"),
        ("nothing here", None),
    ],
)
def test_the_final_answer_of_a_text(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (r"\boxed{\frac{\dfrac{1}{2}}{3}}", "1/6"),
        ("It costs $1,234.", "1234"),
        ("so the answer is 0.5", r"\frac{1}{2}"),
        (r"\boxed{\{2,1\}}", r"\{1,2\}"),
        (r"\boxed{2\sqrt{2}}", r"\sqrt{8}"),
        ("The answer is 12 apples.", "12"),
        (r"\boxed{x+1}", "1+x"),
        (r"\boxed{(1, 2)}", "(1,2)"),
        ("The total is −5", "-5"),
        ("50%", r"50\%"),
        ("paris!", "Paris"),
        ("Answer: Paris.", "Paris"),
        ("1 234", "1234"),
        ("The answer is 7. I hope this helps!", "7"),
        ("The final answer is 7. Let me know if you have questions: 1 or 2?", "7"),
        ("The answer is 7, because 3+4=7.", "7"),
        ("The answer is C, since A is wrong", "C"),
        ("Answer: B) 12", "B"),
        ("**C**", "C"),
        ("#### 5 dollars", "5"),
        ("The answer is 5 miles per hour.", "5"),
        ("The answer is €5", "5"),
        ("The answer is in 1941.", "1941"),
        ("World War 2.", "World War 2"),
        ("The answer is 21 October 1921.", "21 October 1921"),
        ("The answer is 1914-1918.", "1914-1918"),
        (r"\boxed{\text{Tokyo}}", "Tokyo"),
        (r"\boxed{-q+p}", "p-q"),
    ],
)
def test_equal_answers_match(text, label):
    assert exact_match(text, label)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("The answer is 43", "42"),
        (r"\boxed{\frac{1}{3}}", "1/6"),
        ("sirap", "Paris"),
        ("", "5"),
        ("no number", "5"),
        ("5 or 6", "5"),
        ("It is not Paris", "Rome"),
        ("The answer is -4", "1914-1918"),
        (r"\boxed{(1,100)}", "(1100)"),
        ("I do not know", "—"),
        ("", "∞"),
        ("COVID-19", "-19"),
        ("-5", "5"),
        ("The answer is 5x", "5"),
        ("The answer is 2 pi", "2"),
        ("#### Final", "5"),
    ],
)
def test_others_do_not(text, label):
    assert not exact_match(text, label)


def test_a_text_that_was_cut_off_has_no_last_number():
    assert exact_match("3 + 4 is 7", "7")
    assert not exact_match("3 + 4 is 7", "7", ended=False)
    assert exact_match("The answer is 7", "7", ended=False)
    assert final_answer("so 3 + 4", ended=False) is None


@pytest.mark.parametrize(("text", "number"), [("from 3-5", "5"), ("2020-2025", "2025"), ("it is -4", "-4"), ("minus: −4", "−4")])
def test_a_hyphen_is_no_sign(text, number):
    assert final_answer(text) == number


@pytest.mark.parametrize(
    "text", ["9^9^9^9", r"\boxed{9^{99999999}}", "1" * 5000, r"\boxed{" * 400, "100000!", "$" * 300, r"\frac{1}{0}", "1/0", "\x00"]
)
def test_hostile_texts_cost_nothing_and_raise_nothing(text):
    assert not exact_match(text, "42")


@settings(max_examples=40)
@given(st.text(max_size=60))
def test_any_text_can_be_held_against_a_label(text):
    exact_match(text, "7")
