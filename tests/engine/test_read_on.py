"""Clean runs that go on from a prompt's cache are those of prompt and answer read as one."""

import pytest
import torch

from mechdiff.architectures.sites import Site
from mechdiff.engine.choice import engine_for
from mechdiff.engine.reading import cleans, read_on
from mechdiff.engine.replay import ENGINES, Write
from pico import pico, prompts

PROMPTS = [prompts(1, seed=length, shortest=length, longest=length)[0] for length in (5, 21, 11)]
BEHIND = [[3, 70, 5, 8], [], [9]]
"""Of different lengths; behind one prompt nothing."""


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "neox_parallel", "qwen3"])
def test_what_goes_on_from_a_cache_is_what_is_read_as_one(family: str) -> None:
    model = pico(family)
    engine = ENGINES[engine_for(model.config)[0]]
    on = read_on(model, engine, cleans(model, engine, PROMPTS), BEHIND)
    whole = [[*ids, *said] for ids, said in zip(PROMPTS, BEHIND, strict=True)]
    at_once = cleans(model, engine, whole)
    assert [one.ids.tolist() for one in on] == whole
    site = Site(1, "mlp_out")
    random = torch.Generator().manual_seed(0)
    variants = [{site: Write(value=torch.randn(len(PROMPTS), 1, model.shape.width("mlp_out"), generator=random), add=True)}]
    found, expected = engine(model, on, variants), engine(model, at_once, variants)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found[:, 1] - found[:, 0]).abs().max() > 1e-2
    if on[0].cache and at_once[0].cache:
        for mine, theirs in zip(on[0].cache, at_once[0].cache, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
