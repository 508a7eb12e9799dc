"""Packed weights are read, and run, as the numbers that they stand for: each form is written entry by entry, and by the network of those numbers."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

import packed_made as made
from mechdiff.errors import ModelError
from mechdiff.models.changes import open_changes
from mechdiff.models.lineage import lineage
from mechdiff.models.modules import tensors_in
from mechdiff.models.pair import Model, load_net, wrap
from mechdiff.models.sources import resolve
from mechdiff.models.tensors import open_tensors
from pico import CONFIGS, SIZES, make_net

COMPRESSED = {"quant_method": "compressed-tensors"}
NVFP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
FORMS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "gptq": (made.gptq, {"quant_method": "gptq", "bits": 4, "group_size": 16}),
    "gptq_8": (partial(made.gptq, bits=8), {"quant_method": "gptq", "bits": 8, "group_size": 16}),
    "gptq_3": (partial(made.gptq, bits=3), {"quant_method": "gptq", "bits": 3, "group_size": 16}),
    "gptq_order": (partial(made.gptq, shuffled=True), {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": True}),
    "gptq_v2": (partial(made.gptq, v2=True), {"quant_method": "gptq", "bits": 4, "group_size": 16, "checkpoint_format": "gptq_v2"}),
    "awq": (made.awq, {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm"}),
    "packed": (made.packed, {**COMPRESSED, "format": "pack-quantized"}),
    "packed_8": (partial(made.packed, bits=8), {**COMPRESSED, "format": "pack-quantized"}),
    "packed_zeros": (partial(made.packed, zeros=True), {**COMPRESSED, "format": "pack-quantized"}),
    "whole": (made.whole, {**COMPRESSED, "format": "int-quantized"}),
    "floats": (made.floats, {**COMPRESSED, "format": "float-quantized"}),
    "floats_group": (partial(made.floats, group=True), {**COMPRESSED, "format": "float-quantized"}),
    "fbgemm": (made.floats, {"quant_method": "fbgemm_fp8"}),
    "nvfp4": (made.nvfp4, {**COMPRESSED, "format": "nvfp4-pack-quantized"}),
    "mxfp4": (partial(made.mxfp, bits=4), {**COMPRESSED, "format": "mxfp4-pack-quantized"}),
    "mxfp8": (partial(made.mxfp, bits=8), {**COMPRESSED, "format": "mxfp8-quantized"}),
    "modelopt": (partial(made.nvfp4, modelopt=True), NVFP4),
}
CPU = torch.device("cpu")
USUAL = ("gptq", "gptq_order", "awq", "packed", "packed_zeros", "whole", "floats", "nvfp4", "modelopt")
"""Of `make test`; the others are of `make test-slow`."""


def net(kind: str = "llama", seed: int = 0) -> Any:
    if kind == "llama":
        return make_net(LlamaConfig(**SIZES | {"intermediate_size": 64, "num_hidden_layers": 2, "tie_word_embeddings": False}), seed=seed)
    return make_net(CONFIGS[kind](), seed=seed)


@pytest.mark.parametrize("form", [pytest.param(form, marks=() if form in USUAL else pytest.mark.slow) for form in FORMS])
def test_a_packed_model_is_read_and_run_as_its_numbers(tmp_path: Path, form: str) -> None:
    original = net()
    original.save_pretrained(tmp_path)
    meant = made.quantise(tmp_path, *FORMS[form])
    files = open_tensors(tmp_path)
    assert files.names == meant.keys()
    for name, matrix in meant.items():
        assert files.shape(name) == matrix.shape
        assert files.is_float(name)
        torch.testing.assert_close(files.read(name).float(), matrix, rtol=1e-6, atol=1e-9)
    loaded = load_net(resolve(str(tmp_path)), dtype="float32", device=CPU)
    original.load_state_dict(meant)
    ids = torch.tensor([[256, *range(40, 90)]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, original(ids).logits)
    again = tensors_in(tmp_path, wrap(loaded, side="base", ref="packed"))
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(again(name), loaded.get_parameter(name))


def test_how_far_a_quantised_model_is_from_its_own_is_measured(tmp_path: Path) -> None:
    original = net()
    for name in ("base", "tuned"):
        original.save_pretrained(tmp_path / name)
    meant = made.quantise(tmp_path / "tuned", *FORMS["gptq"])
    base, tuned = resolve(str(tmp_path / "base")), resolve(str(tmp_path / "tuned"))
    found = lineage(base, tuned)
    state = original.state_dict()
    moved = sum(float((meant[name] - state[name]).double().square().sum()) for name in meant)
    size = sum(float(state[name].double().square().sum()) for name in meant)
    assert found["relative_distance"] == pytest.approx((moved / size) ** 0.5, rel=1e-6)
    assert found["uncompared_tensors"] == found["only_base"] == found["only_tuned"] == []
    assert "14 tensors of tuned are held as gptq and compared as the numbers that they stand for" in open_changes(base, tuned).statements


def test_experts_of_a_packed_mixture_run(tmp_path: Path) -> None:
    original = net("mixtral")
    original.save_pretrained(tmp_path)
    from safetensors.torch import load_file, save_file

    state = load_file(tmp_path / "model.safetensors")
    experts = [name for name in state if ".experts." in name]
    assert experts
    renamed = {
        name.replace(".w1.", ".w1_proj.").replace(".w2.", ".w2_proj.").replace(".w3.", ".w3_proj."): one for name, one in state.items()
    }
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    meant = made.quantise(tmp_path, made.awq, FORMS["awq"][1])
    held = load_file(tmp_path / "model.safetensors")
    save_file({name.replace("_proj.", ".") if ".experts." in name else name: one for name, one in held.items()}, tmp_path / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    plain = tmp_path / "plain"
    original.save_pretrained(plain)
    save_file({name.replace("_proj.", ".") if ".experts." in name else name: one for name, one in meant.items()}, plain / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    loaded = [load_net(resolve(str(folder)), dtype="float32", device=CPU) for folder in (tmp_path, plain)]
    for (name, one), other in zip(loaded[0].state_dict().items(), loaded[1].state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9, msg=name)


def test_a_form_that_is_not_decoded_is_refused_in_words(tmp_path: Path) -> None:
    net().save_pretrained(tmp_path)
    made.quantise(
        tmp_path, lambda matrix: ({"qweight": torch.zeros(3, 5, dtype=torch.int32)}, matrix), {"quant_method": "awq", "version": "gemv"}
    )
    with pytest.raises(ModelError, match=r"14 of its tensors are held in a form of awq that is not decoded.*Take the unquantised model"):
        load_net(resolve(str(tmp_path)), dtype="float32", device=CPU)


@pytest.mark.parametrize("method", ["aqlm", "hqq", "quanto", "vptq", "eetq"])
def test_a_quantiser_whose_package_is_missing_is_named(tmp_path: Path, method: str) -> None:
    net().save_pretrained(tmp_path)
    made.quantise(tmp_path, lambda matrix: ({"weight": matrix}, matrix), {"quant_method": method})
    with pytest.raises(ModelError, match=rf"(?s)quantised by {method}, and transformers cannot run them here: .*take the unquantised"):
        load_net(resolve(str(tmp_path)), dtype="float32", device=CPU)


def test_a_model_is_a_model(tmp_path: Path) -> None:
    """The decoded network has no trace of its quantiser, so everything that asks for plain weights takes it."""
    net().save_pretrained(tmp_path)
    made.quantise(tmp_path, *FORMS["awq"])
    loaded = load_net(resolve(str(tmp_path)), dtype="bfloat16", device=CPU)
    assert isinstance(wrap(loaded, side="base", ref="x"), Model)
    assert "quantization_config" not in loaded.config.to_dict()
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
