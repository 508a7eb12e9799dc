"""What an adapter changes, read from its factors, is what peft merges into the base; what cannot be read is said and not compared."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, TrainableTokensConfig, get_peft_model
from safetensors.torch import load_file, save_file

from mechdiff.errors import ModelError
from mechdiff.models.adapters import open_adapter
from mechdiff.models.lineage import lineage
from mechdiff.models.sources import resolve
from mechdiff.models.tensors import open_tensors
from pico import pico

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*(fan_in_fan_out|tie_word_embeddings|tied|save_embedding_layers).*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*LoRA tensor.*have invalid shape"),  # peft of its own trained biases
]

LORA: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "o_proj", "down_proj"]}
KINDS = {
    "plain": ("llama", LoraConfig(**LORA)),
    "rslora": ("llama", LoraConfig(**LORA, use_rslora=True)),
    "rank_pattern": ("llama", LoraConfig(**LORA, rank_pattern={"o_proj": 2, "layers.1.self_attn.q_proj": 3})),
    "alpha_pattern": ("llama", LoraConfig(**LORA, alpha_pattern={"o_proj": 2, "layers.1.self_attn.q_proj": 3})),
    "dora": ("llama", LoraConfig(**LORA, use_dora=True)),
    "dora_patterns": ("llama", LoraConfig(**LORA, use_dora=True, alpha_pattern={"o_proj": 2}, rank_pattern={"q_proj": 2})),
    "modules_to_save": ("llama", LoraConfig(**LORA, modules_to_save=["lm_head", "embed_tokens"])),
    "embedding": ("llama", LoraConfig(r=3, target_modules=["embed_tokens", "lm_head"])),
    "biases": ("qwen2", LoraConfig(**LORA, bias="all")),
    "lora_bias": ("qwen2", LoraConfig(r=2, target_modules=["q_proj"], lora_bias=True)),
    "conv1d": ("gpt2", LoraConfig(r=2, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)),
    "conv1d_dora": ("gpt2", LoraConfig(r=2, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, use_dora=True)),
    "gaussian": ("llama", LoraConfig(**LORA, init_lora_weights="gaussian")),
    "tokens": ("llama", LoraConfig(**LORA, trainable_token_indices=[97, 98, 101])),
    "tokens_by_name": ("llama", LoraConfig(**LORA, trainable_token_indices={"embed_tokens": [97, 98], "lm_head": [5]})),
    "tokens_alone": ("llama", TrainableTokensConfig(token_indices=[97, 98], target_modules=["embed_tokens"])),
}


def made(name: str, config: Any, folder: Path) -> tuple[Path, Path, Path]:
    """Folders of a base, an adapter with random factors, and both merged."""
    torch.manual_seed(3)
    net = pico(name).net
    net.save_pretrained(folder / "base")
    adapted = get_peft_model(net, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data + torch.randn_like(parameter) * 0.1
    adapted.save_pretrained(folder / "adapter", save_embedding_layers=False)
    adapted.merge_and_unload().save_pretrained(folder / "merged")
    return folder / "base", folder / "adapter", folder / "merged"


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_tensor_is_as_peft_merges_it(kind, tmp_path):
    base, adapter, merged = made(*KINDS[kind], tmp_path)
    ours, expected = open_adapter(adapter, open_tensors(base)), open_tensors(merged)
    assert ours.refused is None
    assert ours.names == expected.names
    moved = 0
    for name in expected.names:
        torch.testing.assert_close(ours.read(name).float(), expected.read(name), rtol=1e-5, atol=1e-6)
        assert ours.shape(name) == expected.shape(name)
        changed = not torch.equal(expected.read(name), ours.base.read(name))
        assert ours.changes(name) == changed or kind == "biases"
        moved += changed
        if (factors := ours.factors(name)) is not None:
            torch.testing.assert_close(factors.product(), ours.read(name).double() - ours.base.read(name).double(), rtol=1e-9, atol=1e-9)
            assert factors.squared_norm() == pytest.approx(float(factors.product().square().sum()), rel=1e-9)
    assert moved


def test_an_adapter_on_one_of_two_tied_matrices_unties_them(tmp_path):
    base, adapter, _ = made("gemma2", LoraConfig(r=2, target_modules=["lm_head"]), tmp_path)
    files = open_tensors(base)
    ours = open_adapter(adapter, files)
    assert files.tied
    assert not ours.tied
    assert ours.changes(ours.head)
    assert not ours.changes(ours.embed)
    assert not torch.equal(ours.read(ours.head).float(), ours.read(ours.embed))


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]), "is of the kind IA3"),
        (LoraConfig(**LORA, init_lora_weights="pissa_niter_2"), "rewrites its base's weights when it is put on"),
        (LoraConfig(r=2, target_modules=["embed_tokens"], use_dora=True), "changes model.embed_tokens.weight by embedding_A"),
    ],
    ids=["ia3", "fast pissa", "dora_embedding"],
)
def test_what_cannot_be_read_is_refused_with_the_reason(config, why, tmp_path):
    base, adapter, _ = made("llama", config, tmp_path)
    ours = open_adapter(adapter, open_tensors(base))
    assert ours.refused is not None
    assert ours.refused.startswith(why)
    assert ours.edits == {}


def test_a_key_that_nobody_knows_is_refused(tmp_path):
    base, adapter, _ = made(*KINDS["plain"], tmp_path)
    path = adapter / "adapter_model.safetensors"
    save_file({**load_file(path), "base_model.model.model.layers.0.self_attn.q_proj.lora_C": torch.ones(1)}, path)
    assert "q_proj.weight by A, B, C, a form" in (open_adapter(adapter, open_tensors(base)).refused or "")
    save_file({**load_file(path), "odd": torch.ones(1)}, path)
    assert open_adapter(adapter, open_tensors(base)).refused == "holds odd, which mechdiff cannot read"


def test_an_adapter_for_another_model_is_an_error(tmp_path):
    base, adapter, _ = made(*KINDS["plain"], tmp_path)
    path = adapter / "adapter_model.safetensors"
    factors = load_file(path)
    save_file({name.replace("q_proj", "query"): tensor for name, tensor in factors.items()}, path)
    with pytest.raises(ModelError, match=r"changes model\.layers\.0\.self_attn\.query\.weight, which the base does not have"):
        open_adapter(adapter, open_tensors(base))
    save_file({name: tensor[:, :5].contiguous() if "lora_A" in name else tensor for name, tensor in factors.items()}, path)
    with pytest.raises(ModelError, match="It was made for a model of another size"):
        open_adapter(adapter, open_tensors(base))


def test_a_broken_or_missing_file_is_named(tmp_path):
    base, adapter, _ = made(*KINDS["plain"], tmp_path)
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors cannot be read"):
        open_adapter(adapter, open_tensors(base))
    path.unlink()
    with pytest.raises(ModelError, match=r"neither adapter_model\.safetensors nor adapter_model\.bin is"):
        open_adapter(adapter, open_tensors(base))
    assert json.loads((adapter / "adapter_config.json").read_text())["peft_type"] == "LORA"


def test_two_patterns_that_fit_one_layer_are_said(tmp_path):
    """peft sorts them when it saves: the pattern that was first in training may not be the first that is found in the file."""
    both = {"self_attn.q_proj": 3, "q_proj": 9}
    for number, (patterns, said) in enumerate(
        ((both, True), ({**both, "q_proj": 3}, False), ({"q_proj": 9, "o_proj": 3}, False), ({}, False))
    ):
        base, adapter, merged = made("llama", LoraConfig(**LORA, alpha_pattern=patterns), tmp_path / str(number))
        found = lineage(resolve(str(base)), resolve(str(adapter), base=resolve(str(base))))["warnings"]
        assert any("fit model.layers.0.self_attn.q_proj: q_proj (9), self_attn.q_proj (3). peft takes" in one for one in found) == said
        name = "model.layers.0.self_attn.q_proj.weight"
        trained = torch.allclose(open_adapter(adapter, open_tensors(base)).read(name).float(), open_tensors(merged).read(name), atol=1e-6)
        assert trained == (not said), "what was trained is lost only where it is said"
