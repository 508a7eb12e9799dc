"""The reference of the site has every public name: of Python, of the command line, of study files and of tables."""

import inspect
import re
from collections.abc import Callable, Iterator

import pytest
import yaml
from typer.models import ArgumentInfo

import mechdiff
from docsite import hooks, measure_pages, reference
from docsite.source_comments import in_text
from mechdiff import glossary
from mechdiff.cli.main import app
from mechdiff.measures.catalogue import MEASURES, NUMBERS, OPTIONS, make_study
from mechdiff.rows import rows
from mechdiff.statistics.summary import summarise
from mechdiff.study import config
from mechdiff.study.config import study_yaml

VERBS = {
    command.name or command.callback.__name__.replace("_", "-"): command.callback for command in app.registered_commands if command.callback
}


def parts(page: str, head: str = "") -> dict[str, str]:
    """What stands under each heading of the second level, by the heading."""
    return dict(re.findall(rf"^## {head}(.+?)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))


def meanings(part: str) -> dict[str, str]:
    """Key -> what its row says in the last column."""
    lines = [line for line in part.splitlines() if re.match(r"\| `\w+` ", line)]
    return {line.split("`")[1]: line.rsplit(" | ", 1)[1].removesuffix(" |").removesuffix("|").strip() for line in lines}


def test_every_public_name_of_python_is_there_with_what_it_says() -> None:
    page = reference.python()
    for name in mechdiff.__all__:
        assert f"\n## mechdiff.{name}\n" in page
        said = inspect.getdoc(getattr(mechdiff, name)) or ""
        assert said.split("\n")[0] in page, f"{name}: its first line"
        assert len(said) > 20, f"{name} has no docstring"
    for name, member in vars(mechdiff.Run).items():
        if not name.startswith("_") and (callable(member) or isinstance(member, property)):
            assert f"\n### Run.{name}\n" in page


@pytest.fixture(scope="module")
def commands() -> dict[str, str]:
    return parts(reference.command_line(), "mechdiff ")


def told(function: Callable[..., object]) -> Iterator[tuple[str, str]]:
    """(name, help) of each option and argument of a verb, from its signature."""
    for name, parameter in inspect.signature(function).parameters.items():
        given = next(one for one in parameter.annotation.__metadata__ if hasattr(one, "help"))
        if isinstance(given, ArgumentInfo):
            yield given.metavar or name.upper(), given.help or ""
        else:
            written = [one for one in (given.default, *(given.param_decls or ())) if isinstance(one, str) and one.startswith("-")]
            for flag in written or [f"--{name.replace('_', '-')}"]:
                yield flag.split("/")[0], given.help or ""


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_a_verb_is_there_with_its_meaning(verb: str, commands: dict[str, str]) -> None:
    lines = re.findall(r"^\| (?!name|---)(.+) \|$", commands[verb], re.MULTILINE)
    for name, meaning in told(VERBS[verb]):
        assert meaning, f"{verb} {name} has no help"
        assert any(
            re.search(rf"`(?:.*, )?{re.escape(reference.cell(name))}(?:,.*)?`", line) and reference.cell(meaning) in line for line in lines
        ), f"{verb} {name}"


def test_no_verb_is_missing_and_none_is_invented(commands: dict[str, str]) -> None:
    assert sorted(commands) == sorted(VERBS)


def test_every_key_of_a_study_that_is_written_out_is_there_with_its_meaning() -> None:
    page = parts(reference.study_files())
    full = yaml.safe_load(study_yaml(make_study({"pair": {"base": "B", "tuned": "T"}, "prompts": {"file": "p.jsonl"}})))
    assert set(full) <= set(meanings(page["The study"]))
    for section in ("pair", "prompts", "answers"):
        assert set(full[section]) <= set(meanings(page[section]))
    for measure in full["measures"]:
        ((name, options),) = measure.items()
        assert set(options) <= set(meanings(page[f"measures: {name}"])), name
    assert set(config.Shape.model_fields) == set(meanings(page["pair.shape"]))
    assert {f"measures: {name}" for name in OPTIONS} <= set(page)
    silent = [f"{section}.{key}" for section, part in page.items() for key, meaning in meanings(part).items() if not meaning]
    assert silent == [], "keys that say nothing of themselves: they want a comment behind the field in plan.py or config.py"


def test_every_column_of_a_run_s_tables_is_there_with_its_meaning() -> None:
    there = meanings(reference.tables())
    made = rows([1.0, 2.0], measure="divergence", split="report", prompt=["a", "b"], metric="kl_tuned_base_nats")
    assert {*made.columns, *summarise(made, NUMBERS).columns} == set(there)
    assert all(there.values()), there


def test_every_measure_has_a_page_with_its_formula_figures_metrics_and_options() -> None:
    pages = measure_pages.pages()
    assert set(pages) == {f"measures/{one.name}.md" for one in MEASURES}
    for one in MEASURES:
        page = pages[f"measures/{one.name}.md"]
        assert one.question in page
        assert "misleads" in page
        assert all(f"| `{option}` |" in page for option in one.experiment.options.model_fields)
        if one.chapter.reading:
            macros = re.findall(r"macro (\w+)\(", one.chapter.reading.read_text())
            assert sum(f"### {name}\n" in page for name in macros) >= len(macros) - 2, "figures with something to fill in are few"


def test_no_retired_word_is_on_a_page_that_is_made() -> None:
    for place, page in hooks.made().items():
        if not place.startswith(("changelog", "contributing")):
            text = re.sub(r"```.*?```|`[^`\n]*`|\]\([^)]*\)|^    .*?$", "", page, flags=re.DOTALL | re.MULTILINE)
            assert [f"{place}: {was!r} is retired: {now}" for was, now in glossary.retired(text)] == []


def test_a_page_s_links_stay_on_the_site() -> None:
    inside = hooks.inside
    assert inside("[a](../src/mechdiff/api.py) and [b](USAGE.md#x)", "MAP.md") == "a and [b](USAGE.md#x)"
    assert inside("[how](../../CONTRIBUTING.md#size)", "start/faq.md") == "[how](../contributing.md#size)"
    assert inside("[x](../../src/mechdiff/measures/rank/formula.py)", "measures/index.md") == "[x](rank.md)"
    assert inside("[x](lora.ipynb)", "tutorials/index.md") == "[x](lora.md)"
    assert inside("[x](lora.ipynb)", "tutorials/lora.md") == "[x](lora.ipynb)"
    assert (
        hooks.from_root("[x](docs/start/index.md) ![y](docs/img/a.png) [z](LICENSE)")
        == "[x](start/index.md) ![y](img/a.png) [z](../LICENSE)"
    )


def test_comments_behind_fields_are_read() -> None:
    source = (
        'class A:\n    a: int = 1  # one\n    b: int = (\n        2  # two\n    )\n    c: str = "#"\n    """Three."""\n    d: int = 4\n'
    )
    assert in_text(source) == {"a": "one", "b": "two", "c": "Three.", "d": ""}
    assert in_text('S: dict = {\n    "x": 1,  # an x\n    "y": 2,\n}\n') == {"x": "an x"}
