"""A GGUF file (llama.cpp) is written as a folder of transformers: all of its parts, or nothing.

transformers converts the tensors. What it leaves out without a word is added here, or the file is refused: the other parts of a file in several,
rotary scaling (`files.rotation`), tensors and keys for which its config has no place, whole words of the vocabulary that no merge makes, and the
token that it adds to a vocabulary that has none of that name.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mechdiff.errors import ModelError
from mechdiff.files.rotation import DIVISORS, LONG, SHORT, scaled

_PART = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
_WHOLE_WORDS = (
    "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano", "tekken",
)  # fmt: skip
"""Vocabularies (`tokenizer.ggml.pre`) in which a word that is a token stays whole whatever the merges say, and to which llama.cpp adds BOS."""
_NO_WEIGHTS = (DIVISORS, LONG, SHORT)

_FIELDS: Mapping[str, tuple[str, ...]] = {
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps", "layer_norm_eps", "layer_norm_epsilon"),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "attention.scale": ("attention_multiplier", "query_pre_attn_scalar"),
    "residual_scale": ("residual_multiplier",),
    "embedding_scale": ("embedding_multiplier",),
    "logit_scale": ("logits_scaling", "logit_scale"),
}
"""Keys behind the architecture's name that change what the network computes, and the fields of configs that say the same."""


@dataclass(frozen=True)
class Gguf:
    """An opened GGUF file, one part or a file that is whole."""

    path: Path

    @cached_property
    def reader(self) -> Any:
        from gguf import GGUFReader

        try:
            return GGUFReader(self.path)
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise ModelError(f"{self.path}: transformers cannot read this GGUF file: {error}") from error

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key."""
        field = self.reader.fields.get(key)
        return default if field is None else field.contents()

    @property
    def architecture(self) -> str:
        return str(self.get("general.architecture"))

    def stated(self, prefix: str = "") -> dict[str, Any]:
        """The architecture's own keys that start with `prefix`, which is left out of their names, and their values."""
        start = f"{self.architecture}.{prefix}"
        return {key.removeprefix(start): self.get(key) for key in self.reader.fields if key.startswith(start)}

    def numbers(self, name: str) -> list[float]:
        """The entries of a small tensor."""
        from gguf import dequantize

        (tensor,) = [tensor for tensor in self.reader.tensors if tensor.name == name]
        return [float(one) for one in dequantize(tensor.data, tensor.tensor_type).reshape(-1)]

    @property
    def tensors(self) -> list[str]:
        return [tensor.name for tensor in self.reader.tensors]


# ---- parts -------------------------------------------------------------------------------------------------------------------------


def parts(path: Path) -> list[Path]:
    """All files of a GGUF model in several files, the first one first; the file itself where it is whole. ModelError: parts are missing."""
    count = int(Gguf(path).get("split.count", 0))
    named = _PART.match(path.name)
    if named is None:
        if count > 1:
            raise ModelError(
                f"{path}: this is one of {count} parts of a GGUF model, and its name does not say which. Give the parts their names back "
                f"(NAME-00001-of-{count:05}.gguf), or merge them: llama-gguf-split --merge FIRST-PART.gguf WHOLE.gguf"
            )
        return [path]
    count = count or int(named["count"])
    wanted = [path.with_name(f"{named['name']}-{number:05}-of-{int(named['count']):05}.gguf") for number in range(1, count + 1)]
    missing = [one.name for one in wanted if not one.is_file()]
    if missing:
        raise ModelError(
            f"{path}: this is one of {count} parts of a GGUF model, and {missing[0]} is not beside it ({len(missing)} of {count} are missing). "
            "Put all parts into one folder, or merge them where they are: llama-gguf-split --merge FIRST-PART.gguf WHOLE.gguf"
        )
    return wanted


def merged(files: list[Path], target: Path) -> Path:
    """One GGUF file with the keys of the first part and the tensors of all, as they are stored."""
    from gguf import GGUFValueType, GGUFWriter

    opened = [Gguf(path) for path in files]
    writer = GGUFWriter(target, opened[0].architecture)
    for name, field in opened[0].reader.fields.items():
        if name in ("general.architecture", "general.alignment") or name.startswith(("GGUF.", "split.")):
            continue
        inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
    tensors = [tensor for one in opened for tensor in one.reader.tensors]
    stated = opened[0].get("split.tensors.count")
    if stated is not None and int(stated) != len(tensors):
        raise ModelError(
            f"{files[0]}: its parts hold {len(tensors)} tensors, and it says that they are {stated}. Are these parts of one model?"
        )
    for tensor in tensors:
        writer.add_tensor_info(tensor.name, tensor.data.shape, tensor.data.dtype, tensor.data.nbytes, tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(tensor.data)
    writer.close()
    return target


# ---- conversion --------------------------------------------------------------------------------------------------------------------


def convert(files: list[Path], folder: Path) -> None:
    """Writes a GGUF model, given by all its parts, into a folder, in float32. ModelError: what transformers cannot read, or would leave out."""
    path = files[0]
    if len(files) > 1:
        path = merged(files, folder.with_suffix(".gguf"))
    try:
        gguf = Gguf(path)
        net, tokenizer = _converted(gguf, files[0])
        net.hf_quantizer = None  # the weights are dequantised; saving refuses while the model says otherwise
        if hasattr(net.config, "quantization_config"):
            del net.config.quantization_config
        try:
            _state(gguf, net.config)
        except ModelError as error:
            raise ModelError(f"{files[0]}: {error} Take the model's folder of safetensors instead.") from error
        if _keeps_words(gguf) and gguf.get("tokenizer.ggml.add_bos_token") is None and tokenizer.bos_token:
            tokenizer.add_bos_token = True
        net.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        _mend_tokenizer(gguf, folder)
    finally:
        if len(files) > 1:
            path.unlink(missing_ok=True)


def _converted(gguf: Gguf, said: Path) -> tuple[Any, Any]:
    """The network and the tokenizer as transformers makes them, with every tensor of the file in the network and the reverse."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"gguf_file": gguf.path.name}
    try:
        net, loading = AutoModelForCausalLM.from_pretrained(str(gguf.path.parent), dtype="float32", output_loading_info=True, **where)
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.path.parent), **where)
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, AssertionError, ImportError) as error:
        raise ModelError(f"{said}: transformers cannot read this GGUF file: {error}") from error
    if absent := sorted(loading["missing_keys"]):
        raise ModelError(
            f"{said}: this file lacks {len(absent)} of the model's tensors, the first {absent[0]}: transformers would draw them at random. "
            "Is it one part of several, or is the download incomplete?"
        )
    if homeless := sorted({*loading["unexpected_keys"], *_without_place(gguf, net)}):
        raise ModelError(
            f"{said}: transformers has no place for {len(homeless)} of this file's tensors, the first {homeless[0]}, and leaves them out: the "
            "converted network would compute something else. Take the model's folder of safetensors instead."
        )
    return net, tokenizer


def _without_place(gguf: Gguf, net: Any) -> Iterator[str]:
    """Tensors that transformers reads and then drops because its network has none of that name."""
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    if gguf.architecture in GGUF_CONFIG_ARCHS:  # its loader reports them itself
        return
    processor = TENSOR_PROCESSORS.get(gguf.architecture, TensorProcessor)(config=net.config.to_dict())
    places = get_gguf_hf_weights_map(net, processor)
    for name in gguf.tensors:
        if name not in places and name.removesuffix(".weight") not in places and name not in _NO_WEIGHTS:
            yield name


def _state(gguf: Gguf, config: Any) -> None:
    """Makes a config say all that the file's keys say of what is computed. ModelError where it cannot."""
    rotary = getattr(config, "rope_parameters", None) or {}
    layered = "full_attention" in rotary
    whole = dict(rotary["full_attention"] if layered else rotary)
    stated = gguf.stated("rope.")
    if "freq_base" in stated:
        whole["rope_theta"] = float(stated["freq_base"])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads if rotary else 0
    if "dimension_count" in stated and rotary and not layered and "mrope_section" not in whole:
        share = int(stated["dimension_count"]) / head_dim
        if whole.get("partial_rotary_factor", 1) != share:
            whole["partial_rotary_factor"] = share
    held = set(gguf.tensors)
    divisors = {name: gguf.numbers(name) for name in _NO_WEIGHTS if name in held}
    if whole.get("rope_type") not in (None, "default") and not (stated.keys() - {"freq_base", "dimension_count"}):
        divisors = {}  # this family's config has a scaling of its own
    context = int(gguf.get(f"{gguf.architecture}.context_length", 0)) or config.max_position_embeddings
    found = scaled(stated, divisors, context, whole) or whole
    if found:
        config.rope_parameters = {**rotary, "full_attention": found} if layered else found
        if hasattr(config, "original_max_position_embeddings") and "original_max_position_embeddings" in found:  # Phi-3 says it twice
            config.original_max_position_embeddings = found["original_max_position_embeddings"]
    for key, value in gguf.stated().items():
        if key in _FIELDS and not isinstance(value, list):
            _set(config, key, float(value))


def _set(config: Any, key: str, value: float) -> None:
    """Writes a key's value into the config's field of that meaning."""
    field = next((name for name in _FIELDS[key] if hasattr(config, name)), None)
    if field is None:
        raise ModelError(f"it states {key} = {value:g}, for which the config of {config.model_type} has no place.")
    convert: Callable[[float], Any] = int if key == "attention.sliding_window" else float
    if key == "attention.scale" and field == "query_pre_attn_scalar":
        value = value**-2
    if getattr(config, field) is None or abs(getattr(config, field) - value) > 1e-6 * abs(value):
        setattr(config, field, convert(value))


# ---- tokenizer ---------------------------------------------------------------------------------------------------------------------


def _keeps_words(gguf: Gguf) -> bool:
    return gguf.get("tokenizer.ggml.pre") in _WHOLE_WORDS


def _mend_tokenizer(gguf: Gguf, folder: Path) -> None:
    """Takes the tokens that the file does not hold out of a saved tokenizer, and keeps words whole where llama.cpp does."""
    path, config_path = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not path.is_file():
        return
    tokenizer, config = json.loads(path.read_text()), json.loads(config_path.read_text())
    tokens = gguf.get("tokenizer.ggml.tokens") or []
    added = [one for one in tokenizer["added_tokens"] if one["id"] < len(tokens)]
    gone = {one["content"] for one in tokenizer["added_tokens"]} - {one["content"] for one in added}
    whole = _keeps_words(gguf) and tokenizer["model"]["type"] == "BPE"
    if not gone and not whole:
        return
    tokenizer["added_tokens"] = added
    config = {name: value for name, value in config.items() if not (isinstance(value, str) and value in gone)}
    if whole:
        tokenizer["model"]["ignore_merges"] = True
    config["tokenizer_class"] = "TokenizersBackend"  # others would add the token again when they load
    path.write_text(json.dumps(tokenizer, ensure_ascii=False))
    config_path.write_text(json.dumps(config, ensure_ascii=False, indent=2))
