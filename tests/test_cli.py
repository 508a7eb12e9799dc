"""The command line as a user meets it: what it prints, how it exits, and one clear message for each kind of bad input."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mechdiff import api
from mechdiff.cli import main as cli
from mechdiff.cli.asked import Flags, studies_of, study_of
from mechdiff.errors import StudyError
from mechdiff.measures.catalogue import OPTIONS

CONTRACT = Path(__file__).parents[2] / "shared" / "rows_contract.py"


def call(*words: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `mechdiff WORDS`."""
    monkeypatch.setattr(sys, "argv", ["mechdiff", *map(str, words)])
    code = 0
    try:
        cli.main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def mechdiff(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    return lambda *words: call(*words, capsys=capsys, monkeypatch=monkeypatch)


def run_of(pair: Path, out: Path, *more: str) -> Path:
    """The folder of a finished run, made by the command line."""
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(sys, "argv", ["mechdiff", *asked(pair, out), *more])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert ended.value.code == 0
    return out


@pytest.fixture(scope="module")
def finished(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of three measures."""
    return run_of(pair, tmp_path_factory.mktemp("cli") / "run", "--measures", "divergence,weights,patching")


@pytest.fixture(scope="module")
def whole(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of every measure with its defaults: half a minute."""
    return run_of(pair, tmp_path_factory.mktemp("whole") / "run")


def asked(pair: Path, out: Path) -> list[str]:
    """The words that run a study of the pair."""
    return [*map(str, ["run", "--base", pair / "base", "--tuned", pair / "tuned", "--prompts", pair / "prompts.jsonl", "--out", out])]


RUNS = ["finished", pytest.param("whole", marks=pytest.mark.ci)]


@pytest.mark.parametrize("name", RUNS)
def test_the_run_folder_is_what_the_design_says(name: str, request: pytest.FixtureRequest) -> None:
    finished = request.getfixturevalue(name)
    for name in ("study.yaml", "manifest.json", "rows.parquet", "summary.parquet", "report.html", "log.txt"):
        assert (finished / name).is_file(), name
    assert not (finished / "figures").exists()
    assert not list(finished.rglob("*.pkl"))


@pytest.mark.skipif(not CONTRACT.is_file(), reason="the checker of the row contract is not beside this repository")
@pytest.mark.parametrize("name", RUNS)
def test_the_rows_keep_the_contract(name: str, request: pytest.FixtureRequest) -> None:
    finished = request.getfixturevalue(name)
    done = subprocess.run([sys.executable, str(CONTRACT), str(finished)], capture_output=True, text=True, check=False)
    said = re.sub(
        r"'(interpolation|self_repair|chat_template|off_manifold)'(, )?", "", done.stdout.strip()
    )  # these are younger than the checker
    assert said in ("measure has values outside the contract: []", "the rows keep the contract"), done.stdout


def test_show_and_report(finished: Path, mechdiff) -> None:
    code, out, _ = mechdiff("show", finished)
    assert code == 0
    assert [
        line for line in ("How much?", "What?", "Where?", "How complicated?", "What else changed?", "How sure?") if line not in out
    ] == []
    code, out, _ = mechdiff("show", finished, "--json")
    assert code == 0
    assert [one["question"] for one in json.loads(out)["tiles"]] == [
        "how_much", "what", "where", "how_complicated", "what_else", "how_sure",
    ]  # fmt: skip
    (finished / "report.html").unlink()
    code, out, _ = mechdiff("report", finished)
    assert (code, out.strip()) == (0, str(finished / "report.html"))
    assert (finished / "report.html").is_file()


def test_plan_loads_nothing_and_counts(pair: Path, mechdiff, monkeypatch: pytest.MonkeyPatch) -> None:
    from mechdiff.models import pair as models

    monkeypatch.setattr(models, "load_net", lambda *a, **k: pytest.fail("plan loaded a model"))
    code, out, _ = mechdiff("plan", "--base", pair / "base", "--tuned", pair / "tuned", "--prompts", pair / "prompts.jsonl")
    assert code == 0
    assert "patching" in out
    assert "memory" in out


@pytest.mark.parametrize("study", sorted((Path(__file__).parents[1] / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_study_can_be_planned(study: Path, mechdiff) -> None:
    code, out, err = mechdiff("plan", study)
    assert code == 0, err
    assert "patched" in out
    assert len(study.read_text().splitlines()) <= 25


def test_check_names_a_nearer_base(pair: Path, mechdiff) -> None:
    """P19: what is given as base is further from tuned than another model is."""
    code, out, _ = mechdiff("check", pair / "tuned", pair / "base", "--alternative", pair / "base")
    assert code == 0
    assert f"distance from {pair / 'base'}: 0.0000 of its size" in out.replace("\n", "")
    assert "the difference of two fine-tunes" in " ".join(out.split())


def test_check_says_what_fits(pair: Path, mechdiff) -> None:
    code, out, _ = mechdiff("check", pair / "base", pair / "tuned")
    assert code == 0
    for word in ("llama", "resid_post", "one vocabulary", "templates", "lineage", "1 tensors changed", "written back bit for bit"):
        assert word in out, word


def test_an_interrupt_keeps_what_is_finished_and_says_so(pair: Path, tmp_path: Path, mechdiff, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ctrl-C in a terminal raises it, while the fourth cell is computed."""
    from mechdiff.study import run

    compute_cell, computed = run.compute_cell, []

    def interrupted(*args: Any) -> Any:
        if len(computed) == 3:
            raise KeyboardInterrupt
        computed.append(args)
        return compute_cell(*args)

    monkeypatch.setattr(run, "compute_cell", interrupted)
    code, _, err = mechdiff(*asked(pair, tmp_path / "run"), "--measures", "divergence,patching")
    assert code == 130
    assert "same command goes on" in " ".join(err.split())
    assert len(list(tmp_path.glob("run/cells/[0-9a-f]*/cell.json"))) == 3


@pytest.mark.ci
def test_ctrl_c_keeps_what_is_finished_and_says_so(pair: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    asked = ["--base", pair / "base", "--tuned", pair / "tuned", "--prompts", pair / "prompts.jsonl", "--out", out]
    asked += ["--measures", "divergence,patching"]
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from mechdiff.cli.main import main; main()"  # as from a shell
    child = subprocess.Popen([sys.executable, "-c", code, "run", *map(str, asked)], stderr=subprocess.PIPE, text=True)
    while child.poll() is None and len(list(out.glob("cells/[0-9a-f]*/cell.json"))) < 3:
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate()
    assert child.returncode == 130
    assert "same command goes on" in err
    assert len(list(out.glob("cells/[0-9a-f]*/cell.json"))) >= 3


def test_help_is_quick() -> None:
    code = "import sys; import mechdiff.cli.main; sys.exit(bool({'torch', 'polars', 'transformers', 'altair'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- bad input: exit code, and what the message must say


@pytest.fixture
def broken(pair: Path, tmp_path: Path) -> Path:
    """A folder of files that are wrong, each in its own way."""
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "malformed.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    (tmp_path / "twice.jsonl").write_text('{"id": "a", "text": "one"}\n{"id": "a", "text": "two"}\n')
    long = {"id": "long", "text": "x" * 200}
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(p) + "\n" for p in (long, {"text": "short one"}, {"text": "short two"})))
    (tmp_path / "no_config").mkdir()
    shutil.copytree(pair / "base", tmp_path / "no_template")
    for name in ("chat_template.jinja",):
        (tmp_path / "no_template" / name).unlink(missing_ok=True)
    settings = json.loads((tmp_path / "no_template" / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (tmp_path / "no_template" / "tokenizer_config.json").write_text(json.dumps(settings))
    shutil.copytree(pair / "base", tmp_path / "unknown")
    config = json.loads((tmp_path / "unknown" / "config.json").read_text())
    (tmp_path / "unknown" / "config.json").write_text(json.dumps({**config, "model_type": "hrm_text"}))
    (tmp_path / "study.yaml").write_text(f"pair: {{base: {pair / 'base'}, tuned: {pair / 'tuned'}}}\nprompts: {{flie: x.jsonl}}\n")
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied" / "thesis.tex").write_text("do not touch")
    return tmp_path


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"--base": "no/such/model/here"}, ["no such model"]),
        ({"--base": "no_config"}, ["config.json"]),
        ({"--tuned": "unknown"}, ["hrm_text", "llama", "gpt2"]),
        ({"--tuned": "no_template", "--policy": "same_text"}, ["template", "raw"]),
        ({"--prompts": "absent.jsonl"}, ["absent.jsonl"]),
        ({"--prompts": "empty.jsonl"}, ["empty"]),
        ({"--prompts": "malformed.jsonl"}, ["malformed.jsonl", "2"]),
        ({"--prompts": "twice.jsonl"}, ["'a'"]),
        ({"--prompts": "long.jsonl"}, ["long", "128"]),
        ({"--measures": "patchin"}, ["patching"]),
        ({"--dtype": "float31"}, ["float32"]),
        ({"--device": "cuda:7"}, ["CUDA"]),
        ({"--out": "occupied"}, ["not empty"]),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_bad_input_gets_one_clear_message(changed: dict[str, str], said: list[str], pair: Path, broken: Path, mechdiff) -> None:
    if changed.get("--device") and __import__("torch").cuda.is_available():
        pytest.skip("there is a CUDA device here")
    asked = {"--base": pair / "base", "--tuned": pair / "tuned", "--prompts": pair / "prompts.jsonl", "--out": broken / "run"}
    asked |= {flag: broken / value if (broken / value).exists() else value for flag, value in changed.items()}
    code, out, err = mechdiff("run", *[word for pair_of in asked.items() for word in pair_of])
    assert code == (3 if "--device" in changed else 2), err
    assert not out.strip()
    assert err.count("error:") == 1
    assert "Traceback" not in err
    for word in said:
        assert word in err, err
    assert (broken / "occupied" / "thesis.tex").read_text() == "do not touch"


def test_an_unknown_key_is_named_with_the_nearest_known_one(broken: Path, mechdiff) -> None:
    code, _, err = mechdiff("run", broken / "study.yaml")
    assert code == 2
    assert "prompts.flie" in err
    assert "file" in err


@pytest.mark.parametrize(
    "flag", [("--base", "x"), ("--measures", "weights"), ("--seed", "3"), ("--dtype", "nf4"), ("--policy", "raw"), ("--panel", "full")]
)
@pytest.mark.parametrize("verb", ["run", "plan"])
def test_a_file_and_what_a_file_says_are_refused_together(verb: str, flag: tuple[str, str], broken: Path, mechdiff) -> None:
    code, _, err = mechdiff(verb, broken / "study.yaml", *flag)
    assert code == 2
    assert f"and also {flag[0]}. A study says all of that" in err
    if verb == "run":
        assert mechdiff(verb, broken / "study.yaml", broken / "other.yaml", *flag)[2].count(f"also {flag[0]}") == 1


def test_flags_ask_for_more_of_the_panel_and_for_a_users_own_file(tmp_path: Path) -> None:
    given = dict.fromkeys(("base", "tuned", "policy", "template"), "x") | {"prompts": "What is 2+2?", "seed": 0, "dtype": "auto"}
    given |= {"policy": "auto", "template": "tuned"}
    study = study_of(None, Flags(**given, measures=None, panel="full", also=tmp_path / "own.jsonl"))
    assert list(study.measures) == list(OPTIONS)
    assert study.measures["panel"].model_dump() == {"per_group": 50, "also": str(tmp_path / "own.jsonl")}
    study = study_of(None, Flags(**given, measures="weights", panel="quick", also=None))
    assert list(study.measures) == ["weights", "panel"]


def test_two_models_are_a_pair_and_their_prompts_are_whatever_is_given(tmp_path: Path) -> None:
    flags = Flags(
        base=None,
        tuned=None,
        prompts="What is 2+2?",
        policy="auto",
        template="tuned",
        measures=None,
        panel=None,
        also=None,
        seed=0,
        dtype="auto",
    )
    (study,) = studies_of(["BASE", "TUNED"], flags).values()
    assert (study.pair.base, study.pair.tuned, study.prompts.policy) == ("BASE", "TUNED", "auto")
    assert "What is 2+2?" in Path(study.prompts.file).read_text(encoding="utf-8")
    (shipped,) = studies_of(["BASE", "TUNED"], replace(flags, prompts=None)).values()
    assert set(shipped.prompts.sources()) == {"fit", "select", "report"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "no pair is given. Use: mechdiff run BASE TUNED"),
        (["BASE"], "given BASE, expected two models"),
        (["BASE", "TUNED", "OTHER"], "expected two models"),
        (["study.yaml", "TUNED"], "expected two models"),
        (["BASE", "TUNED", "--base", "x"], "name each model once"),
        (["BASE", "TUNED", "--prompts", "prompts"], "given 'prompts', expected a file"),
    ],
)
@pytest.mark.parametrize("verb", ["run", "plan"])
def test_what_is_no_pair_and_no_study_is_said_with_what_is(verb: str, given: list[str], said: str, mechdiff) -> None:
    code, _, err = mechdiff(verb, *given)
    assert code == 2
    assert said in " ".join(err.split())


@pytest.mark.parametrize("given", [{"seed": 3}, {"dtype": "nf4"}, {"measures": ["weights"]}, {"tuned": "x", "base": "y"}])
def test_the_same_in_python(given: dict[str, Any], broken: Path) -> None:
    with pytest.raises(StudyError, match=f"study.yaml and also {', '.join(sorted(given))}"):
        api.run(broken / "study.yaml", **given)


@pytest.mark.ci
def test_a_full_disk_is_said_and_nothing_is_lost(pair: Path, tmp_path: Path) -> None:
    """A file-size limit stands in for the full disk: the write fails, the message says so, the same command goes on."""
    study = tmp_path / "study.yaml"
    few = "[divergence, {patching: {sites: [resid_post], arms: [identity]}}]"
    study.write_text(
        f"pair: {{base: {pair / 'base'}, tuned: {pair / 'tuned'}}}\nprompts: {{file: {pair / 'prompts.jsonl'}}}\nmeasures: {few}\n"
    )
    command = [sys.executable, "-m", "mechdiff.cli.main", "run", str(study), "--out", str(tmp_path / "run")]
    code = "import resource, sys, os; resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)); os.execv(sys.argv[1], sys.argv[1:])"
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    full = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False, env=environment)
    assert full.returncode == 3, full.stderr
    assert "error:" in full.stderr
    assert "Traceback" not in full.stderr
    assert subprocess.run(command, capture_output=True, text=True, check=False).returncode == 0
