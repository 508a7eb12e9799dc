"""Load a pair of models: base and tuned, one at a time or both, from directories, Hub ids, GGUF files or a PEFT adapter.

An adapter pair is one loaded base whose adapter is switched on and off, so base and tuned share every weight that they have in common.
"""

import gc
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from mechdiff.engine.families import Family, Shape, family_of, shape_of
from mechdiff.engine.sites import KINDS, Site
from mechdiff.errors import ModelError

Side = Literal["base", "tuned"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Model:
    """A loaded model with its family's places resolved to modules."""

    side: Side
    ref: str
    net: nn.Module
    family: Family
    shape: Shape
    blocks: list[nn.Module]
    head: nn.Module

    @property
    def config(self) -> Any:
        return self.net.config

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.net.parameters()).dtype

    def kinds(self) -> list[str]:
        """The site kinds that this model has, in the order of computation."""
        places = self.family.places(self.config)
        return [kind for kind in KINDS if kind in places]

    def place(self, site: Site) -> tuple[nn.Module, str]:
        """The module of a site, and whether the site is its "input" or "output". ModelError where the model has no such site."""
        places = self.family.places(self.config)
        if site.kind not in places or site.layer >= self.shape.n_layers:
            raise ModelError(f"{self.ref} has no site {site}: its blocks are 0 to {self.shape.n_layers - 1}, its sites {', '.join(self.kinds())}.")
        path, end = places[site.kind]
        block = self.blocks[site.layer]
        return (block.get_submodule(path) if path else block), end


# ---- loading -----------------------------------------------------------------------------------------------------------------------


def load_net(source: Source, *, dtype: torch.dtype, device: torch.device, trust: bool = False) -> nn.Module:
    """The network in evaluation mode, without its adapter. Raises ModelError: unreadable, incomplete, or NaN weights."""
    from transformers import AutoModelForCausalLM

    try:
        with quiet():
            net, loading = AutoModelForCausalLM.from_pretrained(source.load, dtype=dtype, trust_remote_code=trust, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{source.ref}: the model cannot be loaded: {error}") from error
    absent = sorted(loading["missing_keys"])
    if absent:
        raise ModelError(f"{source.ref}: its files lack {len(absent)} of the model's tensors, the first {absent[0]}. Is the download complete?")
    _refuse_nan(net, source.ref)
    return net.to(device).eval()


def _refuse_nan(net: nn.Module, ref: str) -> None:
    for name, parameter in net.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ModelError(f"{ref}: the tensor {name} holds NaN or infinite weights, so every number after it would. Mend the file or take another.")


def wrap(net: nn.Module, *, side: Side, ref: str) -> Model:
    """A Model around a loaded network: its family looked up and every place of the family's row checked to be there."""
    config: Any = net.config
    family = family_of(config, ref)
    try:
        blocks = list(net.get_submodule(family.blocks).children())
        head = net.get_submodule(family.head)
        for block in blocks:
            for path, _ in family.places(config).values():
                block.get_submodule(path)
    except AttributeError as error:
        raise ModelError(f"{ref}: its modules are not where the row {config.model_type!r} of the family table says: {error}") from error
    return Model(side=side, ref=ref, net=net, family=family, shape=shape_of(config), blocks=blocks, head=head)


def attach_adapter(net: nn.Module, adapter: Path) -> nn.Module:
    """A peft model around `net` with the adapter on. Fits by tensor names and shapes; raises ModelError where they do not fit."""
    from peft import PeftModel
    from safetensors import safe_open

    weights = adapter / "adapter_model.safetensors"
    if not weights.is_file():
        raise ModelError(f"{adapter}: adapter_config.json is there and adapter_model.safetensors is not. Is the download complete?")
    modules = dict(net.named_modules())
    with safe_open(weights, "pt") as file:
        for key in file.keys():  # noqa: SIM118  (safe_open is no mapping)
            name, _, rest = key.removeprefix("base_model.model.").partition(".lora_")
            if not rest:
                continue
            if name not in modules:
                raise ModelError(f"{adapter}: this adapter changes {name}, which the base does not have. It was made for another architecture.")
            have, want = tuple(modules[name].weight.shape), file.get_slice(key).get_shape()
            if rest.startswith(("A.", "B.")) and want[1 if rest[0] == "A" else 0] not in have:
                raise ModelError(f"{adapter}: {key} has shape {want}, the base's {name} has {have}. It was made for a model of another size.")
    try:
        return PeftModel.from_pretrained(net, str(adapter)).eval()
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        raise ModelError(f"{adapter}: peft cannot put this adapter on the base: {error}") from error


def free_memory(device: torch.device) -> int:
    """Bytes that a model could take on the device now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    return 8 << 30


@dataclass(kw_only=True)
class Pair:
    """Base and tuned, loaded when first used. `with pair.use("tuned") as model:` is the only way to a running model."""

    base: Source
    tuned: Source
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    one_at_a_time: bool = False
    trusted: tuple[str, ...] = ()
    _held: dict[Side, Model] = field(default_factory=dict, repr=False)
    _adapted: Any = field(default=None, repr=False)

    def source(self, side: Side) -> Source:
        return self.base if side == "base" else self.tuned

    def config(self, side: Side) -> Any:
        return load_config(self.source(side), trust=self.source(side).ref in self.trusted)

    def tokenizer(self, side: Side) -> Any:
        return load_tokenizer(self.source(side), trust=self.source(side).ref in self.trusted)

    @contextmanager
    def use(self, side: Side) -> Iterator[Model]:
        """The model of one side, ready to run. Nothing else may run on the pair meanwhile."""
        if self.tuned.adapter:
            yield self._toggled(side)
            return
        if side not in self._held:
            if self.one_at_a_time:
                self.release()
            source = self.source(side)
            net = load_net(source, dtype=self.dtype, device=self.device, trust=source.ref in self.trusted)
            self._held[side] = wrap(net, side=side, ref=source.ref)
        yield self._held[side]

    def _toggled(self, side: Side) -> Model:
        if self._adapted is None:
            assert self.tuned.adapter
            net = load_net(self.base, dtype=self.dtype, device=self.device, trust=self.base.ref in self.trusted)
            self._adapted = attach_adapter(net, self.tuned.adapter)
            inner = self._adapted.get_base_model()
            self._held = {s: wrap(inner, side=s, ref=self.source(s).ref) for s in ("base", "tuned")}
        if side == "base":
            self._adapted.base_model.disable_adapter_layers()
        else:
            self._adapted.base_model.enable_adapter_layers()
        return self._held[side]

    def release(self) -> None:
        """Give the memory of loaded models back."""
        self._held.clear()
        self._adapted = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def open_pair(
    base: str, tuned: str, *, dtype: str = "float32", device: str = "auto", memory: str = "auto", trusted: tuple[str, ...] = ()
) -> Pair:
    """A pair whose files are found and whose configs fit; nothing is loaded yet. `memory`: "both", "one" at a time, or "auto".

    Raises ModelError where a model is missing, its family unknown, or the device is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"--device {device}: no CUDA device on this machine. Use --device cpu.")
    base_source = resolve(base)
    tuned_source = resolve(tuned, base=base_source)
    pair = Pair(base=base_source, tuned=tuned_source, dtype=DTYPES[dtype], device=torch.device(device), trusted=trusted)
    bytes_both = 0
    for side in ("base", "tuned"):
        config = pair.config(side)  # type: ignore[arg-type]
        family_of(config, pair.source(side).ref)  # type: ignore[arg-type]
        bytes_both += shape_of(config).parameters * pair.dtype.itemsize
    pair.one_at_a_time = memory == "one" or (memory == "auto" and bytes_both * 1.5 > free_memory(pair.device))
    return pair
