"""One sweep gives what the definitions give in float64, at every size of a divergence; and what a device is asked for is counted."""

import pytest
import torch

from dispatched import counted
from mechdiff.architectures.sites import Site
from mechdiff.engine import outcome
from mechdiff.engine.activations import capture
from mechdiff.engine.distributions import EVERY, kl_and_js_nats
from mechdiff.engine.outcome import CleanLogits, outcomes
from mechdiff.engine.overlap import overlap_nats
from mechdiff.engine.replay import Write, replay
from mechdiff.rows import OVERLAP
from pico import pico, prompts

LOCATING = (*EVERY, OVERLAP)
STEPS = torch.tensor([0, 0.3, 0.7, 0.95, 0.99, 0.999, 1.0, 1.3])[None, :, None]
"""How far the runs have gone from one model to the other."""


def exact_kl(p_logits, q_logits):
    """KL(p || q) in float64, in the form that small divergences survive."""
    p, u = p_logits.double().softmax(-1), q_logits.double() - p_logits.double()
    u = u - (p * u).sum(-1, keepdim=True)
    return torch.log1p((p * (torch.expm1(u) - u)).sum(-1))


def runs_between(apart, sharp, noise, seed=0, vocab=5000):
    random = torch.Generator().manual_seed(seed)
    own = torch.randn(4, vocab, generator=random) * sharp + 10
    other = own + torch.randn(4, vocab, generator=random) * apart
    runs = own[:, None] * (1 - STEPS) + other[:, None] * STEPS + noise * torch.randn(4, STEPS.numel(), vocab, generator=random)
    return own, other, runs


@pytest.mark.parametrize("apart", [1e-4, 1e-2, 0.1, 0.5, 2, 6])
@pytest.mark.parametrize(("sharp", "noise"), [(1, 1e-3), (3, 0), (3, 1e-1), (8, 1)])
def test_both_divergences_are_those_of_float64(apart, sharp, noise):
    own, other, runs = runs_between(apart, sharp, noise)
    found = outcomes(runs, CleanLogits(base=other, tuned=own), "tuned", metrics=LOCATING)
    size = float(kl_and_js_nats(own, other)[0].mean())
    for name, law in (("kl_own_nats", own), ("kl_other_nats", other)):
        expected = exact_kl(law[:, None], runs)
        rounding = 3e-7 * (expected * (expected + size)).sqrt()  # of logits of size 10, by what a divergence makes of it
        assert bool(((found[name] - expected).abs() <= 5e-5 * expected + rounding + 3e-12).all()), name
    torch.testing.assert_close(found[OVERLAP], overlap_nats(runs, own, other), rtol=2e-5, atol=5e-7)


def test_a_run_that_is_the_other_model_is_no_difference_of_large_numbers():
    own, other, _ = runs_between(2, 3, 0)
    found = outcomes(torch.stack([other, own], 1), CleanLogits(base=other, tuned=own), "tuned")
    assert (found["kl_other_nats"][:, 0] == 0).all()
    assert (found["kl_own_nats"][:, 1] == 0).all()


def test_all_prompts_at_once_are_as_one_by_one(monkeypatch):
    own, other, runs = runs_between(0.5, 3, 0.1)
    runs[0, 2, 17] = 200.0  # a token that no law sees coming
    clean = CleanLogits(base=other, tuned=own)
    one_by_one = outcomes(runs, clean, "tuned", metrics=LOCATING)
    monkeypatch.setitem(outcome.rows_at_once.__globals__["_BLOCK_ELEMENTS"], "cpu", 2**26)
    together = outcomes(runs, clean, "tuned", metrics=LOCATING)
    assert (
        one_by_one.keys()
        == together.keys()
        == {"kl_own_nats", "kl_other_nats", "js_own_nats", "top1_same", "logit_diff_divergent", OVERLAP}
    )
    for name, values in one_by_one.items():
        torch.testing.assert_close(together[name], values, rtol=1e-5, atol=1e-9, equal_nan=True)


def test_a_pass_asks_for_few_operations_and_makes_the_host_wait_once(monkeypatch):
    """Operations that a device is sent for a whole replayed pass and its outcome, views left out: a constant number a block, however many runs."""
    monkeypatch.setitem(outcome.rows_at_once.__globals__["_BLOCK_ELEMENTS"], "cpu", 2**26)
    model = pico("llama")
    sites = [Site(layer, kind) for layer in range(4) for kind in ("attn_out", "mlp_out", "resid_post")]
    cleans = [capture(model, ids, sites, [len(ids) - 1], keep_cache=True) for ids in prompts(5, shortest=5, longest=20)]
    own = torch.stack([clean.logits for clean in cleans])
    clean = CleanLogits(base=own + torch.randn(own.shape, generator=torch.Generator().manual_seed(0)), tuned=own)

    def one_pass(times):
        states = {site: torch.stack([one.states[site] for one in cleans]) + 1 for site in sites}
        chosen = [{site: Write(value=state)} for site, state in states.items() for _ in range(times)]
        return lambda: outcomes(replay(model, cleans, chosen), clean, "tuned", metrics=LOCATING)

    one_pass(1)()
    sent, waits = counted(one_pass(1))
    assert sum(sent.values()) <= 4 * 64 + 96
    assert dict(waits) == {"cpu": 1}
    assert sum(counted(one_pass(3))[0].values()) == sum(sent.values())
