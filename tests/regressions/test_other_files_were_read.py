"""A user merged a model over its own shards: patching ran the new file, `weights`, lineage and the heads' W_O read the old shards. Everything that
reads a folder now reads the files that transformers loads, and what lies there beside them is said."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from mechdiff.architectures.network import quiet
from mechdiff.errors import ModelError
from mechdiff.models.checkpoint import adapter_file, unread, weight_files
from mechdiff.models.lineage import lineage
from mechdiff.models.modules import tensors_in
from mechdiff.models.pair import open_pair
from mechdiff.models.sources import resolve
from mechdiff.models.tensors import open_tensors
from pico import CONFIGS, make_net, pico
from tokenizers_made import CHATML, byte_tokenizer

NAME = "model.layers.0.self_attn.o_proj.weight"


def net(seed: int) -> Any:
    return make_net(CONFIGS["llama"](), seed=seed)


def write(folder: Path, kind: str, seed: int) -> None:
    """One set of weights, of its own seed, into a folder that may hold others."""
    made = net(seed)
    if kind == "named":
        made.save_pretrained(folder / "x")
        shutil.move(folder / "x" / "model.safetensors", folder / "mine.safetensors")
        config = folder / "config.json"
        config.write_text(config.read_text().replace("{", '{"transformers_weights": "mine.safetensors",', 1))
    elif kind == "single":
        made.save_pretrained(folder / "x")
        shutil.move(folder / "x" / "model.safetensors", folder / "model.safetensors")
    elif kind == "shards":
        made.save_pretrained(folder / "x", max_shard_size="40KB")
        for path in (folder / "x").glob("model*"):
            shutil.move(path, folder / path.name)
    elif kind == "bin":
        torch.save(made.state_dict(), folder / "pytorch_model.bin")
    shutil.rmtree(folder / "x", ignore_errors=True)


ORDER = ("named", "single", "shards", "bin")


@pytest.mark.parametrize("first", range(len(ORDER)))
def test_what_is_read_is_what_transformers_loads_of_all_that_lies_there(first: int, tmp_path: Path) -> None:
    """Every kind of file from `first` on lies in the folder, each with other weights."""
    folder = tmp_path / "model"
    net(0).save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    for seed, kind in reversed([*enumerate(ORDER, 1)][first:]):
        write(folder, kind, seed)
    with quiet():
        loaded = AutoModelForCausalLM.from_pretrained(folder).get_parameter(NAME)
    assert torch.equal(loaded, net(first + 1).get_parameter(NAME)), "the order is that of transformers"
    assert torch.equal(open_tensors(folder).read(NAME), loaded)
    assert torch.equal(tensors_in(folder, pico("llama"))(NAME), loaded)
    hashed = {name for name in resolve(str(folder)).files() if name.endswith((".safetensors", ".bin"))}
    assert hashed == {path.name for path in weight_files(folder)}
    assert hashed.isdisjoint(unread(folder))
    assert ("pytorch_model.bin" in unread(folder)) == (ORDER[first] != "bin")


def test_two_sets_of_weights_in_one_folder_are_said(tmp_path: Path) -> None:
    net(0).save_pretrained(tmp_path / "base")
    write(tmp_path / "base", "shards", 1)
    net(2).save_pretrained(tmp_path / "tuned")
    base, tuned = resolve(str(tmp_path / "base")), resolve(str(tmp_path / "tuned"))
    (said,) = [said for said in lineage(base, tuned)["warnings"] if "more than one set" in said]
    assert "transformers loads model.safetensors, and so does every measure here; not read: model-00001-of-" in said
    assert not [said for said in lineage(tuned, tuned)["warnings"] if "more than one set" in said]


def test_a_second_release_of_the_same_weights_is_no_warning(tmp_path: Path) -> None:
    """Mistral's folders hold the original file beside its conversion."""
    net(0).save_pretrained(tmp_path)
    shutil.copy(tmp_path / "model.safetensors", tmp_path / "consolidated.safetensors")
    assert unread(tmp_path) == []


def test_an_adapter_and_a_full_model_in_one_folder_are_said(tmp_path: Path) -> None:
    from peft import LoraConfig

    from adapters_made import LORA, make_pair

    make_pair(tmp_path, LoraConfig(**LORA))
    net(3).save_pretrained(tmp_path / "adapter")
    base = resolve(str(tmp_path / "base"))
    (said,) = lineage(base, resolve(str(tmp_path / "adapter"), base=base))["warnings"]
    assert "its folder holds an adapter and a full model (model.safetensors). The adapter is studied" in said


def test_an_adapter_in_a_pickle_is_taken_as_peft_takes_it(tmp_path: Path) -> None:
    from peft import LoraConfig

    from adapters_made import LORA, make_pair
    from mechdiff.engine.activations import forward
    from mechdiff.models.adapters import open_adapter

    made = make_pair(tmp_path, LoraConfig(**LORA))
    shutil.rmtree(tmp_path / "adapter")
    made.save_pretrained(tmp_path / "adapter", safe_serialization=False)
    assert adapter_file(tmp_path / "adapter").name == "adapter_model.bin"
    ids = torch.tensor([[256, 9, 80, 77]])
    with open_pair(str(tmp_path / "base"), str(tmp_path / "adapter"), device="cpu").use("tuned") as tuned, torch.no_grad():
        torch.testing.assert_close(forward(tuned, ids, logits_to_keep=0).logits, made(input_ids=ids).logits)
    found = open_adapter(tmp_path / "adapter", open_tensors(tmp_path / "base"))
    assert found.refused is None
    for name, module in made.get_base_model().named_modules():
        if hasattr(module, "lora_A"):
            factors = found.factors(f"{name}.weight")
            assert factors
            torch.testing.assert_close(factors.product().float(), module.get_delta_weight("default"))


@pytest.mark.parametrize("which", ["mine.safetensors", "model.safetensors.index.json"])
def test_a_file_that_the_config_names_and_that_is_gone_is_named(which: str, tmp_path: Path) -> None:
    byte_tokenizer(CHATML).save_pretrained(tmp_path)
    net(0).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("{", f'{{"transformers_weights": "{which}",', 1))
    with pytest.raises(ModelError, match=f"{which}: config.json names this file of weights"):
        weight_files(tmp_path)
