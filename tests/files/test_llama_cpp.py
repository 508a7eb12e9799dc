"""What a GGUF file says is what its converted folder computes, or the file is refused."""

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    StableLmConfig,
    Starcoder2Config,
)
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from gguf_made import TOKENS, write_gguf
from mechdiff.architectures.network import quiet
from mechdiff.errors import ModelError
from mechdiff.models.sources import load_config, load_tokenizer, resolve
from mechdiff.models.tensors import open_tensors
from pico import SIZES, make_net

IDS = torch.tensor([[257, *range(30, 120)]])


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MECHDIFF_CACHE", str(tmp_path / "cache"))


def llama(**fields: Any) -> Any:
    return make_net(LlamaConfig(**SIZES | {"tie_word_embeddings": False} | fields))


def converted(path: Path) -> Any:
    """The network that runs for a GGUF file."""
    with quiet():
        return AutoModelForCausalLM.from_pretrained(resolve(str(path)).load).eval()


@torch.no_grad()
def logits(net: Any) -> torch.Tensor:
    return net(IDS).logits


# ---- parts -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [0, 1])
def test_all_parts_are_read_whichever_is_given(tmp_path: Path, given: int) -> None:
    net = llama()
    write_gguf(net, tmp_path / "small.gguf", split=15)
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) > 2
    found = converted(parts[given]).state_dict()
    for name, tensor in net.state_dict().items():
        assert torch.equal(found[name], tensor), name
    assert not list((tmp_path / "cache").glob("*.gguf"))


def test_a_part_that_is_missing_is_named_with_what_merges_them(tmp_path: Path) -> None:
    write_gguf(llama(), tmp_path / "small.gguf", split=15)
    parts = sorted(tmp_path.glob("*.gguf"))
    parts[1].unlink()
    with pytest.raises(ModelError, match=rf"{parts[1].name} is not beside it \(1 of {len(parts)} are missing\).*llama-gguf-split --merge"):
        resolve(str(parts[0]))


def test_a_part_under_another_name_is_refused(tmp_path: Path) -> None:
    write_gguf(llama(), tmp_path / "small.gguf", split=15)
    part = sorted(tmp_path.glob("*.gguf"))[0].rename(tmp_path / "mine.gguf")
    with pytest.raises(ModelError, match=r"this is one of \d parts of a GGUF model, and its name does not say which"):
        resolve(str(part))


# ---- what would be left out --------------------------------------------------------------------------------------------------------


def test_a_file_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    net = llama()
    one = llama(num_hidden_layers=3)
    one.config.num_hidden_layers = 4
    write_gguf(one, tmp_path / "small.gguf")
    del net
    with pytest.raises(ModelError, match=r"this file lacks 9 of the model's tensors, the first model\.layers\.3\."):
        resolve(str(tmp_path / "small.gguf"))
    assert not list((tmp_path / "cache").glob("gguf-*/config.json"))


def test_a_tensor_that_has_no_place_is_refused(tmp_path: Path) -> None:
    write_gguf(llama(), tmp_path / "small.gguf", tensors={"blk.0.attn_q.bias": np.ones(32, np.float32)})
    with pytest.raises(ModelError, match=r"no place for 1 of this file's tensors, the first blk\.0\.attn_q\.bias"):
        resolve(str(tmp_path / "small.gguf"))


def test_a_key_that_has_no_place_is_refused(tmp_path: Path) -> None:
    write_gguf(llama(), tmp_path / "small.gguf", keys=lambda writer: writer.add_sliding_window(8))
    with pytest.raises(ModelError, match=r"it states attention\.sliding_window = 8, for which the config of llama has no place"):
        resolve(str(tmp_path / "small.gguf"))


@pytest.mark.parametrize(
    "fields", [{"rms_norm_eps": 0.01}, {"rope_parameters": {"rope_type": "default", "rope_theta": 777.0}}, {"tie_word_embeddings": True}]
)
def test_what_the_keys_say_is_computed(tmp_path: Path, fields: dict[str, Any]) -> None:
    net = llama(**fields)
    if net.config.tie_word_embeddings:
        del net.lm_head
        net.config.vocab_size = 259
    write_gguf(net, tmp_path / "small.gguf")
    net = llama(**fields)
    torch.testing.assert_close(logits(converted(tmp_path / "small.gguf")), logits(net))


FAMILIES: dict[str, Any] = {
    "qwen2": lambda: Qwen2Config(**SIZES, rope_parameters={"rope_type": "default", "rope_theta": 777.0}, rms_norm_eps=0.01),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=128, rope_parameters={"rope_type": "default", "rope_theta": 777.0}),
    "gemma2": lambda: Gemma2Config(**SIZES, head_dim=16, sliding_window=8, attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
    "stablelm": lambda: StableLmConfig(**SIZES, rope_parameters={"rope_type": "default", "rope_theta": 777.0, "partial_rotary_factor": 0.5}),
    "starcoder2": lambda: Starcoder2Config(**SIZES, rope_parameters={"rope_type": "default", "rope_theta": 777.0}, norm_epsilon=0.01),
    "phi3": lambda: Phi3Config(**SIZES, rope_parameters={"rope_type": "default", "rope_theta": 777.0}),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_computes_what_its_keys_say_or_is_refused(tmp_path: Path, family: str) -> None:
    net = make_net(FAMILIES[family]())
    write_gguf(net, tmp_path / "small.gguf", keys=lambda writer: writer.add_pad_token_id(258))
    torch.testing.assert_close(logits(converted(tmp_path / "small.gguf")), logits(net))


def test_phi_3_rotates_by_its_lists(tmp_path: Path) -> None:
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.5, 2.0, 4.0], "long_factor": [2.0, 3.0, 4.0, 9.0],
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    net = make_net(Phi3Config(**SIZES | {"original_max_position_embeddings": 64}, rope_parameters=rope))

    def keys(writer: gguf.GGUFWriter) -> None:
        writer.add_pad_token_id(258)
        writer.add_rope_scaling_orig_ctx_len(64)
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(2) / math.log(64)))  # as its converter writes it, for 128 / 64

    lists = {f"rope_factors_{name}.weight": np.array(rope[f"{name}_factor"], np.float32) for name in ("short", "long")}
    write_gguf(net, tmp_path / "small.gguf", keys=keys, tensors=lists)
    found = converted(tmp_path / "small.gguf")
    assert IDS.shape[1] > 64, "the long list is used"
    torch.testing.assert_close(logits(found), logits(net))
    with torch.no_grad():
        torch.testing.assert_close(found(IDS[:, :20]).logits, net(IDS[:, :20]).logits)


# ---- rotation ----------------------------------------------------------------------------------------------------------------------


def divisors(net: Any) -> np.ndarray:
    """What the network's rotation divides each frequency by."""
    theta, found = net.config.rope_parameters["rope_theta"], net.model.rotary_emb.inv_freq.double()
    plain = theta ** (-torch.arange(len(found)).double() / len(found))
    return (plain / found).float().numpy()


LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize("head_dim", [8, 32, 128])
@pytest.mark.parametrize("more", [{"original_max_position_embeddings": 8192}, {"factor": 32.0, "original_max_position_embeddings": 8192}])
def test_the_divisors_of_llama_3_are_its_config(tmp_path: Path, head_dim: int, more: dict[str, Any]) -> None:
    net = llama(head_dim=head_dim, rope_parameters={**LLAMA3, **more}, max_position_embeddings=131072)
    write_gguf(net, tmp_path / "small.gguf", tensors={"rope_freqs.weight": divisors(net)})
    found = converted(tmp_path / "small.gguf")
    assert found.config.rope_parameters == net.config.rope_parameters
    assert torch.equal(logits(found), logits(net))


def test_divisors_that_other_numbers_made_are_fitted(tmp_path: Path) -> None:
    rope = {**LLAMA3, "rope_theta": 10000.0, "low_freq_factor": 2.0, "high_freq_factor": 8.0, "original_max_position_embeddings": 1024}
    net = llama(head_dim=64, rope_parameters=rope)
    write_gguf(net, tmp_path / "small.gguf", tensors={"rope_freqs.weight": divisors(net)})
    found = converted(tmp_path / "small.gguf")
    assert found.config.rope_parameters["rope_type"] == "llama3"
    torch.testing.assert_close(logits(found), logits(net))


def test_any_divisors_are_used_as_they_are(tmp_path: Path) -> None:
    net = llama()
    any_divisors = np.array([1.0, 3.0, 2.0, 7.0], np.float32)
    write_gguf(net, tmp_path / "small.gguf", tensors={"rope_freqs.weight": any_divisors})
    net.model.rotary_emb.inv_freq /= torch.from_numpy(any_divisors)
    torch.testing.assert_close(logits(converted(tmp_path / "small.gguf")), logits(net))


def scaling(kind: str, **stated: Any) -> Any:
    def keys(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(4.0)
        for name, value in stated.items():
            getattr(writer, f"add_rope_scaling_{name}")(value)

    return keys


@pytest.mark.parametrize(
    ("rope", "keys"),
    [
        ({"rope_type": "linear", "factor": 4.0}, scaling("linear")),
        ({"rope_type": "linear", "factor": 4.0}, lambda writer: writer.add_float32("llama.rope.scale_linear", 4.0)),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, scaling("yarn", orig_ctx_len=32)),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 8.0, "beta_slow": 2.0,
             "attention_factor": 1.5 * (0.1 * math.log(4) + 1)},
            scaling("yarn", orig_ctx_len=32, attn_factors=1.5, yarn_beta_fast=8.0, yarn_beta_slow=2.0),
        ),
    ],
)  # fmt: skip
def test_scaling_by_keys_is_that_of_the_config(tmp_path: Path, rope: dict[str, Any], keys: Any) -> None:
    net = llama(rope_parameters={"rope_theta": 10000.0, **rope})
    assert not torch.allclose(logits(net), logits(llama()))
    write_gguf(net, tmp_path / "small.gguf", keys=keys)
    found = converted(tmp_path / "small.gguf")
    assert found.config.rope_parameters["rope_type"] == rope["rope_type"]
    torch.testing.assert_close(logits(found), logits(net))


def test_scaling_of_a_kind_that_no_config_has_is_refused(tmp_path: Path) -> None:
    write_gguf(llama(), tmp_path / "small.gguf", keys=lambda writer: writer.add_float32("llama.rope.scaling.alpha", 2.0))
    with pytest.raises(ModelError, match=r"its rotary scaling uses rope\.scaling\.alpha, which no config of transformers can say"):
        resolve(str(tmp_path / "small.gguf"))


def test_lists_of_phi_3_are_its_longrope() -> None:
    from mechdiff.files.rotation import scaled

    stated = {"freq_base": 10000.0, "scaling.original_context_length": 4096, "scaling.attn_factor": 1.19}
    found = scaled(stated, {"rope_factors_long.weight": [2.0], "rope_factors_short.weight": [1.0]}, 131072, {"rope_theta": 10000.0})
    assert found == {
        "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 4096, "long_factor": [2.0], "short_factor": [1.0],
        "attention_factor": 1.19,
    }  # fmt: skip


# ---- quantised tensors -------------------------------------------------------------------------------------------------------------

TYPES = [kind for kind in gguf.GGMLQuantizationType if hasattr(gguf.quants, kind.name) and kind.name not in ("F32", "F16")]
USUAL = ("BF16", "Q4_0", "Q8_0", "Q4_K", "Q6_K", "IQ4_XS")
"""Of `make test`; the others are of `make test-slow`."""


def blocks(kind: Any, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Random stored bytes of a kind, every number of which is finite."""
    n, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    drawn = np.random.default_rng(seed).integers(0, 256, (shape[0] * shape[1] // n, n_bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        numbers = gguf.dequantize(drawn, kind).reshape(len(drawn), -1)
    drawn[~np.isfinite(numbers).all(1) | (np.abs(numbers).max(1) > 1e4)] = 0
    return drawn.reshape(shape[0], -1)


@pytest.mark.parametrize("kind", [pytest.param(kind, id=kind.name, marks=() if kind.name in USUAL else pytest.mark.slow) for kind in TYPES])
def test_every_quantisation_is_what_gguf_reads(tmp_path: Path, kind: Any) -> None:
    net = llama(hidden_size=256, intermediate_size=256, num_hidden_layers=1)
    stored: dict[str, np.ndarray] = {}

    def types(name: str, numbers: np.ndarray) -> tuple[np.ndarray, Any]:
        if "v_proj" in name or "mlp" in name or "o_proj" in name or "embed" in name:
            stored[name] = blocks(kind, numbers.shape, len(stored))
            return stored[name], kind
        return numbers, None

    write_gguf(net, tmp_path / "small.gguf", types=types)
    files = open_tensors(Path(resolve(str(tmp_path / "small.gguf")).load))
    assert len(stored) == 6
    for name, held in stored.items():
        assert torch.equal(files.read(name), torch.from_numpy(gguf.dequantize(held, kind))), name


# ---- tokenizer ---------------------------------------------------------------------------------------------------------------------


def whole_words(*, ignore_merges: bool = True) -> Tokenizer:
    """Llama 3's kind: "abc" is a token that no merges make."""
    vocabulary = {token: i for i, token in enumerate([*TOKENS[:256], "ab", "abc"])}
    made = Tokenizer(models.BPE(vocabulary, [("a", "b")], ignore_merges=ignore_merges))
    made.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS["llama-bpe"]), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    made.decoder = decoders.ByteLevel()
    return made


TEXTS = ["abc", "abcd abc", "12345 ab\n\nabc's", "é abcabc", "ABC abc  "]


@pytest.mark.parametrize("pre", ["llama-bpe", "default"])
def test_words_stay_whole_where_llama_cpp_keeps_them(tmp_path: Path, pre: str) -> None:
    net = llama(vocab_size=260)
    write_gguf(net, tmp_path / "small.gguf", tokens=[*TOKENS[:257], "abc", *TOKENS[257:]], pre=pre)
    source = resolve(str(tmp_path / "small.gguf"))
    found = load_tokenizer(source)
    truth = whole_words(ignore_merges=pre == "llama-bpe")
    if pre == "default":
        truth.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for text in TEXTS:
        assert found.encode(text, add_special_tokens=False) == truth.encode(text, add_special_tokens=False).ids, text
        assert found.decode(found.encode(text, add_special_tokens=False)) == text
    assert found.encode("a") == ([258] if pre == "llama-bpe" else []) + [97], "llama.cpp puts BOS before such texts"


def test_there_is_no_token_more_than_the_file_holds(tmp_path: Path) -> None:
    write_gguf(llama(), tmp_path / "small.gguf")
    source = resolve(str(tmp_path / "small.gguf"))
    assert len(load_tokenizer(source)) == len(TOKENS) == load_config(source).vocab_size
    assert load_tokenizer(source).bos_token == "<|bos|>"
