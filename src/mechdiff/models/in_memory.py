"""Models that a program has in memory are lent to mechdiff, and come back as they were: no weight is copied, saved or moved.

    with lent(model, tuned, tokenizer=tokenizer) as (base, tuned):
        open_pair(base, tuned, dtype=..., device=...)

While a model is lent, what stands beside its weights (config, tokenizer, an adapter's few tensors) lies in a temporary folder, and its tensors are
read from memory as if they lay there too (files/in_memory.py). So everything that reads a model's files reads this one. Its name ends in the start of
the digest of its tensors, which stands for its files' hashes in the record.

A PeftModel is both models: its adapter is switched off and on. Without its adapter it has to be the base, so adapters that change the base's own
tensors are refused here.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mechdiff.architectures.network import quiet
from mechdiff.errors import ModelError
from mechdiff.files import in_memory
from mechdiff.models.alignment import align
from mechdiff.models.devices import SPLIT, device_of
from mechdiff.models.merged import switches_in
from mechdiff.models.pair import is_quantized
from mechdiff.models.sources import HELD, IN_MEMORY, Source
from mechdiff.models.switches import KEPT, refuse_unswitchable

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_WHOLE = ("base_layer.", "original_module.")
"""Where a layer that an adapter wraps keeps what it wraps."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """A model in memory, with its tokenizer."""

    net: Any
    """A network of transformers, or peft's model around one."""
    tokenizer: Any
    config: Any
    ref: str

    @property
    def device(self) -> torch.device | None:
        """Where it is; None where it is split over several."""
        places = {parameter.device for parameter in self.net.parameters()}
        return next(iter(places)) if len(places) == 1 else None

    @property
    def dtype(self) -> str:
        return DTYPES[next(self.net.parameters()).dtype]

    def placed(self, device: str, dtype: str, others: Sequence["Held"]) -> torch.device | None:
        """Where a pair of it runs: where it is. Raises ModelError where something else is asked for, or another model is elsewhere."""
        if dtype != self.dtype:
            raise ModelError(
                f"dtype {dtype}: {self.ref} is {self.dtype}, and stays so. Leave dtype out, or hand over model.to(torch.{dtype})."
            )
        if device != "auto" and (None if device == SPLIT else _numbered(device_of(device))) != self.device:
            raise ModelError(
                f"device {device}: {self.ref} is on {self.device or SPLIT}, and stays there. Leave device out, or move the model."
            )
        for other in others:
            if (other.device, other.dtype) != (self.device, self.dtype):
                here, there = (f"{one.dtype} on {one.device or SPLIT}" for one in (self, other))
                raise ModelError(f"{self.ref} is {here}, {other.ref} {there}. Move both to one device and dtype.")
        return self.device

    def copied(self, dtype: torch.dtype) -> nn.Module:
        """A network of its own with the same weights, without an adapter."""
        net = copy.deepcopy(self.net)
        whole: nn.Module = net.unload() if _is_adapted(net) else net
        return whole.to(dtype).eval().requires_grad_(False)


def _numbered(device: torch.device | None) -> torch.device | None:
    return torch.device("cuda", device.index or 0) if device and device.type == "cuda" else device


# ---- lending -----------------------------------------------------------------------------------------------------------------------


def is_model(given: Any) -> bool:
    """Whether this is a model in memory, by itself, beside its tokenizer, or in a pipeline; no name."""
    return isinstance(_net(given), nn.Module)


@contextmanager
def lent(base: Any, tuned: Any, tokenizer: Any = None) -> Iterator[tuple[str, str]]:
    """The references of a pair of which at least one is a model in memory; after it, models are to the bit as they were handed over.

    Each: a name or path, a network of transformers or peft, a (network, tokenizer) pair, or a pipeline. `tokenizer`: of networks that come without.
    `base` None: of a PeftModel, the model that its adapter is on. Raises ModelError for what cannot be studied this way.
    """
    nets = [_net(one) for one in (base, tuned)]
    with TemporaryDirectory(prefix="mechdiff-lent-") as folder, ExitStack() as stack:
        for net in {id(net): net for net in nets if isinstance(net, nn.Module)}.values():
            _refuse(net)
            stack.enter_context(_as_found(net))
        if _is_adapted(nets[1]):
            refs = _lend_adapted(base, tuned, tokenizer, Path(folder), stack)
        else:
            sides = {"base": base, "tuned": tuned}
            refs = tuple(_lend(one, tokenizer, Path(folder) / side, stack) if is_model(one) else str(one) for side, one in sides.items())  # type: ignore[assignment]
            _refuse_adapter_on(refs[1], base)
        yield refs


def _lend(given: Any, tokenizer: Any, folder: Path, stack: ExitStack) -> str:
    """The reference of one network."""
    net, own = _net(given), _tokenizer(given, tokenizer)
    if _is_adapted(net):
        raise ModelError(
            "base: given a PeftModel, expected the model that tuned was trained from. Merge it (merge_and_unload) and give that."
        )
    return _registered(net, net.state_dict(keep_vars=True), own, folder, stack).ref


def _lend_adapted(base: Any, tuned: Any, tokenizer: Any, folder: Path, stack: ExitStack) -> tuple[str, str]:
    """The references of a PeftModel without and with its adapter."""
    net, own = _net(tuned), _tokenizer(tuned, tokenizer)
    adapter = folder / "adapter"
    _save_adapter(net, adapter)
    refuse_unswitchable(adapter, str(getattr(net.get_base_model(), "name_or_path", "") or "BASE"))
    name = f"{_name(net)} + adapter{IN_MEMORY}{in_memory.digest(load_file(adapter / 'adapter_model.safetensors'))[:8]})"
    stack.callback(HELD.pop, name, None)
    if base is not None and not is_model(base):  # its adapter's few tensors go on the base of that name
        own.save_pretrained(adapter)
        HELD[name] = Source(ref=name, load="", adapter=adapter)
        return str(base), name
    _refuse_rewritten(net, vars(net.peft_config[net.active_adapters[0]]))
    tensors = _without_adapter(net)
    other = None if base is None or _net(base) in (net, net.get_base_model()) else _net(base).state_dict(keep_vars=True)
    if other is not None and in_memory.digest(tensors) != in_memory.digest(other):
        raise ModelError(
            "tuned: its adapter is on other weights than base has. Give no base (it is the model without the adapter), or merge the adapter first."
        )
    under = _registered(net, tensors, _tokenizer(base, own) if is_model(base) else own, folder / "base", stack)
    if own is not under.held.tokenizer:
        own.save_pretrained(adapter)
    held = Held(net=net, tokenizer=own, config=under.held.config, ref=name)
    HELD[name] = Source(ref=name, load=under.load, adapter=adapter, held=held)
    return under.ref, name


def _registered(net: Any, tensors: Mapping[str, Tensor], tokenizer: Any, folder: Path, stack: ExitStack) -> Source:
    """A network under its reference, until the stack is left."""
    config = copy.deepcopy(net.config)
    with quiet():
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    file, found = folder / in_memory.NAME, in_memory.digest(tensors)
    file.write_text(found)
    ref = f"{_name(net)}{IN_MEMORY}{found[:8]})"
    held = Held(net=net, tokenizer=copy.deepcopy(tokenizer), config=config, ref=ref)
    in_memory.LENT[file] = tensors
    HELD[ref] = Source(ref=ref, load=str(folder), held=held)
    stack.callback(in_memory.LENT.pop, file, None)
    stack.callback(HELD.pop, ref, None)
    return HELD[ref]


def _name(net: Any) -> str:
    """A Hub id, a folder's name, or the network's class."""
    inner = net.get_base_model() if _is_adapted(net) else net
    stated = str(getattr(inner, "name_or_path", "") or "").rstrip("/")
    return (stated if stated.count("/") == 1 and stated[0] not in "/.~" else Path(stated).name) or type(inner).__name__


def _net(given: Any) -> Any:
    if isinstance(given, tuple) and len(given) == 2:
        return given[0]
    return given.model if isinstance(getattr(given, "model", None), nn.Module) and not isinstance(given, nn.Module) else given


def _tokenizer(given: Any, tokenizer: Any) -> Any:
    own = given[1] if isinstance(given, tuple) else None if isinstance(given, nn.Module) else getattr(given, "tokenizer", None)
    found = own or tokenizer
    if found is None:
        raise ModelError(
            f"{_name(_net(given))}: a model in memory needs its tokenizer beside it. Give (model, tokenizer), or tokenizer= for both models."
        )
    return found


# ---- what cannot be lent -----------------------------------------------------------------------------------------------------------


def _refuse(net: Any) -> None:
    """Raises ModelError for networks that cannot be read where they are."""
    name = type(net).__name__
    if not hasattr(net, "config") or (not hasattr(net, "name_or_path") and not _is_adapted(net)):
        raise ModelError(
            f"given a {name}, expected a model of transformers or peft (of a wrapper, such as DDP or torch.compile, the model inside)."
        )
    if is_quantized(net.config):
        raise ModelError(f"{_name(net)}: its matrices are held in 8 or 4 bits. Give the model's name or folder, and dtype='int8' or 'nf4'.")
    if any(tensor.is_meta for tensor in chain(net.parameters(), net.buffers())):
        raise ModelError(f"{_name(net)}: some of its weights are not in memory (on the meta device, or on disk). Give its name or folder.")
    if (dtype := next(net.parameters()).dtype) not in DTYPES:
        raise ModelError(f"{_name(net)}: its weights are {dtype}, expected {', '.join(DTYPES.values())}.")


def _refuse_adapter_on(tuned: str, base: Any) -> None:
    if is_model(base) and (Path(tuned).expanduser() / "adapter_config.json").is_file():
        raise ModelError(
            f"{tuned}: this adapter would be put into the model that you hold. Give base by its name, or hand over "
            f"PeftModel.from_pretrained(base, '{tuned}') as tuned and no base."
        )


def _refuse_rewritten(net: Any, config: Mapping[str, Any]) -> None:
    """Raises ModelError where the network without its adapter may not be its base."""
    start = config.get("init_lora_weights")
    why = None
    if len(net.active_adapters) != 1:
        why = f"has {len(net.active_adapters)} active adapters; combine them into one (add_weighted_adapter)"
    elif any(getattr(layer, "merged", False) for layer in switches_in(net)):
        why = "is merged into its base (unmerge_adapter undoes it)"
    elif start in KEPT or config.get("kasa_config"):
        why = f"took its start out of the base's matrices (init_lora_weights={start!r})"
    elif config.get("bias", "none") != "none":
        why = f"trained the base's own biases (bias={config['bias']!r})"
    if why:
        raise ModelError(
            f"{_name(net)}: its adapter {why}, so that the model without it is not known to be the base. Give base by its name."
        )


# ---- adapters ----------------------------------------------------------------------------------------------------------------------


def _is_adapted(net: Any) -> bool:
    return hasattr(net, "peft_config") and hasattr(net, "get_base_model")


def _save_adapter(net: Any, folder: Path) -> None:
    """The active adapter as its own folder."""
    name, stated = net.active_adapters[0], {key: copy.deepcopy(vars(one)) for key, one in net.peft_config.items()}
    with quiet():
        net.save_pretrained(str(folder / "saved"), selected_adapters=[name], save_embedding_layers=False)
    for key, one in net.peft_config.items():
        vars(one).update(stated[key])
    place = folder / "saved" / name
    for path in (place if place.is_dir() else folder / "saved").iterdir():
        if path.is_file():
            path.rename(folder / path.name)


def _without_adapter(net: Any) -> dict[str, Tensor]:
    """The base's tensors by the names that they have without the adapter's layers."""
    inner = net.get_base_model()
    inside = {id(layer) for layer in switches_in(net)}
    wrapped = sorted((path for path, module in inner.named_modules() if id(module) in inside), key=len, reverse=True)
    found = {}
    for key, tensor in inner.state_dict(keep_vars=True).items():
        name: str | None = key
        for path in wrapped:
            if name and name.startswith(f"{path}."):
                rest = name.removeprefix(f"{path}.")
                kept = next((part for part in _WHOLE if rest.startswith(part)), None)
                name = f"{path}.{rest.removeprefix(kept)}" if kept else None
        if name:
            found[name] = tensor
    return found


# ---- as it was found ---------------------------------------------------------------------------------------------------------------


@contextmanager
def _as_found(net: nn.Module) -> Iterator[None]:
    """Within, the network is in evaluation mode, without gradients, its tensors aligned; after it, all of that is as before, also after an error."""
    modes = [(module, module.training) for module in net.modules()]
    tensors = [(tensor, tensor.data, tensor.requires_grad, tensor.grad) for tensor in chain(net.parameters(), net.buffers())]
    layers = switches_in(net) if _is_adapted(net) else []
    switched = [(layer, layer._disable_adapters, copy.copy(layer._active_adapter)) for layer in layers]
    try:
        net.eval().requires_grad_(False)
        align(net)
        yield
    finally:
        for layer, disabled, active in switched:
            layer._disable_adapters, layer._active_adapter = disabled, active
        for tensor, data, needs, grad in tensors:
            tensor.data = data
            tensor.requires_grad_(needs)
            tensor.grad = grad
        for module, training in modes:
            module.training = training
