"""One site, one place: what is read there is what is written there, the places are the ones that their names say, and no hook stays."""

from collections.abc import Sequence
from functools import cache
from itertools import combinations

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import DynamicCache

from mechdiff.architectures.sites import KINDS, Site
from mechdiff.engine.activations import capture, edited, forward, full_forward, writer
from mechdiff.errors import ModelError
from mechdiff.models.pair import Model
from pico import CONFIGS, HYBRID, each, pico, prompts

FAMILIES = st.sampled_from(sorted(CONFIGS))
EXPERTS = ("mixtral", "qwen3_moe", "gpt_oss", "olmoe", "qwen2_moe", "qwen3_next", "deepseek_v3")
"""Where tokens are sent to experts in groups, a token sent elsewhere changes the shape of the others' matrix products, and so their last bits."""
DTYPES = (torch.float32, torch.bfloat16)
IDS = prompts(1, shortest=12, longest=12)[0]


@cache
def loaded(name: str, dtype: torch.dtype = torch.float32) -> Model:
    return pico(name, dtype=dtype)


def sites_of(model: Model, kinds: Sequence[str] = KINDS) -> list[Site]:
    return [Site(layer, kind) for layer in range(model.shape.n_layers) for kind in model.kinds() if kind in kinds]


def everything(model: Model, ids: Sequence[int] = IDS) -> dict[Site, Tensor]:
    """The states of all sites at all positions."""
    return capture(model, ids, sites_of(model), range(len(ids))).states


def n_hooks(net: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in net.modules())


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- the places are what their names say (A7) --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", each())
def test_what_is_written_at_a_site_is_what_is_read_there(name):
    model = loaded(name)
    before = everything(model)
    for site in sites_of(model):
        written = noise(2, model.shape.width(site.kind))
        with edited(model, {site: writer(written)}):
            after = everything(model)
        if model.scale(site) == 1:
            assert torch.equal(after[site][-2:], written), site
        else:  # divided by the scale and multiplied again
            torch.testing.assert_close(after[site][-2:], written, rtol=2e-7, atol=0)
        assert torch.equal(after[site][:-2], before[site][:-2]), f"{site}: earlier positions were written too"
        upstream = [other for other in sites_of(model) if other < site and not _one_place(model, other, site)]
        assert all(torch.equal(after[other], before[other]) for other in upstream), f"{site} is written above its place"


def _one_place(model: Model, first: Site, second: Site) -> bool:
    return model.place(first) == model.place(second) or _one_tensor(model, first, second)


def _one_tensor(model: Model, first: Site, second: Site) -> bool:
    """Sites that are two names of one tensor: a block's input is the output of the one below; without a post-norm, attn_out is attn_proj."""
    kinds = (first.kind, second.kind)
    if kinds == ("resid_post", "resid_pre"):
        return second.layer == first.layer + 1
    plain = model.family.attn_norm is None and model.scale(Site(0, "attn_out")) == 1
    return kinds == ("attn_proj", "attn_out") and first.layer == second.layer and plain


@pytest.mark.parametrize("name", each())
def test_the_kinds_of_a_block_are_different_tensors(name):
    model = loaded(name)
    states = everything(model)
    for layer in range(model.shape.n_layers):
        for first, second in combinations([site for site in sites_of(model) if site.layer == layer and site.kind != "z"], 2):
            assert torch.equal(states[first], states[second]) == _one_tensor(model, first, second), f"{first} and {second}"


@pytest.mark.parametrize("name", each())
def test_the_parts_of_a_block_add_up_to_its_output(name):
    model = loaded(name)
    states = everything(model)
    for layer in range(model.shape.n_layers):
        at = {kind: states[Site(layer, kind)] for kind in model.kinds()}
        torch.testing.assert_close(at["resid_pre"] + at["attn_out"] + at["mlp_out"], at["resid_post"], rtol=1e-5, atol=1e-5)
        if "resid_mid" in at:
            assert torch.equal(at["resid_pre"] + at["attn_out"], at["resid_mid"])
            assert torch.equal(at["resid_mid"] + at["mlp_out"], at["resid_post"])


def test_parallel_blocks_have_no_resid_mid():
    assert "resid_mid" not in loaded("neox_parallel").kinds()
    assert "resid_mid" in loaded("neox_sequential").kinds()


@pytest.mark.parametrize("name", each())
def test_the_residual_stream_is_what_transformers_calls_hidden_states(name):
    model = pico(name)  # a fresh one: asked for hidden states, transformers leaves hooks of its own
    states = everything(model)
    with torch.inference_mode():
        hidden = model.net(torch.tensor([IDS]), output_hidden_states=True).hidden_states
        last = model.net.get_submodule(model.family.final_norm)(states[Site(model.shape.n_layers - 1, "resid_post")])
    for layer in range(model.shape.n_layers):
        assert torch.equal(states[Site(layer, "resid_pre")], hidden[layer][0])
    assert torch.equal(last, hidden[-1][0])


@pytest.mark.parametrize("name", each(name for name in CONFIGS if name not in HYBRID))
def test_heads_contributions_and_bias_sum_to_attn_proj(name):
    model = loaded(name)
    states = everything(model)
    for layer in range(model.shape.n_layers):
        projection, _ = model.place(Site(layer, "attn_proj"))
        weight = projection.weight if name == "gpt2" else projection.weight.T
        bias = 0 if projection.bias is None else projection.bias
        z = states[Site(layer, "z")].unflatten(-1, (model.shape.n_heads, model.shape.d_head))
        by_head = weight.unflatten(0, (model.shape.n_heads, model.shape.d_head))
        with torch.inference_mode():
            total = torch.einsum("phi,hio->po", z, by_head) + bias
        torch.testing.assert_close(total, states[Site(layer, "attn_proj")], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_gemmas_outputs_are_read_after_the_post_norm(name):
    model = loaded(name)
    states = everything(model)
    for layer, block in enumerate(model.blocks):
        at = {kind: states[Site(layer, kind)] for kind in model.kinds()}
        with torch.inference_mode():
            assert torch.equal(block.post_attention_layernorm(at["attn_proj"]), at["attn_out"])
            assert torch.equal(block.post_feedforward_layernorm(block.mlp(block.pre_feedforward_layernorm(at["resid_mid"]))), at["mlp_out"])
        assert not torch.allclose(at["attn_proj"], at["attn_out"], atol=0.1)


# ---- capture -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "neox_parallel"])
def test_capture_gives_the_models_own_logits_and_cache(name):
    model = loaded(name)
    clean = capture(model, IDS, sites_of(model), [3, -1], keep_cache=True)
    cache = DynamicCache()
    with torch.inference_mode():
        logits = model.net(torch.tensor([IDS]), past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    assert clean.logits.dtype == torch.float32
    assert torch.equal(clean.logits, logits[0, -1])
    assert clean.ids.tolist() == IDS
    assert clean.cache is not None
    for (keys, values), layer in zip(clean.cache, cache.layers, strict=True):
        assert torch.equal(keys, layer.keys)
        assert torch.equal(values, layer.values)
        assert keys.shape[2] == len(IDS), "a sliding window keeps all keys"


def test_capture_keeps_the_wanted_positions_in_the_wanted_order():
    model = loaded("llama")
    states = everything(model)
    some = capture(model, IDS, sites_of(model), [7, 2, len(IDS) - 1])
    assert some.cache is None
    assert some.states.keys() == states.keys()
    for site, state in some.states.items():
        assert torch.equal(state, states[site][[7, 2, -1]])


def test_captured_states_are_copies():
    model = loaded("llama")
    first = everything(model)
    kept = {site: state.clone() for site, state in first.items()}
    with edited(model, {Site(1, "resid_pre"): lambda tensor: tensor.zero_()}):
        everything(model)
    assert all(torch.equal(first[site], kept[site]) for site in first)


def test_half_precision_states_stay_in_half_and_logits_are_float32():
    clean = capture(loaded("llama", torch.bfloat16), IDS, [Site(0, "z")], [-1])
    assert clean.states[Site(0, "z")].dtype == torch.bfloat16
    assert clean.logits.dtype == torch.float32


# ---- edits -------------------------------------------------------------------------------------------------------------------------


def test_an_edit_sees_every_sequence_of_a_batch():
    model = loaded("llama")
    seen = []
    batch = torch.tensor([IDS, IDS[::-1]])
    with edited(model, {Site(2, "mlp_out"): lambda tensor: seen.append(tuple(tensor.shape))}):
        forward(model, batch)
    assert seen == [(2, len(IDS), model.shape.d_model)]


# ---- no hook stays -----------------------------------------------------------------------------------------------------------------


class Broken(Exception):
    """Raised by an edit on purpose."""


def raising(tensor: Tensor) -> None:
    raise Broken


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "neox_parallel"])
def test_no_hook_stays(name):
    model = loaded(name)
    assert n_hooks(model.net) == 0
    with edited(model, {site: writer(noise(1, model.shape.width(site.kind))) for site in sites_of(model)}):
        assert n_hooks(model.net) == len(sites_of(model))
    assert n_hooks(model.net) == 0
    everything(model)
    full_forward(model, torch.tensor(IDS), {Site(0, "z"): lambda tensor: None})
    assert n_hooks(model.net) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_no_hook_stays_when_an_edit_raises(kind):
    model = loaded("llama")
    with pytest.raises(Broken):
        full_forward(model, torch.tensor(IDS), {Site(0, "resid_pre"): lambda tensor: None, Site(1, kind): raising})
    assert n_hooks(model.net) == 0


def test_no_hook_stays_when_the_caller_raises():
    model = loaded("llama")
    with pytest.raises(Broken), edited(model, {site: writer(noise(1, 1)) for site in sites_of(model)}):
        raise Broken
    assert n_hooks(model.net) == 0


def test_no_hook_stays_when_a_site_does_not_exist():
    model = loaded("neox_parallel")
    with pytest.raises(ModelError, match=r"has no site L0\.resid_mid.*0 to 3.*resid_pre, z, attn_proj, attn_out, mlp_out, resid_post"):
        capture(model, IDS, [Site(0, "resid_pre"), Site(0, "resid_mid")], [-1])
    with pytest.raises(ModelError, match=r"has no site L4\.z: its blocks are 0 to 3"):
        capture(model, IDS, [Site(0, "z"), Site(4, "z")], [-1])
    assert n_hooks(model.net) == 0


def test_no_hook_stays_when_the_forward_pass_raises():
    model = loaded("gpt2")
    with pytest.raises(IndexError):
        capture(model, [*IDS, 10_000], [Site(0, "z")], [0])
    assert n_hooks(model.net) == 0
