"""Prompts that are read side by side have the states and the next token of each by itself."""

import pytest
import torch

from mechdiff.architectures.sites import Site
from mechdiff.engine import grafts
from mechdiff.engine.activations import capture
from mechdiff.engine.reading import captures
from pico import CONFIGS, RELAYED, each, pico, prompts

PROMPTS = prompts(5, shortest=3, longest=21)


@pytest.mark.parametrize("name", each(name for name in CONFIGS if name not in RELAYED))
@pytest.mark.parametrize("most", [1024, 40])
def test_it_is_each_prompt_by_itself(name, most, monkeypatch):
    monkeypatch.setitem(grafts.PASS_TOKENS, "cpu", most)
    model = pico(name)
    sites = [Site(layer, kind) for layer in range(model.shape.n_layers) for kind in model.kinds()]
    where = [[len(ids) - 1, 0, len(ids) // 2] for ids in PROMPTS]
    for clean, ids, places in zip(captures(model, PROMPTS, sites, where), PROMPTS, where, strict=True):
        alone = capture(model, ids, sites, places)
        torch.testing.assert_close(clean.logits, alone.logits, rtol=0, atol=1e-5)
        assert clean.states.keys() == alone.states.keys()
        for site, states in clean.states.items():
            torch.testing.assert_close(states, alone.states[site], rtol=1e-4, atol=1e-5)
        assert clean.ids.tolist() == list(ids)
