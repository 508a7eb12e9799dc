"""A user gave an adapter of PiSSA, OLoRA or another kind that rewrites its base's weights when it is put on, and "adapter off" was taken for
the base: D was another number, and `verify` confirmed it. The base's tensors are kept beside such an adapter's, or it is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from adapters_made import LORA, REWRITING, make_pair
from mechdiff.architectures.network import quiet
from mechdiff.engine.activations import forward
from mechdiff.errors import ModelError
from mechdiff.models import switches
from mechdiff.models.pair import open_pair
from mechdiff.models.switches import attach_adapter, row_sums
from pico import pico
from small_studies import hold_against, study

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

IDS = torch.tensor([256, 5, 90, 17, 33, 108, 7])


def logits(folder: Path, tuned: str, side: Any) -> torch.Tensor:
    with open_pair(str(folder / "base"), str(folder / tuned), device="cpu").use(side) as model:
        return forward(model, IDS[None], logits_to_keep=1).logits[0, -1]


@pytest.mark.parametrize("kind", ["pissa", "olora", "kasa"])
def test_base_and_tuned_are_right_of_an_adapter_that_rewrites_its_base(kind: str, tmp_path: Path) -> None:
    made = make_pair(tmp_path, REWRITING[kind]())
    assert torch.equal(logits(tmp_path, "adapter", "base"), forward(pico("llama"), IDS[None], logits_to_keep=1).logits[0, -1])
    with torch.no_grad():
        expected = made(input_ids=IDS[None]).logits[0, -1]
    torch.testing.assert_close(logits(tmp_path, "adapter", "tuned"), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["pissa", "all biases"])
def test_a_study_of_it_has_the_d_of_plain_passes_and_verify_agrees(kind: str, tmp_path: Path) -> None:
    config = REWRITING["pissa"]() if kind == "pissa" else LoraConfig(**LORA, bias="all")
    made = make_pair(tmp_path, config, "llama" if kind == "pissa" else "qwen2")
    rows, manifest, prepared = study(
        tmp_path, "adapter", ["divergence", "weights", {"grafting": {"candidates": 2, "picks": 1, "points": 2}}]
    )
    hold_against(prepared, rows, pico("llama" if kind == "pissa" else "qwen2").net, made)
    assert "its change is not compared" not in " ".join(manifest["weights"]["statements"])
    whole = rows.filter(measure="grafting", arm="all", metric="kl_other_nats")["value"]
    assert len(whole)
    assert whole.is_between(-1e-6, 1e-6).all(), "all changed units in the base are the tuned model"


@pytest.mark.parametrize(
    ("kind", "why"),
    [("pissa by a fast SVD", "drawn anew at every load. So what was trained cannot be had back"),
     ("replicated blocks", "merged neither: peft would add each copy's change to the weights that all copies share")],
)  # fmt: skip
def test_what_merging_would_not_mend_is_refused_without_that_advice(kind: str, why: str, tmp_path: Path) -> None:
    make_pair(tmp_path, REWRITING[kind]())
    with pytest.raises(ModelError, match=why) as error:
        open_pair(str(tmp_path / "base"), str(tmp_path / "adapter"), device="cpu")
    assert "merge_and_unload" not in str(error.value)


@pytest.mark.parametrize("kind", REWRITING)
def test_the_proof_finds_it_where_no_name_is_known(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a later peft might name it: nothing is refused by its config, and the network without it is held against the base."""
    make_pair(tmp_path, REWRITING[kind]())
    monkeypatch.setattr(switches, "rewrites", lambda config: None)
    monkeypatch.setattr(switches, "_kept", lambda *known: {})
    if kind == "replicated blocks":  # on the first of them alone: a change of a block that the base lacks is refused before
        (tmp_path / "adapter").rename(tmp_path / "whole")
        make_pair(tmp_path, LoraConfig(**LORA, layer_replication=[[0, 3], [1, 4]], layers_to_transform=[0, 1]))
    found = "when peft puts it on, the first|a forward pass without it is"
    with pytest.raises(ModelError, match=found):
        attach_adapter(pico("llama").net, tmp_path / "adapter")


def test_what_stays_when_an_adapter_is_off_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One entry of a tensor that moves by one step of rounding while the adapter is put on."""
    from peft.tuners.lora.layer import LoraLayer

    make_pair(tmp_path, LoraConfig(**LORA))
    plain = LoraLayer.update_layer

    def touching(layer: Any, *args: Any, **options: Any) -> None:
        plain(layer, *args, **options)
        weight = layer.get_base_layer().weight.data
        weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(torch.inf))

    attach_adapter(pico("llama").net, tmp_path / "adapter")
    monkeypatch.setattr(LoraLayer, "update_layer", touching)
    with pytest.raises(
        ModelError, match=r"changes 8 of the base's \d+ tensors when peft puts it on, the first model\.layers\.0\.self_attn\.q_proj"
    ):
        attach_adapter(pico("llama").net, tmp_path / "adapter")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_bit_of_one_entry_shows_in_the_sums(dtype: torch.dtype) -> None:
    for shape in ((6, 5), (7,), ()):
        tensor = torch.randn(shape).to(dtype)
        other = tensor.clone()
        other.view(torch.int32 if dtype == torch.float32 else torch.int16).reshape(-1)[:1] ^= 1
        assert not torch.equal(row_sums(tensor), row_sums(other))
        assert torch.equal(row_sums(tensor), row_sums(tensor.clone()))


def test_a_pissa_adapter_that_was_saved_as_plain_lora_is_taken(tmp_path: Path) -> None:
    """peft can save what PiSSA learned as twice the factors on the untouched base: that adapter is right as it is."""
    made = make_pair(tmp_path, LoraConfig(**LORA, init_lora_weights="pissa"))
    torch.manual_seed(0)
    with quiet():
        start: Any = get_peft_model(pico("llama").net, LoraConfig(**LORA, init_lora_weights="pissa"))
        start.peft_config["default"].init_lora_weights = True
        start.save_pretrained(tmp_path / "start")
        made.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    with torch.no_grad():
        expected = made(input_ids=IDS[None]).logits[0, -1]
    torch.testing.assert_close(logits(tmp_path, "converted", "tuned"), expected, rtol=0, atol=1e-4)
    assert torch.equal(logits(tmp_path, "converted", "base"), forward(pico("llama"), IDS[None], logits_to_keep=1).logits[0, -1])
