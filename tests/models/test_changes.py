"""The changes of a pair, streamed: complete, in order, exact; what does not fit is said, not compared silently."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Gemma2Config, LlamaConfig

from mechdiff.errors import ModelError
from mechdiff.models.changes import open_changes, squared
from mechdiff.models.sources import Source
from mechdiff.validate import edits
from pico import SIZES, make_net, pico, twin

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


def stored(net: nn.Module, folder: Path) -> Source:
    net.save_pretrained(folder)
    return Source(ref=folder.name, load=str(folder))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return stored(pico("llama").net, tmp_path_factory.mktemp("models") / "base")


def edited(change: Callable[[nn.Module], None], folder: Path) -> Source:
    return stored(twin(pico("llama"), change).net, folder)


def llama(**sizes: Any) -> nn.Module:
    return make_net(LlamaConfig(**{**SIZES, **sizes}))


def test_one_edit_is_one_change_and_exact(base, tmp_path):
    tuned = edited(edits.edit_attention, tmp_path / "tuned")
    changes = open_changes(base, tuned)
    assert changes.statements == []
    found = {change.name: change for change in changes}
    assert list(found) == changes.names
    assert set(found) == set(pico("llama").net.state_dict())
    moved = [name for name, change in found.items() if change.squared_change() > 0]
    assert moved == ["model.layers.1.self_attn.o_proj.weight"]
    change = found[moved[0]]
    assert (change.layer, change.site) == (1, "attn")
    weights = [load_file(Path(source.load) / "model.safetensors")[change.name] for source in (base, tuned)]
    torch.testing.assert_close(change.delta(), weights[1] - weights[0], rtol=0, atol=0)
    torch.testing.assert_close(change.after(), weights[1], rtol=0, atol=0)
    assert change.squared_change() == pytest.approx(float((weights[1].double() - weights[0].double()).square().sum()), rel=1e-6)
    assert change.changed_share() == 1
    assert found["model.norm.weight"].changed_share() == 0


def test_the_order_is_that_of_computation(base):
    order = [(change.layer, change.site) for change in open_changes(base, base)]
    assert order[0] == (None, "embed")
    assert order[-2:] == [(None, "final_norm"), (None, "head")]
    assert [layer for layer, _ in order[1:-2]] == sorted(layer for layer, _ in order[1:-2])


def test_a_bfloat16_copy_is_compared_in_float32(base, tmp_path):
    changes = open_changes(base, stored(pico("llama").net.bfloat16(), tmp_path / "half"))
    for change in changes:
        assert change.delta().dtype == torch.float32
        torch.testing.assert_close(change.delta(), change.base.bfloat16().float() - change.base, rtol=0, atol=0)


def test_the_sum_of_squares_is_chunked_and_exact(monkeypatch):
    tensor = torch.randn(37, 11, generator=torch.Generator().manual_seed(0)).T
    expected = float(tensor.double().square().sum())
    monkeypatch.setattr("mechdiff.models.changes._CHUNK", 10)
    assert squared(tensor) == pytest.approx(expected, rel=1e-12)


# ---- models that do not fit --------------------------------------------------------------------------------------------------------


def test_a_larger_vocabulary_is_compared_in_the_shared_rows(base, tmp_path):
    net = llama(vocab_size=300)
    state = pico("llama").net.state_dict()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter[: len(state[name])] = state[name]
    changes = open_changes(base, stored(net, tmp_path / "larger"))
    assert changes.reshaped == ["lm_head.weight", "model.embed_tokens.weight"]
    for name in changes.reshaped:
        change = changes.change(name)
        assert change.partly
        assert change.base.shape == (259, 32)
        assert change.squared_change() == 0
    assert "model.embed_tokens.weight: 259 rows in base, 300 in tuned; the shared first rows are compared" in changes.statements


def test_other_shapes_and_depths_are_said(base, tmp_path):
    changes = open_changes(base, stored(llama(intermediate_size=64, num_hidden_layers=3), tmp_path / "other"))
    assert len(changes.reshaped) == 9
    assert "model.layers.0.mlp.up_proj.weight: shape (48, 32) in base, (64, 32) in tuned; not compared" in changes.statements
    assert "9 tensors are only in base, the first model.layers.3.input_layernorm.weight" in changes.statements
    assert not set(changes.names) & set(changes.reshaped)
    assert [change.layer for change in changes if change.site == "mlp"] == []


@pytest.mark.parametrize("tied", ["both", "base", "tuned"])
def test_a_tied_head_is_compared_once_or_with_the_embedding(tmp_path, tied):
    def gemma(tie: bool) -> nn.Module:
        return make_net(Gemma2Config(**SIZES, head_dim=16, tie_word_embeddings=tie))

    sides = {side: stored(gemma(tied in ("both", side)), tmp_path / side) for side in ("base", "tuned")}
    changes = open_changes(sides["base"], sides["tuned"])
    (said,) = changes.statements
    if tied == "both":
        assert said == "the unembedding is the embedding (tied): compared once, as the embedding"
        assert "lm_head.weight" not in changes
        return
    assert said.startswith(f"the unembedding is the embedding (tied) in the {tied} model alone")
    head = changes.change("lm_head.weight")
    assert head.site == "head"
    files = {side: load_file(Path(sides[side].load) / "model.safetensors") for side in sides}
    names = {side: "model.embed_tokens.weight" if side == tied else "lm_head.weight" for side in sides}
    torch.testing.assert_close(head.delta(), files["tuned"][names["tuned"]] - files["base"][names["base"]], rtol=0, atol=0)


def test_a_folder_without_weights_is_said(base, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    changes = open_changes(base, Source(ref="none", load=str(tmp_path)))
    assert list(changes) == []
    assert "the tuned model has no files of weights, so none are compared" in changes.statements


def test_quantised_tensors_are_not_compared_and_said(base, tmp_path):
    folder = Path(shutil.copytree(base.load, tmp_path / "coded"))
    state = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({**state, name: state[name].to(torch.int8)}, folder / "model.safetensors")
    changes = open_changes(base, Source(ref="coded", load=str(folder)))
    assert name not in changes
    (said,) = changes.statements
    assert said.startswith(f"1 tensors are quantised (no plain floating-point weights), the first {name}; not compared")


def test_nan_weights_are_an_error_that_names_the_tensor(base, tmp_path):
    def spoil(net: nn.Module) -> None:
        net.model.layers[2].mlp.up_proj.weight[3, 3] = torch.nan

    changes = open_changes(base, edited(spoil, tmp_path / "nan"))
    with pytest.raises(ModelError, match=r"the tensor model\.layers\.2\.mlp\.up_proj\.weight holds NaN"):
        sum(change.squared_change() for change in changes)


# ---- adapters ----------------------------------------------------------------------------------------------------------------------


def test_an_adapter_touches_only_its_modules_and_keeps_its_factors(base, tmp_path):
    adapted = get_peft_model(pico("llama").net, LoraConfig(r=2, target_modules=["o_proj"], layers_to_transform=[1]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    tuned = Source(ref="adapter", load=base.load, adapter=tmp_path / "adapter")
    changes = open_changes(base, tuned)
    assert changes.statements == []
    touched = [change for change in changes if not change.untouched]
    assert [change.name for change in touched] == ["model.layers.1.self_attn.o_proj.weight"]
    assert touched[0].factors is not None
    assert touched[0].factors.left.shape == (32, 2)
    assert touched[0].changed_share() == 1
    untouched = changes.change("model.norm.weight")
    assert (untouched.squared_change(), untouched.changed_share()) == (0, 0)
    assert torch.equal(untouched.delta(), torch.zeros(32))
    merged = open_changes(base, stored(adapted.merge_and_unload(), tmp_path / "merged")).change(touched[0].name)
    torch.testing.assert_close(touched[0].delta().float(), merged.delta(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(touched[0].after().float(), merged.after(), rtol=1e-6, atol=1e-6)


def test_a_sibling_is_the_difference_of_two_fine_tunes(tmp_path):
    """P19: from A + U to A + V the change is V - U."""
    nets = {"true": pico("llama").net} | {f"child{seed}": twin(pico("llama"), edits.child(seed)).net for seed in (1, 2)}
    sources = {name: stored(net, tmp_path / name) for name, net in nets.items()}
    u, v = (open_changes(sources["true"], sources[f"child{seed}"]) for seed in (1, 2))
    for change in open_changes(sources["child1"], sources["child2"]):
        difference = v.change(change.name).delta() - u.change(change.name).delta()
        torch.testing.assert_close(change.delta(), difference, rtol=0, atol=1e-6)
