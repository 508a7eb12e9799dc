"""A reference finds its folder, or the error says what to do; nothing from a model's folder runs unless the model was named."""

import json
import shutil
import sys
from hashlib import sha256
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub.errors import LocalEntryNotFoundError

from gguf_made import write_gguf
from mechdiff.architectures.lookup import family_of
from mechdiff.architectures.network import quiet
from mechdiff.errors import ModelError
from mechdiff.models.pair import load_net
from mechdiff.models.sources import Source, cache_folder, load_config, load_tokenizer, resolve
from pico import CONFIGS, make_net, pico, save
from tokenizers_made import byte_tokenizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(pico("llama").net, byte_tokenizer(), tmp_path_factory.mktemp("saved"))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A model folder that a test may break."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def changed(path: Path, **fields: object) -> None:
    """Overwrites fields of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


# ---- references --------------------------------------------------------------------------------------------------------------------


def test_a_folder_is_where_it_is(saved):
    source = resolve(str(saved))
    assert (source.ref, source.load, source.adapter) == (str(saved), str(saved), None)
    assert load_config(source).model_type == "llama"
    assert load_tokenizer(source)("ab")["input_ids"] == [256, 97, 98]


def test_files_are_known_by_their_hashes(folder, tmp_path):
    (folder / "notes.txt").write_text("not part of the model")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(b"factors")
    (folder / "optimizer.bin").write_bytes(b"not part of the model either")
    base = resolve(str(folder))
    tuned = resolve(str(adapter), base=base)
    files = base.files()
    assert files["config.json"] == sha256((folder / "config.json").read_bytes()).hexdigest()
    assert {"model.safetensors", "tokenizer.json"} < files.keys()
    assert not {"notes.txt", "optimizer.bin"} & files.keys()
    adapters = {"adapter/adapter_config.json": sha256(b"{}"), "adapter/adapter_model.safetensors": sha256(b"factors")}
    assert tuned.files() == files | {name: digest.hexdigest() for name, digest in adapters.items()}


@pytest.mark.parametrize("ref", ["/no/such/folder", "./nothing", "~/no-such-model-here", "nothing", "a/b/c"])
def test_a_path_that_is_not_there_is_refused(ref):
    with pytest.raises(ModelError, match=rf"^{ref}: no such model\. Give a folder, a \.gguf file, or a Hub id"):
        resolve(ref)


def test_a_gguf_file_that_is_not_there_is_refused():
    with pytest.raises(ModelError, match=r"^none\.gguf: no such GGUF file"):
        resolve("none.gguf")


def test_a_gguf_file_that_is_none_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MECHDIFF_CACHE", str(tmp_path / "cache"))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF and then nothing that makes sense")
    with pytest.raises(ModelError, match=r"broken\.gguf: transformers cannot read this GGUF file"):
        resolve(str(tmp_path / "broken.gguf"))
    assert not list((tmp_path / "cache").glob("gguf-*/config.json"))


def test_a_folder_that_holds_no_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"this folder has no config\.json \(a model\) and no adapter_config\.json"):
        resolve(str(tmp_path))


def test_an_adapter_cannot_be_the_base(tmp_path, saved):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="is an adapter, and an adapter cannot be the base"):
        resolve(str(tmp_path))
    base = resolve(str(saved))
    tuned = resolve(str(tmp_path), base=base)
    assert (tuned.load, tuned.adapter) == (base.load, tmp_path)
    with pytest.raises(ModelError, match="cannot be the base"):
        resolve(str(tmp_path), base=tuned)


# ---- the Hub -----------------------------------------------------------------------------------------------------------------------


def test_a_hub_id_is_its_snapshot(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda ref, allow_patterns: str(saved))
    assert resolve("some-one/some-model") == Source(ref="some-one/some-model", load=str(saved))
    (tmp_path / "adapter_config.json").write_text("{}")
    base = resolve(str(saved))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda ref, allow_patterns: str(tmp_path))
    assert resolve("some-one/some-adapter", base=base).adapter == tmp_path


def test_pickles_are_fetched_where_the_hub_has_no_safetensors(folder, monkeypatch):
    asked = []

    def fetched(ref: str, allow_patterns: list[str]) -> str:
        asked.append([pattern for pattern in allow_patterns if pattern.endswith((".safetensors", ".bin"))])
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    resolve("some-one/some-model")
    assert asked == [["*.safetensors"]]
    (folder / "model.safetensors").unlink()
    resolve("some-one/some-model")
    assert asked[1:] == [["*.safetensors"], ["pytorch_model*.bin", "adapter_model.bin"]]


def test_a_hub_id_that_cannot_be_fetched_is_refused(monkeypatch):
    def offline(ref: str, allow_patterns: list[str]) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ModelError, match=r"^some-one/some-model: neither a folder here nor a model that could be fetched.*hf auth login"):
        resolve("some-one/some-model")


def test_a_name_that_the_hub_cannot_have_is_refused():
    with pytest.raises(ModelError, match=r"neither a folder here nor a model that could be fetched.*HFValidationError"):
        resolve("some one/some model")


# ---- GGUF --------------------------------------------------------------------------------------------------------------------------


def test_a_gguf_file_is_converted_once_into_the_same_network(tmp_path, monkeypatch):
    monkeypatch.setenv("MECHDIFF_CACHE", str(tmp_path / "cache"))
    net = make_net(CONFIGS["llama"]())
    write_gguf(net, tmp_path / "small.gguf")
    source = resolve(str(tmp_path / "small.gguf"))
    assert Path(source.load).parent == tmp_path / "cache"
    assert load_tokenizer(source).encode("abé", add_special_tokens=False) == [256, *"é".encode()]
    loaded = load_net(source, dtype="float32", device=torch.device("cpu"))
    assert "quantization_config" not in load_config(source).to_dict()
    for (name, mine), theirs in zip(net.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", None)
    monkeypatch.setattr("mechdiff.models.sources.parts", None)
    assert resolve(str(tmp_path / "small.gguf")) == source, "the second time nothing is converted, nor the keys read"


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("MECHDIFF_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv("MECHDIFF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "mechdiff"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "mechdiff"


# ---- config and tokenizer ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["no-such-architecture", "llama5"])
def test_an_architecture_that_transformers_does_not_know_is_refused(folder, kind):
    changed(folder / "config.json", model_type=kind)
    with pytest.raises(
        ModelError, match=rf"model: the architecture '{kind}' is not one that transformers \S+ knows\. .*newer transformers"
    ):
        load_config(resolve(str(folder)))


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"model_type": "llama", "num_attention_heads": "many"}'])
def test_a_config_that_cannot_be_read_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match="model: its config cannot be read "):
        load_config(resolve(str(folder)))


@pytest.mark.parametrize("text", ["", "{", "{}", '{"model": "of no known kind"}'])
def test_a_tokenizer_that_cannot_be_read_is_refused(folder, text):
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(ModelError, match=r"model: its tokenizer cannot be read \("):
        load_tokenizer(resolve(str(folder)))


def test_an_adapters_own_tokenizer_comes_first(folder, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    source = resolve(str(adapter), base=resolve(str(folder)))
    assert load_tokenizer(source).chat_template is None
    byte_tokenizer("{{ messages }}").save_pretrained(adapter)
    assert load_tokenizer(source).chat_template == "{{ messages }}"


def test_transformers_is_quiet_inside_and_as_before_outside():
    logging = transformers.utils.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with quiet():
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.ERROR, False)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    with pytest.raises(KeyError), quiet():
        raise KeyError
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


# ---- code that a model brings ------------------------------------------------------------------------------------------------------

STRANGE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

(Path({marker!r})).touch()

class StrangeConfig(LlamaConfig):
    model_type = "{model_type}"

class StrangeModel(LlamaForCausalLM):
    config_class = StrangeConfig

class StrangeTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def strange(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder that brings Python code, which leaves a marker when it runs. Returns the folder; the marker is beside it."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    (folder / "strange.py").write_text(STRANGE.format(marker=str(tmp_path / "it-ran"), model_type="strange"))
    classes = {"AutoConfig": "strange.StrangeConfig", "AutoModelForCausalLM": "strange.StrangeModel"}
    changed(folder / "config.json", model_type="strange", auto_map=classes)
    changed(
        folder / "tokenizer_config.json", tokenizer_class="StrangeTokenizer", auto_map={"AutoTokenizer": [None, "strange.StrangeTokenizer"]}
    )
    return folder


def test_code_from_a_models_folder_does_not_run(strange, tmp_path):
    source = resolve(str(strange))
    message = r"model: its {} wants to run Python code.*runs none unless you name the model: --trust-remote-code .*model$"
    with pytest.raises(ModelError, match=message.format("config")):
        load_config(source)
    with pytest.raises(ModelError, match=message.format("tokenizer")):
        load_tokenizer(source)
    with pytest.raises(ModelError, match=message.format("config")):
        load_net(source, dtype="float32", device=torch.device("cpu"))
    assert not (tmp_path / "it-ran").exists()


def test_code_of_a_known_architecture_is_not_needed_and_does_not_run(strange, tmp_path):
    changed(strange / "config.json", model_type="llama")
    source = resolve(str(strange))
    assert type(load_config(source)).__module__.startswith("transformers.models.llama")
    assert type(load_net(source, dtype="float32", device=torch.device("cpu"))).__module__.startswith("transformers.models.llama")
    assert not (tmp_path / "it-ran").exists()


def test_code_of_a_named_model_runs_and_its_architecture_gets_a_row(strange, tmp_path):
    source = resolve(str(strange))
    assert family_of(load_config(source, trust=True)).by_layer, "its row is proposed from its own network"
    assert (tmp_path / "it-ran").exists(), "or the tests above prove nothing"
