"""Gradients at every position of an answer against finite differences of patched runs, against plain autograd, and of several prompts at once."""

import pytest
import torch

from mechdiff.architectures.sites import Site
from mechdiff.audit import whole
from mechdiff.engine.choice import engine_for
from mechdiff.engine.continued import RUNS
from mechdiff.engine.gradients import gradients
from mechdiff.engine.reading import read
from mechdiff.engine.replay import ENGINES, Write
from pico import pico, prompts

PROMPTS = [prompts(1, seed=length, shortest=length, longest=length)[0] for length in (5, 11)]
ANSWERS = [[3, 70, 5, 8], [9, 4]]
N_PLACES = 4


@pytest.mark.parametrize("family", ["llama", "gemma2", "neox_parallel"])
def test_over_answers_gradients_are_finite_differences_of_patches_and_those_of_whole_passes(family: str) -> None:
    model = pico(family)
    engine = ENGINES[engine_for(model.config)[0]]
    sites = [Site(layer, kind) for layer in (0, 2) for kind in ("attn_out", "mlp_out", "resid_post") if kind in model.kinds()]
    random = torch.Generator().manual_seed(0)
    weights = torch.randn(sum(map(len, ANSWERS)), model.shape.vocab, generator=random)
    weights -= weights.mean(-1, keepdim=True)
    cleans = read(model, PROMPTS)
    push = {site: torch.zeros(len(PROMPTS), N_PLACES, model.shape.width(site.kind)) for site in sites}
    (found,) = gradients(model, engine, cleans, [push], lambda logits: (logits * weights[:, None]).sum(-1), answers=ANSWERS)
    for site in sites:
        step = 1e-2 * torch.randn(push[site].shape, generator=random) / push[site].shape[-1] ** 0.5
        ends = RUNS[engine](model, cleans, ANSWERS, [{site: Write(value=sign * step, add=True)} for sign in (1, -1)])
        by_row = ends.double()[:, 1] - ends.double()[:, 2]
        moved = [one.sum() / 2 for one in (by_row * weights).split(list(map(len, ANSWERS)))]
        for i, (gradient, one) in enumerate(zip(found[site], step, strict=True)):
            assert float((gradient * one).sum()) == pytest.approx(float(moved[i]), rel=0.02, abs=2e-5), site
            assert not gradient[len(ANSWERS[i]) :].any(), "behind an answer's end nothing is read"
    for i, (ids, said) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        mine = weights.split(list(map(len, ANSWERS)))[i].double()
        by_hooks = whole.gradients_along(model, [*ids, *said[:-1]], sites[0], mine)
        torch.testing.assert_close(found[sites[0]][i, : len(said)].double(), by_hooks, rtol=1e-3, atol=1e-4)
