"""Every family's attention, cut out by head, computes what its module computes."""

import pytest
import torch

from mechdiff.architectures.lookup import family_of
from mechdiff.architectures.sites import Site
from mechdiff.models.projections import Projections, layout_of
from mechdiff.models.tensors import open_tensors
from pico import CONFIGS, WITHOUT_HEADS, each, pico, save
from tokenizers_made import byte_tokenizer


@pytest.mark.parametrize("name", each(sorted(set(CONFIGS) - set(WITHOUT_HEADS))))
def test_a_heads_output_at_one_token_is_its_products(name, tmp_path):
    """With a single token attention is 1 (no sink), so z of a head is W_V (x, 1) of its group: the cut of V is right, and of O."""
    model = pico(name)
    files = open_tensors(save(model.net, byte_tokenizer(), tmp_path / "model"))
    layout = layout_of(family_of(model.config, "pico"), model.config)
    held = {one: files.read(one).double() for one in layout.names(1) if one in files.names}
    cut = layout.cut(1, held.get)
    assert isinstance(cut, Projections)
    attention = model.blocks[1].get_submodule(files.family.projection.rpartition(".")[0])
    read = {}
    hooks = [
        attention.register_forward_pre_hook(
            lambda _, args, kwargs: read.update(x=(kwargs.get("hidden_states") if "hidden_states" in kwargs else args[0])), with_kwargs=True
        )
    ]
    module, _ = model.place(Site(1, "z"))
    hooks.append(module.register_forward_hook(lambda _, args, out: read.update(z=args[0], out=out)))
    with torch.inference_mode():
        model.net(torch.tensor([[65]]))
    for hook in hooks:
        hook.remove()
    x = torch.cat([read["x"].double().reshape(-1), torch.ones(1).double()])
    z = read["z"].double().reshape(layout.n_heads, layout.d_head)
    value = (cut.value @ x).repeat_interleave(cut.heads_per_group, 0)
    if name == "gpt_oss":  # a sink takes a share of the attention: the same share of every entry of a head
        value = value * (z / value).median(1, keepdim=True).values
    torch.testing.assert_close(z, value, rtol=1e-4, atol=1e-4)
    out = sum(cut.output[head] @ z[head] for head in range(layout.n_heads))
    bias = 0 if getattr(module, "bias", None) is None else module.bias.double()
    torch.testing.assert_close(read["out"].double().reshape(-1), out + bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt2", "neox_parallel", "falcon", "falcon_sequential", "qwen2"])
def test_queries_and_keys_are_cut_out_where_the_module_has_them(name, tmp_path):
    """Scores at relative offset 0, (W_Q x)^T W_K x / sqrt(d_head), against the module's own with two equal tokens and no positions."""
    model = pico(name)
    files = open_tensors(save(model.net, byte_tokenizer(), tmp_path / "model"))
    layout = layout_of(family_of(model.config, "pico"), model.config)
    cut = layout.cut(2, lambda one: files.read(one).double() if one in files.names else None)
    assert isinstance(cut, Projections)
    x = torch.randn(model.shape.d_model, generator=torch.Generator().manual_seed(1))
    fused = model.blocks[2].get_submodule(files.family.projection.rpartition(".")[0])
    rows = torch.cat([cut.query.flatten(0, 1), cut.key.flatten(0, 1), cut.value.flatten(0, 1)])
    one = torch.cat([x.double(), torch.ones(1).double()])
    names = [files.family.fused[0]] if files.family.fused else ["q_proj", "k_proj", "v_proj"]
    with torch.inference_mode():
        made = torch.cat([fused.get_submodule(part)(x[None])[0] for part in names]).double()
    if files.family.fused and files.family.fused[1] == "by_group":
        made = _split_as_the_module_does(name, made, layout.n_heads, layout.d_head)
    torch.testing.assert_close(rows @ one, made, rtol=1e-5, atol=1e-5)


def _split_as_the_module_does(name: str, made: torch.Tensor, n_heads: int, d_head: int) -> torch.Tensor:
    if name == "falcon":  # one key-value head: all queries, then the key, then the value
        return made
    per_head = made.view(n_heads, 3, d_head)
    return torch.cat([per_head[:, part].flatten() for part in range(3)])


def test_what_cannot_be_cut_says_why():
    model = pico("llama")
    layout = layout_of(family_of(model.config, "pico"), model.config)
    assert layout.cut(0, lambda _: None) == "model.layers.0.self_attn.q_proj.weight is not compared"
    held = {name: torch.zeros(16, 32) for name in layout.names(0) if "bias" not in name}
    assert "its projections have 48 rows and 32 output columns" in layout.cut(0, held.get)
