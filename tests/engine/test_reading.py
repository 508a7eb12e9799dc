"""Prompts that are read side by side have the states and the next token of each by itself."""

import pytest
import torch

from mechdiff.architectures.sites import Site
from mechdiff.engine import grafts
from mechdiff.engine.activations import capture
from mechdiff.engine.grafts import batches
from mechdiff.engine.reading import PADDING, captures, read_apart
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


def test_what_is_kept_for_replay_has_the_states_of_the_last_token_too():
    model = pico("llama")
    opened = [[1, 2, 3, 4, 5, *ids] for ids in PROMPTS]
    sites = [Site(layer, kind) for layer in range(model.shape.n_layers) for kind in model.kinds()]
    for clean, ids in zip(read_apart(model, opened, sites), opened, strict=True):
        alone = capture(model, ids, sites, [len(ids) - 1])
        torch.testing.assert_close(clean.logits, alone.logits, rtol=0, atol=1e-5)
        for site in sites:
            torch.testing.assert_close(clean.states[site], alone.states[site], rtol=1e-4, atol=1e-5)


def test_short_prompts_are_not_padded_to_long_ones():
    lengths = [5] * 12 + [40] * 10 + [60] * 6
    passes = batches(pico("llama"), [[7] * n for n in lengths], padding=PADDING)
    assert [len(batch.rows) for batch in passes] == [12, 10, 6]
    assert [len(batch.rows) for batch in batches(pico("llama"), [[7] * n for n in lengths])] == [22, 6]
