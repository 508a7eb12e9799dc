"""Amplified decoding: its laws are the formula's, and what is said is what whole passes of both models give, token by token."""

import math
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch

from mechdiff.engine import generation
from mechdiff.engine.activations import forward
from mechdiff.engine.generation import Sampling, Speech, speak
from mechdiff.engine.replay import replay
from mechdiff.measures.words.amplify import CUT, amplified, speak_amplified
from mechdiff.models.pair import Model
from pico import pico, prompts

PROMPTS = prompts(5, shortest=2, longest=12)
TOKENS = 8
STOP = frozenset(range(0, 259, 11))


def naive(tuned: Model, base: Model, ids: list[int], strength: float, cut: float, sampling: Sampling | None) -> list[int]:
    """A whole pass of both models for each token; tokens below the cut one by one."""
    pick, said = generation._Pick(sampling, ids), list[int]()
    for _ in range(TOKENS):
        ours, theirs = (forward(one, torch.tensor([[*ids, *said]]), use_cache=False).logits[0, -1].double() for one in (tuned, base))
        law = ours.softmax(-1)
        for token in range(len(ours)):
            loud = ours[token] + strength * (ours[token] - theirs[token])
            theirs[token] = loud if law[token] >= cut * law.max() else -math.inf
        token = pick(theirs.float())
        if token in STOP:
            break
        said.append(token)
    return said


@pytest.mark.parametrize("sampling", [None, Sampling(temperature=1.5, top_p=0.95, seed=2)])
@pytest.mark.parametrize("strength", [1.0, 3.0])
def test_what_is_said_is_what_whole_passes_of_both_models_give(strength: float, sampling: Sampling | None) -> None:
    tuned, base = pico("llama", seed=1), pico("llama")
    found = speak_amplified(
        partial(nullcontext, tuned),
        partial(nullcontext, base),
        PROMPTS,
        Speech(max_tokens=TOKENS, stop=STOP, sampling=sampling),
        strength=strength,
    )
    wanted = [naive(tuned, base, list(ids), strength, CUT, sampling) for ids in PROMPTS]
    assert [one.tolist() for one in found] == wanted
    assert wanted != [one.tolist() for one in speak(tuned, replay, PROMPTS, Speech(max_tokens=TOKENS, stop=STOP, sampling=sampling))]


def test_at_strength_0_and_of_a_copy_the_tuned_model_says_its_own_text() -> None:
    tuned, base = pico("llama", seed=1), pico("llama")
    how = Speech(max_tokens=TOKENS, stop=STOP, sampling=Sampling(top_p=0.9, seed=5))
    own = [one.tolist() for one in speak(tuned, replay, PROMPTS, how)]
    for other, strength in ((base, 0.0), (tuned, 3.0)):
        found = speak_amplified(partial(nullcontext, tuned), partial(nullcontext, other), PROMPTS, how, strength=strength, cut=1e-9)
        assert [one.tolist() for one in found] == own


def test_an_amplified_copy_says_what_the_base_says_under_the_cut() -> None:
    base, copy = pico("llama"), pico("llama")
    how = Speech(max_tokens=TOKENS, stop=STOP, sampling=Sampling(temperature=1.5, top_p=0.95, seed=2))
    under_cut = [one.tolist() for one in speak_amplified(partial(nullcontext, base), None, PROMPTS, how, strength=0)]
    louder = speak_amplified(partial(nullcontext, copy), partial(nullcontext, base), PROMPTS, how, strength=3)
    assert [one.tolist() for one in louder] == under_cut
    assert under_cut == [naive(base, base, list(ids), 3, CUT, how.sampling) for ids in PROMPTS]
    assert under_cut != [one.tolist() for one in speak(base, replay, PROMPTS, how)], "the cut is at work without a difference"


def test_a_tilt_is_raised_to_1_plus_a_within_the_cut_and_nothing_beyond_it_is_said() -> None:
    base, tilt = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)).double(), torch.zeros(50).double()
    tilt[7], tilt[9] = 0.5, 0.4
    base[:, 7], base[:, 9] = base.max(-1).values, base.max(-1).values - 20
    tuned = base + tilt - 3.0  # a constant is no difference
    law = amplified(tuned, base, strength=3, cut=0.1).softmax(-1)
    kept = tuned.softmax(-1) >= 0.1 * tuned.softmax(-1).max(-1, keepdim=True).values
    wanted = (base + 4 * tilt).exp() * kept
    torch.testing.assert_close(law, wanted / wanted.sum(-1, keepdim=True))
    assert not law[:, 9].any(), "a token that both find absurd"


def test_both_models_are_opened_in_turn_and_closed_again() -> None:
    tuned, base = pico("llama", seed=1), pico("llama")
    opened: list[str] = []

    def opening(name: str, model: Model) -> Any:
        class Opened:
            def __enter__(self) -> Model:
                opened.append(f"+{name}")
                return model

            def __exit__(self, *_: object) -> None:
                opened.append(f"-{name}")

        return Opened()

    speak_amplified(partial(opening, "tuned", tuned), partial(opening, "base", base), PROMPTS, Speech(max_tokens=2, stop=()), strength=1)
    assert opened == ["+tuned", "-tuned", "+base", "-base"] * (len(opened) // 4)
    assert len(opened) == 4 * 2, "read, and one token: after the last none is needed"
