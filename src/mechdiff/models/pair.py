"""A pair of models is loaded: base and tuned, one at a time or both.

An adapter pair is one loaded base whose adapter is switched on and off, or merged into copies of the matrices that it changes (merged.py): base and
tuned share every weight that they have in common.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import nn

from mechdiff.architectures.families import Family
from mechdiff.architectures.lookup import family_of, shape_of
from mechdiff.architectures.network import auto_class, network_of, quiet
from mechdiff.architectures.sites import Site
from mechdiff.architectures.sizes import QUANTIZED, Shape, Weights
from mechdiff.errors import ModelError
from mechdiff.models.alignment import align
from mechdiff.models.checkpoint import is_decoded, is_found, said_of_unplaced
from mechdiff.models.decoded import cannot_run, decoded_state
from mechdiff.models.devices import AUTO, all_memory, device_of, free_memory, settled
from mechdiff.models.merged import merged
from mechdiff.models.quantization import drop, keep_rounding, quantizing, weights_of
from mechdiff.models.sources import Source, load_config, load_tokenizer, resolve
from mechdiff.models.switches import attach_adapter, refuse_nan, refuse_unswitchable

Side = Literal["base", "tuned"]
SIDES: tuple[Side, Side] = ("base", "tuned")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, **dict.fromkeys(QUANTIZED, torch.bfloat16)}
"""Of states, and of all weights that are not held in fewer bits."""


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
        """Where what it reads must be, and what it says is: the first one, of a model that is split over several."""
        split = getattr(self.net, "hf_device_map", None)
        places = [torch.device(place) for place in split.values() if place != "disk"] if split else []
        return places[0] if places else torch.device("cpu") if split else next(self.net.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.net.parameters()).dtype

    def kinds(self) -> list[str]:
        """The site kinds that this model has, in the order of computation."""
        return self.family.kinds(self.config)

    def place(self, site: Site) -> tuple[nn.Module, str]:
        """The module of a site, and whether the site is its "input" or "output". ModelError where the model has no such site."""
        if site.kind not in self.kinds() or site.layer >= self.shape.n_layers:
            raise ModelError(
                f"{self.ref} has no site {site}: its blocks are 0 to {self.shape.n_layers - 1}, its sites {', '.join(self.kinds())}."
            )
        path, end = self.family.places(self.config, site.layer)[site.kind]
        return self.blocks[site.layer].get_submodule(path), end

    def scale(self, site: Site) -> float:
        """What the model multiplies a module's output by before it is the state of a site (1 in most families)."""
        return self.family.scale_of(self.config, site.layer) if site.kind in ("attn_out", "mlp_out") else 1.0


def wrap(net: nn.Module, *, side: Side, ref: str, config: Any = None) -> Model:
    """A Model around a loaded network: its family looked up by the `config` that it was loaded by (default: its own), and every module that the
    family's row names checked to be there."""
    config = config or net.config
    family, shape = family_of(config, ref), shape_of(config)
    try:
        blocks = list(net.get_submodule(family.blocks).children())
        for path in filter(None, (family.embed, family.final_norm)):
            net.get_submodule(path)
        for layer, block in enumerate(blocks):
            for path, _ in family.places(config, layer).values():
                block.get_submodule(path)
        head = net.get_submodule(family.head)
    except AttributeError as error:
        raise ModelError(f"{ref}: its modules are not where the row {config.model_type!r} of the family table says: {error}") from error
    assert len(blocks) == shape.n_layers, f"{len(blocks)} blocks at {family.blocks}, {shape.n_layers} in the config"
    return Model(side=side, ref=ref, net=net, family=family, shape=shape, blocks=blocks, head=head)


# ---- weights -----------------------------------------------------------------------------------------------------------------------


MOST: dict[int | str, int | str] | None = None
"""What a split model may take on each; None: what is free."""


def load_net(source: Source, *, dtype: str, device: torch.device | None, trust: bool = False, told: list[str] | None = None) -> nn.Module:
    """The network in evaluation mode, without its adapter; of a model in memory a copy. `dtype` as in a study; `device` None: split. Raises
    ModelError: unreadable, incomplete, of other shapes, or NaN weights (of those in memory). Warnings on what was loaded go into `told`."""
    from pickle import UnpicklingError

    from safetensors import SafetensorError

    if source.held:
        return source.held.copied(DTYPES[dtype])
    try:
        with quiet():
            net, loading = _loader(source, DTYPES[dtype], trust=trust)(
                dtype=DTYPES[dtype],
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **({} if device else {"device_map": "auto", "max_memory": MOST, "offload_folder": _offloaded().name}),
                **(quantizing(dtype, device) if dtype in QUANTIZED else {}),
            )
    except UnpicklingError as error:
        raise ModelError(
            f"{source.ref}: its weights are a pickle that holds more than tensors, which could run code: not read. Take a copy in safetensors."
        ) from error
    except ImportError as error:
        raise cannot_run(source.ref, Path(source.load), error) from error
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if dtype in QUANTIZED and "on the CPU or the disk" in str(error):
            raise ModelError(
                f"{source.ref}: in {dtype} it does not fit on the devices that compute, and such layers cannot lie elsewhere. Give --memory one, "
                "more GPUs, or dtype bfloat16, whose layers can."
            ) from error
        raise ModelError(f"{source.ref}: the model cannot be loaded: {str(error).rstrip('. ')}. Is the download complete?") from error
    absent, reshaped = sorted(loading["missing_keys"]), sorted(loading["mismatched_keys"])
    if reshaped:
        name, found, wanted = reshaped[0]
        raise ModelError(
            f"{source.ref}: {len(reshaped)} tensors have other shapes than its config says, the first {name}: {tuple(found)} in the file, "
            f"{tuple(wanted)} by the config. Take config.json and weights from one model."
        )
    if absent == [f"{family_of(net.config, source.ref).head}.weight"]:
        raise ModelError(
            f"{source.ref}: its config says that the unembedding is a matrix of its own (tie_word_embeddings is false), and its files hold no "
            f"{absent[0]}. If it is the embedding, as in most small models, set tie_word_embeddings to true in config.json."
        )
    if absent:
        raise ModelError(
            f"{source.ref}: its files lack {len(absent)} of the model's tensors, the first {absent[0]}. Is the download complete?"
        )
    if told is not None:
        told += said_of_unplaced(Path(source.load), source.ref, loading["unexpected_keys"])
    refuse_nan(net, source.ref)
    keep_rounding(net)
    net = net.to(device) if device and not is_quantized(net.config) else net
    align(net)
    return net.eval().requires_grad_(False)


def _loader(source: Source, dtype: torch.dtype, *, trust: bool) -> Callable[..., Any]:
    """A class's from_pretrained, told what to load: a folder, or tensors that are read here."""
    folder, config = Path(source.load), load_config(source, trust=trust)
    if is_found(folder) and not is_decoded(folder):
        return partial(auto_class(config).from_pretrained, source.load, trust_remote_code=trust)
    kind = type(network_of(config))
    return partial(kind.from_pretrained, None, config=config, state_dict=decoded_state(folder, source.ref, dtype))


def is_quantized(config: Any) -> bool:
    """Whether a model's files hold quantised matrices, whatever the study's dtype. What transformers read from a GGUF file does not: it keeps that
    file's mark in the config and is in float (findings/gguf_counts_as_quantised.sh)."""
    stated = getattr(config, "quantization_config", None)
    method = stated.get("quant_method") if isinstance(stated, dict) else getattr(stated, "quant_method", None)
    return stated is not None and method != "gguf"


@cache
def _offloaded() -> TemporaryDirectory[str]:
    """Where the weights lie that fit nowhere else; gone with this process."""
    return TemporaryDirectory(prefix="mechdiff-offload-")


# ---- the pair ----------------------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Pair:
    """Base and tuned, loaded when first used. `with pair.use("tuned") as model:` is the only way to a running model."""

    base: Source
    tuned: Source
    dtype: str = "float32"
    """As in a study: of the weights. States are DTYPES of it."""
    device: torch.device | None = field(default_factory=lambda: torch.device("cpu"))
    """None: split over all there are."""
    one_at_a_time: bool = False
    merges: bool = False
    """Whether an adapter is merged into private copies of the matrices that it changes, where that is exact."""
    trusted: tuple[str, ...] = ()
    """References of the models whose own Python code may run (an adapter runs its base's)."""
    told: list[str] = field(default_factory=list)
    """Warnings on what was loaded so far, each once."""
    _held: dict[Side, Model] = field(default_factory=dict, repr=False)
    _adapted: Any = field(default=None, repr=False)
    _tokenizers: dict[Side, Any] = field(default_factory=dict, repr=False)
    _configs: dict[Side, Any] = field(default_factory=dict, repr=False)
    _weights: dict[Side, Weights] = field(default_factory=dict, repr=False)

    def source(self, side: Side) -> Source:
        return self.base if side == "base" else self.tuned

    def config(self, side: Side) -> Any:
        """Read once."""
        if side not in self._configs:
            held = self.source(side).held
            self._configs[side] = held.config if held else load_config(self.source(side), trust=self._trusts(side))
            family_of(self._configs[side], self.source(side).ref)
        return self._configs[side]

    def tokenizer(self, side: Side) -> Any:
        """Read once: a tokenizer of 50,000 tokens takes half a second."""
        if side not in self._tokenizers:
            held = self.source(side).held
            self._tokenizers[side] = (
                held.tokenizer if held else load_tokenizer(self.source(side), trust=self._trusts(side), base=self.base.ref)
            )
        return self._tokenizers[side]

    def weights(self, side: Side) -> Weights:
        """How many there are, counted once on the network without its numbers; of an adapter pair those of the base."""
        if side not in self._weights:
            self._weights[side] = weights_of(self.config(side))
        return self._weights[side]

    @property
    def switched(self) -> bool:
        """Whether the tuned model is the base's very network with an adapter switched on. Known once a model was used."""
        return bool(self._adapted) and self._held["tuned"].net is self._held["base"].net

    def _trusts(self, side: Side) -> bool:
        return (self.base if self.tuned.adapter else self.source(side)).ref in self.trusted

    @contextmanager
    def use(self, side: Side) -> Iterator[Model]:
        """The model of one side, ready to run. Nothing else may run on the pair meanwhile.

        With `one_at_a_time` the other side's weights are gone from memory, also where a caller still holds its Model.
        """
        if self.tuned.adapter:
            self._switch(side, self.tuned.adapter)
        elif side not in self._held:
            if self.one_at_a_time:
                self.release()
            self._held[side] = wrap(self._load(side), side=side, ref=self.source(side).ref, config=self.config(side))
        yield self._held[side]

    @property
    def in_turn(self) -> tuple[Side, ...]:
        """Both sides; with `one_at_a_time` first the one that is in memory: who asks both again and again loads one model each time, not two."""
        held = self.one_at_a_time and "tuned" in self._held and "base" not in self._held
        return ("tuned", "base") if held else ("base", "tuned")

    def _load(self, side: Side) -> nn.Module:
        if held := self.source(side).held:
            return held.net
        told: list[str] = []
        net = load_net(self.source(side), dtype=self.dtype, device=self.device, trust=self._trusts(side), told=told)
        self.told += [said for said in told if said not in self.told]
        return net

    def _switch(self, side: Side, adapter: Path) -> None:
        if self._adapted is None:
            held = self.tuned.held
            self._adapted = held.net if held else attach_adapter(self._load("base"), adapter, base=self.base.ref)
            inner = self._adapted.get_base_model()
            nets = {"base": inner, "tuned": (merged(self._adapted) if self.merges else None) or inner}
            self._held = {s: wrap(nets[s], side=s, ref=self.source(s).ref, config=self.config("base")) for s in SIDES}
        if side == "base" or not self.switched:
            self._adapted.base_model.disable_adapter_layers()
        else:
            self._adapted.base_model.enable_adapter_layers()

    def release(self) -> None:
        """Give the memory of loaded models back."""
        for side, model in self._held.items():
            if self.source(side).held:  # another's
                continue
            if is_quantized(model.config):
                drop(model.net)
            elif self.device:
                model.net.to("meta")
        self._held.clear()
        self._adapted = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def open_pair(
    base: str, tuned: str, *, dtype: str = "float32", device: str = "auto", memory: str = "auto", trusted: tuple[str, ...] = ()
) -> Pair:
    """A pair whose files are found and whose configs fit; nothing is loaded yet. `memory`: "both", "one" at a time, or "auto";
    `dtype` "auto": as devices.settled chooses, and as the pair then says.

    Raises ModelError where a model is missing, its family unknown, or the device is not there. A model that a program holds stays where it is.
    """
    if dtype not in (AUTO, *DTYPES):
        raise ModelError(f"dtype {dtype}: expected one of {', '.join((AUTO, *DTYPES))}.")
    base_source = resolve(base)
    tuned_source = resolve(tuned, base=base_source)
    held = [source.held for source in (base_source, tuned_source) if source.held]
    dtype = held[0].dtype if held and dtype == AUTO else dtype
    place = held[0].placed(device, dtype, held[1:]) if held else device_of(device)
    if tuned_source.adapter:
        refuse_unswitchable(tuned_source.adapter, base_source.ref)
    pair = Pair(base=base_source, tuned=tuned_source, dtype=dtype, device=place, trusted=trusted)
    sides = SIDES[:1] if tuned_source.adapter else SIDES
    if dtype == AUTO:
        stored = [getattr(pair.config(side), "dtype", None) for side in sides]
        pair.dtype = dtype = settled(place, stored, lambda: max(pair.weights(side).bytes("float32") for side in sides))
    if already := [pair.source(side).ref for side in SIDES if dtype in QUANTIZED and is_quantized(pair.config(side))]:
        raise ModelError(
            f"dtype {dtype}: the files of {already[0]} hold quantised matrices already. Give bfloat16 for what is not quantised."
        )
    weights = sum(pair.weights(side).bytes(dtype) for side in sides)
    free = free_memory(place) if place else sum(torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count()))
    pair.one_at_a_time = not held and (memory == "one" or (memory == "auto" and weights * 1.5 > free))
    if tuned_source.adapter and dtype == "float32" and place and not (pair.one_at_a_time or held):
        pair.merges = 6 * weights <= all_memory(place)  # not of what is free now: a run that is resumed must find the same bits
    return pair
