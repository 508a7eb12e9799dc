"""Gradients at every site against finite differences and each other, and the Fisher metric against the divergence of a small step."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mechdiff.architectures.sites import Site
from mechdiff.engine.activations import Clean, capture, full_forward
from mechdiff.engine.choice import engine_for
from mechdiff.engine.gradients import fisher_samples, gradients
from mechdiff.engine.replay import ENGINES, Engine, Write, replay
from mechdiff.models.pair import Model
from pico import FEW, RELAYED, each, pico, prompts

FAMILIES = ("llama", "gemma2", "granite", "gpt2", "neox_parallel", "qwen3")
PROMPTS = [prompts(1, seed=length, shortest=length, longest=length)[0] for length in (5, 11, 21)]
"""Of different lengths, one beyond the pico models' sliding window."""


def cleans_of(model: Model, ids: list[list[int]] = PROMPTS) -> list[Clean]:
    return [capture(model, one, [], [0], keep_cache=engine_for(model.config)[0] == "replay") for one in ids]


def engine_of(model: Model) -> Engine:
    return ENGINES[engine_for(model.config)[0]]


def zeros(model: Model, sites: list[Site], n: int = len(PROMPTS)) -> dict[Site, Tensor]:
    return {site: torch.zeros(n, model.shape.width(site.kind)) for site in sites}


def log_probability(token: int) -> Callable[[Tensor], Tensor]:
    return lambda logits: logits.log_softmax(-1)[..., token]


def moved(model: Model, ids: list[int], site: Site, step: Tensor) -> Tensor:
    """Logits with the last position's state moved by `step`."""

    def edit(tensor: Tensor) -> None:
        tensor[:, -1] += step

    return full_forward(model, torch.tensor(ids), {site: edit}).double()


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_finite_differences_at_every_kind_of_site(family: str) -> None:
    model, token = pico(family), 65
    sites = [Site(layer, kind) for layer in (0, 2) for kind in model.kinds()]
    (found,) = gradients(model, engine_of(model), cleans_of(model), [zeros(model, sites)], log_probability(token))
    for site in sites:
        direction = torch.randn(model.shape.width(site.kind), generator=torch.Generator().manual_seed(1))
        step = 1e-2 * direction / direction.norm()
        for ids, gradient in zip(PROMPTS, found[site], strict=True):
            ends = [float(moved(model, ids, site, sign * step).log_softmax(-1)[token]) for sign in (1, -1)]
            assert float(gradient @ step) == pytest.approx((ends[0] - ends[1]) / 2, rel=0.02, abs=2e-6), site


@pytest.mark.parametrize("name", each(usual=FEW))
def test_every_engine_gives_the_gradients_of_the_full_forward_pass(name: str) -> None:
    """At clean states and at pushed ones, in one pass each; and what the engine gives afterwards, and the weights, are as before."""
    model = pico(name)
    cleans, weights = cleans_of(model), torch.randn(model.shape.vocab, generator=torch.Generator().manual_seed(0))
    sites = [Site(layer, kind) for layer in (0, 2) for kind in model.kinds()]
    push = {Site(1, "attn_proj"): torch.full((len(PROMPTS), model.shape.d_model), 0.1)}
    states = [{Site(1, "mlp_out"): Write(value=torch.ones(len(PROMPTS), 1, model.shape.d_model), add=True)}]
    before = engine_of(model)(model, cleans, states)
    found = {
        engine: gradients(model, ENGINES[engine], cleans, [zeros(model, sites), push], lambda logits: logits @ weights)
        for engine in (("relay", "full") if name in RELAYED else ("replay", "relay", "full"))
    }
    for engine in found:
        for ours, theirs in zip(found[engine], found["full"], strict=True):
            for site in theirs:
                away = (ours[site] - theirs[site]).norm(dim=-1) / theirs[site].norm(dim=-1)
                assert float(away.max()) < 1e-5, (engine, site)
    assert torch.equal(engine_of(model)(model, cleans, states), before)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.net.parameters())


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_a_push_has_the_same_gradient_whatever_runs_beside_it(name: str) -> None:
    model, engine = pico(name), engine_of(pico(name))
    cleans = cleans_of(model)
    sites = [Site(layer, kind) for layer in (2, 0, 1) for kind in ("attn_proj", "mlp_out")]
    states = torch.randn(len(sites), len(PROMPTS), model.shape.d_model, generator=torch.Generator().manual_seed(4))
    pushes = [dict(zip(sites[: n + 1], states, strict=False)) for n in range(len(sites))]
    together = gradients(model, engine, cleans, pushes, log_probability(65))
    assert [list(one) for one in together] == [list(push) for push in pushes]
    for i, prompt in enumerate(PROMPTS):
        for push, found in zip(pushes, together, strict=True):
            alone = {site: state[i : i + 1] for site, state in push.items()}
            (expected,) = gradients(model, engine, cleans_of(model, [prompt]), [alone], log_probability(65))
            for site in push:
                torch.testing.assert_close(found[site][i : i + 1], expected[site], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("engine", ["replay", "relay"])
def test_many_runs_do_not_overflow_the_one_that_they_are_copies_of(engine: str) -> None:
    """In half precision the sum of all copies' gradients is beyond its range; no run's own gradient is."""
    model = pico("llama", dtype=torch.float16)
    cleans, weights = cleans_of(model), torch.randn(model.shape.vocab, generator=torch.Generator().manual_seed(0))
    early, late = (zeros(model, [site]) for site in (Site(0, "resid_pre"), Site(2, "attn_proj")))
    found = gradients(model, ENGINES[engine], cleans, [early] + [late] * 60, lambda logits: 500 * (logits @ weights))
    per_run = float(found[1][Site(2, "attn_proj")].abs().max())
    assert 60 * per_run > torch.finfo(torch.float16).max > per_run
    assert all(gradient.isfinite().all() for one in found for gradient in one.values())


@pytest.mark.parametrize("within", [False, True])
def test_captured_states_are_pushes_also_for_a_caller_in_inference_mode(within: bool) -> None:
    model, site = pico("llama"), Site(1, "attn_proj")
    clean = capture(model, PROMPTS[0], [site], [len(PROMPTS[0]) - 1], keep_cache=True)
    state = clean.states[site]
    (expected,) = gradients(model, replay, [clean], [{site: state.clone()}], log_probability(65))
    before = state.clone()
    with torch.inference_mode(within):
        (found,) = gradients(model, replay, [clean], [{site: state}], log_probability(65))
        assert torch.is_inference_mode_enabled() == within
    assert state.is_inference(), "what a pass captures; else this test has no object"
    assert torch.equal(found[site], expected[site])
    assert torch.equal(state, before)
    assert not state.requires_grad


def test_an_error_leaves_the_model_and_its_passes_as_they_were() -> None:
    model, site = pico("llama"), Site(1, "attn_proj")
    cleans, parameters = cleans_of(model), list(model.net.parameters())
    for parameter in parameters[::2]:
        parameter.requires_grad_(False)

    def broken(logits: Tensor) -> Tensor:
        assert logits.requires_grad
        assert not any(parameter.requires_grad for parameter in parameters)
        raise ValueError("broken objective")

    with pytest.raises(ValueError, match="broken objective"):
        gradients(model, replay, cleans, [zeros(model, [site])], broken)
    assert [parameter.requires_grad for parameter in parameters] == [number % 2 == 1 for number in range(len(parameters))]
    assert replay(model, cleans, [{site: Write(value=torch.zeros(len(PROMPTS), 1, model.shape.d_model))}]).is_inference()


def test_the_mean_gradient_of_the_models_own_tokens_is_zero_and_draws_have_a_seed() -> None:
    model, site = pico("llama"), Site(1, "attn_out")
    cleans = cleans_of(model)
    many = fisher_samples(model, replay, cleans, [site], 400, [0, 1, 2])[site]
    assert many.shape == (len(PROMPTS), 400, model.shape.d_model)
    for one in many:
        assert one.mean(0).norm() < 4 * one.norm() / 400
    alone = fisher_samples(model, replay, cleans[1:2], [site], 50, [1])[site]
    together = fisher_samples(model, replay, cleans, [site], 50, [0, 1, 2])[site]
    torch.testing.assert_close(
        alone[0], together[1], rtol=1e-4, atol=1e-5, msg="the draws of a prompt do not hang on what it is packed with"
    )
    assert not torch.equal(together[1], fisher_samples(model, replay, cleans, [site], 50, [0, 5, 2])[site][1])
