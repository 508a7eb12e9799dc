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


# ---- where a model comes from ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model reference, resolved: a folder to load from (or a Hub id), and the adapter on it where there is one."""

    ref: str
    load: str
    """What transformers loads: a directory or a Hub id."""
    adapter: Path | None = None

    def files(self) -> dict[str, str]:
        """File name -> sha256 of every weight, config and tokenizer file (a Hub id has none that we can read without loading it)."""
        folders = [Path(self.load)] + ([self.adapter] if self.adapter else [])
        wanted = (".safetensors", ".json", ".gguf", ".bin", ".model", ".jinja")
        found = sorted(path for folder in folders if folder.is_dir() for path in folder.iterdir() if path.suffix in wanted)
        return {path.name if path.parent == folders[0] else f"adapter/{path.name}": sha256(path) for path in found}


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def resolve(ref: str, *, base: Source | None = None) -> Source:
    """Where `ref` loads from. A GGUF file is converted once into the cache; an adapter folder needs the `base` that it is put on.

    Raises ModelError: a path that is not there, a folder that holds no model, an adapter without a base.
    """
    path = Path(ref).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"{ref}: no such GGUF file.")
        return Source(ref=ref, load=str(_converted(path)))
    if path.is_dir():
        if (path / "adapter_config.json").is_file():
            if base is None:
                raise ModelError(f"{ref} is an adapter, and an adapter cannot be the base. Give the full model as base and the adapter as tuned.")
            return Source(ref=ref, load=base.load, adapter=path)
        if not (path / "config.json").is_file():
            raise ModelError(f"{ref}: this folder has no config.json (a model) and no adapter_config.json (an adapter).")
        return Source(ref=ref, load=str(path))
    if path.is_absolute() or ref.startswith((".", "~")) or ref.count("/") != 1:
        raise ModelError(f"{ref}: no such model. Give a folder, a .gguf file, or a Hub id such as HuggingFaceTB/SmolLM2-135M-Instruct.")
    return Source(ref=ref, load=_downloaded(ref))


def cache_folder() -> Path:
    """Where converted models are kept: $MECHDIFF_CACHE, or mechdiff under the user's cache folder."""
    root = os.environ.get("MECHDIFF_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mechdiff"
    return Path(root)


def _downloaded(ref: str) -> str:
    """The local snapshot of a Hub id, fetched if the machine may; an adapter's Hub id is not supported here, its folder is."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
    try:
        return snapshot_download(ref, allow_patterns=wanted)
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(
            f"{ref}: neither a folder here nor a model that could be fetched from the Hub ({type(error).__name__}). "
            "Check the name, log in where the model is gated (hf auth login), or give a local folder."
        ) from error


def _converted(gguf: Path) -> Path:
    """A folder with the GGUF file's model in Hugging Face form, float32, made once and kept under the file's hash."""
    from filelock import FileLock
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = cache_folder() / f"gguf-{sha256(gguf)[:16]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if (folder / "config.json").is_file():
            return folder
        try:
            with quiet():
                net = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
                tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        except (OSError, ValueError, RuntimeError, KeyError, IndexError, NotImplementedError) as error:
            raise ModelError(f"{gguf}: transformers cannot read this GGUF file: {error}") from error
        net.hf_quantizer = None  # the weights are dequantised; saving refuses while the model says otherwise
        if hasattr(net.config, "quantization_config"):
            del net.config.quantization_config
        half_written = folder.with_suffix(".part")
        net.save_pretrained(half_written)
        tokenizer.save_pretrained(half_written)
        half_written.rename(folder)
    return folder


@contextmanager
def quiet() -> Iterator[None]:
    """transformers' progress bars and advice off while a model loads: ours say what a user needs."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


# ---- loading -----------------------------------------------------------------------------------------------------------------------


def load_config(source: Source, *, trust: bool = False) -> Any:
    """The transformers config; raises ModelError where it is missing, malformed, or wants remote code that nobody allowed."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source.load, trust_remote_code=trust)
    except (OSError, ValueError, KeyError) as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{source.ref} wants to run Python code from its own folder. mechdiff runs none unless you name the model: "
                f"--trust-remote-code {source.ref}"
            ) from error
        raise ModelError(f"{source.ref}: its config cannot be read: {error}") from error


def load_tokenizer(source: Source, *, trust: bool = False) -> Any:
    """The tokenizer (an adapter's own, where its folder has one)."""
    from transformers import AutoTokenizer

    own = source.adapter and (source.adapter / "tokenizer_config.json").is_file()
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(str(source.adapter) if own else source.load, trust_remote_code=trust)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{source.ref}: its tokenizer cannot be read: {error}") from error


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


def stated_base(source: Source) -> str | None:
    """The base model that an adapter's config or a model card names, or None."""
    folder = source.adapter or Path(source.load)
    config = folder / "adapter_config.json"
    if config.is_file():
        return json.loads(config.read_text()).get("base_model_name_or_path")
    card = folder / "README.md"
    if card.is_file():
        for line in card.read_text(errors="replace").splitlines()[:60]:
            if line.startswith("base_model:"):
                return line.partition(":")[2].strip().strip("'\"") or None
    return None
