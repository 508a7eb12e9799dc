"""A Phi-3 pair with `longrope` was said to have no effect: prompts on both sides of its original context were packed into one pass, whose longest
prompt then chose the rotary frequencies of all of them."""

import pytest
import torch
from transformers import LlamaConfig, Phi3Config

from mechdiff.engine.activations import capture
from mechdiff.engine.choice import engine_for
from mechdiff.engine.replay import ENGINES, replay
from mechdiff.models.pair import wrap
from pico import SIZES, make_net
from pico import prompts as random_prompts

CONTEXT = 16
LENGTHS = (6, 40)
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0],
            "original_max_position_embeddings": CONTEXT}  # fmt: skip


def config() -> Phi3Config:
    sizes = {**SIZES, "num_key_value_heads": 4}
    return Phi3Config(**sizes, original_max_position_embeddings=CONTEXT, rope_parameters=LONGROPE)


def strays(engine: str) -> float:
    """How far an unedited row is from the model's own logits, prompts of both lengths in one call."""
    model = wrap(make_net(config(), seed=0), side="base", ref="longrope")
    ids = [random_prompts(1, seed=length, shortest=length, longest=length)[0] for length in LENGTHS]
    run = ENGINES[engine]
    cleans = [capture(model, one, [], [], keep_cache=run is replay) for one in ids]
    own = torch.stack([clean.logits for clean in cleans])
    return float((run(model, cleans, [])[:, 0] - own).abs().max())


def test_prompts_on_both_sides_of_the_original_context_are_not_packed():
    engine, why = engine_for(config(), max(LENGTHS))
    assert "rotary frequencies" in why
    assert strays(engine) < 1e-5
    assert strays("replay") > 1e-2  # why it matters


@pytest.mark.parametrize("longest", [0, CONTEXT])
def test_prompts_within_the_original_context_keep_the_fast_engine(longest):
    assert engine_for(config(), longest)[0] == "replay"


def test_a_rotation_that_depends_on_no_length_keeps_the_fast_engine():
    assert engine_for(LlamaConfig(**SIZES), 10_000)[0] == "replay"
