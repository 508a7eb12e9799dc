"""docs/STUDY.md names options, sections and rows that there are, numbers of the pages that it links to, and studies that can be planned in full."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from mechdiff import api, demo
from mechdiff.cli import main as cli
from mechdiff.errors import StudyError
from mechdiff.labels import CROSSED, MAPS, PATCHES, WITHIN
from mechdiff.measures.catalogue import CHAPTERS, EXPERIMENTS, NUMBERS, load_study, make_study
from mechdiff.measures.heads.coverage import Whole, coverage
from mechdiff.report.parts import Run
from mechdiff.rows import empty
from mechdiff.statistics import summary as statistics_summary
from mechdiff.study.estimate import Machine, estimate
from prototype.test_faults_of_heads import PUBLISHED, PUBLISHED_ALL

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "STUDY.md").read_text()
FAULTS = (ROOT / "docs" / "FAULTS.md").read_text().partition("# Mechdiff's own faults")[0]
SOURCE = "\n".join(path.read_text() for path in sorted((ROOT / "src" / "mechdiff").rglob("*.py")))
QUESTION = "| table, figure or claim |"
STUDIES = sorted((ROOT / "studies").glob("rq*.yaml"))


def tables(text: str) -> list[list[list[str]]]:
    """The cells of each Markdown table, its header first."""
    found = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return [[[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.rstrip("\n").split("\n")] for table in found]


LINES = [line for table in tables(PAGE) if f"| {table[0][0]}" == QUESTION.rstrip(" |") for line in table[2:]]
NAMES = [f"{number}: {line[0][:50]}" for number, line in enumerate(LINES)]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def options(text: str) -> dict:
    """A study that asks for nothing but what stands in one quoted piece of the column `made by`."""
    pair = {"base": "base", "tuned": "tuned"}
    return {"pair": pair, "prompts": {"report": "report.jsonl"}, "measures": [yaml.safe_load(text)]}


def test_every_question_has_its_table() -> None:
    assert PAGE.count(QUESTION) == 4
    assert len(LINES) > 40
    assert {len(line) for line in LINES} == {6}


@pytest.mark.parametrize("line", LINES, ids=NAMES)
def test_what_makes_it_can_be_asked_for(line: list[str]) -> None:
    verbs = {command.name or command.callback.__name__ for command in cli.app.registered_commands if command.callback}
    made_by = quoted(line[1])
    assert made_by
    for text in made_by:
        if text.startswith("mechdiff "):
            assert text.split()[1] in verbs
        else:
            make_study(options(text))


def test_an_option_that_is_not_there_would_be_found() -> None:
    with pytest.raises(StudyError, match="unknown key"):
        make_study(options("transport: {ranks: [1, 8]}"))


def titles() -> set[str]:
    """Of every section of a page, also of what was not measured."""
    nothing = Run(rows=empty(), summary=statistics_summary.summarise(empty(), NUMBERS), manifest={})
    return {section(nothing).title for chapter in CHAPTERS.values() for section in chapter.sections}


def test_sections_have_the_titles_that_are_named() -> None:
    known = titles()
    for line in LINES:
        named = re.findall(r"“([^”]+)”", line[2])
        assert named or line[2] == "[COMPARE.md](COMPARE.md)", line[2]
        assert set(named) <= known


@pytest.mark.parametrize("line", LINES, ids=NAMES)
def test_rows_are_those_of_their_measure(line: list[str]) -> None:
    asked = {next(iter(one)) if isinstance(one := yaml.safe_load(text), dict) else one for text in quoted(line[1])}
    named = quoted(line[3])
    assert named
    for text in named:
        if "=" in text:
            column, _, value = text.partition("=")
            known = {"arm": (*PATCHES, *MAPS), "direction": (*CROSSED, *WITHIN)}.get(column, ())
            assert column in ("arm", "control", "direction")
            assert value in known or f'"{value}"' in SOURCE or f'"{value}:' in SOURCE, text
        else:
            measure, _, metric = text.partition("/")
            assert metric in {one.name for one in NUMBERS[measure].metrics}, text
            assert measure in asked or any(text.startswith("mechdiff ") for text in quoted(line[1])), f"{text}: {asked}"


def missing(here: str) -> list[str]:
    """Clauses of a cell whose numbers do not stand together in one paragraph, list item or table row of a page that the cell links to."""
    links = re.findall(r"\]\((\w+\.md)\)", here)
    assert links or here == "–", "a number has a page that carries it"
    pages = [(ROOT / "docs" / link).read_text().replace("−", "-") for link in links]
    places = [set(re.findall(NUMBER, place)) for page in pages for place in re.split(r"\n(?=[-|#\n])", page)]
    clauses = [re.sub(r"\(\[.*?\]\(.*?\)\)", "", clause) for clause in here.split(";")]
    return [clause for clause in clauses if not any(set(re.findall(NUMBER, clause)) <= place for place in places or [set()])]


NUMBER = r"\d+(?:\.\d+)?"


@pytest.mark.parametrize("line", LINES, ids=NAMES)
def test_a_number_of_the_embedded_pairs_stands_on_the_page_that_is_linked(line: list[str]) -> None:
    assert missing(line[5]) == []


def test_a_number_that_is_not_there_would_be_found() -> None:
    assert missing("breakage 0.23, recovery 0.49 (*kazakh*) ([log](LOG.md))") != []


def test_faults_that_are_named_are_listed() -> None:
    named = set(re.findall(r"\bA\d+\b", PAGE))
    assert len(named) > 15
    assert named <= set(re.findall(r"^\| (A\d+) \|", FAULTS, re.MULTILINE))


def test_coverage_and_its_inverse_are_of_the_published_nats() -> None:
    [table] = [table for table in tables(PAGE) if table[0][0] == "heads"]
    assert f"{PUBLISHED_ALL} nats" in PAGE
    heads = {tuple(range(8)) if line[0] == "0 to 7" else tuple(map(int, line[0].split(", "))): line for line in table[2:]}
    assert set(heads) == set(PUBLISHED)
    for chosen, (_, nats, right, inverted, published) in heads.items():
        assert float(nats) == PUBLISHED[chosen][0]
        [share] = coverage(np.full((4, 1), float(nats)), Whole(values=np.full(4, PUBLISHED_ALL))).share
        digits = len(right.removesuffix(" %").partition(".")[2])
        assert right == f"{100 * share:.{digits}f} %"
        assert inverted == f"{100 * (1 - share):.2f} %"
        if published != "–":
            assert float(published.removeprefix("≈ ").removesuffix(" %")) == pytest.approx(100 * (1 - share), abs=0.06)


# ---- the study files -------------------------------------------------------------------------------------------------------------------

UNGRAFTED = "grafts while texts are scored"
LEFT_OUT = {"rq1_cultural": [UNGRAFTED]}
"""What a study says that it leaves out: a model with another vocabulary takes no weights of the base's."""


def test_there_is_a_study_for_each_question_and_pair() -> None:
    assert [path.stem for path in STUDIES] == [f"rq{number}_{pair}" for number in range(1, 5) for pair in ("cognitive", "cultural")]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_is_planned_with_every_measure_that_it_asks_for(path: Path) -> None:
    study, _ = load_study(path)
    found = estimate(study, EXPERIMENTS, machine=Machine(name="a test", flops=1e12, seconds_a_logit=0, bytes_a_second=1e12, fixed=0))
    assert "shape" in found.sizes_from
    assert [one["what"] for one in found.skipped] == LEFT_OUT.get(path.stem, [])
    planned = set(found.stages)
    for measure in study.measures:
        own = {stage.name for stage in EXPERIMENTS[measure].stages}
        assert own & planned, f"{measure} has no cell"


EMBEDDED = {"cultural": "kazakh", "cognitive": "arithmetic"}


@pytest.mark.slow
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_runs_on_the_embedded_pair_of_its_kind(path: Path, tmp_path: Path) -> None:
    """Its layers (or the last but one, where the small model has none so high), few prompts and few draws: a page, and rows of every measure."""
    said = yaml.safe_load(path.read_text())
    said["pair"] = {"base": str(demo.embedded_model()), "tuned": str(demo.DATA / "adapters" / EMBEDDED[path.stem.partition("_")[2]])}
    said["prompts"] = {**said["prompts"], "template": "tuned", "at_most": {"fit": 8, "select": 4, "report": 6}}
    said |= {"dtype": "float32", "measures": [few(one) for one in said["measures"]]}
    study = make_study(said, name=path.stem, folder=path.parent)
    run = api.run(study, out=tmp_path / path.stem)
    assert (run.path / "report.html").is_file()
    assert set(run.rows()["measure"]) >= set(study.measures)
    assert run.manifest()["skipped"] == []


def few(measure: str | dict) -> dict:
    (name, asked) = (measure, {}) if isinstance(measure, str) else next(iter(measure.items()))
    layers = {key: sorted({min(layer, 28) for layer in asked[key]}) for key in ("layers", "closer") if key in asked}
    cuts = {"cuts": [1, 4, "full"]} if "cuts" in asked else {}  # eight fit prompts span seven components
    return {name: {**asked, **EXPERIMENTS[name].few, **layers, **cuts}}
