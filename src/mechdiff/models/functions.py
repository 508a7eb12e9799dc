"""What do two models compute otherwise although no weight says so?

Rotary base and scaling, windows, norm epsilon, activation, soft-capping, scales, ties.

Two models of the same weights whose configs differ in such a field say different things, and no comparison of weights shows it. So every field of
the two configs is compared but those that are known to change nothing that a forward pass computes: all that is not on that list counts.
"""

from collections.abc import Mapping
from typing import Any

_NO_FUNCTION = {
    "_name_or_path", "name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache", "output_attentions",
    "output_hidden_states", "output_router_logits", "return_dict", "chunk_size_feed_forward", "id2label", "label2id", "num_labels", "problem_type",
    "is_decoder", "is_encoder_decoder", "add_cross_attention", "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id",
    "mask_token_id", "decoder_start_token_id", "initializer_range", "gradient_checkpointing", "pretraining_tp", "router_aux_loss_coef", "auto_map",
    "quantization_config", "vocab_size", "tokenizer_class", "task_specific_params", "keys_to_ignore_at_inference", "transformers_weights",
    "finetuning_task", "n_ctx",
}  # fmt: skip
"""Fields of a config that change no forward pass of a model in evaluation mode: names, versions, special tokens, training, and sizes that the weights
themselves show."""
_TRAINING = ("dropout", "_pdrop", "unsloth", "summary_")
"""Parts of such names."""


def function_differences(base: Any, tuned: Any) -> list[str]:
    """ "rope_parameters.rope_theta: 10000.0 in base, 5000.0 in tuned" of each field in which two transformers configs compute otherwise on
    text."""
    ours, theirs = (dict(_fields(config.get_text_config().to_dict())) for config in (base, tuned))
    scaled = any("dynamic" in str(value) or "longrope" in str(value) for side in (ours, theirs) for value in side.values())
    found = []
    for name in sorted(ours.keys() | theirs.keys()):
        if name == "max_position_embeddings" and not scaled:  # a length, unless the rotary scaling depends on it; tables are weights
            continue
        if (name in ours) != (name in theirs) and (ours | theirs)[name] is False:  # what one architecture can turn on and the other has not
            continue
        if ours.get(name) != theirs.get(name):
            found.append(f"{name}: {_short(ours.get(name))} in base, {_short(theirs.get(name))} in tuned")
    return found


def _fields(config: Mapping[str, Any], path: str = "") -> list[tuple[str, Any]]:
    """Dotted name and value of each field that may change the function."""
    found: list[tuple[str, Any]] = []
    for name, value in config.items():
        if name in _NO_FUNCTION or any(part in name for part in _TRAINING) or (name.startswith("_") and not path):
            continue
        if isinstance(value, Mapping):
            found += _fields(value, f"{path}{name}.")
        else:
            found.append((path + name, list(value) if isinstance(value, tuple) else value))
    return found


def _short(value: Any) -> str:
    said = "nothing" if value is None else str(value)
    return said if len(said) <= 60 else f"{said[:57]}..."
