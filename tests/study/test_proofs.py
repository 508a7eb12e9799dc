"""What the engine proved of a model is held for the next run of the same weights, code, versions and device, and for no other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import pico
from adapters_made import LORA, make_pair
from mechdiff.errors import SelfCheckError
from mechdiff.measures.catalogue import make_study
from mechdiff.store.proofs import Proofs
from mechdiff.study import stages
from mechdiff.study.config import StudyConfig
from runs import execute
from tokenizers_made import CHATML, byte_tokenizer

Patch = pytest.MonkeyPatch
KEY = {"weights": {"model.safetensors": "0" * 64}, "kinds": ["z"]}
FOUND = {"sites": 4, "worst_site": "L1.z", "replay_nats": 1e-9, "floor_nats": 0.0, "rounding_nats": 1e-8}


def test_a_proof_comes_back_under_its_key_alone(tmp_path: Path) -> None:
    proofs = Proofs(tmp_path / "new")
    assert proofs.held(KEY) is None
    proofs.keep(KEY, FOUND)
    held = proofs.held(KEY)
    assert held
    assert held.pop("held_since").startswith("20")
    assert held == FOUND
    assert proofs.held({**KEY, "kinds": ["z", "mlp_out"]}) is None


@pytest.mark.parametrize("spoil", [lambda text: text.replace("1e-09", "2e-09"), lambda text: text[:-9], lambda text: "[]"])
def test_a_damaged_proof_is_none(tmp_path: Path, spoil: Callable[[str], str]) -> None:
    Proofs(tmp_path).keep(KEY, FOUND)
    (file,) = tmp_path.glob("*.json")
    spoiled = spoil(file.read_text())
    assert spoiled != file.read_text()
    file.write_text(spoiled)
    assert Proofs(tmp_path).held(KEY) is None


def test_a_folder_that_cannot_be_made_holds_nothing_and_costs_nobody_a_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    proofs = Proofs(tmp_path / "file" / "proofs")
    proofs.keep(KEY, FOUND)
    assert proofs.held(KEY) is None


def test_the_user_says_where_they_lie(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("MECHDIFF_PROOFS", str(tmp_path / "mine"))
    assert Proofs.of_user(tmp_path).folder == tmp_path / "mine"
    monkeypatch.setenv("MECHDIFF_PROOFS", "off")
    assert Proofs.of_user(tmp_path).folder is None
    monkeypatch.delenv("MECHDIFF_PROOFS")
    assert Proofs.of_user(tmp_path).folder == tmp_path / "proofs"


def _study(pair: Path, base: str = "base", tuned: str = "tuned", **more: Any) -> StudyConfig:
    models = {"base": str(pair / base), "tuned": str(pair / tuned)}
    patching = {"patching": {"sites": ["resid_post"], "arms": ["identity"], "layers": [1]}}
    return make_study({"pair": models, "prompts": {"file": str(pair / "prompts.jsonl")}, "measures": [patching], **more})


def test_a_model_s_proof_is_held_on_whichever_side_it_stands(pair: Path, proved: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("MECHDIFF_PROOFS", str(proved))
    monkeypatch.setattr(stages, "self_check", _refused)
    execute(_study(pair, base="tuned", tuned="base"), tmp_path / "run")


def _refused(*args: Any, **more: Any) -> None:
    raise SelfCheckError("asked to prove")


def test_a_held_proof_is_not_made_again_and_the_record_says_so(pair: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("MECHDIFF_PROOFS", str(tmp_path / "proofs"))
    first, proved = execute(_study(pair), tmp_path / "first")
    monkeypatch.setattr(stages, "self_check", _refused)
    second, held = execute(_study(pair), tmp_path / "second")
    assert second.equals(first)
    for side in ("base", "tuned"):
        assert "held_since" not in proved["selfcheck"][side]
        since = held["selfcheck"][side].pop("held_since")
        assert since.startswith("20")
        assert held["selfcheck"][side] == proved["selfcheck"][side]


def _other_weights(pair: Path, monkeypatch: Patch) -> StudyConfig:
    other = pico.pico("llama")
    with torch.no_grad():
        next(other.net.parameters())[0, 0] += 1e-3
    pico.save(other.net, byte_tokenizer(CHATML), pair / "other")
    return _study(pair, tuned=str(pair / "other"))


def _other_versions(pair: Path, monkeypatch: Patch) -> StudyConfig:
    monkeypatch.setattr(stages, "versions", lambda: {"torch": "0"})
    return _study(pair)


def _other_code(pair: Path, monkeypatch: Patch) -> StudyConfig:
    monkeypatch.setattr(stages, "code_hash", lambda: "0" * 64)
    return _study(pair)


def _other_processor(pair: Path, monkeypatch: Patch) -> StudyConfig:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    return _study(pair)


def _other_dtype(pair: Path, monkeypatch: Patch) -> StudyConfig:
    return _study(pair, dtype="bfloat16")


@pytest.mark.parametrize("change", [_other_weights, _other_versions, _other_code, _other_processor, _other_dtype])
def test_it_is_made_again_where_anything_changed(pair: Path, proved: Path, tmp_path: Path, monkeypatch: Patch, change: Any) -> None:
    monkeypatch.setenv("MECHDIFF_PROOFS", str(proved))
    changed = change(pair, monkeypatch)
    monkeypatch.setattr(stages, "self_check", _refused)
    with pytest.raises(SelfCheckError, match="asked to prove"):
        execute(changed, tmp_path / "run")


@pytest.mark.ci
def test_a_proof_of_merged_copies_is_none_of_an_adapter_that_is_switched(pair: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    make_pair(tmp_path, peft.LoraConfig(**LORA))
    monkeypatch.setenv("MECHDIFF_PROOFS", str(tmp_path / "proofs"))
    adapted = _study(pair, base=str(tmp_path / "base"), tuned=str(tmp_path / "adapter"))
    execute(adapted, tmp_path / "merged", memory="both")
    monkeypatch.setattr(stages, "self_check", _refused)
    execute(adapted, tmp_path / "again", memory="both")
    with pytest.raises(SelfCheckError, match="asked to prove"):
        execute(adapted, tmp_path / "switched", memory="one")


@pytest.fixture(scope="module")
def proved(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("proved")
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("MECHDIFF_PROOFS", str(place / "proofs"))
        execute(_study(pair), place / "run")
    return place / "proofs"
