"""An adapter is put on its base so that it can be switched off again, with the proof that with it off the network is the base.

Some adapters rewrite the base's weights when peft puts them on: PiSSA and OLoRA leave a residual in the base layer, LoftQ a rounded matrix, KaSA a
truncated one, `layer_replication` more blocks. "Adapter off" is then another model than the base, and every number of it would be wrong without a
sign. What is known to do so is refused by name. And whatever the adapter's kind, each time one is put on it is proved that

- every parameter of the base is still in the network, and no entry of it has changed: the sums of its rows, as whole numbers of its bits, are
  those that were taken before;
- a forward pass of sixteen tokens with the adapter off gives the logits that it gave before (to the bit, where a device computes a pass twice
  alike).
"""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechdiff.errors import ModelError
from mechdiff.models.alignment import align
from mechdiff.models.checkpoint import adapter_file
from mechdiff.models.quantization import held_shape, scales
from mechdiff.models.sources import quiet
from mechdiff.models.tensors import contents

REWRITES = ("pissa", "olora", "corda", "loftq")
"""How the names of initialisations begin that leave something else in the base's layers."""
SAME_NATS = {torch.float32: 1e-9, torch.float16: 1e-4, torch.bfloat16: 1e-3}
"""Largest KL(before || after) of the pass with the adapter off, where a device does not compute it twice alike."""
GROWN = (
    "\nThe adapter was trained on this base with another number of token rows. Resize the base to that number (resize_token_embeddings) and save it "
    "with the adapter's tokenizer, or merge the adapter into it, and give that folder."
)
"""What to do with an adapter that holds an embedding of another size."""

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def attach_adapter(net: nn.Module, adapter: Path, *, base: str = "BASE") -> nn.Module:
    """A peft model around `net` with the adapter on; `base`: what the model is called. Raises ModelError: it does not fit by tensor names and
    shapes, or the network with the adapter off is not `net` as it was."""
    from peft import PeftModel
    from safetensors import SafetensorError

    adapter_file(adapter)
    refuse_unswitchable(adapter, base)
    before, said = _sums(net), _logits(net)
    try:
        _refuse_misfit(net, adapter)
        with quiet():
            adapted = PeftModel.from_pretrained(net, str(adapter)).eval()
    except (RuntimeError, ValueError, OSError, KeyError, TypeError, AttributeError, AssertionError, ImportError, SafetensorError) as error:
        larger = GROWN if "size mismatch" in str(error) and "embed" in str(error) else ""
        raise ModelError(f"{adapter}: peft cannot put this adapter on the base: {error}{larger}") from error
    refuse_nan(adapted, str(adapter))
    align(adapted)
    _prove_off(adapted, adapter, base, before, said)
    return adapted


def refuse_nan(net: nn.Module, ref: str) -> None:
    """Raises ModelError where a weight in memory is NaN or infinite."""
    codes = ((f"{name}.weight", scales(module)) for name, module in net.named_modules())
    for name, parameter in chain(net.named_parameters(), codes):
        if parameter is not None and not parameter.is_meta and not torch.isfinite(parameter).all():
            raise ModelError(
                f"{ref}: the tensor {name} holds NaN or infinite weights, so every number after it would. Mend the file or take another."
            )


# ---- known by name -----------------------------------------------------------------------------------------------------------------


def refuse_unswitchable(adapter: Path, base: str) -> None:
    """Raises ModelError where an adapter's config says that base and tuned are not one network with something switched off and on."""
    from peft import PeftConfig

    try:
        config: Any = PeftConfig.from_pretrained(str(adapter))
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{adapter}: peft cannot put this adapter on the base: {error}") from error
    if config.is_prompt_learning or config.is_adaption_prompt or getattr(config, "alora_invocation_tokens", None):
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise ModelError(
            f"{adapter}: this adapter is of the kind {kind} that changes the prompt or picks its tokens, not the network: it cannot be studied."
        )
    if reason := rewrites(vars(config)):
        raise ModelError(f"{adapter}: this adapter {reason}. {_no_merge(vars(config)) or way_out(adapter, base)}")


def rewrites(config: Mapping[str, Any]) -> str | None:
    """Why a network with this adapter switched off is not the base, by the adapter's config; None where nothing is known against it."""
    init = str(config.get("init_lora_weights"))
    if config.get("bias", "none") != "none":
        return f"trains biases (bias={config['bias']!r}), which cannot be switched off to get the base back"
    if init.lower().startswith(REWRITES):
        return f"rewrites its base's weights when it is put on (init_lora_weights={init!r}), so that without it the network is not the base"
    if config.get("kasa_config"):
        return "rewrites its base's weights when it is put on (kasa_config), so that without it the network is not the base"
    if config.get("layer_replication"):
        return f"repeats blocks of its base (layer_replication={config['layer_replication']!r}), so that without it the network is not the base"
    return None


def _no_merge(config: Mapping[str, Any]) -> str | None:
    """What to do where the merged model would not be what was trained; None where it is."""
    if config.get("layer_replication"):
        return "It cannot be studied, merged neither: peft would add each copy's change to the weights that all copies share."
    if "_niter_" in str(config.get("init_lora_weights")):
        return (
            "And it is drawn anew at every load, so what was trained cannot be had back from this file: after training, save the merged model, or "
            "the adapter as a plain LoRA (save_pretrained with path_initial_model_for_weight_conversion), and give that."
        )
    return None


def way_out(adapter: Path, base: str) -> str:
    """The line that makes a full model of an adapter and its base."""
    tokenizer = adapter if (adapter / "tokenizer_config.json").is_file() else base
    return (
        'Merge it once and give the full model as tuned: python -c "from peft import PeftModel as P; from transformers import '
        f"AutoModelForCausalLM as M, AutoTokenizer as T; P.from_pretrained(M.from_pretrained('{base}'), '{adapter}').merge_and_unload()"
        f".save_pretrained('MERGED'); T.from_pretrained('{tokenizer}').save_pretrained('MERGED')\""
    )


def _refuse_misfit(net: nn.Module, adapter: Path) -> None:
    """Raises ModelError where a LoRA factor's module is not in the network, or has other sizes. Factors of a parameter that is no layer's matrix
    (experts) are named by its module, `.base_layer` for each further one; peft compares their sizes itself."""
    modules, file = dict(net.named_modules()), adapter_file(adapter)
    shapes = {key: shape for key, (shape, _) in contents(file).items()} if file.suffix == ".safetensors" else {}
    refuse_empty(adapter, shapes)
    for key, want in shapes.items():
        name, _, factor = key.removeprefix("base_model.model.").partition(".lora_")
        if not factor:
            continue
        while name not in modules and name.endswith(".base_layer"):
            name = name.removesuffix(".base_layer")
        if name not in modules:
            raise ModelError(f"{adapter}: this adapter changes {name}, which the base does not have. It was made for another architecture.")
        if not isinstance(getattr(modules[name], "weight", None), Tensor):
            continue
        have = held_shape(modules[name])
        if factor.startswith(("A.", "B.")) and want[1 if factor[0] == "A" else 0] not in have:
            raise ModelError(f"{adapter}: {key} has shape {want}, the base's {name} has {have}. It was made for a model of another size.")


def refuse_empty(adapter: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ModelError where a tensor of an adapter's file has no entry."""
    if key := next((key for key, shape in shapes.items() if 0 in shape), None):
        raise ModelError(
            f"{adapter}: its tensor {key} has shape {shapes[key]}: nothing is in it. DeepSpeed ZeRO-3 saves such files where the weights are not "
            "gathered first (stage3_gather_16bit_weights_on_model_save); convert the training's checkpoint with its zero_to_fp32.py, or train again."
        )


# ---- the proof ---------------------------------------------------------------------------------------------------------------------


def _prove_off(
    adapted: Any, adapter: Path, base: str, before: Mapping[str, tuple[nn.Parameter, Tensor]], said: Float[Tensor, "pos vocab"]
) -> None:
    """Raises ModelError where the network with the adapter off has other weights than `before`, or gives other logits than `said`."""
    there = {id(parameter) for parameter in adapted.parameters()}
    other = [name for name, (own, sums) in before.items() if id(own) not in there or not torch.equal(row_sums(own), sums)]
    if other:
        why = f"changes {len(other)} of the base's {len(before)} tensors when peft puts it on, the first {other[0]}, and they stay so without it"
        raise ModelError(f"{adapter}: this adapter {why}: with it switched off the network is not the base. {way_out(adapter, base)}")
    tuner = adapted.base_model
    try:
        tuner.disable_adapter_layers()
        again = _logits(adapted.get_base_model())
        tuner.enable_adapter_layers()
        _logits(adapted.get_base_model())
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{adapter}: the network does not run with and without this adapter but through peft's own {type(tuner).__name__} ({error}), so its "
            "states cannot be read and it cannot be studied."
        ) from error
    nats = 0.0 if torch.equal(said, again) else _kl_nats(said, again)
    if not nats <= SAME_NATS[_dtype(adapted)]:
        why = f"cannot be switched off: a forward pass without it is {nats:.1e} nats from what the base said before it was put on"
        raise ModelError(f"{adapter}: this adapter {why}. {way_out(adapter, base)}")


def _kl_nats(said: Float[Tensor, "pos vocab"], again: Float[Tensor, "pos vocab"]) -> float:
    """The largest KL(said || again) over positions; infinite where they are not of one shape."""
    if said.shape != again.shape:
        return float("inf")
    p, q = said.double().log_softmax(-1), again.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).max())


def _dtype(net: nn.Module) -> torch.dtype:
    """Of states: that of the first parameter that is no code."""
    return next(parameter.dtype for parameter in net.parameters() if parameter.is_floating_point())


def _sums(net: nn.Module) -> dict[str, tuple[nn.Parameter, Tensor]]:
    """Every parameter in memory, by name, and the sums of its rows."""
    return {name: (parameter, row_sums(parameter)) for name, parameter in net.named_parameters() if not parameter.is_meta}


@torch.no_grad()
def row_sums(tensor: Tensor) -> Int[Tensor, " row"]:
    """The sum of each row's entries, read as whole numbers of their bits: another number wherever a single entry becomes another."""
    bits = tensor.detach().contiguous().view(_BITS[tensor.element_size()])
    return bits.reshape(len(bits), -1).sum(1, dtype=torch.int64) if bits.ndim and len(bits) else bits.reshape(-1).to(torch.int64)


@torch.no_grad()
def _logits(net: nn.Module) -> Float[Tensor, "pos vocab"]:
    """Logits behind each of sixteen tokens that are spread over the vocabulary."""
    config: Any = net.config
    place = next((parameter.device for parameter in net.parameters() if not parameter.is_meta), torch.device("cpu"))
    ids = torch.arange(16, device=place)[None] * (config.vocab_size // 17 or 1) % config.vocab_size
    return net(input_ids=ids, use_cache=False).logits[0]
