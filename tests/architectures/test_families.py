"""A row of the table says where things are and how large: held against the networks themselves."""

import pytest
import torch
from transformers import AutoConfig, BloomConfig, GPT2Config, OPTConfig

import decoders
from mechdiff.architectures.families import FAMILIES, sliding_window
from mechdiff.architectures.lookup import family_of, shape_of
from mechdiff.architectures.sites import KINDS
from mechdiff.errors import ModelError
from pico import CONFIGS, HYBRID, SIZES, make_net, pico

EXPERTS = ("mixtral", "qwen3_moe", "gpt_oss", "olmoe", "qwen2_moe", "qwen3_next", "deepseek_v3", "bloom", "opt")
"""The table names a part of the MLP, or it has no one width."""
PARALLEL = ("neox_parallel", "stablelm_parallel", "falcon", "cohere", "cohere2", "phi")
"""Attention and MLP read the same input and are added in one go: there is no state between them."""


def test_every_family_of_the_table_has_a_pico_model():
    assert {config().model_type for config in CONFIGS.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_row_names_modules_that_are_there(name):
    net = make_net(CONFIGS[name]())
    family = family_of(net.config, name)
    assert net.get_submodule(family.embed) is net.get_input_embeddings()
    assert net.get_submodule(family.head) is net.get_output_embeddings()
    assert list(net.get_submodule(family.final_norm).parameters()) or name == "olmo", "OLMo's norms have no weights"
    blocks = list(net.get_submodule(family.blocks).children())
    assert len(blocks) == net.config.num_hidden_layers
    for layer, block in enumerate(blocks):
        places = family.places(net.config, layer)
        assert set(places) == set(KINDS) - ({"resid_mid"} if name in PARALLEL else {"z"} if name in HYBRID else set())
        assert {end for _, end in places.values()} == {"input", "output"}
        for path, _ in places.values():
            block.get_submodule(path)


def test_the_family_of_a_config_is_its_model_types_row():
    assert family_of(GPT2Config(), "x") is FAMILIES["gpt2"]


def test_an_architecture_without_a_chain_of_blocks_is_refused_with_those_that_are_known():
    match = r"^some/model: no row can be proposed for the architecture 'hrm_text': no list of its modules.*gemma2.*gpt_neox.*qwen3.*FAMILIES\.md"
    with pytest.raises(ModelError, match=match):
        family_of(decoders.tiny_config("hrm_text"), "some/model")


@pytest.mark.parametrize(
    "config", [OPTConfig(**SIZES, do_layer_norm_before=False), BloomConfig(**SIZES, apply_residual_connection_post_layernorm=True)]
)
def test_a_variant_whose_blocks_add_up_in_another_way_has_no_sites_that_would_add_up(config):
    assert not {"resid_mid", "attn_out", "mlp_out"} & set(family_of(config, "some/model").kinds(config))


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in HYBRID])
def test_sizes_are_those_of_the_weights(name):
    model = pico(name)
    shape = shape_of(model.config)
    assert (shape.n_layers, shape.d_model, shape.n_heads, shape.context) == (4, 32, 4, 128)
    assert shape.vocab == model.head.weight.shape[0] == SIZES["vocab_size"]
    projection = model.blocks[0].get_submodule(model.family.projection)
    assert projection.weight.numel() == shape.width("z") * shape.width("attn_proj")
    assert shape.d_head == (16 if name in ("qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3", "deepseek_v3") else 8)
    assert {shape.width(kind) for kind in KINDS if kind != "z"} == {32}
    if name not in EXPERTS:
        mlp = {path: tuple(weight.shape) for path, weight in model.blocks[0].get_submodule(model.family.mlp).named_parameters()}
        assert any(shape.d_mlp in sizes or 2 * shape.d_mlp in sizes for sizes in mlp.values()), mlp
    attention = dict(model.blocks[0].named_parameters())
    if "self_attn.k_proj.weight" in attention:
        assert attention["self_attn.k_proj.weight"].shape == (shape.n_kv_heads * shape.d_head, 32)


def test_sizes_may_be_left_to_the_architectures_defaults():
    shape = shape_of(GPT2Config(n_embd=48, n_head=6, n_layer=2))
    assert (shape.n_kv_heads, shape.d_head, shape.d_mlp) == (6, 8, 192)
    assert shape_of(GPT2Config(n_inner=100)).d_mlp == 100
    assert shape_of(AutoConfig.for_model("gpt_neox", hidden_size=64, num_attention_heads=8)).d_head == 8


@pytest.mark.parametrize("name", CONFIGS)
def test_a_sliding_window_is_how_many_tokens_the_last_one_attends_to(name):
    model = pico(name, attention="eager")
    with torch.inference_mode():
        attentions = model.net(torch.arange(20)[None], output_attentions=True).attentions
    for layer, weights in enumerate(attentions):
        attended = (weights[0, :, -1] > 0).sum(-1)
        assert attended.tolist() == [sliding_window(model.config, layer) or 20] * 4
    windows = [sliding_window(model.config, layer) for layer in range(4)]
    half = [8, None] * 2
    expected = {
        "mistral": [8] * 4,
        "qwen2_sliding": [None, None, 8, 8],
        "gemma2": half,
        "gemma3": half,
        "gpt_oss": half,
        "olmo3": [8, 8, 8, None],
        "cohere2": [8, 8, 8, None],
    }
    assert windows == expected.get(name, [None] * 4)
