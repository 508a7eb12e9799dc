"""What the README and the pages on use show can be done as it stands there."""

import re
from pathlib import Path

import pytest
import yaml

from mechdiff.cli import main as cli
from mechdiff.measures.catalogue import MEASURES, make_study

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [README, *((ROOT / "docs" / name).read_text() for name in ("USAGE.md", "STUDIES.md")), (ROOT / "CONTRIBUTING.md").read_text()]


def blocks(language: str, pages: list[str] = PAGES) -> list[str]:
    return [block for page in pages for block in re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)]


@pytest.mark.parametrize("measures", ["divergence, patching", pytest.param("all of them", marks=pytest.mark.slow)])
def test_the_python_block_runs(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], measures: str
) -> None:
    monkeypatch.chdir(tmp_path)
    few = (pair / "prompts.jsonl").read_text().splitlines(keepends=True)[:9]
    (tmp_path / "prompts.jsonl").write_text("".join(few))
    (code,) = blocks("python", [README])
    if measures != "all of them":
        code = code.replace('"prompts.jsonl"', f'"prompts.jsonl", measures={measures.split(", ")}')
    scope: dict[str, object] = {}
    exec(code.replace("BASE", str(pair / "base")).replace("TUNED", str(pair / "tuned")), scope)
    assert "kl_tuned_base_nats" in str(scope["run"].summary()["metric"].to_list())  # type: ignore[attr-defined]
    assert "shape:" in capsys.readouterr().out
    assert (scope["run"].path / "report.html").is_file()  # type: ignore[attr-defined]
    assert callable(scope["run"].report), "it builds this page once more"  # type: ignore[attr-defined]


def test_the_study_file_is_one_and_asks_everything() -> None:
    (text,) = blocks("yaml")
    study = yaml.safe_load(text)
    make_study(study)
    assert [measure if isinstance(measure, str) else next(iter(measure)) for measure in study["measures"]] == [one.name for one in MEASURES]


def test_the_table_asks_what_the_measures_ask() -> None:
    rows = re.findall(r"^\| (.+?) \| `(\w+)` \|", README, re.MULTILINE)
    assert rows == [(one.question, one.name) for one in MEASURES]


def test_every_verb_and_target_that_is_named_exists() -> None:
    verbs = {command.name or command.callback.__name__ for command in cli.app.registered_commands if command.callback}
    assert set(re.findall(r"(?:^|· )mechdiff ([a-z]+)", "\n".join(blocks("bash") + blocks("")), re.MULTILINE)) <= verbs
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([\w-]+)", "\n".join(blocks("bash")), re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_what_the_pages_link_to_exists() -> None:
    for folder, names in (
        (ROOT, ("README.md", "CONTRIBUTING.md")),
        (ROOT / "docs", ("USAGE.md", "STUDIES.md", "STUDY.md", "ARCHITECTURE.md", "MAP.md")),
    ):
        for name in names:
            for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", (folder / name).read_text()):
                assert link.startswith("https://") or (folder / link).exists(), f"{name} links to {link}"


def test_code_comes_within_the_first_35_lines() -> None:
    assert "```" in "\n".join(README.splitlines()[:35])
