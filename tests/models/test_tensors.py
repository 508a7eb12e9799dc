"""A model's tensors under their modules' names and in their places, for every family; broken files are named."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mechdiff.architectures.families import FAMILIES, Family
from mechdiff.errors import ModelError
from mechdiff.models.checkpoint import weight_files
from mechdiff.models.tensors import SITES, open_tensors, place, reading_order
from pico import each, pico


def saved(name: str, folder: Path, **how: str) -> Path:
    pico(name).net.save_pretrained(folder, **how)
    return folder


@pytest.mark.parametrize("name", each())
def test_every_tensor_is_the_modules_and_has_a_place(name, tmp_path):
    model = pico(name)
    files = open_tensors(saved(name, tmp_path / "model"))
    live = model.net.state_dict()
    split = {one for one in files.names if ".experts." in one}  # stored an expert at a time, run as stacks
    assert files.names - split <= live.keys()
    for one in files.names - split:
        tensor, matrix = files.read(one), live[one].ndim == 2
        assert files.shape(one) == tuple(tensor.shape)
        module = model.net.get_submodule(one.rpartition(".")[0])
        torch.testing.assert_close(tensor, live[one].T if matrix and type(module).__name__ == "Conv1D" else live[one], rtol=0, atol=0)
    places = {one: place(one, files.family, len(files.shape(one))) for one in files.names}
    assert [one for one, where in places.items() if where is None] == []
    found = {site for _, site in places.values()}
    norms = set() if name == "olmo" else {"norm", "final_norm"}  # OLMo's norms have no weights
    assert {"embed", "attn", "mlp", *norms} <= found <= set(SITES)
    assert files.tied == (live[files.head] is live[files.embed] or torch.equal(live[files.head], live[files.embed]))
    assert files.tied == ("head" not in found)
    layers = [where[0] for one in reading_order(files.names, places) if (where := places[one]) and where[0] is not None]
    assert layers == sorted(layers)
    assert set(layers) == set(range(model.shape.n_layers))


def test_places_by_the_familys_row():
    family = FAMILIES["gemma2"]
    assert place("model.layers.11.self_attn.q_proj.weight", family, 2) == (11, "attn")
    assert place("model.layers.2.mlp.down_proj.weight", family, 2) == (2, "mlp")
    assert place("model.layers.2.post_feedforward_layernorm.weight", family, 1) == (2, "norm")
    assert place("model.embed_tokens.weight", family, 2) == (None, "embed")
    assert place("lm_head.weight", family, 2) == (None, "head")
    assert place("model.norm.weight", family, 1) == (None, "final_norm")
    assert place("model.layers.2.surprise.weight", family, 2) is None
    assert place("vision_tower.patch.weight", family, 2) is None


def test_names_without_the_outermost_module_and_with_masks_are_read_alike(tmp_path):
    """Older GPT-2 files leave out `transformer.` and hold the causal mask as `attn.bias`."""
    folder = saved("gpt2", tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    older = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    older |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 8, 8) for layer in range(4)}
    shutil.copytree(folder, tmp_path / "older")
    save_file(older, tmp_path / "older" / "model.safetensors")
    assert open_tensors(tmp_path / "older").names == open_tensors(folder).names


def test_shards_are_read_as_one(tmp_path):
    whole, shards = saved("llama", tmp_path / "whole"), saved("llama", tmp_path / "shards", max_shard_size="40KB")
    assert len(weight_files(shards)) > 2
    one, other = open_tensors(whole), open_tensors(shards)
    assert one.names == other.names
    assert all(torch.equal(one.read(name), other.read(name)) for name in one.names)


def test_files_beside_the_index_are_not_the_model(tmp_path):
    """Mistral's folders hold every weight a second time, under other names, in consolidated.safetensors."""
    folder = saved("mistral", tmp_path / "model")
    names = open_tensors(folder).names
    save_file({"layers.0.attention.wq.weight": torch.ones(2, 2)}, folder / "consolidated.safetensors")
    assert open_tensors(folder).names == names


def test_a_head_stored_twice_is_tied(tmp_path):
    folder = saved("gemma2", tmp_path / "model")
    path = folder / "model.safetensors"
    state = load_file(path)
    save_file({**state, "lm_head.weight": state["model.embed_tokens.weight"].clone()}, path)
    assert open_tensors(folder).tied
    save_file({**state, "lm_head.weight": state["model.embed_tokens.weight"] * 2}, path)
    files = open_tensors(folder)
    assert not files.tied
    assert torch.equal(files.read("lm_head.weight"), 2 * files.read("model.embed_tokens.weight"))


def test_a_tied_head_is_read_as_the_embedding(tmp_path):
    files = open_tensors(saved("gemma2", tmp_path / "model"))
    assert torch.equal(files.read(files.head), files.read(files.embed))
    assert files.shape(files.head) == files.shape(files.embed)


def test_an_unknown_architecture_keeps_its_names(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "nobody_knows"}')
    save_file({"a.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    files = open_tensors(tmp_path)
    assert (files.family, files.names) == (None, {"a.weight"})
    assert not files.tied
    assert files.head == f"{Family().head}.weight"


# ---- broken files ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 4, 1000, -1])
def test_a_truncated_file_is_named(tmp_path, size):
    path = saved("llama", tmp_path / "model") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ModelError, match=r"the weights in .*model/model\.safetensors cannot be read: .*Is the download complete\?"):
        open_tensors(tmp_path / "model")


def test_a_missing_shard_is_named(tmp_path):
    folder = saved("llama", tmp_path / "model", max_shard_size="40KB")
    gone = weight_files(folder)[1]
    gone.unlink()
    with pytest.raises(ModelError, match=rf"{gone.name}: this file of weights is missing \(1 of the \d+ that .* lists are\)"):
        open_tensors(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}'])
def test_a_broken_index_is_named(tmp_path, text):
    folder = saved("llama", tmp_path / "model", max_shard_size="40KB")
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match=r"index\.json: not an index of weight files"):
        open_tensors(folder)


def test_a_broken_config_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json: this is no JSON"):
        open_tensors(tmp_path)


def test_a_folder_without_weights_has_no_tensors(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert open_tensors(tmp_path).names == set()
