"""What the README shows can be done as it stands there."""

import re
from pathlib import Path

import pytest
import yaml

from mechdiff import cli
from mechdiff.measures.catalogue import make_study

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_block_runs(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text((pair / "prompts.jsonl").read_text())
    (code,) = blocks("python")
    scope: dict[str, object] = {}
    exec(code.replace("BASE", str(pair / "base")).replace("TUNED", str(pair / "tuned")), scope)
    assert "kl_tuned_base_nats" in str(scope["run"].summary()["metric"].to_list())  # type: ignore[attr-defined]
    assert "shape:" in capsys.readouterr().out
    assert (scope["run"].path / "report.html").is_file()  # type: ignore[attr-defined]
    assert callable(scope["run"].report), "it builds this page once more"  # type: ignore[attr-defined]


def test_the_study_file_is_one() -> None:
    for text in blocks("yaml"):
        make_study(yaml.safe_load(text))


def test_every_verb_and_target_that_is_named_exists() -> None:
    verbs = {command.name or command.callback.__name__ for command in cli.app.registered_commands if command.callback}
    assert set(re.findall(r"(?:^|· )mechdiff ([a-z]+)", "\n".join(blocks("bash") + blocks("")), re.MULTILINE)) <= verbs
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    for target in re.findall(r"^make ([\w-]+)", "\n".join(blocks("bash")), re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_code_comes_within_the_first_35_lines() -> None:
    assert "```" in "\n".join(README.splitlines()[:35])
