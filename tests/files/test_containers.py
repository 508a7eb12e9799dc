"""Pickles of torch and safetensors files are one table of tensors, and what transformers loads of a folder is what is read of it."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from mechdiff.architectures.network import quiet
from mechdiff.errors import ModelError
from mechdiff.files.containers import contents, first_row, read
from mechdiff.models.changes import open_changes
from mechdiff.models.checkpoint import weight_files
from mechdiff.models.lineage import lineage
from mechdiff.models.modules import tensors_in
from mechdiff.models.pair import load_net, wrap
from mechdiff.models.sources import resolve
from mechdiff.models.tensors import open_tensors
from pico import CONFIGS, SIZES, make_net

TENSORS = {
    "a": torch.arange(12, dtype=torch.float32).reshape(3, 4), "b": torch.ones(2, dtype=torch.bfloat16), "c": torch.ones(3, 2, dtype=torch.float64),
    "d": torch.tensor([[1.5, -2.0]]).to(torch.float8_e4m3fn), "e": torch.tensor([3, 4]), "f": torch.tensor([1, 2], dtype=torch.uint8),
}  # fmt: skip


@pytest.mark.parametrize("old", [False, True])
def test_a_pickle_has_the_contents_of_a_safetensors_file(tmp_path: Path, old: bool) -> None:
    """`old`: as torch wrote them before 1.6."""
    held = {name: tensor for name, tensor in TENSORS.items() if not old or name != "d"}  # there was no float8 then
    save_file(held, tmp_path / "x.safetensors")
    torch.save(held, tmp_path / "x.bin", _use_new_zipfile_serialization=not old)
    assert contents(tmp_path / "x.bin") == contents(tmp_path / "x.safetensors")
    for name, tensor in held.items():
        for path in (tmp_path / "x.bin", tmp_path / "x.safetensors"):
            assert read(path, name).dtype == tensor.dtype
            assert torch.equal(read(path, name).float(), tensor.float())
            assert torch.equal(first_row(path, name).float(), tensor[:1].float())


def test_a_view_in_a_pickle_is_read_as_it_looks(tmp_path: Path) -> None:
    torch.save({"t": TENSORS["a"].T, "part": TENSORS["a"][1:]}, tmp_path / "x.bin")
    assert read(tmp_path / "x.bin", "t").is_contiguous()
    assert torch.equal(read(tmp_path / "x.bin", "t"), TENSORS["a"].T)
    assert torch.equal(read(tmp_path / "x.bin", "part"), TENSORS["a"][1:])


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({"state_dict": TENSORS}, "holds more than one flat table of tensors"),
        ({"model": torch.nn.Linear(2, 2)}, "a pickle that holds more than tensors, which could run code: not read"),
        (None, r"x\.bin cannot be read: .*Is the download complete\?"),
    ],
)
def test_a_pickle_that_is_no_table_is_refused(tmp_path: Path, held: Any, said: str) -> None:
    if held is None:
        (tmp_path / "x.bin").write_bytes(b"PK\x03\x04 and no more")
    else:
        torch.save(held, tmp_path / "x.bin")
    with pytest.raises(ModelError, match=said):
        contents(tmp_path / "x.bin")


def test_nothing_in_a_pickle_runs(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.mkdir, (tmp_path / "made",)

    torch.save({**TENSORS, "more": Evil()}, tmp_path / "x.bin")
    with pytest.raises(ModelError, match="a pickle that holds more than tensors, which could run code: not read"):
        contents(tmp_path / "x.bin")
    assert not (tmp_path / "made").exists()


# ---- folders -----------------------------------------------------------------------------------------------------------------------


def save_bin(net: Any, folder: Path, *, shards: int = 1, name: str = "pytorch_model") -> Path:
    """A model as transformers 4 saved it; a tied head is there twice, as it was."""
    net.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    state = net.state_dict()
    if shards == 1:
        torch.save(state, folder / f"{name}.bin")
        return folder
    import json

    files = {key: f"{name}-{i * shards // len(state) + 1:05}-of-{shards:05}.bin" for i, key in enumerate(state)}
    for file in set(files.values()):
        torch.save({key: state[key] for key, where in files.items() if where == file}, folder / file)
    (folder / f"{name}.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_weights_and_lineage_read_pickles_as_safetensors(tmp_path: Path, family: str, shards: int) -> None:
    net = make_net(CONFIGS[family]())
    net.save_pretrained(tmp_path / "base")
    folder = save_bin(net, tmp_path / "tuned", shards=shards)
    one, other = open_tensors(tmp_path / "base"), open_tensors(folder)
    assert (one.names, one.tied) == (other.names, other.tied)
    for name in one.names:
        assert torch.equal(one.read(name), other.read(name)), name
        assert other.shape(name) == one.read(name).shape
    found = lineage(resolve(str(tmp_path / "base")), resolve(str(folder)))
    assert (found["relative_distance"], found["changed_tensors"], found["not_compared"]) == (
        0.0, 0, ["the unembedding is the embedding (tied): compared once, as the embedding"] if one.tied else [],
    )  # fmt: skip


def test_a_graft_is_read_from_a_pickle(tmp_path: Path) -> None:
    net = make_net(CONFIGS["llama"]())
    folder = save_bin(net, tmp_path / "model", shards=3)
    name = "model.layers.2.self_attn.o_proj.weight"
    assert torch.equal(tensors_in(folder, wrap(net, side="base", ref="x"))(name), net.get_parameter(name))


def test_fsdps_one_file_is_the_model(tmp_path: Path) -> None:
    """What accelerate's FSDP writes (FULL_STATE_DICT) is found by mechdiff, where transformers finds nothing."""
    net = make_net(CONFIGS["llama"]())
    folder = save_bin(net, tmp_path / "checkpoint-5", name="pytorch_model_fsdp")
    with pytest.raises(OSError, match="no file named"), quiet():
        AutoModelForCausalLM.from_pretrained(folder)
    loaded = load_net(resolve(str(folder)), dtype="float32", device=torch.device("cpu"))
    for (name, mine), theirs in zip(net.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name
    net.save_pretrained(folder)
    assert [path.name for path in weight_files(folder)] == ["model.safetensors"]


def test_widths_of_numbers_are_kept(tmp_path: Path) -> None:
    """float64 and float8 beside float32, in both kinds of file."""
    net = make_net(CONFIGS["llama"]())
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    wide, small = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"
    state[wide] = state[wide].double() + 1e-12
    state[small] = state[small].to(torch.float8_e4m3fn)
    for name in ("base", "tuned"):
        net.save_pretrained(tmp_path / name)
    save_file(state, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "tuned" / "model.safetensors").unlink()
    torch.save(state, tmp_path / "tuned" / "pytorch_model.bin")
    for folder in (tmp_path / "base", tmp_path / "tuned"):
        files = open_tensors(folder)
        assert torch.equal(files.read(wide), state[wide])
        assert torch.equal(files.read(small), state[small].float())
    found = lineage(*(resolve(str(tmp_path / name)) for name in ("base", "tuned")))
    assert (found["relative_distance"], found["uncompared_tensors"]) == (0.0, [])


# ---- tied heads --------------------------------------------------------------------------------------------------------------------


def model(tied: bool) -> Any:
    return make_net(LlamaConfig(**SIZES | {"tie_word_embeddings": tied}))


HEAD, EMBED = "lm_head.weight", "model.embed_tokens.weight"


@pytest.mark.parametrize("held", ["both", "same", "embed", "head"])
@pytest.mark.parametrize("tied", [True, False])
def test_heads_are_read_as_transformers_loads_them(tmp_path: Path, tied: bool, held: str) -> None:
    net = model(tied)
    net.save_pretrained(tmp_path)
    state = {name: tensor.clone() for name, tensor in model(tied=False).state_dict().items()}
    if held == "same":
        state[HEAD] = state[EMBED].clone()
    if held in ("embed", "head"):
        del state[HEAD if held == "embed" else EMBED]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    source = resolve(str(tmp_path))
    if not tied and held in ("embed", "head"):
        missing = (
            "its config says that the unembedding is a matrix of its own" if held == "embed" else "its files lack 1 of the model's tensors"
        )
        with pytest.raises(ModelError, match=missing):
            load_net(source, dtype="float32", device=torch.device("cpu"))
        return
    loaded = load_net(source, dtype="float32", device=torch.device("cpu"))
    files, grafts = open_tensors(tmp_path), tensors_in(tmp_path, wrap(loaded, side="base", ref="x"))
    for name in (HEAD, EMBED):
        assert torch.equal(files.read(name), loaded.get_parameter(name)), name
        assert torch.equal(grafts(name), loaded.get_parameter(name)), name
    assert files.tied == (held != "both")
    said = [one for one in open_changes(source, source).statements if "its files hold another" in one]
    assert len(said) == (2 if tied and held == "both" else 0), "of base and of tuned"


# ---- configs -----------------------------------------------------------------------------------------------------------------------

V4 = {"rope_theta": 500000.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
V5 = {"rope_parameters": {"rope_theta": 500000.0, "rope_type": "linear", "factor": 2.0}}


def configured(folder: Path, **fields: Any) -> Any:
    import json

    from mechdiff.models.sources import load_config

    stated = json.loads((folder / "config.json").read_text())
    stated = {name: value for name, value in stated.items() if name not in ("rope_parameters", "rope_theta", "rope_scaling")}
    (folder / "config.json").write_text(json.dumps({**stated, **fields}))
    return load_config(resolve(str(folder)))


def test_a_config_of_transformers_4_is_that_of_5(tmp_path: Path) -> None:
    from mechdiff.models.functions import function_differences

    net = make_net(CONFIGS["llama"]())
    for name in ("old", "new"):
        net.save_pretrained(tmp_path / name)
    old, new = configured(tmp_path / "old", **V4), configured(tmp_path / "new", **V5)
    assert old.rope_parameters == new.rope_parameters
    assert function_differences(old, new) == []
    ids = torch.tensor([[256, *range(40, 90)]])
    with torch.no_grad():
        said = [load_net(resolve(str(tmp_path / name)), dtype="float32", device=torch.device("cpu"))(ids).logits for name in ("old", "new")]
        assert torch.equal(*said)
        assert not torch.allclose(said[0], net(ids).logits)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({**V5, "rope_theta": 777.0}, r"rope_theta is 777\.0 and in rope_parameters 500000\.0; transformers obeys rope_parameters"),
        (
            {**V5, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
            "rope_scaling and rope_parameters differ; transformers obeys rope_scaling",
        ),
    ],
)
def test_rotary_settings_that_are_said_twice_are_told(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    import re

    net = make_net(CONFIGS["llama"]())
    for name in ("base", "tuned"):
        net.save_pretrained(tmp_path / name)
    found = configured(tmp_path / "tuned", **fields)
    wins = 4.0 if "rope_scaling" in fields else 2.0
    assert found.rope_parameters["factor"] == wins, "which of the two transformers obeys"
    warnings = lineage(*(resolve(str(tmp_path / name)) for name in ("base", "tuned")))["warnings"]
    assert [warning for warning in warnings if re.search(said, warning)]
    shutil.rmtree(tmp_path / "tuned")
    net.save_pretrained(tmp_path / "tuned")
    configured(tmp_path / "tuned", **V5)
    assert not [warning for warning in lineage(*(resolve(str(tmp_path / n)) for n in ("base", "tuned")))["warnings"] if "twice" in warning]
