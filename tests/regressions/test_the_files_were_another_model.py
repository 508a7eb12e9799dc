"""What ran was not what the files hold: a GGUF model without its other parts or its rotation, weights that were not compared because of their form,
and causes that the folder shows but the message did not."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

import packed_made
from gguf_made import write_gguf
from mechdiff.errors import ModelError
from mechdiff.models.lineage import lineage
from mechdiff.models.pair import open_pair
from mechdiff.models.sources import resolve
from pico import SIZES, make_net, save
from tokenizers_made import CHATML, byte_tokenizer

IDS = torch.tensor([[257, *range(40, 90)]])
ROPE = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


def llama(seed: int = 0, **fields: object) -> torch.nn.Module:
    return make_net(
        LlamaConfig(**SIZES | {"intermediate_size": 64, "num_hidden_layers": 2, "tie_word_embeddings": False} | fields), seed=seed
    )


def run(base: Path, tuned: Path, side: str = "tuned") -> torch.Tensor:
    with open_pair(str(base), str(tuned), device="cpu").use(side) as model, torch.no_grad():  # type: ignore[arg-type]
        return model.net(IDS).logits


def test_the_rest_of_a_split_gguf_was_drawn_at_random(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MECHDIFF_CACHE", str(tmp_path / "cache"))
    net = llama()
    write_gguf(net, tmp_path / "small.gguf", split=8)
    first = min(tmp_path.glob("small-*.gguf"))
    torch.testing.assert_close(run(first, first), net(IDS).logits.detach())


def test_a_llama_3_gguf_lost_its_rotary_scaling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the folder of the same weights: D was 0.04, and "these are the same weights"."""
    monkeypatch.setenv("MECHDIFF_CACHE", str(tmp_path / "cache"))
    net = llama(head_dim=32, rope_parameters=ROPE)
    save(net, byte_tokenizer(CHATML), tmp_path / "folder")
    inverse = net.model.rotary_emb.inv_freq.double()
    divisors = (500000.0 ** (-torch.arange(16) / 16) / inverse).float().numpy()
    write_gguf(net, tmp_path / "small.gguf", tensors={"rope_freqs.weight": divisors.astype(np.float32)})
    assert torch.equal(run(tmp_path / "folder", tmp_path / "small.gguf"), run(tmp_path / "folder", tmp_path / "folder"))


def test_a_gptq_model_ended_in_an_import_error(tmp_path: Path) -> None:
    net = llama()
    for name in ("base", "tuned"):
        save(net, byte_tokenizer(CHATML), tmp_path / name)
    meant = packed_made.quantise(tmp_path / "tuned", packed_made.gptq, {"quant_method": "gptq", "bits": 4, "group_size": 16})
    said = run(tmp_path / "base", tmp_path / "tuned")
    net.load_state_dict(meant)
    torch.testing.assert_close(said, net(IDS).logits.detach())


def test_weights_in_a_pickle_were_not_compared(tmp_path: Path) -> None:
    for name, seed in (("base", 0), ("tuned", 1)):
        save(llama(seed), byte_tokenizer(CHATML), tmp_path / name)
    base, tuned = (resolve(str(tmp_path / name)) for name in ("base", "tuned"))
    of_safetensors = lineage(base, tuned)
    (tmp_path / "tuned" / "model.safetensors").unlink()
    torch.save(llama(1).state_dict(), tmp_path / "tuned" / "pytorch_model.bin")
    assert lineage(base, resolve(str(tmp_path / "tuned"))) == of_safetensors
    assert of_safetensors["relative_distance"] > 1


def test_a_model_saved_without_its_tokenizer_was_an_incomplete_download(tmp_path: Path) -> None:
    save(llama(), byte_tokenizer(CHATML), tmp_path / "base")
    llama(1).save_pretrained(tmp_path / "tuned")
    pair = open_pair(str(tmp_path / "base"), str(tmp_path / "tuned"), device="cpu")
    with pytest.raises(ModelError, match="no tokenizer lies beside its weights") as refused:
        pair.tokenizer("tuned")
    assert "download" not in str(refused.value)
    assert f"T.from_pretrained('{tmp_path / 'base'}').save_pretrained('{tmp_path / 'tuned'}')" in str(refused.value)


def test_a_trainers_output_folder_was_no_model(tmp_path: Path) -> None:
    """The model that is meant is one folder further in."""
    save(llama(), byte_tokenizer(CHATML), tmp_path / "run" / "checkpoint-20")
    with pytest.raises(ModelError, match=r"this is a trainer's output folder.*Give one of them: .*/run/checkpoint-20\."):
        resolve(str(tmp_path / "run"))
