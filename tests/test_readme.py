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
def test_the_python_block_runs(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measures: str) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python", [README])
    if measures != "all of them":
        code = code.replace(' river."]', f' river."], measures={measures.split(", ")}')
    scope: dict[str, object] = {}
    exec(code.replace("BASE", str(pair / "base")).replace("TUNED", str(pair / "tuned")), scope)
    assert "kl_tuned_base_nats" in str(scope["run"].summary()["metric"].to_list())  # type: ignore[attr-defined]
    assert scope["run"].results["question"][0] == "how_much"  # type: ignore[attr-defined]
    assert (tmp_path / "figure1.pdf").read_bytes().startswith(b"%PDF")
    assert (scope["run"].path / "report.html").is_file()  # type: ignore[attr-defined]
    assert callable(scope["run"].report), "it builds this page once more"  # type: ignore[attr-defined]


def test_the_study_file_is_one_and_asks_everything() -> None:
    (text,) = blocks("yaml")
    study = yaml.safe_load(text)
    make_study(study)
    assert [measure if isinstance(measure, str) else next(iter(measure)) for measure in study["measures"]] == [one.name for one in MEASURES]


def test_the_table_asks_what_the_measures_ask() -> None:
    table = (ROOT / "docs" / "measures" / "index.md").read_text()
    rows = re.findall(r"^\| (.+?) \| \[`(\w+)`\]", table, re.MULTILINE)
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
        (
            ROOT / "docs",
            ("USAGE.md", "STUDIES.md", "STUDY.md", "ARCHITECTURE.md", "MAP.md", "start/index.md", "start/first-page.md", "start/faq.md"),
        ),
        (ROOT / "docs", ("tutorials/index.md", "measures/index.md")),
    ):
        for name in names:
            for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", (folder / name).read_text()):
                assert link.startswith("https://") or ((folder / name).parent / link).exists(), f"{name} links to {link}"


def test_the_readme_is_one_screen_of_text_with_one_picture() -> None:
    assert len(README.splitlines()) <= 80
    (picture,) = re.findall(r"!\[[^\]]{20,}\]\(([^)]+\.png)\)", README)
    assert (ROOT / picture).stat().st_size < 150_000


def test_code_comes_within_the_first_35_lines() -> None:
    assert "```" in "\n".join(README.splitlines()[:35])
