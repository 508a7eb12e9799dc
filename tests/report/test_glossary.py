"""Words of the field on the page, in the terminal and in the documents: none that is retired, and each explained where it is first used."""

import re
from html import unescape
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mechdiff import glossary
from mechdiff.measures.catalogue import CHAPTERS
from mechdiff.report.glossed import glossed
from mechdiff.report.page import build_report

ROOT = Path(__file__).resolve().parents[2]
EXEMPT = {"LOG.md", "FAULTS.md", "MAP.md"}
"""What is history, and what is read from docstrings of the code."""
OURS = re.compile(r"<(script|style|pre|svg)\b.*?</\1>|<code>.*?</code>|<p class=\"(?:asked|said|tokens)\b.*?</p>", re.DOTALL)


def words_of(page: str) -> str:
    """The page's own words: no script, no key, no study file, nothing that a model or a prompt said."""
    page = re.sub(r'<section id="record".*?</section>', "", page, flags=re.DOTALL)
    page = page.replace("</p>", " ").replace("</td>", " | ").replace("</th>", " | ").replace("</li>", " ")
    return unescape(re.sub(r"<[^>]*>", "", OURS.sub(" ", page)))


def complaints(text: str) -> list[str]:
    return [f"{was!r} is retired: {now}" for was, now in glossary.retired(text)]


@pytest.mark.parametrize("name", ["full_run", "every_measure"])
def test_no_retired_word_is_on_a_page(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = request.getfixturevalue(name)
    if name == "every_measure":
        import shutil

        folder = Path(shutil.copytree(folder / "run", tmp_path / "run", ignore=shutil.ignore_patterns("cells", "maps", "steering")))
        build_report(folder, CHAPTERS)
    text = words_of((folder / "report.html").read_text())
    assert len(text) > 10_000
    assert complaints(text) == []


def test_no_retired_word_is_in_the_help() -> None:
    from mechdiff.cli.main import app

    names = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    said = " ".join(
        CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "400", "TERM": "dumb"}).output for name in ("", *names) if name
    )
    assert len(names) > 10
    assert complaints(" ".join(said.split())) == []


@pytest.mark.parametrize(
    "path", sorted({*ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"}), ids=lambda path: path.name
)
def test_no_retired_word_is_in_the_documents(path: Path) -> None:
    if path.name in EXEMPT:
        pytest.skip("history, or read from docstrings")
    assert complaints(re.sub(r"```.*?```|`[^`\n]*`|\]\([^)]*\)", "", path.read_text(), flags=re.DOTALL)) == []


def test_a_retired_word_is_found() -> None:
    """The patterns themselves: each finds what it retires, and lets the ordinary meanings pass."""
    found = {
        was
        for was, _ in glossary.retired("breakage 0.42 at L21.head 5, chosen on select; the base's state is written into it; 3 nats a token")
    }
    assert found == {"breakage", "L21.head 5", "on select", "base's state", "written into", "nats a token"}
    assert glossary.retired("The state of the art; by law; files are stored; what stands behind this claim; an armful") == [
        ("law", "distribution")
    ]


def test_each_word_is_explained_where_a_section_first_uses_it() -> None:
    page = (
        '<main><section id="a"><p class="lead">KL is in nats; KL again.</p><p class="said">KL</p><td>64 % [39, 84] (n\u00a0=\u00a08)</td></section>'
        '<section id="b"><figcaption>The <b>KL</b> of L3.head 1.</figcaption></section></main>'
    )
    made = glossed(page)
    assert made.count(">KL</dfn>") == 2, "once a section"
    assert '<p class="said">KL</p>' in made, "not what a model said"
    assert '<span class="few">[39, 84] (n\u00a0=\u00a08)</span>' in made
    assert "of L3H1." in made
    assert '<section id="glossary">' in made
    assert all(f'title="{word.means}"' in made for word in glossary.WORDS if word.name in ("KL", "nat"))


@pytest.mark.parametrize("word", glossary.WORDS, ids=lambda word: word.name)
def test_a_word_is_explained_in_one_sentence_without_retired_ones(word: glossary.Word) -> None:
    assert word.means[0].isupper()
    assert word.means.endswith(".")
    assert complaints(word.means) == []
    assert glossary.find(word.name) is word


def test_the_terminal_explains_words_and_says_what_retired_ones_are_now() -> None:
    from mechdiff.cli.main import app

    known = CliRunner().invoke(app, ["terms", "KL increase"])
    assert "noising: tests necessity" in " ".join(known.output.split())
    retired = CliRunner().invoke(app, ["terms", "breakage"])
    assert "now KL increase" in " ".join(retired.output.split())
