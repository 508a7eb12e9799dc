"""What users saw of adapters that peft loads and that were refused with a false reason, run with tensors missing, or called wrong by `verify`."""

from pathlib import Path

import pytest
import torch
from peft import BdLoraConfig, LoraConfig
from safetensors.torch import load_file, save_file

from adapters_made import KINDS, LORA, make_pair
from mechdiff.audit.rerun import Rerun
from mechdiff.audit.verification import verify
from mechdiff.errors import ModelError
from mechdiff.measures.catalogue import AGAIN, ANSWERS, EXPERIMENTS, NUMBERS
from mechdiff.models.changes import open_changes
from mechdiff.models.pair import load_net, open_pair
from mechdiff.models.sources import resolve
from mechdiff.models.switches import attach_adapter
from mechdiff.study.config import RunOptions
from pico import pico
from runs import run
from small_studies import hold_against, study

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:peft.utils.warning.PeftWarning"),
]


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_verify_called_the_weights_of_an_adapter_on_a_tied_matrix_wrong(target: str, tmp_path: Path) -> None:
    """It merged the adapter, and peft merges into both of two tied matrices."""
    make_pair(tmp_path, LoraConfig(r=2, target_modules=[target, "q_proj"]), "gemma2")
    (tmp_path / "p.jsonl").write_text("".join(f'{{"text": "Say {number} of ab"}}\n' for number in range(6)))
    pair, prompts = {"base": str(tmp_path / "base"), "tuned": str(tmp_path / "adapter")}, {"report": str(tmp_path / "p.jsonl")}
    run(**pair, prompts=prompts, measures=["weights"], out=tmp_path / "run", options=RunOptions(device="cpu"))
    found = verify(Rerun(tmp_path / "run", EXPERIMENTS), AGAIN, ANSWERS, NUMBERS, n_rows=400)
    tied = [
        one
        for one in found.compared
        if one.row["measure"] == "weights" and one.row["unit"] in ("lm_head.weight", "model.embed_tokens.weight")
    ]
    assert {one.row["unit"] for one in tied} == {"lm_head.weight", "model.embed_tokens.weight"}
    assert not found.differing


def test_factors_in_blocks_were_said_to_be_for_a_model_of_another_size(tmp_path: Path) -> None:
    blocks = BdLoraConfig(target_modules_bd_a=["o_proj"], target_modules_bd_b=["q_proj"], nblocks=2)
    made = make_pair(tmp_path, LoraConfig(**LORA, use_bdlora=blocks))
    ids = torch.tensor([[256, 5, 90, 17]])
    with open_pair(str(tmp_path / "base"), str(tmp_path / "adapter"), device="cpu", memory="one").use("tuned") as tuned, torch.no_grad():
        assert torch.equal(tuned.net(input_ids=ids).logits, made(input_ids=ids).logits)


def test_a_tensor_that_peft_has_no_place_for_was_left_out_in_silence(tmp_path: Path) -> None:
    make_pair(tmp_path, LoraConfig(**LORA))
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({**load_file(path), "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": torch.ones(2, 32)}, path)
    with pytest.raises(ModelError, match=r"1 tensors, the first \S+up_proj\S+: peft finds no place for them in the network"):
        attach_adapter(pico("llama").net, tmp_path / "adapter")


def test_a_tensor_that_the_file_lacks_was_drawn_in_silence(tmp_path: Path) -> None:
    make_pair(tmp_path, LoraConfig(**LORA))
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    held = load_file(path)
    save_file({key: tensor for key, tensor in held.items() if "layers.1.self_attn.q_proj" not in key}, path)
    with pytest.raises(ModelError, match=r"2 tensors, .*: its file lacks them, and peft would run with what it draws in their place"):
        attach_adapter(pico("llama").net, tmp_path / "adapter")


def test_a_tensor_that_layers_share_is_no_missing_one(tmp_path: Path) -> None:
    """VB-LoRA's file holds its bank of vectors once, for all layers."""
    make_pair(tmp_path, KINDS["vblora"]())
    attach_adapter(pico("llama").net, tmp_path / "adapter")


def test_the_advice_to_merge_gave_a_third_model_where_embeddings_are_tied(tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"], ensure_weight_tying=True)
    for name, folder, merges in (("gemma2", tmp_path / "tied", False), ("llama", tmp_path / "untied", True)):
        make_pair(folder, config, name)
        base = resolve(str(folder / "base"))
        said = " ".join(open_changes(base, resolve(str(folder / "adapter"), base=base)).statements)
        assert "ensure_weight_tying" in said
        assert ("Where peft can, merge it" in said) == merges
        assert ("Merged it would be another model" in said) == (not merges)


def test_an_adapter_in_a_pickle_was_not_read_by_weights(tmp_path: Path) -> None:
    made = make_pair(tmp_path, LoraConfig(**LORA))
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    torch.save(load_file(path), path.with_name("adapter_model.bin"))
    path.unlink()
    rows, manifest, prepared = study(tmp_path, "adapter", ["divergence", "weights"])
    hold_against(prepared, rows, pico("llama").net, made)
    assert len(
        rows.filter(measure="weights", metric="relative_norm")["value"].filter(
            rows.filter(measure="weights", metric="relative_norm")["value"] > 0
        )
    )
    assert "not compared" not in " ".join(manifest["weights"]["statements"])


@pytest.mark.parametrize("dtype", ["int8", "nf4"])
def test_an_adapter_on_a_base_in_8_bits_ended_in_an_attribute_error(dtype: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="the extra that holds matrices in few bits")
    ids = torch.tensor([[256, 5, 90, 17]])
    for number, config in enumerate((LoraConfig(**LORA), LoraConfig(**LORA, bias="all"), LoraConfig(**LORA, init_lora_weights="pissa"))):
        folder = tmp_path / str(number)
        make_pair(folder, config, "qwen2")
        pair = open_pair(str(folder / "base"), str(folder / "adapter"), dtype=dtype, device="cpu")
        if number == 2:
            with (
                pytest.raises(ModelError, match="takes its start out of the base's matrices, which are held in 8 or 4 bits here"),
                pair.use("base"),
            ):
                pass
            continue
        found = {}
        for side in ("tuned", "base"):
            with pair.use(side) as model, torch.no_grad():  # type: ignore[arg-type]
                found[side] = model.net(input_ids=ids).logits
        plain = load_net(resolve(str(folder / "base")), dtype=dtype, device=torch.device("cpu"))
        with torch.no_grad():
            assert torch.equal(found["base"], plain(input_ids=ids).logits)
        assert not torch.allclose(found["tuned"], found["base"], atol=0.1)
