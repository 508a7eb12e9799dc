"""A user was told "the same weights, bit for bit: there is no change to find" of two models with D = 0.95: their matrices were FP8, or biases stood
in the tuned model alone, or the weights were the same and the rotary base was not. What is not compared is never called equal, and what differs
beside the weights is named."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma2Config, GptOssConfig, LlamaConfig, MistralConfig

from mechdiff import api
from mechdiff.files.small_floats import decoded_mxfp4
from mechdiff.measures.catalogue import NUMBERS
from mechdiff.measures.weights.words import which_weights
from mechdiff.models.changes import open_changes
from mechdiff.models.functions import function_differences
from mechdiff.models.lineage import lineage
from mechdiff.models.sources import resolve
from mechdiff.models.tensors import open_tensors
from mechdiff.statistics.summary import summarise
from mechdiff.study.config import RunOptions
from mechdiff.validate.made import save
from pico import SIZES, make_net, pico
from said import verdict
from small_studies import study
from tokenizers_made import CHATML, byte_tokenizer

MATRIX = "model.layers.1.mlp.down_proj.weight"


def two_copies(folder: Path, tensors: Any = None) -> tuple[Path, Path]:
    """One pico Llama as base and as tuned; `tensors(held, side)` changes what the files hold."""
    for side in ("base", "tuned"):
        save(pico("llama").net, byte_tokenizer(CHATML), folder / side)
        if tensors:
            path = folder / side / "model.safetensors"
            held = load_file(path)
            tensors(held, side)
            save_file({name: tensor.contiguous() for name, tensor in held.items()}, path, metadata={"format": "pt"})
    return folder / "base", folder / "tuned"


def family(folder: Path) -> dict[str, Any]:
    base = resolve(str(folder / "base"))
    return lineage(base, resolve(str(folder / "tuned"), base=base))


# ---- small floats ------------------------------------------------------------------------------------------------------------------


def in_float8(held: dict[str, torch.Tensor], how: str, dtype: torch.dtype) -> None:
    """Replaces each MLP matrix by 8-bit numbers and their scales."""
    for name in [name for name in held if ".mlp." in name and name.endswith(".weight")]:
        weight = held.pop(name)
        if how == "blocks":
            scale = torch.stack([torch.stack([part.abs().max() for part in row.split(16, 1)]) for row in weight.split(16, 0)]) / 200
            whole = scale.repeat_interleave(16, 0)[: len(weight)].repeat_interleave(16, 1)[:, : weight.shape[1]]
            held[f"{name}_scale_inv"] = scale
        elif how == "rows":
            whole = held[f"{name}_scale"] = weight.abs().amax(1, keepdim=True) / 200
        elif how == "one":
            whole = held[f"{name}_scale"] = weight.abs().max().reshape(1) / 200
        else:
            whole = torch.ones(1)
        held[name] = (weight / whole).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("how", ["blocks", "rows", "one", "none"])
def test_an_8_bit_matrix_is_read_with_its_scales(how: str, dtype: torch.dtype, tmp_path: Path) -> None:
    base, tuned = two_copies(tmp_path, lambda held, side: in_float8(held, how, dtype) if side == "tuned" else None)
    config = json.loads((tuned / "config.json").read_text())
    (tuned / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8", "weight_block_size": [16, 16]}}))
    read, wanted = open_tensors(tuned), open_tensors(base)
    assert read.names == wanted.names
    for name in wanted.names:
        assert read.is_float(name)
        apart = float((read.read(name).float() - wanted.read(name)).norm() / wanted.read(name).norm())
        assert apart == 0 if ".mlp." not in name else 0 < apart < (0.05 if dtype == torch.float8_e4m3fn else 0.1)


def test_two_8_bit_models_that_differ_are_not_called_the_same(tmp_path: Path) -> None:
    """One scale of one matrix is doubled; then nothing is."""

    def doubled(held: dict[str, torch.Tensor], side: str) -> None:
        in_float8(held, "rows", torch.float8_e4m3fn)
        if side == "tuned":
            held[f"{MATRIX}_scale"] *= 2

    two_copies(tmp_path / "other", doubled)
    found = family(tmp_path / "other")
    assert found["changed_tensors"] == 1
    assert found["relative_distance"] > 0.01
    assert not [said for said in found["warnings"] if "same weights" in said]
    changes = open_changes(resolve(str(tmp_path / "other" / "base")), resolve(str(tmp_path / "other" / "tuned")))
    assert changes.change(MATRIX).squared_change() ** 0.5 == pytest.approx(changes.change(MATRIX).squared_size() ** 0.5, rel=1e-6)
    two_copies(tmp_path / "same", lambda held, side: in_float8(held, "rows", torch.float8_e4m3fn))
    assert family(tmp_path / "same")["relative_distance"] == 0


def test_4_bit_experts_are_read_as_transformers_reads_them(tmp_path: Path) -> None:
    """MXFP4, as GPT-OSS is published: blocks of 32 numbers of 4 bits, each with a power of two."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    torch.manual_seed(0)
    blocks, scales = torch.randint(0, 256, (2, 6, 3, 16), dtype=torch.uint8), torch.randint(120, 134, (2, 6, 3), dtype=torch.uint8)
    expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    torch.testing.assert_close(decoded_mxfp4(blocks, scales), expected, rtol=0, atol=0)
    config = GptOssConfig(**SIZES, num_local_experts=2, num_experts_per_tok=1, head_dim=8)
    config.save_pretrained(tmp_path)
    name = "model.layers.0.mlp.experts.down_proj"
    save_file({f"{name}_blocks": blocks, f"{name}_scales": scales}, tmp_path / "model.safetensors")
    files = open_tensors(tmp_path)
    assert files.names == {name}
    assert files.shape(name) == tuple(expected.shape)
    assert torch.equal(files.read(name), expected)


def test_codes_that_are_not_read_are_counted_and_the_rest_is_not_called_the_same(tmp_path: Path) -> None:
    """Four-bit codes of another quantiser, packed in whole numbers."""

    def packed(held: dict[str, torch.Tensor], side: str) -> None:
        held[MATRIX] = torch.full((4, 4), 7 if side == "base" else 9, dtype=torch.int32)

    two_copies(tmp_path, packed)
    found = family(tmp_path)
    assert found["uncompared_tensors"] == [MATRIX]
    (said,) = [said for said in found["warnings"] if "equal to the bit" in said]
    assert "tensors that were compared are equal to the bit, but 1 not compared, so the weights may differ" in said
    assert not [said for said in found["warnings"] if "same weights" in said]


# ---- what one side alone has -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["base", "tuned"])
def test_tensors_that_one_side_alone_has_are_a_difference(side: str, tmp_path: Path) -> None:
    def biased(held: dict[str, torch.Tensor], here: str) -> None:
        if here == side:
            held["model.layers.0.self_attn.q_proj.bias"] = torch.ones(32)

    two_copies(tmp_path, biased)
    (said,) = [said for said in family(tmp_path)["warnings"] if "equal to the bit" in said]
    assert f"but 1 only in {side}, so the weights may differ" in said


def test_models_that_are_the_same_are_said_to_be(tmp_path: Path) -> None:
    two_copies(tmp_path)
    base, tuned = (resolve(str(tmp_path / side)) for side in ("base", "tuned"))
    config = pico("llama").config
    (said,) = lineage(base, tuned, configs={"base": config, "tuned": config})["warnings"]
    assert (
        "the same weights, bit for bit, and configs that compute the same: only tokenizers, templates or prompts can make a difference"
        in said
    )


# ---- what is no weight -------------------------------------------------------------------------------------------------------------

OTHER: dict[str, tuple[type, dict[str, Any], dict[str, Any]]] = {
    "rope_parameters.rope_theta": (LlamaConfig, {}, {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}),
    "rope_parameters.factor": (LlamaConfig, {}, {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    "rms_norm_eps": (LlamaConfig, {}, {"rms_norm_eps": 1e-3}),
    "hidden_act": (LlamaConfig, {}, {"hidden_act": "gelu"}),
    "tie_word_embeddings": (LlamaConfig, {}, {"tie_word_embeddings": True}),
    "sliding_window": (MistralConfig, {"sliding_window": 8}, {"sliding_window": 4}),
    "attn_logit_softcapping": (Gemma2Config, {"head_dim": 16}, {"attn_logit_softcapping": 5.0}),
    "final_logit_softcapping": (Gemma2Config, {"head_dim": 16}, {"final_logit_softcapping": None}),
    "query_pre_attn_scalar": (Gemma2Config, {"head_dim": 16}, {"query_pre_attn_scalar": 64}),
}


@pytest.mark.parametrize("field", OTHER)
def test_a_field_that_changes_what_is_computed_is_named(field: str) -> None:
    kind, common, changed = OTHER[field]
    base, tuned = kind(**SIZES, **common), kind(**SIZES, **common | changed)
    assert [said for said in function_differences(base, tuned) if said.startswith(f"{field}: ")]
    assert function_differences(base, base) == []


def test_a_field_that_changes_nothing_is_not_named() -> None:
    silent = {"use_cache": False, "bos_token_id": 3, "attention_dropout": 0.5, "initializer_range": 1.0, "max_position_embeddings": 4096}
    assert function_differences(LlamaConfig(**SIZES), LlamaConfig(**SIZES | silent, name_or_path="x", dtype="bfloat16")) == []
    longer = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}
    dynamic = [LlamaConfig(**SIZES | {"max_position_embeddings": length} | longer) for length in (128, 256)]
    assert [said.split(":")[0] for said in function_differences(*dynamic)] == ["max_position_embeddings"], "its scaling depends on it"


def test_what_one_architecture_cannot_turn_on_is_no_difference_where_the_other_leaves_it_off() -> None:
    """The reason that is named first is the architecture."""
    found = function_differences(LlamaConfig(**SIZES), MistralConfig(**SIZES, sliding_window=None))
    assert found == ["model_type: llama in base, mistral in tuned"]
    on = function_differences(LlamaConfig(**SIZES, attention_bias=True), MistralConfig(**SIZES, sliding_window=None))
    assert on[0] == "attention_bias: True in base, nothing in tuned"


@pytest.fixture(scope="module")
def other_rope(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rope")
    _, tuned = two_copies(folder)
    config = json.loads((tuned / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 100.0
    (tuned / "config.json").write_text(json.dumps(config))
    return folder


def test_check_names_what_differs_beside_equal_weights(other_rope: Path) -> None:
    found = list(api.check(str(other_rope / "base"), str(other_rope / "tuned"), options=RunOptions(device="cpu")))
    (said,) = [one for one in found if one.what == "config"]
    assert (said.verdict, said.said.split(":")[0]) == ("note", "rope_parameters.rope_theta")
    assert not [one for one in found if "no change to find" in one.said]


def test_the_page_never_says_that_nothing_differs_beside_a_divergence(other_rope: Path) -> None:
    """The whole default run goes on: what cannot be grafted is left out, with the reason."""
    rows, manifest, _ = study(other_rope, "tuned", ["divergence", "weights", "grafting", {"patching": {"arms": ["identity"]}}])
    d = rows.filter(measure="divergence", metric="kl_tuned_base_nats", split="report").filter(pl.col("unit").is_null())
    assert float(d["value"].mean()) > 1e-4  # type: ignore[arg-type]
    summary = summarise(rows, NUMBERS, seed=0)
    for said in (" ".join(verdict(rows, summary, manifest)), " ".join(which_weights(summary, manifest)), " ".join(manifest["warnings"])):
        assert "rope_parameters.rope_theta: 10000.0 in base, 100.0 in tuned" in said, said
        assert "no change to find" not in said
    assert [one for one in manifest["skipped"] if one["what"] == "grafting" and "differ in more than weights" in one["why"]]


def test_biases_that_the_network_runs_with_are_in_the_sentence(tmp_path: Path) -> None:
    """Base without, tuned with biases on its queries, keys and values: D > 0, and every tensor that both have is equal."""
    net = make_net(LlamaConfig(**SIZES), seed=0)
    save(net, byte_tokenizer(CHATML), tmp_path / "base")
    with_biases = make_net(LlamaConfig(**SIZES, attention_bias=True), seed=0)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            with_biases.get_parameter(name).copy_(parameter)
    save(with_biases, byte_tokenizer(CHATML), tmp_path / "tuned")
    rows, manifest, _ = study(tmp_path, "tuned", ["divergence", "weights"])
    summary = summarise(rows, NUMBERS, seed=0)
    said = " ".join(which_weights(summary, manifest))
    assert "that were compared differs, but 16 only in the tuned model: the weights may differ" in said
    assert "attention_bias: False in base, True in tuned" in said
    assert "same weights" not in said
