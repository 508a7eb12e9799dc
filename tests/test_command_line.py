"""The command line beside its neighbours': help, examples, exit codes, JSON, gates, plain progress, and where runs lie."""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import webbrowser
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console

from mechdiff import __version__, api, progress
from mechdiff.cli import folders, gates, help
from mechdiff.cli import main as cli
from mechdiff.cli.flags import KEYS, PANELS
from mechdiff.errors import MachineError, MechdiffError, SelfCheckError, StudyError
from mechdiff.store.tables import Status

TOP: Any = typer.main.get_command(cli.app)
VERBS: dict[str, Any] = TOP.commands
EXAMPLES = [(name, example) for name, command in VERBS.items() for example in help.divided(command.help)[1]]


@pytest.fixture
def mechdiff(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mechdiff", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return call


@pytest.fixture
def finished(every_measure: Path, tmp_path: Path) -> Path:
    """A finished run that a test may change."""
    copy = Path(shutil.copytree(every_measure / "run", tmp_path / "runs" / "one", ignore=shutil.ignore_patterns("maps", "steering")))
    (copy / "report.html").write_text("<title>mechdiff</title>")
    return copy


# ---- help


@pytest.mark.parametrize(("verb", "example"), EXAMPLES, ids=lambda value: value)
def test_every_example_can_be_parsed(verb: str, example: str) -> None:
    program, named, *words = shlex.split(example.partition(" > ")[0])
    assert (program, named) == ("mechdiff", verb)
    VERBS[verb].make_context(verb, words)


def test_every_verb_has_an_example_a_panel_and_a_first_sentence() -> None:
    for name, command in VERBS.items():
        sentences, examples = help.divided(command.help)
        assert examples, name
        assert sentences[0].endswith((".", "?")), name
        assert command.rich_help_panel in cli.VERBS, name
        for param in command.params:
            assert getattr(param, "rich_help_panel", None) in (None, *PANELS), (name, param.name)


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_has_both_flags_and_the_examples(verb: str, flag: str, mechdiff) -> None:
    code, out, err = mechdiff(*filter(None, [verb]), flag)
    assert (code, err) == (0, "")
    assert out.startswith("Usage: mechdiff")
    wanted = [example for name, example in EXAMPLES if name == verb] if verb else ["Start:", "Exit codes:", *VERBS]
    assert [one for one in wanted if one not in out] == []


def test_a_panel_of_help_holds_its_options(mechdiff) -> None:
    _, out, _ = mechdiff("run", "-h")
    panels = dict(re.findall(r"^(\w[\w ]*):\n((?:  .*\n|\n(?=  ))+)", out, re.MULTILINE))
    assert [name for name in PANELS if name not in panels] == []
    assert "--policy <auto|same_text|native|raw>" in panels["Input"]
    assert "--threads" in panels["Compute"]
    assert "--quiet" in panels["Output"]


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_the_version(flag: str, mechdiff) -> None:
    assert mechdiff(flag) == (0, f"mechdiff {__version__}\n", "")


def test_no_command_prints_help_and_is_wrong_use(mechdiff) -> None:
    code, out, err = mechdiff()
    assert (code, err) == (2, "")
    assert out.startswith("Usage: mechdiff")


def test_the_shell_completes_verbs_and_choices() -> None:
    def completed(words: str, place: int) -> list[str]:
        code = "from mechdiff.cli.main import main; main()"
        told = {"_MECHDIFF_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(place)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **told})
        return done.stdout.split()

    assert completed("mechdiff v", 1) == ["view", "verify", "validate"]
    assert completed("mechdiff run --policy ", 3) == ["auto", "same_text", "native", "raw"]


def test_help_imports_no_markdown_and_no_tables() -> None:
    """What rich's own help loads takes longer than all of mechdiff's."""
    code = "import sys; sys.argv = ['mechdiff', '--help']\nfrom mechdiff.cli.main import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "sys.exit(bool({'rich.markdown', 'rich.console', 'pygments', 'pydantic', 'numpy', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


# ---- exit codes, and what is said


@pytest.mark.parametrize(("error", "code"), [(StudyError, 2), (MachineError, 3), (SelfCheckError, 1), (ZeroDivisionError, 3)])
def test_an_error_has_its_exit_code(error: type[Exception], code: int, mechdiff, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: object) -> None:
        raise error("it is so")

    monkeypatch.setattr(api, "open_run", fails)
    found, out, err = mechdiff("report", "runs/one")
    assert (found, out) == (code, "")
    assert "it is so" in err
    assert ("Traceback" in err) == (not issubclass(error, MechdiffError))


def test_the_exit_codes_of_the_help_are_those_of_the_errors() -> None:
    assert [code for code, _ in help.EXIT_CODES] == ["0", "1", "2", "3", "130"]
    assert {one.exit_code for one in (MechdiffError, StudyError, MachineError, SelfCheckError)} == {1, 2, 3}
    usage = (Path(__file__).parents[1] / "docs" / "USAGE.md").read_text()
    assert [code for code, _ in help.EXIT_CODES if f"| {code} |" not in usage] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "BASE", "TUNED", "--policy", "rawish"], "Invalid value for '--policy': 'rawish' is not one of 'auto', 'same_text'"),
        (["run", "BASE", "TUNED", "--prompts", "absent.jsonl"], "absent.jsonl"),
        (["run", "BASE", "TUNED", "--prompts", "prompts"], "--prompts: given 'prompts', expected a file"),
        (["run", "BASE", "TUNED", "--measures", "patchin"], "--measures: given 'patchin', expected some of"),
        (["run", "BASE", "TUNED", "--policy", "raw", "--template", "base"], "error: prompts: given 'base', expected no template: policy raw"),
        (["run", "BASE", "TUNED", "--seed", "-1"], "--seed: given -1"),
        (["run", "BASE", "TUNED", "--workers", "2"], "--workers and --gpus-per-worker are of a Ray cluster"),
        (["run", "BASE", "TUNED", "--max-rows", "0"], "Invalid value for '--max-rows'"),
        (["run", "BASE", "TUNED", "--fail-on", "panel.chat.kl"], "--fail-on: given 'panel.chat.kl', expected NAME>NUMBER"),
        (["run", "BASE", "TUNED", "--measures", "weights", "--fail-on", "panel.kl>1"], "this study does not measure panel"),
        (["plan", "BASE", "TUNED", "--panel", "fulll"], "Invalid value for '--panel'"),
        (["show", "nowhere"], "nowhere: no such folder"),
        (["show"], "Missing argument 'run'"),
        (["verify", "nowhere"], "nowhere: no such folder"),
        (["view", "nowhere"], "`mechdiff ls` lists the runs"),
        (["ls", "nowhere"], "nowhere: no such folder"),
        (["status", "nowhere"], "no mechdiff run"),
        (["terms", "recovry"], "Did you mean recovery?"),
        (["curate", "absent.csv"], "absent.csv"),
        (["rnu"], "No such command 'rnu'. Did you mean 'run'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_wrong_use_is_2_and_names_what_was_typed(words: list[str], said: str, mechdiff) -> None:
    code, out, err = mechdiff(*words)
    assert (code, out) == (2, "")
    assert said in " ".join(err.split())
    assert err.count("error:") == 1
    assert "Traceback" not in err


def test_flags_are_named_for_keys_that_there_are() -> None:
    for verb in ("run", "plan"):
        known = {option for param in VERBS[verb].params for option in param.opts}
        assert {flag for flag in KEYS.values() if flag.startswith("--")} <= known | {"--threads", "--workers"}


def test_a_study_given_twice_is_run_once_and_said(finished: Path, mechdiff, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(api, "run", lambda study, **how: asked.append(study) or api.open_run(finished))
    code, out, err = mechdiff("run", finished / "study.yaml", finished / "study.yaml")
    assert code == 0
    assert len(asked) == 1
    assert f"given more than once, and run once: {finished / 'study.yaml'}" in " ".join(err.replace("\n", "").split())
    assert out.strip() == str(finished / "report.html")


# ---- runs


def test_ls_lists_runs_with_their_numbers(finished: Path, mechdiff) -> None:
    stopped = shutil.copytree(finished, finished.parent / "deep" / "er")
    (stopped / "manifest.json").unlink()
    broken = shutil.copytree(finished, finished.parent / "broken")
    (broken / "rows.parquet").write_bytes(b"PAR1")
    code, out, _ = mechdiff("ls", "runs", "--json")
    assert code == 0
    found = {Path(one["path"]).name: one for one in json.loads(out)["runs"]}
    assert {name: one["state"] for name, one in found.items()} == {"one": "finished", "er": "stopped", "broken": "damaged"}
    number = gates.measured(api.open_run(finished))["divergence.kl"]
    assert (found["one"]["d_nats"], found["one"]["n"]) == (number.value, number.n)
    assert found["one"]["bytes"] == sum(path.stat().st_size for path in finished.rglob("*") if path.is_file())
    assert "rows.parquet" in found["broken"]["said"]
    code, out, _ = mechdiff("ls")
    assert code == 0
    assert re.search(r"^one .* finished .*\d\.\d", out, re.MULTILINE)
    assert re.search(r"^deep/er .* stopped, \d+%", out.replace(" %", "%"), re.MULTILINE)


def test_view_prints_the_page_and_opens_it(finished: Path, mechdiff, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: bool(asked.append(address)) or True)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    code, out, err = mechdiff("view", finished)
    assert (code, out.strip()) == (0, str(finished / "report.html"))
    if sys.platform == "linux":
        assert asked == []
        assert "no browser can be opened here" in err
    monkeypatch.setenv("BROWSER", "firefox")
    assert mechdiff("view", finished)[0] == 0
    assert asked == [(finished / "report.html").resolve().as_uri()]
    (finished / "report.html").unlink()
    assert "Make it with: mechdiff report" in mechdiff("view", finished)[2]


def test_a_page_is_served_where_it_is_asked_for(finished: Path) -> None:
    from urllib.request import urlopen

    code = f"from mechdiff.cli.main import main; import sys; sys.argv = ['mechdiff', 'view', {str(finished)!r}, '--serve']; main()"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert child.stdout
        address = child.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/report\.html", address)
        assert urlopen(address).read() == (finished / "report.html").read_bytes()
    finally:
        child.terminate()
        child.wait()
        child.stdout.close() if child.stdout else None


def _status(state: str, share: float) -> Status:
    return Status(state=state, stages={"patching": (1, 2, 0.5)}, share=share, left=1.0, log=[])


def test_status_is_watched_until_the_run_ends(capsys: pytest.CaptureFixture[str]) -> None:
    from mechdiff.cli.printing_runs import watched

    seen = iter([_status("running", 0.1), _status("running", 0.101), _status("running", 0.5), _status("finished", 1.0)])
    slept: list[float] = []
    assert watched(lambda: next(seen), slept.append).state == "finished"
    said = capsys.readouterr().err
    assert len(slept) == 3
    assert [line.split(" of")[0].replace(" ", "") for line in said.splitlines()] == ["10%", "50%"]


@pytest.mark.parametrize(("state", "code"), [("finished", 0), ("stopped", 1)])
def test_a_run_that_died_fails_who_watches_it(state: str, code: int, finished: Path, mechdiff, monkeypatch: pytest.MonkeyPatch) -> None:
    from mechdiff.store import tables

    monkeypatch.setattr(tables, "read_status", lambda folder: _status(state, 0.7))
    assert mechdiff("status", finished, "--watch")[0] == code
    assert mechdiff("status", finished)[0] == 0
    found = json.loads(mechdiff("status", finished, "--json")[1])
    assert (found["state"], found["stages"]) == (state, [{"stage": "patching", "done": 1, "cells": 2, "seconds": 0.5}])


# ---- machine-readable


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (["show", "RUN"], {"base", "tuned", "tiles", "examples", "verdict"}),
        (["ls", "runs"], {"folder", "runs"}),
        (["status", "RUN"], {"state", "share", "seconds_left", "stages", "log", "page"}),
        (["terms", "recovery"], {"key", "found"}),
        pytest.param(["compare", "RUN", "OTHER"], {"runs", "differences", "verdict", "page"}, marks=pytest.mark.ci),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_json_is_one_object_in_one_form(words: list[str], keys: set[str], finished: Path, mechdiff) -> None:
    other = finished.parent / "other"
    if "OTHER" in words:
        shutil.copytree(finished, other)
    places = {"RUN": finished, "OTHER": other}
    code, out, _ = mechdiff(*(places.get(word, word) for word in words), "--json")
    found = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert code == 0
    assert list(found)[:3] == ["mechdiff", "verb", "schema"]
    assert (found["mechdiff"], found["verb"], found["schema"]) == (__version__, words[0], 1)
    assert keys <= found.keys()


def test_every_verb_that_says_it_has_json_is_documented() -> None:
    usage = (Path(__file__).parents[1] / "docs" / "USAGE.md").read_text()
    with_json = [name for name, command in VERBS.items() if any("--json" in param.opts for param in command.params)]
    assert len(with_json) >= 14
    assert [name for name in with_json if f"| `{name}` |" not in usage] == []


# ---- gates


def test_a_gate_compares_the_end_nearer_to_the_failure(finished: Path) -> None:
    run = api.open_run(finished)
    number = gates.measured(run)["divergence.kl"]
    assert number.low is not None
    assert number.high is not None
    assert number.low < number.value < number.high
    between = (number.value + number.high) / 2
    failed = {
        asked: one.failed
        for asked in (f"divergence.kl>{between}", f"divergence.kl.value>{between}", f"divergence.kl<{between}", f"divergence.kl.high<{between}",
                      f"divergence.kl.low>={number.low}", f"divergence.kl<={number.low}")
        for one in gates.checked(gates.gates_of([asked]), run)
    }  # fmt: skip
    assert list(failed.values()) == [True, False, True, False, True, True]


def test_the_number_of_a_gate_is_the_tiles(finished: Path) -> None:
    run = api.open_run(finished)
    numbers = gates.measured(run)
    shown = {n.value: (n.low, n.high, n.n) for tile in run.overview().tiles for n in tile.numbers}
    for name in ("divergence.kl", "panel.kl", "panel.top1_same"):
        one = numbers[name]
        assert shown[one.value] == (one.low, one.high, one.n), name
    assert numbers["panel.chat.kl"] == numbers[gates.gates_of(["panel.everyday.kl>1"])[0].name]


def test_gates_decide_the_exit_code(finished: Path, mechdiff) -> None:
    d = gates.measured(api.open_run(finished))["divergence.kl"].value
    code, out, _ = mechdiff("show", finished, "--fail-on", f"divergence.kl>{d / 10}", "--fail-on", f"divergence.kl>{d * 100}")
    assert code == 1
    assert re.search(r"FAIL  divergence\.kl>.*95 % interval .*n = \d+; the upper end .* is > ", out)
    assert re.search(r"pass  divergence\.kl>.* is not > ", out)
    assert mechdiff("show", finished, "--fail-on", f"divergence.kl>{d * 100}")[0] == 0
    told = json.loads(mechdiff("show", finished, "--json", "--fail-on", f"divergence.kl>{d * 100}")[1])
    assert [(one["failed"], one["compared"]) for one in told["gates"]] == [(False, "high")]


def test_what_was_not_measured_fails_and_what_there_is_not_is_listed(finished: Path, mechdiff) -> None:
    run = api.open_run(finished)
    absent = next(name for name in ("routing", "chat_template") if name not in run.rows()["measure"].unique().to_list())
    code, out, _ = mechdiff("show", finished, "--fail-on", f"{absent}.kl>1")
    assert code == 1
    assert f"FAIL  {absent}.kl>1: not measured in this run" in out
    code, _, err = mechdiff("show", finished, "--fail-on", "divergence.kll>1")
    assert code == 2
    assert "has no divergence.kll. Did you mean divergence.kl? It has: divergence." in " ".join(err.split())


def test_an_undefined_number_fails() -> None:
    (gate,) = gates.gates_of(["divergence.kl>1"])
    nothing = gates.Measured(value=float("nan"), low=None, high=None, n=3)
    assert gates._checked(gate, {"divergence.kl": nothing}, {"divergence"}).failed
    few = gates._checked(gate, {"divergence.kl": gates.Measured(value=0.5, low=None, high=None, n=3)}, {"divergence"})
    assert (few.failed, few.compared) == (False, "value")
    assert "no interval: too few prompts" in few.said


# ---- progress


def test_progress_without_a_terminal_is_a_line_a_stage_and_no_control_code() -> None:
    out, now = io.StringIO(), iter([0.0, *(float(n) for n in (1, 2, 3, 40, 41, 42)), 99.0])
    with progress.Lines(Console(file=out, width=200), clock=lambda: next(now)) as bar:
        task = bar.add_task("preparing", total=1.0)
        for what, share in (("capture base", 0.1), ("capture tuned", 0.2), ("capture tuned", 0.25), ("patching tuned<-base", 0.5)):
            bar.update(task, description=what, completed=share)
    text = out.getvalue()
    assert text.splitlines() == [
        "0:01  preparing",
        "0:02  10 %  capture base, about 0:18 left",
        "0:40  25 %  capture tuned, about 2:00 left",
        "0:41  50 %  patching tuned<-base, about 0:41 left",
    ]
    assert "\x1b" not in text
    assert "\r" not in text


def test_two_jobs_have_lines_of_their_own() -> None:
    out = io.StringIO()
    bar = progress.Lines(Console(file=out, width=200), clock=lambda: 0.0)
    for name in ("a", "b"):
        bar.update(bar.add_task(f"{name}: waiting"), description=f"{name}: patching one")
    assert [line.split("  ", 1)[1] for line in out.getvalue().splitlines()] == [
        "a: waiting",
        "a: patching one",
        "b: waiting",
        "b: patching one",
    ]


def test_quiet_leaves_results_and_errors(finished: Path, mechdiff) -> None:
    loud, quiet = mechdiff("view", finished), mechdiff("view", finished, "-q")
    assert quiet[:2] == loud[:2]
    assert loud[2]
    assert quiet[2] == ""
    assert "error:" in mechdiff("show", "nowhere", "-q")[2]


def test_folders_finds_pages_of_comparisons(tmp_path: Path) -> None:
    (tmp_path / "compare.html").write_text("")
    assert folders.page_of(tmp_path) == tmp_path / "compare.html"


@pytest.mark.parametrize(("verb", "said"), [("run", True), ("view", False)])
def test_an_interrupt_says_what_is_kept_where_something_is(verb: str, said: bool, mechdiff, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **how: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mechdiff.cli.folders.page_of", interrupted)
    monkeypatch.setattr("mechdiff.cli.study.studies_of", interrupted)
    code, out, err = mechdiff(verb, "somewhere")
    assert (code, out) == (130, "")
    assert ("same command goes on" in " ".join(err.split())) == said


def test_a_place_that_cannot_be_written_is_no_fault_of_mechdiff(mechdiff, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "open_run", lambda path: (_ for _ in ()).throw(NotADirectoryError(20, "Not a directory", "/dev/null/x")))
    code, _, err = mechdiff("report", "somewhere")
    assert code == 3
    assert " ".join(err.split()) == "error: /dev/null/x: cannot be read or written (Not a directory)"


def test_the_help_of_quick_says_how_many_prompts_are_kept() -> None:
    """It said eight where six were read."""
    from mechdiff.cli.flags import Quick
    from mechdiff.study.prepare import QUICK

    assert Quick.__metadata__[0].help == f"Only the first {QUICK} prompts of each split."
