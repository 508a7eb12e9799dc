"""Many variants in one pass give what one whole forward pass for each gives: every family, site, block and window, however they are packed."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mechdiff.engine.activations import Clean, capture, forward
from mechdiff.engine.models import Model, open_pair, wrap
from mechdiff.engine.replay import ENGINES, Engine, Variant, Write, engine_for, full, relay, replay
from mechdiff.engine.sites import KINDS, Site
from pico import CONFIGS, RELAYED, pico, twin
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


@pytest.mark.parametrize(
    ("name", "attention", "n_pos"), [(name, None, 1) for name in CONFIGS] + [(name, "eager", 3) for name in list(CONFIGS)[:10]]
)
def test_replay_and_relay_are_the_full_forward_pass(name, attention, n_pos):
    model = loaded(name, attention)
    cleans = cleans_of(model)
    variants = all_sorts_of_variants(model, states_of(foreign(name), n_pos))
    expected = full(model, cleans, variants)
    assert expected.shape == (len(PROMPTS), 1 + len(variants), model.shape.vocab)
    moved = (expected[:, 1:] - expected[:, :1]).abs().amax((0, 2))
    assert moved.min() > 0.02, "each variant does something, so that agreement says something"
    for engine in fast_engines(name):
        torch.testing.assert_close(engine(model, cleans, variants), expected, **CLOSE)


@pytest.mark.parametrize("name", CONFIGS)
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
@pytest.mark.parametrize("name", CONFIGS)
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


# ---- METHOD's properties -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "n_pos"), [(torch.float32, 3), (torch.bfloat16, 1)], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_property_1_a_models_own_states_change_nothing(name, dtype, n_pos):
    model = loaded(name, None, dtype)
    cleans = cleans_of(model, TWO)
    own = torch.stack([clean.logits for clean in cleans])[:, None]
    states = states_of(model, n_pos, TWO)
    variants: list[Variant] = [{site: Write(value=value)} for site, value in states.items()]
    variants.append({site: Write(value=value) for site, value in states.items()})
    variants.append({site: Write(value=torch.zeros_like(value), add=True) for site, value in states.items()})
    for engine in fast_engines(name):
        assert kl(own, engine(model, cleans, variants)).max() < FLOOR_NATS[dtype]
    assert torch.equal(full(model, cleans, variants[-2:]), own.expand(-1, 3, -1))


def other_blocks(net: nn.Module) -> None:
    """Moves every weight of the blocks, and none of the embedding, the last norm and the unembedding."""
    torch.manual_seed(5)
    for parameter in blocks_of(net).parameters():
        parameter.add_(torch.randn_like(parameter) * 0.2)


def blocks_of(net: nn.Module) -> nn.Module:
    return net.get_submodule(wrap(net, side="base", ref="").family.blocks)


@pytest.mark.parametrize("dtype", FLOOR_NATS, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_property_2_the_last_blocks_output_is_the_other_models_answer(name, dtype):
    base = loaded(name, None, dtype)
    tuned = twin(base, other_blocks)
    last = Site(N_LAYERS - 1, "resid_post")
    variants: list[Variant] = [{last: Write(value=states_of(base, 1, TWO)[last])}]
    expected = torch.stack([clean.logits for clean in cleans_of(base, TWO)])
    cleans = cleans_of(tuned, TWO)
    assert kl(expected, torch.stack([clean.logits for clean in cleans])).min() > 5e-4
    assert torch.equal(full(tuned, cleans, variants)[:, 1], expected)
    for engine in fast_engines(name):
        assert kl(expected, engine(tuned, cleans, variants)[:, 1]).max() < FLOOR_NATS[dtype]


@pytest.mark.parametrize("name", CONFIGS)
def test_property_3_all_positions_patched_is_the_hybrid_network(name):
    base, ids = loaded(name), PROMPTS[1]
    tuned = twin(base, other_blocks)
    clean = cleans_of(tuned, [ids])
    states = states_of(base, len(ids), [ids])
    variants: list[Variant] = [{Site(layer, "resid_post"): Write(value=states[Site(layer, "resid_post")])} for layer in range(N_LAYERS)]
    expected = torch.stack([hybrid(base, tuned, layer)(ids) for layer in range(N_LAYERS)])
    torch.testing.assert_close(full(tuned, clean, variants)[0, 1:], expected, rtol=0, atol=0)
    for engine in fast_engines(name):
        torch.testing.assert_close(engine(tuned, clean, variants)[0, 1:], expected, **CLOSE)


def hybrid(base: Model, tuned: Model, layer: int) -> Callable[[Sequence[int]], Tensor]:
    """The network of base's blocks up to `layer`, and tuned's above."""
    net = copy.deepcopy(tuned.net)
    for mine, theirs in list(zip(blocks_of(net).children(), base.blocks, strict=True))[: layer + 1]:
        mine.load_state_dict(theirs.state_dict())
    return lambda ids: forward(wrap(net, side="tuned", ref="hybrid"), torch.tensor([ids])).logits[0, -1]


@pytest.mark.parametrize("name", CONFIGS)
def test_property_5_patches_before_the_first_change_do_nothing(name):
    base = loaded(name)

    def edit_mlp_of_block_2(net: nn.Module) -> None:
        for parameter in blocks_of(net).get_submodule(f"2.{base.family.mlp}").parameters():
            parameter.mul_(1.3)

    tuned = twin(base, edit_mlp_of_block_2)
    changed = Site(2, "mlp_out")
    states = states_of(base, 1, TWO)
    before = {site: value for site, value in states.items() if site < changed}
    after = {site: value for site, value in states.items() if site >= changed and site.kind.startswith("resid")}
    cleans = cleans_of(tuned, TWO)
    own = torch.stack([clean.logits for clean in cleans])[:, None]
    variants: list[Variant] = [{site: Write(value=value)} for site, value in before.items()]
    assert torch.equal(full(tuned, cleans, variants), own.expand(-1, 1 + len(variants), -1))
    for engine in fast_engines(name):
        assert kl(own, engine(tuned, cleans, variants)).max() < FLOOR_NATS[torch.float32]
        assert kl(own, engine(tuned, cleans, [{site: Write(value=value)} for site, value in after.items()])[:, 1:]).min() > 1e-5


@settings(max_examples=25, deadline=None)
@given(FAMILIES, st.data())
def test_property_7_patches_compose(name, data):
    """Disjoint sites in any order; one write twice is once; a sum in two parts is the sum; the resid_post of a block is the next's resid_pre."""
    model = loaded(name)
    cleans = cleans_of(model, PROMPTS[:2])
    states = {site: value[:2] for site, value in states_of(foreign(name)).items()}
    chosen = data.draw(st.lists(st.sampled_from(sites_of(model)), min_size=1, max_size=5, unique=True))
    shuffled = data.draw(st.permutations(chosen))
    layer = data.draw(st.integers(0, N_LAYERS - 2))
    site, value = Site(layer, "resid_post"), states[Site(layer, "resid_post")]
    above = Site(layer + 1, "resid_pre")
    variants: list[Variant] = [
        {site: Write(value=states[site]) for site in chosen},
        {site: Write(value=states[site]) for site in shuffled},
        {site: Write(value=value)},
        {above: Write(value=value)},
        {site: Write(value=value), above: Write(value=value)},
        {site: Write(value=value, add=True)},
        {site: Write(value=value / 4, add=True), above: Write(value=value * 3 / 4, add=True)},
    ]
    for engine in (*fast_engines(name), full):
        found = engine(model, cleans, variants)[:, 1:]
        torch.testing.assert_close(found[:, 1], found[:, 0], **CLOSE)
        torch.testing.assert_close(found[:, 3], found[:, 2], **CLOSE)
        torch.testing.assert_close(found[:, 4], found[:, 2], **CLOSE)
        torch.testing.assert_close(found[:, 6], found[:, 5], **CLOSE)


@settings(max_examples=25, deadline=None)
@given(FAMILIES, st.sampled_from([1, 3]), st.data())
def test_property_19_packing_changes_nothing(name, n_pos, data):
    """Which prompts and which variants share a pass, and in what order, is not seen in the numbers."""
    model, run = loaded(name), data.draw(st.sampled_from(fast_engines(name)))
    cleans = cleans_of(model)
    everything = all_sorts_of_variants(model, states_of(foreign(name), n_pos))
    together = run(model, cleans, everything)
    rows = data.draw(st.lists(st.integers(0, len(everything) - 1), min_size=1, max_size=6, unique=True))
    prompts = data.draw(st.lists(st.integers(0, len(PROMPTS) - 1), min_size=1, unique=True))
    some: list[Variant] = [{site: replace(write, value=write.value[prompts]) for site, write in everything[row].items()} for row in rows]
    apart = run(model, [cleans[i] for i in prompts], some)
    torch.testing.assert_close(apart, together[prompts][:, [0, *(1 + row for row in rows)]], **CLOSE)


def test_property_19_one_plan_gives_the_same_bits_twice():
    model = loaded("qwen2_sliding")
    cleans = cleans_of(model)
    variants = all_sorts_of_variants(model, states_of(foreign("qwen2_sliding")))
    assert torch.equal(replay(model, cleans, variants), replay(model, cleans, variants)), "a pass does not change the caches it stands on"


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
