"""Where does a model come from? From a directory, a Hub id, a GGUF file, or a PEFT adapter on a base: its config, its tokenizer, its files.

Nothing here loads weights, and nothing runs Python code from a model's folder unless the user has named that model.
"""

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copyfile
from typing import Any

from mechdiff.architectures.network import quiet
from mechdiff.errors import ModelError
from mechdiff.files.foreign_adapters import FOREIGN_FILES, foreign, in_peft_form, is_gguf_adapter
from mechdiff.files.in_memory import LENT
from mechdiff.files.llama_cpp import convert, parts
from mechdiff.files.trainers import said_of
from mechdiff.models.checkpoint import adapter_file, is_decoded, weight_files


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model reference, resolved: the folder that holds the model, and the adapter on it where there is one."""

    ref: str
    load: str
    """The folder that transformers loads."""
    adapter: Path | None = None
    held: Any = None
    """The `in_memory.Held` of a model that a program has in memory; `load` then has what stands beside its weights."""

    def files(self) -> dict[str, str]:
        """File name -> sha256 of every file that is read: the weights that are loaded, and all of config and tokenizer. Of a model in memory the
        weights' is the digest of its tensors."""
        folder = Path(self.load)
        found = {path.name: path for path in (*weight_files(folder), *_stated(folder))}
        if self.adapter:
            found |= {f"adapter/{path.name}": path for path in (adapter_file(self.adapter), *_stated(self.adapter))}
        return {name: found[name].read_text() if found[name] in LENT else sha256(found[name]) for name in sorted(found)}

    @property
    def tokenizer_folder(self) -> Path:
        """The folder of its tokenizer: an adapter's own, where that has one."""
        own = self.adapter and (self.adapter / "tokenizer_config.json").is_file()
        return self.adapter if self.adapter and own else Path(self.load)


def _stated(folder: Path) -> list[Path]:
    """The files that say what a model and its tokenizer are."""
    named = (folder / "additional_chat_templates").glob("*.jinja")
    return [*(path for path in folder.iterdir() if path.suffix in (".json", ".model", ".jinja")), *named]


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- from a reference to a folder --------------------------------------------------------------------------------------------------


IN_MEMORY = " (in memory, "
"""Between the name of a model that a program has in memory and the start of its tensors' digest."""
HELD: dict[str, Source] = {}
"""Models in memory while they are lent, by reference; of an adapter for a base by its name, without `load`."""


def resolve(ref: str, *, base: Source | None = None) -> Source:
    """Where `ref` loads from. A GGUF file, and an adapter that another program than peft saved, is converted once into the cache; an adapter needs
    the `base` that it is put on.

    Raises ModelError: a path that is not there, a folder that holds no model, an adapter without a base.
    """
    if (source := HELD.get(ref)) is not None:
        return source if source.load or base is None else replace(source, load=base.load)
    if IN_MEMORY in ref:
        raise ModelError(
            f"{ref}: this model was in a program's memory, and no file has it. Hand it over again: mechdiff.diff(base, tuned), "
            "or mechdiff.verify(run, models=(base, tuned)), with the same models."
        )
    path = Path(ref).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"{ref}: no such GGUF file.")
        if is_gguf_adapter(path):
            return _adapted(ref, path, base)
        return Source(ref=ref, load=str(_converted(path)))
    folder = path if path.is_dir() else _downloaded(ref)
    if (folder / "adapter_config.json").is_file():
        return _adapted(ref, folder, base)
    if (said := said_of(folder)) and not weight_files(folder):
        raise ModelError(f"{ref}: {said}")
    if not (folder / "config.json").is_file():
        several = sorted(path.parent.name for path in folder.glob("*/adapter_config.json"))
        inside = f" It holds the adapters {', '.join(several)}: give one of their folders." if several else ""
        raise ModelError(f"{ref}: this folder has no config.json (a model) and no adapter_config.json (an adapter).{inside}")
    return Source(ref=ref, load=str(folder))


def _adapted(ref: str, adapter: Path, base: Source | None) -> Source:
    if base is None or base.adapter:
        raise ModelError(
            f"{ref} is an adapter, and an adapter cannot be the base. Give the full model as base and the adapter as tuned. Where tuned was trained "
            "on top of this adapter, merge the adapter (merge_and_unload) and give that model as base."
        )
    return Source(ref=ref, load=base.load, adapter=_in_peft_form(adapter, Path(base.load)) if foreign(adapter) else adapter)


def _downloaded(ref: str) -> Path:
    """The local snapshot of a Hub id, fetched if the machine may."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if ref.startswith(("/", ".", "~")) or ref.count("/") != 1:
        raise ModelError(f"{ref}: no such model. Give a folder, a .gguf file, or a Hub id such as HuggingFaceTB/SmolLM2-135M-Instruct.")
    stated = ["*.json", "*.model", "*.jinja", "*.txt", "README.md"]
    try:
        folder = Path(snapshot_download(ref, allow_patterns=[*stated, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(ref, allow_patterns=[*stated, "pytorch_model*.bin", "adapter_model.bin"]))
        return folder
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(
            f"{ref}: neither a folder here nor a model that could be fetched from the Hub ({type(error).__name__}). "
            "Check the name, log in where the model is gated (hf auth login), or give a local folder."
        ) from error


def cache_folder() -> Path:
    """Where converted models are kept: $MECHDIFF_CACHE, or mechdiff under the user's cache folder."""
    root = os.environ.get("MECHDIFF_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mechdiff"
    return Path(root)


_CONVERSION = 2
"""Counts the ways in which GGUF files were converted: a folder that was made in another way is not used again."""


def _converted(gguf: Path) -> Path:
    """A folder with the GGUF file's model in Hugging Face form, float32, made once and kept under the hash of all its parts."""
    from filelock import FileLock

    def kept(files: list[Path]) -> Path:
        identity = hashlib.sha256("".join([str(_CONVERSION), *map(sha256, files)]).encode()).hexdigest()
        return cache_folder() / f"gguf-{identity[:16]}"

    folder = kept([gguf])
    if (folder / "config.json").is_file():  # whole, or it would not have been converted alone; to read its keys takes seconds
        return folder
    if (files := parts(gguf)) != [gguf]:
        folder = kept(files)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if (folder / "config.json").is_file():
            return folder
        half_written = folder.with_suffix(".part")
        with quiet():
            convert(files, half_written)
        half_written.rename(folder)
    return folder


def _in_peft_form(adapter: Path, base: Path) -> Path:
    """A folder with the adapter in peft's form, made once and kept under the hash of all that it is made from."""
    from filelock import FileLock
    from safetensors.torch import save_file

    beside = [] if adapter.is_file() else [path for path in _stated(adapter) if path.name != "adapter_config.json"]
    held = [adapter] if adapter.is_file() else [path for path in map(adapter.joinpath, FOREIGN_FILES) if path.is_file()]
    made_from = hashlib.sha256("".join(sha256(path) for path in (*held, *sorted(beside), base / "config.json")).encode()).hexdigest()
    folder = cache_folder() / f"adapter-{made_from[:16]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if (folder / "adapter_config.json").is_file():
            return folder
        with quiet():
            config, tensors = in_peft_form(adapter, base)
        half_written = folder.with_suffix(".part")
        half_written.mkdir(exist_ok=True)
        for path in beside:
            copyfile(path, half_written / path.name)
        save_file(tensors, half_written / "adapter_model.safetensors")
        (half_written / "adapter_config.json").write_text(json.dumps(config, indent=2))
        half_written.rename(folder)
    return folder


# ---- what a folder says of its model -----------------------------------------------------------------------------------------------


def load_config(source: Source, *, trust: bool = False) -> Any:
    """The transformers config. Raises ModelError: missing, malformed, of an architecture that transformers does not know, or remote code that nobody
    allowed."""
    import transformers
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        kind = json.loads((Path(source.load) / "config.json").read_text())["model_type"]
        with quiet():
            config = AutoConfig.from_pretrained(source.load, trust_remote_code=trust)
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        if "does not recognize this architecture" in str(error):
            raise ModelError(
                f"{source.ref}: the architecture {kind!r} is not one that transformers {transformers.__version__} knows. A newer transformers may."
            ) from error
        raise _unreadable(source, "config", error) from error
    if is_decoded(Path(source.load)) and hasattr(config, "quantization_config"):
        del config.quantization_config  # the model runs as the numbers that its codes stand for
    return config


_VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
"""Files that hold a vocabulary."""
_OF_BYTES = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer")
"""Tokenizers that need none."""


def load_tokenizer(source: Source, *, trust: bool = False, base: str = "BASE") -> Any:
    """The tokenizer (an adapter's own, where its folder has one). `base`: the model whose tokenizer to take where this one has none.

    transformers chooses the class that reads tokenizer files by the architecture in config.json, which an adapter's folder lacks: its base's says it.
    """
    from transformers import AutoConfig, AutoTokenizer

    folder = source.tokenizer_folder
    if not _has_vocabulary(folder):
        raise ModelError(
            f"{source.ref}: no tokenizer lies beside its weights (no {', '.join(_VOCABULARIES[:3])} in {folder}): it was saved without one. If it "
            f"reads the base's tokens, copy the base's files there: python -c \"from transformers import AutoTokenizer as T; "
            f"T.from_pretrained('{base}').save_pretrained('{folder}')\""
        )
    try:
        with quiet():
            config = AutoConfig.from_pretrained(source.load, trust_remote_code=trust) if folder == source.adapter else None
            tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust, config=config)
        if template := _template_beside(source, tokenizer):
            tokenizer.chat_template = template
        return tokenizer
    except Exception as error:
        if type(error) is not Exception and not isinstance(error, OSError | ValueError | KeyError):  # tokenizers raises bare Exceptions
            raise
        raise _unreadable(source, "tokenizer", error) from error


def _has_vocabulary(folder: Path) -> bool:
    """Whether a tokenizer could be read from a folder: from its files, or by code that needs none."""
    if any((folder / name).is_file() for name in _VOCABULARIES) or any(folder.glob("*.tiktoken")):
        return True
    config = folder / "tokenizer_config.json"
    try:
        stated = json.loads(config.read_text()) if config.is_file() else {}
    except ValueError:
        return True  # which is said when it is read
    return "auto_map" in stated or stated.get("tokenizer_class") in _OF_BYTES


def _template_beside(source: Source, tokenizer: Any) -> str | None:
    """The chat template that lies in a folder and is none of its tokenizer's: in an adapter's folder that has no tokenizer, or, as image-text models
    of transformers 4 have it, in the processor's file."""
    if source.adapter and source.tokenizer_folder != source.adapter and (source.adapter / "chat_template.jinja").is_file():
        return (source.adapter / "chat_template.jinja").read_text(encoding="utf-8")
    processor = source.tokenizer_folder / "chat_template.json"
    if tokenizer.chat_template or not processor.is_file():
        return None
    stated = json.loads(processor.read_text(encoding="utf-8"))
    template = stated.get("chat_template") if isinstance(stated, dict) else None
    return template if isinstance(template, str) else None


def _unreadable(source: Source, what: str, error: Exception) -> ModelError:
    if "trust_remote_code" in str(error):
        return ModelError(
            f"{source.ref}: its {what} wants to run Python code from the model's own folder. mechdiff runs none unless you name the model: "
            f"--trust-remote-code {source.ref}"
        )
    return ModelError(
        f"{source.ref}: its {what} cannot be read ({type(error).__name__}: {str(error).rstrip('. ')}). Is the download complete?"
    )
