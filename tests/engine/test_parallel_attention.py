"""Attention of parallel copies without a mask is that behind a mask: every family, windows of positions, few scores at a time."""

import pytest
import torch

import decoders
from mechdiff.architectures.sites import Site
from mechdiff.engine import parallel_attention
from mechdiff.engine.activations import capture
from mechdiff.engine.prefix import Prefix, side_by_side
from mechdiff.engine.replay import Write, full, later_born, parallel, replay
from mechdiff.engine.rounding import nats_between
from mechdiff.models.pair import wrap
from pico import CONFIGS, RELAYED, each, pico, prompts

PROMPTS = prompts(3, shortest=5, longest=21)
BEHIND_A_MASK = {"falcon", "falcon_sequential", "deepseek_v3", "stablelm", "stablelm_parallel"}
"""The attention of Falcon and StableLM is code of its own; DeepSeek's cache holds what keys and values are made of."""


def of_every_site(model, n_pos, n_prompts=3):
    """A variant a site, of random states."""
    random = torch.Generator().manual_seed(0)
    sites = [Site(layer, kind) for layer in range(model.shape.n_layers) for kind in model.kinds()]
    shape = (n_prompts, n_pos)
    return [{site: Write(value=torch.randn(*shape, model.shape.width(site.kind), generator=random).to(model.dtype))} for site in sites]


@pytest.mark.parametrize("name", each(name for name in CONFIGS if name not in RELAYED))
@pytest.mark.parametrize("n_pos", [1, 3])
def test_it_is_attention_behind_a_mask(name, n_pos, monkeypatch):
    model = pico(name)
    assert parallel_attention.is_possible(model) == (name not in BEHIND_A_MASK)
    cleans = [capture(model, ids, [], [0], keep_cache=True) for ids in PROMPTS]
    variants, wanted = of_every_site(model, n_pos), torch.ones(3, n_pos, dtype=torch.bool)
    found = parallel(model, Prefix.of(cleans, n_pos), variants, wanted)
    monkeypatch.setattr(parallel_attention, "is_possible", lambda model: False)
    expected = parallel(model, Prefix.of(cleans, n_pos), variants, wanted)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (found[:, 1:] - found[:, :1]).abs().amax(-1).min() > 1e-3, "every variant does something"


@pytest.mark.parametrize("kind", ["deepseek_v2", "deepseek_v3", "minicpm3", "glm4_moe_lite", "youtu"])
def test_a_cache_of_latents_is_not_attended_to_as_keys(kind, monkeypatch):
    """transformers caches what keys and values are made of: the latent, normed, and one rotated key for all heads."""
    model = wrap(decoders.tiny_decoder(kind), side="base", ref=kind)
    cleans = [capture(model, ids, [], [0], keep_cache=True) for ids in PROMPTS[:2]]
    config, (first, second) = model.config, cleans[0].cache[1]
    assert first.shape[1:] == (1, len(PROMPTS[0]), config.kv_lora_rank)
    assert second.shape[1:] == (1, len(PROMPTS[0]), config.qk_rope_head_dim)
    variants = of_every_site(model, 1, n_prompts=2)
    assert not parallel_attention.is_possible(model)
    assert nats_between(full(model, cleans, variants), replay(model, cleans, variants)).max() <= 1e-8
    monkeypatch.setattr(parallel_attention, "is_possible", lambda model: True)
    with pytest.raises(RuntimeError, match=r"invalid for input of size|Expected size for first two dimensions"):
        replay(model, cleans, variants)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("n_pos", [1, 2])
def test_copies_may_attend_a_few_at_a_time(name, n_pos, monkeypatch):
    model = pico(name)
    cleans = [capture(model, ids, [], [0], keep_cache=True) for ids in PROMPTS]
    variants = of_every_site(model, n_pos)
    expected = parallel(model, Prefix.of(cleans, n_pos), variants)
    monkeypatch.setattr(parallel_attention, "MOST_SCORES", 2000)
    torch.testing.assert_close(parallel(model, Prefix.of(cleans, n_pos), variants), expected, rtol=0, atol=1e-5)


def test_the_model_is_as_before_after_an_error():
    model = pico("gemma3")
    before = model.config._attn_implementation
    clean = capture(model, PROMPTS[0], [], [0], keep_cache=True)
    with pytest.raises(RuntimeError):
        replay(model, [clean], [{Site(0, "resid_pre"): Write(value=torch.zeros(1, 1, 7))}])
    assert {block.self_attn.config._attn_implementation for block in model.blocks} == {before}
    assert torch.equal(capture(model, PROMPTS[0], [], [0]).logits, clean.logits)


# ---- what it stands on


def test_caches_side_by_side_are_kept_and_are_the_prompts_own():
    model = pico("llama")
    cleans = [capture(model, ids, [], [0], keep_cache=True) for ids in PROMPTS]
    before = [[(keys.clone(), values.clone()) for keys, values in clean.cache or ()] for clean in cleans]
    blocks = side_by_side(cleans)
    assert side_by_side(cleans) is blocks
    for clean, kept in zip(cleans, before, strict=True):
        assert clean.cache
        for now, then in zip(clean.cache, kept, strict=True):
            assert torch.equal(now[0], then[0])
            assert torch.equal(now[1], then[1])
    assert clean.cache[0][0].untyped_storage().data_ptr() == blocks[0][0].untyped_storage().data_ptr(), "one memory for both"
    two = side_by_side(cleans[:2])
    assert len(two[0][0]) == 2, "other prompts, another table"
    assert side_by_side(cleans) is not blocks


def test_a_copy_is_born_behind_the_output_that_it_writes():
    write = Write(value=torch.ones(1, 1, 2))
    assert later_born({Site(1, "resid_post"): write}, 4) == {Site(2, "resid_pre"): write}
    for variant in ({Site(3, "resid_post"): write}, {Site(1, "mlp_out"): write}, {Site(0, "z"): write, Site(1, "resid_post"): write},
                    {Site(1, "resid_post"): write, Site(2, "resid_pre"): write}):  # fmt: skip
        assert later_born(variant, 4) == variant
    assert later_born(later_born({Site(1, "resid_post"): write, Site(2, "z"): write}, 4), 4) == {
        Site(2, "resid_pre"): write,
        Site(2, "z"): write,
    }
