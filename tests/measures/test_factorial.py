"""Crossed halves of two networks: identities of the effects, and planted changes on one side of the split."""

import math

import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechdiff.architectures.sites import Site
from mechdiff.engine.activations import capture
from mechdiff.engine.counterfactuals import Subject
from mechdiff.engine.distributions import kl_nats
from mechdiff.engine.outcome import CleanLogits
from mechdiff.engine.replay import relay, replay
from mechdiff.measures.factorial import formula as factorial_formula
from mechdiff.models.pair import Model
from mechdiff.validate import edits
from pico import pico, prompts, same_tokens, twin

PROMPTS = prompts(5, shortest=12, longest=12)
LAYERS = (0, 1, 2, 3)
TOKENS = same_tokens(259)
NATS = st.floats(0, 20, allow_nan=False)


def crossed(base: Model, tuned: Model, n_pos: int) -> dict[str, factorial_formula.Scores]:
    """All four runs of two models on the prompts, with the last `n_pos` positions crossed."""
    sites = [Site(layer, "resid_post") for layer in LAYERS]
    cleans = {
        model.side: [capture(model, ids, sites, range(len(ids) - n_pos, len(ids)), keep_cache=n_pos == 1) for ids in PROMPTS]
        for model in (base, tuned)
    }
    laws = {side: torch.stack([clean.logits for clean in found]) for side, found in cleans.items()}
    states = {side: torch.stack([torch.stack([clean.states[site] for clean in found]) for site in sites]) for side, found in cleans.items()}
    logits, engine = CleanLogits(**laws), replay if n_pos == 1 else relay
    subjects = {model.side: Subject(model=model, engine=engine, cleans=cleans[model.side], tokens=TOKENS) for model in (base, tuned)}
    runs = {
        "bt": factorial_formula.crossed(subjects["tuned"], LAYERS, states["base"], logits),
        "tb": factorial_formula.crossed(subjects["base"], LAYERS, states["tuned"], logits),
    }
    clean = {"bt": torch.zeros(5).double(), "tb": kl_nats(laws["tuned"], laws["base"])}
    for arm, strayed in clean.items():  # the first run is the unedited one
        torch.testing.assert_close(runs[arm]["kl_tuned_nats"][0], strayed, rtol=1e-5, atol=1e-8)
        runs[arm] = {score: values[1:] for score, values in runs[arm].items()}
    for arm, side in (("bb", "base"), ("tt", "tuned")):
        found = factorial_formula.scores(laws[side][:, None], logits)
        runs[arm] = {score: values.expand(len(LAYERS), -1) for score, values in found.items()}
    return runs


@pytest.mark.parametrize("n_pos", [1, 12])
def test_a_change_in_block_1_is_upstream_of_every_split_above_it(n_pos: int) -> None:
    base = pico("llama")
    tuned = twin(base, edits.edit_attention)
    runs = crossed(base, tuned, n_pos)
    d = runs["bb"]["kl_tuned_nats"][0]
    found = factorial_formula.effects(*(-runs[arm]["kl_tuned_nats"] for arm in factorial_formula.ARMS))
    torch.testing.assert_close(runs["tt"]["kl_tuned_nats"], torch.zeros(4, 5).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(found["downstream_effect"][0], d, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(found["upstream_effect"][0], torch.zeros(5).double(), rtol=0, atol=1e-8)
    if n_pos == 12:  # whole sequences: the hybrid network above the change is the tuned one
        torch.testing.assert_close(found["upstream_effect"][1:], d.expand(3, -1), rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(found["interaction"], torch.zeros(4, 5).double(), rtol=0, atol=1e-7)
    else:  # the tuned keys and values of earlier positions count as downstream until the last block
        assert (found["downstream_effect"][1].abs() > 1e-6).all()
        torch.testing.assert_close(found["upstream_effect"][3], d, rtol=1e-5, atol=1e-8)


def test_logit_differences_move_from_the_bases_to_the_tuned_models() -> None:
    base = pico("llama")
    runs = crossed(base, twin(pico("llama", seed=1)), 12)
    diff = {arm: found["logit_diff_divergent"] for arm, found in runs.items()}
    assert (diff["bb"][0] < 0).all()
    assert (diff["tt"][0] > 0).all()
    torch.testing.assert_close(diff["bt"][3] != diff["tt"][3], torch.ones(5).bool())


@given(st.tuples(NATS, NATS, NATS, NATS))
def test_the_main_effects_add_up_to_the_whole(values: tuple[float, ...]) -> None:
    bb, bt, tb, tt = (torch.tensor([[value]]).double() for value in values)
    found = factorial_formula.effects(bb, bt, tb, tt)
    assert float(found["upstream_effect"] + found["downstream_effect"]) == pytest.approx(float(tt - bb), abs=1e-9)
    swapped = factorial_formula.effects(tt, tb, bt, bb)  # the labels of both halves exchanged
    assert float(swapped["upstream_effect"]) == pytest.approx(-float(found["upstream_effect"]), abs=1e-9)
    assert float(swapped["interaction"]) == pytest.approx(float(found["interaction"]), abs=1e-9)


@pytest.mark.parametrize(("alone", "interaction"), [(3.0, 3.0), (0.0, -3.0), (1.5, 0.0)])
def test_both_needed_either_enough_or_additive(alone: float, interaction: float) -> None:
    """D = 3; each half alone leaves `alone` nats."""
    found = factorial_formula.effects(*(torch.tensor([[-kl]]) for kl in (3.0, alone, alone, 0.0)))
    assert float(found["interaction"]) == interaction
    assert float(found["upstream_effect"]) == float(found["downstream_effect"]) == 1.5


def test_prompts_without_a_divergent_token_have_no_logits() -> None:
    value = torch.tensor([[1.0, math.nan, 2.0]]).double()
    runs = {
        arm: {"kl_tuned_nats": value.nan_to_num(0.5), "logit_diff_divergent": value * k, "linear_nats": value.nan_to_num(0.5)}
        for k, arm in enumerate(factorial_formula.ARMS)
    }
    rows = factorial_formula.measure(runs, [0], ["a", "b", "c"], columns={"split": "report", "unit": "all_pos"})
    assert len(rows.filter(pl.col("metric") == "upstream_effect_logits", pl.col("control").is_null(), pl.col("value").is_nan())) == 1
    assert len(rows) == len(rows.unique(rows.columns[:-1])), "the row contract's key"


def test_unedited_rows_stand_beside_as_the_floor() -> None:
    value = torch.ones(1, 2).double()
    runs = {arm: {"kl_tuned_nats": value, "logit_diff_divergent": value, "linear_nats": value} for arm in factorial_formula.ARMS}
    strayed = {"bb": torch.tensor([1.0, 1.5]).double(), "tt": torch.tensor([0.0, 0.25]).double()}
    unedited = {arm: {"kl_tuned_nats": values} for arm, values in strayed.items()}
    rows = factorial_formula.measure(runs, [0], ["a", "b"], columns={"split": "report", "unit": None}, unedited=unedited)
    found = rows.filter(pl.col("control") == "no_op").select("arm", "prompt", "metric", "value").rows()
    assert found == [
        ("bb", "a", "kl_tuned_nats", 1.0),
        ("bb", "b", "kl_tuned_nats", 1.5),
        ("tt", "a", "kl_tuned_nats", 0.0),
        ("tt", "b", "kl_tuned_nats", 0.25),
    ]


def test_scores_are_against_the_tuned_model() -> None:
    logits, base, tuned = (torch.randn(2, 3, 11), torch.randn(2, 11), torch.randn(2, 11))
    found = factorial_formula.scores(logits, CleanLogits(base=base, tuned=tuned))
    torch.testing.assert_close(found["kl_tuned_nats"][1, 0], kl_nats(tuned[0], logits[0, 1]))
    top = (int(tuned[0].argmax()), int(base[0].argmax()))
    assert float(found["logit_diff_divergent"][1, 0]) == pytest.approx(float(logits[0, 1, top[0]] - logits[0, 1, top[1]]), abs=1e-6)


def test_the_linear_score_runs_from_0_to_both_divergences_together() -> None:
    base, tuned, run = torch.randn(2, 11), torch.randn(2, 11), torch.randn(2, 1, 11)
    logits = torch.cat([base[:, None], tuned[:, None], run, base[:, None] + 7], 1)
    found = factorial_formula.scores(logits, CleanLogits(base=base, tuned=tuned))["linear_nats"]
    torch.testing.assert_close(found[0], torch.zeros(2).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(found[1], kl_nats(tuned, base) + kl_nats(base, tuned), rtol=1e-6, atol=1e-8)
    naive = ((tuned.softmax(-1) - base.softmax(-1)) * (run[:, 0] - base)).sum(-1)
    torch.testing.assert_close(found[2], naive.double(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[3], torch.zeros(2).double(), rtol=0, atol=1e-5, msg="what is added to every logit is nothing")
