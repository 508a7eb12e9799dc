"""What a stranger's file could try: run code, leave its folder, put itself into the page, or carry a secret out."""

import ast
import json
import os
import pickle
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mechdiff
from mechdiff.errors import MechdiffError
from mechdiff.measures.catalogue import load_study
from mechdiff.models.pair import open_pair
from mechdiff.prompts.sets import read_prompts
from mechdiff.study.config import RunOptions

SOURCE = Path(__file__).parents[1] / "src" / "mechdiff"
NEVER = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
"""Modules whose files run code when they are read."""


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    """Every call, by the dotted name that is called."""
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("*.py")), ids=lambda file: file.relative_to(SOURCE).as_posix())
def test_no_file_is_read_in_a_way_that_can_run_code(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {f"{node.module}.{alias.name}" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    imported -= {"pickle.UnpicklingError"}  # what is refused
    assert not {name.split(".")[0] for name in imported} & NEVER
    for name, call in calls(tree):
        told = {keyword.arg: keyword.value for keyword in call.keywords}
        assert name not in {"eval", "exec", "compile", "torch.save", "os.system"}, name
        if name == "torch.load":
            assert ast.unparse(told["weights_only"]) == "True"
        if name == "yaml.load":
            loader = ast.unparse(told["Loader"]) if "Loader" in told else ast.unparse(call.args[1])
            assert "Safe" in loader or loader == "_Loader"
        if name == "np.load":
            assert "allow_pickle" not in told
        assert not (name.startswith("subprocess.") and "shell" in told)
        if "trust_remote_code" in told:
            assert not isinstance(told["trust_remote_code"], ast.Constant), (
                "remote code runs where a user named the model, and nowhere else"
            )


def test_the_study_loader_is_a_safe_one(tmp_path: Path) -> None:
    from mechdiff.study import document

    assert issubclass(document._Loader, yaml.SafeLoader | getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (tmp_path / "study.yaml").write_text("pair: !!python/object/apply:os.system [touch owned]\n")
    with pytest.raises(MechdiffError, match="not a study in YAML"):
        load_study(tmp_path / "study.yaml")


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = str(place)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.place,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_weights_that_are_a_pickle_run_nothing(pair: Path, tmp_path: Path) -> None:
    own, owned = tmp_path / "tuned", tmp_path / "owned"
    shutil.copytree(pair / "tuned", own)
    (own / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Evil(owned)}, own / "pytorch_model.bin")
    refused = "its weights are a pickle that holds more than tensors"
    with pytest.raises(MechdiffError, match=refused), open_pair(str(pair / "base"), str(own), device="cpu").use("tuned"):
        pass
    assert not owned.exists()
    with (own / "pytorch_model.bin").open("wb") as stream:
        pickle.dump(Evil(owned), stream)
    with pytest.raises(MechdiffError), open_pair(str(pair / "base"), str(own), device="cpu").use("tuned"):
        pass
    assert not owned.exists()


def everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_ids_that_look_like_paths_stay_ids_and_secrets_stay_at_home(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run: ids of prompts that climb, names that are HTML, a token in the environment."""
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop")
    ids = ["../../escaped", "/etc/passwd", "..\\up", "<script>alert(1)</script>", "a\x00b", "CON", "." * 300]
    texts = [f"say hf_abcdefghijklmnop and {i}" for i in range(12)]
    lines = [{"id": ids[i] if i < len(ids) else f"p{i}", "text": text} for i, text in enumerate(texts)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    outside, before = tmp_path / "inside", everything(tmp_path)
    done = mechdiff.run(
        base=str(pair / "base"), tuned=str(pair / "tuned"), prompts=str(tmp_path / "prompts.jsonl"), out=outside / "run",
        measures=["divergence", {"patching": {"sites": ["attn_out"], "arms": ["identity"]}},
            {"transport": {"sites": ["attn_out"], "maps": ["anchored_ridge"], "closer": [1]}}],
    )  # fmt: skip
    assert {name.split("/")[0] for name in everything(tmp_path) - before} == {"inside"}
    assert not (tmp_path / "escaped").exists()
    page = (done.path / "report.html").read_text(encoding="utf-8")
    assert "<script>alert(1)</script>" not in page
    for file in ("manifest.json", "log.txt", "prompts.jsonl", "cells/plan.json", "cells/study.json"):
        assert b"hf_abcdefghijklmnop" not in (done.path / file).read_bytes(), file


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["text", "id", "label", "options", "meta", "x", ""]), inner, max_size=4), max_leaves=12,
)  # fmt: skip


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(lines=st.lists(_JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40), min_size=1, max_size=4))
def test_any_prompt_file_is_read_or_refused(tmp_path: Path, lines: list[bytes]) -> None:
    (tmp_path / "fuzz.jsonl").write_bytes(b"\n".join(lines))
    with suppress(MechdiffError):
        assert all(prompt.text.strip() for prompt in read_prompts(tmp_path / "fuzz.jsonl"))


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    told=st.dictionaries(st.sampled_from(["pair", "prompts", "seed", "dtype", "measures", "x"]), _JSON, max_size=5),
    tail=st.text(max_size=10),
)
def test_any_study_file_is_read_or_refused(tmp_path: Path, told: dict[str, Any], tail: str) -> None:
    (tmp_path / "fuzz.yaml").write_text(json.dumps(told) + tail, encoding="utf-8", errors="replace")
    with suppress(MechdiffError):
        load_study(tmp_path / "fuzz.yaml")


def test_remote_code_runs_for_the_model_that_was_named_alone(pair: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(pair / "tuned", own)
    config = json.loads((own / "config.json").read_text())
    config |= {"model_type": "unheard_of", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Net"}}
    (own / "config.json").write_text(json.dumps(config))
    (own / "code.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'owned')!r})\n")
    for trusted in ((), (str(pair / "tuned"),)):
        with pytest.raises(MechdiffError, match="trust-remote-code"):
            open_pair(str(pair / "base"), str(own), device="cpu", trusted=trusted)
        assert not (tmp_path / "owned").exists()
    assert RunOptions().trust_remote_code == ()
