"""An adapter is put on its base so that it can be switched off again, with the proof that with it off the network is the base.

Some adapters rewrite the base's weights when peft puts them on: PiSSA and OLoRA leave a residual in the base layer, KaSA a truncated matrix,
biases and embeddings that the adapter holds are written over the base's. peft leaves these there when the adapter is off, which is then another
model than the base. Here such a tensor is held twice and switched with the adapter's layers (`Rewritten`). What cannot be had back this way is
refused by name: what is drawn anew at every load, a rounded base (LoftQ), more blocks (`layer_replication`).

Whatever the adapter's kind, each time one is put on it is proved that

- peft finds a place for every tensor of its file, and every tensor that it expects in the file;
- with the adapter off every parameter of the base is in the network, and no entry of it has changed: the sums of its rows, as whole numbers of its
  bits, are those that were taken before;
- a forward pass of sixteen tokens with the adapter off gives the logits that it gave before (to the bit, where a device computes a pass twice
  alike); with the adapter on it gives those of peft's own pass, and the same ones twice.
"""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechdiff.architectures.network import quiet
from mechdiff.errors import ModelError
from mechdiff.models.alignment import align
from mechdiff.models.checkpoint import adapter_file
from mechdiff.models.quantization import held_shape, scales
from mechdiff.models.tensors import contents

KEPT = ("pissa", "olora")
"""Initialisations that leave something else in the base's layers, a function of the base alone: it is made again at each load and kept beside."""
LOST = {
    "corda": "peft makes it only after preprocess_corda has run on the training's data",
    "loftq": "that is the base rounded, made anew on a GPU at every load",
}
"""Initialisations that leave what cannot be had again from base and adapter; why not."""
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
    config = refuse_unswitchable(adapter, base)
    before, said = _sums(net), logits_of(net)
    try:
        _refuse_misfit(net, adapter, vars(config))
        own = _kept(net, adapter, vars(config))
        with quiet():
            adapted: Any = PeftModel.from_pretrained(net, str(adapter)).eval()
            if not getattr(net, "hf_device_map", None):  # of a split network peft would lay out its devices again
                renamed = getattr(net, "_checkpoint_conversion_mapping", None)
                _refuse_remainders(adapted, adapter, adapted.load_adapter(str(adapter), "default", key_mapping=renamed))
    except (RuntimeError, ValueError, OSError, KeyError, TypeError, AttributeError, AssertionError, ImportError, SafetensorError) as error:
        larger = GROWN if "size mismatch" in str(error) and "embed" in str(error) else ""
        raise ModelError(f"{adapter}: peft cannot put this adapter on the base: {error}{larger}") from error
    refuse_nan(adapted, str(adapter))
    _switch_too(adapted, own, before)
    align(adapted)
    _prove(adapted, adapter, base, before, said)
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


def refuse_unswitchable(adapter: Path, base: str) -> Any:
    """peft's config of an adapter. Raises ModelError where it says that base and tuned are not one network with something switched off and on."""
    from peft import PeftConfig

    try:
        config: Any = PeftConfig.from_pretrained(str(adapter))
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{adapter}: peft cannot put this adapter on the base: {error}") from error
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if config.is_prompt_learning or config.is_adaption_prompt or getattr(config, "alora_invocation_tokens", None):
        does = PROMPTS.get(kind, "puts virtual tokens before the prompt")
        raise ModelError(
            f"{adapter}: this adapter is of the kind {kind} that changes the prompt or picks its tokens, not the network: it {does}. Base and tuned "
            "would not read the same positions, so it cannot be studied."
        )
    if reason := rewrites(vars(config)):
        raise ModelError(f"{adapter}: this adapter {reason}. {_no_merge(vars(config)) or way_out(adapter, base)}")
    return config


PROMPTS = {
    "PREFIX_TUNING": "puts keys and values before those of the prompt",
    "CARTRIDGE": "puts keys and values before those of the prompt",
    "ADAPTION_PROMPT": "lets each block attend to trained prompts beside the text",
    "LORA": "acts only from its invocation tokens on (activated LoRA)",
}
"""What kinds of adapter do that are no change of a network's weights."""


def rewrites(config: Mapping[str, Any]) -> str | None:
    """Why neither switching an adapter off nor keeping the base's tensors beside it gives the base back, by its config; None where one does."""
    init = str(config.get("init_lora_weights"))
    lost = next((why for name, why in LOST.items() if init.lower().startswith(name)), None)
    if lost or "_niter_" in init:
        drawn = lost or "it is a fast SVD, drawn anew at every load"
        return f"rewrites its base's weights when it is put on (init_lora_weights={init!r}), and what it leaves there cannot be had again: {drawn}"
    if config.get("layer_replication"):
        return f"repeats blocks of its base (layer_replication={config['layer_replication']!r}), so that without it the network is not the base"
    return None


def _no_merge(config: Mapping[str, Any]) -> str | None:
    """What to do where the merged model would not be what was trained; None where it is."""
    if config.get("layer_replication"):
        return "It cannot be studied, merged neither: peft would add each copy's change to the weights that all copies share."
    if not str(config.get("init_lora_weights")).lower().startswith("loftq"):
        return (
            "So what was trained cannot be had back from this file: after training, save the merged model, or the adapter as a plain LoRA "
            "(save_pretrained with path_initial_model_for_weight_conversion), and give that."
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


def _refuse_misfit(net: nn.Module, adapter: Path, config: Mapping[str, Any]) -> None:
    """Raises ModelError where a LoRA factor's module is not in the network, or has other sizes. Factors of a parameter that is no layer's matrix
    (experts) are named by its module, `.base_layer` for each further one; their sizes, and those of factors in blocks, peft compares itself."""
    modules, shapes = dict(net.named_modules()), _shapes(adapter)
    refuse_empty(adapter, shapes)
    for key, want in shapes.items():
        name, _, factor = key.removeprefix("base_model.model.").partition(".lora_")
        if not factor:
            continue
        while name not in modules and name.endswith(".base_layer"):
            name = name.removesuffix(".base_layer")
        if name not in modules:
            raise ModelError(f"{adapter}: this adapter changes {name}, which the base does not have. It was made for another architecture.")
        if not isinstance(getattr(modules[name], "weight", None), Tensor) or config.get("use_bdlora") or config.get("use_qalora"):
            continue
        have = held_shape(modules[name])
        if factor.startswith(("A.", "B.")) and want[1 if factor[0] == "A" else 0] not in have:
            raise ModelError(f"{adapter}: {key} has shape {want}, the base's {name} has {have}. It was made for a model of another size.")


def _shapes(adapter: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors in an adapter's file, by their keys there."""
    return {key: shape for key, (shape, _) in contents(adapter_file(adapter)).items()}


def refuse_empty(adapter: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ModelError where a tensor of an adapter's file has no entry."""
    if key := next((key for key, shape in shapes.items() if 0 in shape), None):
        raise ModelError(
            f"{adapter}: its tensor {key} has shape {shapes[key]}: nothing is in it. DeepSpeed ZeRO-3 saves such files where the weights are not "
            "gathered first (stage3_gather_16bit_weights_on_model_save); convert the training's checkpoint with its zero_to_fp32.py, or train again."
        )


def _refuse_remainders(adapted: nn.Module, adapter: Path, report: Any) -> None:
    """Raises ModelError where peft found no place for a tensor of the adapter's file, or no tensor for a place; `report`: of the loading. What
    several layers share is in the file once."""
    names: dict[int, set[str]] = {}
    for name, parameter in adapted.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    shared = {name for alike in names.values() if alike - set(report.missing_keys) for name in alike}
    for keys, why in (
        (report.unexpected_keys, "peft finds no place for them in the network and would leave them out"),
        (
            [key for key in report.missing_keys if key not in shared],
            "its file lacks them, and peft would run with what it draws in their place",
        ),
    ):
        if keys:
            raise ModelError(
                f"{adapter}: {len(keys)} tensors, the first {keys[0]}: {why}. Is the file of this adapter, of this base, and complete?"
            )


# ---- what the adapter has in the base's place --------------------------------------------------------------------------------------


class Rewritten(nn.Module):
    """A tensor of the base that an adapter has otherwise, held twice: on, the network has the adapter's; off, the base's own, to the bit.

    It is a switch as peft's layers are: it stands in the network beside its tensor, and peft switches it with the others.
    """

    def __init__(self, parameter: nn.Parameter, own: Tensor) -> None:
        super().__init__()
        self.other: Tensor
        self._of = (parameter,)  # a tuple, for it is the network's parameter and none of this module
        self.register_buffer("other", own, persistent=False)
        self.on = True

    @property
    def parameter(self) -> nn.Parameter:
        return self._of[0]

    @property
    def disable_adapters(self) -> bool:
        return not self.on

    def enable_adapters(self, enabled: bool) -> None:
        if enabled != self.on:
            self.parameter.data, self.other = self.other, self.parameter.data
            self.on = enabled


def _kept(net: nn.Module, adapter: Path, config: Mapping[str, Any]) -> dict[int, Tensor]:
    """The base's own tensors, by the parameter's id, in whose place peft may put others: those that the adapter's file holds as such, and those that
    its initialisation changes."""
    made_anew = str(config.get("init_lora_weights")).lower() in KEPT or config.get("kasa_config")
    if made_anew and any(scales(module) is not None for module in net.modules()):
        raise ModelError(
            f"{adapter}: this adapter takes its start out of the base's matrices, which are held in 8 or 4 bits here: what is left would be rounded "
            "otherwise than in training. Give dtype float32, bfloat16 or float16."
        )
    named = dict(net.named_parameters(remove_duplicate=False))
    found: dict[int, Tensor] = {}
    for key in _shapes(adapter):
        name = key.removeprefix("base_model.model.").replace(".base_layer", "")
        module, _, factor = name.partition(".lora_")
        parameter = named.get(f"{module}.weight" if factor and made_anew else name)
        if parameter is not None and not parameter.is_meta and id(parameter) not in found:
            found[id(parameter)] = parameter.detach().clone()
    return found


def _switch_too(adapted: Any, own: Mapping[int, Tensor], before: Mapping[str, tuple[nn.Parameter, Tensor]]) -> None:
    """Puts a switch beside each of the base's tensors that are no longer as they were."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    BaseTunerLayer.register(Rewritten)
    changed = {id(one) for one, sums in before.values() if id(one) in own and not torch.equal(row_sums(one), sums)}
    for owner in list(adapted.modules()):
        for leaf, parameter in list(owner.named_parameters(recurse=False)):
            if id(parameter) in changed:
                changed.remove(id(parameter))  # a tied one has two owners, and one switch
                owner.add_module(f"{leaf}_of_adapter", Rewritten(parameter, own[id(parameter)]))
    for config in adapted.peft_config.values():
        if hasattr(config, "bias"):
            config.bias = "none"  # peft warns that biases stay when it is off: these do not


# ---- the proof ---------------------------------------------------------------------------------------------------------------------


def _prove(
    adapted: Any, adapter: Path, base: str, before: Mapping[str, tuple[nn.Parameter, Tensor]], said: Float[Tensor, "pos vocab"]
) -> None:
    """Raises ModelError where the network with the adapter off has other weights than `before`, or gives other logits than `said`; or with it on
    others than peft's own pass."""
    tuner, net = adapted.base_model, adapted.get_base_model()
    try:
        tuner.disable_adapter_layers()
        there = {id(parameter) for parameter in adapted.parameters()}
        other = [name for name, (own, sums) in before.items() if id(own) not in there or not torch.equal(row_sums(own), sums)]
        again = logits_of(net)
        tuner.enable_adapter_layers()
        tuned, twice, by_peft = logits_of(net), logits_of(net), logits_of(adapted)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{adapter}: the network does not run with and without this adapter but through peft's own {type(tuner).__name__} ({error}), so its "
            "states cannot be read and it cannot be studied."
        ) from error
    if other:
        why = f"changes {len(other)} of the base's {len(before)} tensors when peft puts it on, the first {other[0]}, and they stay so without it"
        raise ModelError(f"{adapter}: this adapter {why}: with it switched off the network is not the base. {way_out(adapter, base)}")
    limit = SAME_NATS[_dtype(adapted)]
    if not (nats := apart(said, again)) <= limit:
        why = f"cannot be switched off: a forward pass without it is {nats:.1e} nats from what the base said before it was put on"
        raise ModelError(f"{adapter}: this adapter {why}. {way_out(adapter, base)}")
    if not (nats := apart(tuned, twice)) <= limit:
        raise ModelError(
            f"{adapter}: this adapter draws random numbers in each pass: two of them are {nats:.1e} nats apart. It cannot be studied."
        )
    if not (nats := apart(by_peft, tuned)) <= limit:
        why = f"peft's own pass with this adapter is {nats:.1e} nats from that of the network with its layers in it"
        raise ModelError(f"{adapter}: {why}, so its states cannot be read and it cannot be studied.")


def apart(one: Float[Tensor, "pos vocab"], other: Float[Tensor, "pos vocab"]) -> float:
    """0 for the same bits, else the largest KL(one || other)."""
    return 0.0 if torch.equal(one, other) else _kl_nats(one, other)


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
def logits_of(net: Any) -> Float[Tensor, "pos vocab"]:
    """Logits behind each of sixteen tokens that are spread over the vocabulary."""
    config = net.config.get_text_config()
    place = next((parameter.device for parameter in net.parameters() if not parameter.is_meta), torch.device("cpu"))
    ids = torch.arange(16, device=place)[None] * (config.vocab_size // 17 or 1) % config.vocab_size
    return net(input_ids=ids, use_cache=False).logits[0]
