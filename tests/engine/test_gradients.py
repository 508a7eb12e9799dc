"""Gradients at every site against finite differences, and the Fisher metric against the divergence of a small step."""

import pytest
import torch
from torch import Tensor

from mechdiff.engine.activations import capture, full_forward
from mechdiff.engine.gradients import fisher_samples, gradients
from mechdiff.engine.models import Model
from mechdiff.engine.sites import Site
from mechdiff.measures.outcome import kl_nats
from pico import pico, prompts

FAMILIES = ("llama", "gemma2", "granite", "gpt2", "neox_parallel", "qwen3")
[IDS] = prompts(1, shortest=11, longest=11)


def moved(model: Model, site: Site, step: Tensor) -> Tensor:
    """Logits with the last position's state moved by `step`."""

    def edit(tensor: Tensor) -> None:
        tensor[:, -1] += step

    return full_forward(model, torch.tensor(IDS), {site: edit}).double()


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_finite_differences_at_every_kind_of_site(family: str) -> None:
    model = pico(family)
    sites = [Site(layer, kind) for layer in (0, 2) for kind in model.kinds()]
    token = 65
    found = gradients(model, IDS, sites, lambda law: [token])
    for site in sites:
        direction = torch.randn(model.shape.width(site.kind), generator=torch.Generator().manual_seed(1))
        step = 1e-2 * direction / direction.norm()
        ends = [float(moved(model, site, sign * step).log_softmax(-1)[token]) for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / 2
        assert float(found[site][0] @ step) == pytest.approx(slope, rel=0.02, abs=2e-6), site


def test_property_13_the_divergence_of_a_small_step_is_half_its_fisher_length() -> None:
    model, site = pico("llama"), Site(1, "resid_post")
    law: list[Tensor] = []

    def every(p: Tensor) -> list[int]:
        law.append(p.double())
        return list(range(len(p)))

    jacobian = gradients(model, IDS, [site], every)[site].double()
    fisher = jacobian.T @ (law[0][:, None] * jacobian)
    step = torch.randn(model.shape.d_model, generator=torch.Generator().manual_seed(2))
    clean = capture(model, IDS, [], [0]).logits.double()
    for size in (0.1, 0.03):
        moving = size * step / step.norm()
        kl = float(kl_nats(clean, moved(model, site, moving)))
        assert kl == pytest.approx(float(moving.double() @ fisher @ moving.double()) / 2, rel=0.05)


def test_the_mean_gradient_of_the_models_own_tokens_is_zero_and_draws_have_a_seed() -> None:
    model, site = pico("llama"), Site(1, "attn_out")
    many = fisher_samples(model, IDS, [site], 400, seed=0)[site]
    assert many.shape == (400, model.shape.d_model)
    assert many.mean(0).norm() < 4 * many.norm() / 400
    assert torch.equal(many[:3], fisher_samples(model, IDS, [site], 400, seed=0)[site][:3])
    assert not torch.equal(many[:50], fisher_samples(model, IDS, [site], 50, seed=1)[site])
