"""Many variants in one pass give what one whole forward pass for each gives: every family, site, block and window, however they are packed."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from mechdiff.architectures.sites import KINDS, Site
from mechdiff.engine.activations import Clean, capture
from mechdiff.engine.choice import engine_for
from mechdiff.engine.replay import ENGINES, Engine, Variant, Write, full, relay, replay
from mechdiff.models.pair import Model, open_pair
from pico import CONFIGS, FEW, RELAYED, each, pico
from pico import prompts as random_prompts

LENGTHS = (5, 9, 21)
"""Shorter than the pico models' sliding window of 8, one token longer, and much longer."""
PROMPTS = [random_prompts(1, seed=length, shortest=length, longest=length)[0] for length in LENGTHS]
TWO = PROMPTS[::2]
STORIES = Path(__file__).parents[3] / "shared" / "models" / "stories260k"
N_LAYERS = 4
FAMILIES = st.sampled_from(sorted(CONFIGS))
CLOSE = {"rtol": 0, "atol": 1e-5}
"""Float32 logits of size 10; parallel rows run in other matrix shapes than a forward pass does."""
FLOOR_NATS = {torch.float32: 1e-10, torch.bfloat16: 1e-3}
"""KL between a replayed row and the forward pass that it stands for."""


@cache
def loaded(name: str, attention: str | None = None, dtype: torch.dtype = torch.float32) -> Model:
    return pico(name, attention=attention, dtype=dtype)


@cache
def foreign(name: str) -> Model:
    """Another random model of the family, whose states are written."""
    return pico(name, seed=1)


def cleans_of(model: Model, prompts: Sequence[Sequence[int]] = PROMPTS, sites: Sequence[Site] = (), n_pos: int = 1) -> list[Clean]:
    keep = ENGINES[engine_for(model.config)[0]] is replay
    return [capture(model, ids, sites, range(len(ids) - n_pos, len(ids)), keep_cache=keep) for ids in prompts]


def fast_engines(name: str) -> list[Engine]:
    """All that must agree with the slow twin on a family."""
    return [relay] if name in RELAYED else [replay, relay]


def sites_of(model: Model) -> list[Site]:
    return [Site(layer, kind) for layer in range(model.shape.n_layers) for kind in model.kinds()]


def states_of(model: Model, n_pos: int = 1, prompts: Sequence[Sequence[int]] = PROMPTS) -> dict[Site, Tensor]:
    """The states `[prompt, pos, d]` of every site at the last positions."""
    cleans = cleans_of(model, prompts, sites_of(model), n_pos)
    return {site: torch.stack([clean.states[site] for clean in cleans]) for site in sites_of(model)}


def all_sorts_of_variants(model: Model, states: dict[Site, Tensor]) -> list[Variant]:
    """A foreign state at every site; sums; several sites at several blocks; the blocks in no order."""
    single: list[Variant] = [{site: Write(value=value)} for site, value in states.items()]
    added: list[Variant] = [{site: Write(value=value, add=True)} for site, value in states.items() if site.layer == 1]
    windows: list[Variant] = [
        {site: Write(value=states[site]) for site in (Site(layer, "mlp_out"), Site(layer + 1, "mlp_out"))} for layer in (2, 0)
    ]
    inner = Site(3, "z" if "z" in model.kinds() else "attn_proj")
    mixed: Variant = {
        Site(1, "attn_out"): Write(value=states[Site(1, "attn_out")]),
        Site(1, "mlp_out"): Write(value=states[Site(1, "mlp_out")], add=True),
        inner: Write(value=states[inner]),
        Site(2, "attn_proj"): Write(value=states[Site(2, "attn_proj")], add=True, where=torch.arange(model.shape.d_model) % 3 == 0),
        Site(3, "mlp_out"): Write(value=states[Site(3, "mlp_out")], where=torch.arange(model.shape.d_model) < 7),
    }
    return [*reversed(single), mixed, *added, *windows]


def kl(reference: Tensor, logits: Tensor) -> Tensor:
    """KL(reference || logits) in nats, the definition in float64."""
    log_p, log_q = reference.double().log_softmax(-1), logits.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def n_hooks(net: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in net.modules())


# ---- three engines, one answer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "attention", "n_pos"), each(CONFIGS, None, 1) + each(list(CONFIGS)[:10], "eager", 3))
def test_replay_and_relay_are_the_full_forward_pass(name, attention, n_pos):
    model, prompts = loaded(name, attention), TWO if attention else PROMPTS
    cleans = cleans_of(model, prompts)
    variants = all_sorts_of_variants(model, states_of(foreign(name), n_pos, prompts))
    expected = full(model, cleans, variants)
    assert expected.shape == (len(prompts), 1 + len(variants), model.shape.vocab)
    moved = (expected[:, 1:] - expected[:, :1]).abs().amax((0, 2))
    assert moved.min() > 0.02, "each variant does something, so that agreement says something"
    for engine in fast_engines(name):
        torch.testing.assert_close(engine(model, cleans, variants), expected, **CLOSE)


@pytest.mark.parametrize("name", each(usual=FEW))
def test_replay_is_the_full_forward_pass_in_half_precision_within_its_floor(name):
    model = loaded(name, None, torch.bfloat16)
    cleans = cleans_of(model, TWO)
    variants = all_sorts_of_variants(model, states_of(foreign(name), 3, TWO))[::5]
    expected = full(model, cleans, variants)
    floor = FLOOR_NATS[torch.bfloat16] * (10 if name == "olmoe" else 1)  # near a tie its router picks another expert
    for engine in fast_engines(name):
        assert kl(expected, engine(model, cleans, variants)).max() < floor


def test_entries_that_are_not_written_stay():
    model = loaded("llama")
    site, first = Site(2, "z"), torch.arange(model.shape.d_model) < 8
    cleans = cleans_of(model, TWO, [site])
    own, value = torch.stack([clean.states[site] for clean in cleans]), states_of(foreign("llama"), prompts=TWO)[site]
    by_hand = {site: Write(value=torch.cat([value[..., :8], own[..., 8:]], -1))}
    found = replay(model, cleans, [{site: Write(value=value, where=first)}, by_hand])
    torch.testing.assert_close(found[:, 1], found[:, 2], **CLOSE)
    assert (found[:, 1] - found[:, 0]).abs().max() > 0.01


@pytest.mark.skipif(not STORIES.is_dir(), reason="the shared folder with stories260k is not beside the repository")
@pytest.mark.parametrize("n_pos", [1, 3])
def test_replay_and_relay_are_the_full_forward_pass_on_trained_weights(n_pos):
    pair = open_pair(str(STORIES), str(STORIES), device="cpu")
    texts = ("Once upon a time", "Lily and Ben went to the park. They saw a big dog and", "The cat was sad because")
    ids = [pair.tokenizer("base")(text)["input_ids"] for text in texts]
    with pair.use("base") as model:
        cleans = cleans_of(model, ids)
        variants = all_sorts_of_variants(model, states_of(model, n_pos, ids[1:] + ids[:1]))
        expected = full(model, cleans, variants)
        assert (expected[:, 1:] - expected[:, :1]).abs().amax((0, 2)).min() > 0.05
        for engine in (replay, relay):
            found = engine(model, cleans, variants)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
            assert kl(expected, found).max() < FLOOR_NATS[torch.float32]


@pytest.mark.parametrize("dtype", FLOOR_NATS, ids=str)
@pytest.mark.parametrize("name", each(usual=FEW))
def test_row_0_is_the_models_own_forward_pass(name, dtype):
    model = loaded(name, None, dtype)
    cleans = cleans_of(model, TWO)
    site = Site(0, "resid_pre")
    variants = [{site: Write(value=states_of(foreign(name), 1, TWO)[site])}]
    with torch.inference_mode():
        own = torch.stack([model.net(torch.tensor([ids])).logits[0, -1].float() for ids in TWO])
    for engine in (*fast_engines(name), full):
        found = engine(model, cleans, variants)[:, 0]
        assert found.dtype == torch.float32
        assert kl(own, found).max() < FLOOR_NATS[dtype]
    assert torch.equal(found, torch.stack([clean.logits for clean in cleans])), "the full forward pass, to the bit"


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_a_window_may_be_the_whole_prompt(name):
    """Then nothing is left for the cache to hold; the shortest such prompt is one token."""
    model = loaded(name)
    for prompts in ([[7]], [[7], [9]], [PROMPTS[0], PROMPTS[0][::-1]]):
        n_pos = len(prompts[0])
        cleans = cleans_of(model, prompts)
        variants = all_sorts_of_variants(model, states_of(foreign(name), n_pos, prompts))
        torch.testing.assert_close(replay(model, cleans, variants), full(model, cleans, variants), **CLOSE)


def test_prompts_of_one_token_ride_along_with_longer_ones():
    model, prompts = loaded("gemma3"), [[7], *PROMPTS]
    cleans = cleans_of(model, prompts)
    variants = all_sorts_of_variants(model, states_of(foreign("gemma3"), 1, prompts))
    torch.testing.assert_close(replay(model, cleans, variants), full(model, cleans, variants), **CLOSE)


@pytest.mark.parametrize("engine", ENGINES)
def test_no_variants_leave_the_clean_row(engine):
    model = loaded("llama")
    cleans = cleans_of(model)
    found = ENGINES[engine](model, cleans, [])
    assert found.shape == (len(PROMPTS), 1, model.shape.vocab)
    torch.testing.assert_close(found[:, 0], torch.stack([clean.logits for clean in cleans]), **CLOSE)


def test_relay_takes_windows_of_different_widths():
    model = loaded("mistral")
    cleans = cleans_of(model)
    variants: list[Variant] = []
    for n_pos in (4, 1, 2):
        states = states_of(foreign("mistral"), n_pos)
        variants += [{Site(layer, "resid_post"): Write(value=states[Site(layer, "resid_post")])} for layer in (3, 0)]
    torch.testing.assert_close(relay(model, cleans, variants), full(model, cleans, variants), **CLOSE)
    with pytest.raises(AssertionError, match="one number of positions"):
        replay(model, cleans, variants)


def test_what_replay_needs_is_asserted():
    model = loaded("llama")
    states = states_of(foreign("llama"), 3)
    variant: Variant = {Site(0, "z"): Write(value=states[Site(0, "z")][:1])}
    with pytest.raises(AssertionError, match="keep_cache=True"):
        replay(model, [capture(model, PROMPTS[0], [], [0])], [variant])
    with pytest.raises(AssertionError, match="shorter than the window"):
        replay(model, cleans_of(model, [[1, 2]]), [variant])


# ---- no hook stays -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ENGINES)
def test_no_hook_stays(engine, kind):
    model = loaded("llama")
    cleans = cleans_of(model)
    fits: Variant = {Site(1, kind): Write(value=states_of(foreign("llama"))[Site(1, kind)])}
    ENGINES[engine](model, cleans, [fits])
    assert n_hooks(model.net) == 0
    too_wide: Variant = {Site(2, kind): Write(value=torch.zeros(len(PROMPTS), 1, 1000))}
    with pytest.raises(RuntimeError, match="1000"):
        ENGINES[engine](model, cleans, [fits, too_wide])
    assert n_hooks(model.net) == 0
    torch.testing.assert_close(ENGINES[engine](model, cleans, [])[:, 0], torch.stack([clean.logits for clean in cleans]), **CLOSE)
