"""An adapter of mlx-lm or of llama.cpp gives the logits of the peft adapter that it was made from; what has no such form is refused."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from adapters_made import make_pair
from mechdiff.engine.activations import forward
from mechdiff.errors import ModelError
from mechdiff.models.changes import open_changes
from mechdiff.models.pair import open_pair
from mechdiff.models.sources import resolve
from pico import pico

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

IDS = torch.tensor([256, 5, 90, 17, 33, 108, 7])
LORA: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "k_proj", "o_proj", "down_proj"]}
LLAMA_CPP = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "down_proj": "ffn_down",
    "up_proj": "ffn_up",
}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MECHDIFF_CACHE", str(tmp_path / "cache"))


def logits(folder: Path, tuned: Path, side: Any) -> torch.Tensor:
    with open_pair(str(folder / "base"), str(tuned), device="cpu").use(side) as model:
        return forward(model, IDS[None], logits_to_keep=1).logits[0, -1]


def factors(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Module -> what the peft adapter of a folder holds for it, by role."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(folder / "adapter" / "adapter_model.safetensors").items():
        module, _, role = key.removeprefix("base_model.model.").partition(".lora_")
        found.setdefault(module, {})[role.removesuffix(".weight")] = tensor
    return found


def as_mlx(folder: Path, kind: str = "lora", **stated: Any) -> Path:
    """The adapter as mlx-lm saves it."""
    (folder / "mlx").mkdir()
    held = {}
    for module, roles in factors(folder).items():
        held[f"{module}.lora_a"] = roles.get("A", roles.get("embedding_A")).T.contiguous()  # type: ignore[union-attr]
        held[f"{module}.lora_b"] = roles.get("B", roles.get("embedding_B")).T.contiguous()  # type: ignore[union-attr]
        if "magnitude_vector" in roles:
            held[f"{module}.m"] = roles["magnitude_vector"]
    save_file(held, folder / "mlx" / "adapters.safetensors")
    config = {"fine_tune_type": kind, "num_layers": 4, "model": "some/base", "lora_parameters": {"rank": 4, "scale": 1.5, "dropout": 0.0}}
    (folder / "mlx" / "adapter_config.json").write_text(json.dumps({**config, **stated}))
    return folder / "mlx"


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key matrix as llama.cpp's converter puts them for Llama."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def as_gguf(
    folder: Path, arch: str, *, interleave: bool, kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32, **said: Any
) -> Path:
    """The adapter as llama.cpp's convert_lora_to_gguf writes it; `said`: alpha, type, and one more tensor."""
    path = folder / "adapter.gguf"
    writer = gguf.GGUFWriter(path, arch)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, said.get("type", "lora"))
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, said.get("alpha", 6.0))
    heads = {"q_proj": 4, "k_proj": 2}
    for module, roles in factors(folder).items():
        *_, layer, _, leaf = module.split(".") if "layers" in module else ("", "", "", module)
        name = f"blk.{layer}.{LLAMA_CPP[leaf]}" if layer else "token_embd"
        a = roles.get("A", roles.get("embedding_A")).numpy()  # type: ignore[union-attr]
        b = roles.get("B", roles.get("embedding_B")).numpy()  # type: ignore[union-attr]
        b = interleaved(b, heads[leaf]) if interleave and leaf in heads else b
        for part, data in (("lora_a", a if layer else a.T), ("lora_b", b)):
            writer.add_tensor(f"{name}.weight.{part}", gguf.quantize(np.ascontiguousarray(data), kind), raw_dtype=kind)
    for name, data in said.get("more", {}).items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def hold(folder: Path, made: Any, tuned: Path, name: str = "llama") -> None:
    """The logits of both sides, and the weights, are those of the peft adapter and of the untouched base."""
    with torch.no_grad():
        expected = made(input_ids=IDS[None]).logits[0, -1]
    torch.testing.assert_close(logits(folder, tuned, "tuned"), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(folder, tuned, "base"), forward(pico(name), IDS[None], logits_to_keep=1).logits[0, -1])
    base = resolve(str(folder / "base"))
    ours, peft = (open_changes(base, resolve(str(ref), base=base)) for ref in (tuned, folder / "adapter"))
    moved = 0
    for change in ours:
        torch.testing.assert_close(change.delta().double(), peft.change(change.name).delta().double(), rtol=1e-5, atol=1e-6)
        moved += not change.untouched
    assert moved


@pytest.mark.parametrize(
    ("kind", "name", "config"),
    [("lora", "llama", LORA), ("dora", "llama", {**LORA, "use_dora": True}), ("lora", "gpt2", {**LORA, "target_modules": ["c_attn", "c_proj"]}),
     ("lora", "llama", {**LORA, "target_modules": ["embed_tokens", "q_proj"]})],
    ids=["lora", "dora", "conv1d", "embedding"],
)  # fmt: skip
def test_an_adapter_of_mlx_is_the_peft_adapter_that_it_was_made_from(kind: str, name: str, config: Any, tmp_path: Path) -> None:
    made = make_pair(tmp_path, LoraConfig(**config), name)
    hold(tmp_path, made, as_mlx(tmp_path, kind), name)
    assert resolve(str(tmp_path / "mlx"), base=resolve(str(tmp_path / "base"))).ref == str(tmp_path / "mlx")


@pytest.mark.parametrize(
    ("stated", "why"),
    [({"fine_tune_type": "full"}, r"saved whole tensors here \(fine_tune_type 'full'\).*mlx_lm\.fuse"),
     ({"lora_parameters": {"rank": 4}}, r"states no lora_parameters\.scale"),
     ({"lora_parameters": {"rank": 4, "scale": 10.0, "alpha": 16.0}}, r"a scale of 10\.0 and an alpha of 16\.0.*take alpha out"),
     ({"fine_tune_type": "dora"}, r"change of \S+ is lora_a \(\d+, 4\), lora_b \(4, \d+\), a form that peft has not")],
    ids=["full", "no scale", "alpha", "no magnitude"],
)  # fmt: skip
def test_what_mlx_saved_in_no_form_of_peft_is_refused_with_what_to_do(stated: Any, why: str, tmp_path: Path) -> None:
    make_pair(tmp_path, LoraConfig(**LORA))
    with pytest.raises(ModelError, match=why):
        open_pair(str(tmp_path / "base"), str(as_mlx(tmp_path, **stated)), device="cpu")


def test_an_embedding_that_mlx_changes_with_the_unembedding_is_refused(tmp_path: Path) -> None:
    make_pair(tmp_path, LoraConfig(r=4, target_modules=["embed_tokens"]), "gemma2")
    with pytest.raises(ModelError, match="by factors that mlx-lm uses for the unembedding too"):
        open_pair(str(tmp_path / "base"), str(as_mlx(tmp_path)), device="cpu")


def test_experts_of_mlx_are_refused_in_words(tmp_path: Path) -> None:
    make_pair(tmp_path, LoraConfig(**{**LORA, "target_modules": ["q_proj"]}), "qwen3_moe")
    folder = as_mlx(tmp_path)
    held = load_file(folder / "adapters.safetensors")
    save_file({**held, "model.layers.0.mlp.switch_mlp.up_proj.lora_a": torch.ones(4, 2, 8)}, folder / "adapters.safetensors")
    with pytest.raises(
        ModelError, match=r"changes model\.layers\.0\.mlp\.switch_mlp\.up_proj, .*a mixture whose experts are held otherwise"
    ):
        open_pair(str(tmp_path / "base"), str(folder), device="cpu")


@pytest.mark.parametrize(
    ("name", "arch", "interleave", "config"),
    [("llama", "llama", True, LORA), ("mistral", "llama", True, LORA), ("granite", "granite", True, LORA), ("smollm3", "smollm3", True, LORA),
     ("qwen2", "qwen2", False, LORA), ("qwen3", "qwen3", False, LORA), ("gemma2", "gemma2", False, LORA),
     ("llama", "llama", True, {**LORA, "rank_pattern": {"o_proj": 2}, "alpha_pattern": {}})],
    ids=["llama", "mistral", "granite", "smollm3", "qwen2", "qwen3", "gemma2", "ranks"],
)  # fmt: skip
def test_a_gguf_adapter_is_the_peft_adapter_that_it_was_made_from(
    name: str, arch: str, interleave: bool, config: Any, tmp_path: Path
) -> None:
    made = make_pair(tmp_path, LoraConfig(**config), name)
    hold(tmp_path, made, as_gguf(tmp_path, arch, interleave=interleave), name)


def test_a_gguf_adapter_of_an_embedding_or_in_fewer_bits_is_read(tmp_path: Path) -> None:
    made = make_pair(tmp_path, LoraConfig(**{**LORA, "target_modules": ["embed_tokens", "v_proj"]}))
    hold(tmp_path, made, as_gguf(tmp_path, "llama", interleave=True))
    half = as_gguf(tmp_path, "llama", interleave=True, kind=gguf.GGMLQuantizationType.F16)
    torch.testing.assert_close(logits(tmp_path, half, "tuned"), logits(tmp_path, tmp_path / "adapter", "tuned"), rtol=0, atol=1e-2)


def test_a_gguf_adapter_without_alpha_has_the_scale_1(tmp_path: Path) -> None:
    made = make_pair(tmp_path, LoraConfig(**{**LORA, "lora_alpha": LORA["r"]}))
    hold(tmp_path, made, as_gguf(tmp_path, "llama", interleave=True, alpha=0.0))


@pytest.mark.parametrize(
    ("arch", "said", "why"),
    [("llama", {"type": "control"}, "of the kind 'control'; only a LoRA"),
     ("bloom", {}, "for the architecture 'bloom', and how llama.cpp lays out its matrices is known here for llama"),
     ("llama", {"more": {"blk.0.attn_norm.weight": np.ones(32, np.float32)}}, r"attn_norm\.weight of shape \(32,\), which is no factor"),
     ("llama", {"more": {"blk.9.attn_v.weight.lora_a": np.ones((4, 32), np.float32)}}, r"attn_v\.weight\.lora_a .* another architecture"),
     ("llama", {"more": {"blk.0.attn_v.weight.lora_a": np.ones((4, 32), np.float32)}}, r"one factor of model\.layers\.0\.self_attn\.v_proj and not")],
    ids=["kind", "architecture", "norm", "block", "half"],
)  # fmt: skip
def test_a_gguf_adapter_that_is_no_lora_on_matrices_is_refused(arch: str, said: Any, why: str, tmp_path: Path) -> None:
    make_pair(tmp_path, LoraConfig(**LORA))
    with pytest.raises(ModelError, match=why):
        open_pair(str(tmp_path / "base"), str(as_gguf(tmp_path, arch, interleave=True, **said)), device="cpu")


def test_a_gguf_adapter_alone_is_no_model(tmp_path: Path) -> None:
    make_pair(tmp_path, LoraConfig(**LORA))
    with pytest.raises(ModelError, match="an adapter cannot be the base"):
        resolve(str(as_gguf(tmp_path, "llama", interleave=True)))


def test_a_folder_of_several_adapters_is_named_with_them(tmp_path: Path) -> None:
    make_pair(tmp_path, LoraConfig(**LORA))
    (tmp_path / "several").mkdir()
    for name in ("first", "second"):
        (tmp_path / "several" / name).symlink_to(tmp_path / "adapter")
    with pytest.raises(ModelError, match="It holds the adapters first, second: give one of their folders"):
        resolve(str(tmp_path / "several"), base=resolve(str(tmp_path / "base")))
