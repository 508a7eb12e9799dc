"""Every measure keeps the contract of its page: what it declares is there, all of it, and nothing else is."""

import ast
import contextlib
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

import mechdiff
from imports import KITS, modules, room, syntax
from mechdiff import shares
from mechdiff.comparison.compare import beside
from mechdiff.measures.catalogue import AGAIN, BETWEEN_RUNS, CHAPTERS, EXPERIMENTS, MEASURES, OPTIONS, load_study, make_study
from mechdiff.measures.measure import Later, Measure
from mechdiff.report import parts
from mechdiff.report.parts import Drawn, Run
from mechdiff.report.sections import all_sections
from mechdiff.rows import KEY, WITHOUT
from mechdiff.store.tables import read_rows
from mechdiff.study.config import study_yaml
from mechdiff.study.stages import stages_of

SOURCE = Path(mechdiff.__file__).parent
ROOT = SOURCE.parents[1]
NAMES = [one.name for one in MEASURES]
ROW_KITS = KITS[KITS.index("store") :]
"""Kits that handle rows. Those below have no rows, and formats of files have words like `weights` too."""
OTHER_PAIRS = re.compile("shared|outside|^spectral_norm_error$|^fisher_overlap_nats$")
"""Metrics of pairs with two vocabularies, of matrices too large for a whole spectrum, and of sites that a run of few draws does not steer."""
each = pytest.mark.parametrize("measure", MEASURES, ids=NAMES)


def places(value: Any) -> Iterator[Later]:
    """Every function that a page names as text."""
    if isinstance(value, Later):
        yield value
    elif is_dataclass(value) and not isinstance(value, type):
        for one in fields(value):
            yield from places(getattr(value, one.name))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from places(item)
    elif isinstance(value, dict):
        yield from places(list(value.values()))


@each
def test_a_page_declares_all_five_parts(measure: Measure) -> None:
    assert all((measure.experiment, measure.numbers, measure.chapter, measure.again))
    assert measure.question.endswith("?")
    assert (SOURCE / "measures" / measure.name / "measure.py").is_file()


@each
def test_every_function_that_a_page_names_is_there(measure: Measure) -> None:
    named = list(places(measure))
    assert named
    for one in named:
        assert callable(one.resolve()), one.place


@each
def test_a_page_can_be_sent_to_another_process(measure: Measure) -> None:
    assert pickle.loads(pickle.dumps(measure.experiment)) == measure.experiment


@each
def test_options_have_defaults_and_survive_a_study_file(measure: Measure, tmp_path: Path) -> None:
    for told in (measure.name, {measure.name: dict(measure.experiment.few)}):
        study = make_study({"pair": {"base": "a", "tuned": "b"}, "prompts": {"file": "p.jsonl"}, "measures": [told]}, folder=tmp_path)
        again = make_study(yaml.safe_load(study_yaml(study)), folder=tmp_path)
        assert again.measures == study.measures
        assert study.asked(OPTIONS[measure.name]) is not None


def test_stages_have_one_name_and_need_stages_that_there_are() -> None:
    stages = [stage for one in EXPERIMENTS.values() for stage in one.stages]
    names = [stage.name for stage in stages]
    assert len(names) == len(set(names))
    for stage in stages:
        for need in stage.needs:
            assert re.split("[@/]", need)[0] in {*names, *stages_of({})}, f"{stage.name} needs {need}"


@pytest.fixture
def run_of(measure: Measure, request: pytest.FixtureRequest) -> Path:
    """The folder of a run that has the measure's rows: of a mixture of experts where it takes one."""
    return Path(request.getfixturevalue("mixture" if measure.experiment.routers else "every_measure"))


@each
def test_every_stage_and_metric_of_a_page_is_in_a_run_of_every_measure(measure: Measure, run_of: Path) -> None:
    from mechdiff.study.config import RunOptions
    from mechdiff.study.prepare import prepare

    study, _ = load_study(run_of / "study.yaml")
    planned = {cell.stage for cell in prepare(study, RunOptions(device="cpu"), EXPERIMENTS).plan.cells}
    assert {stage.name for stage in measure.experiment.stages} <= planned
    rows = read_rows(run_of / "run").filter(pl.col("measure") == measure.name)
    declared = {metric.name for metric in measure.numbers.metrics}
    measured = {metric.removesuffix(WITHOUT) for metric in rows["metric"].unique()}
    assert measured <= declared
    assert not [name for name in declared - measured if not OTHER_PAIRS.search(name)]


@each
def test_a_run_without_its_rows_says_so_once_a_section(measure: Measure, run_of: Path) -> None:
    content = parts.load(run_of / "run")
    kept = {name: getattr(content, name).filter(pl.col("measure") != measure.name) for name in ("rows", "summary", "prompt_rows")}
    without = Run(**kept, manifest=content.manifest, prompts=content.prompts)
    tables = (without.rows, without.summary, without.manifest)
    for make in measure.chapter.sections:
        section = make(without)
        assert section.id.split(".")[0] == measure.name
        assert section.parts
        assert section.title == measure.question or make is not measure.chapter.sections[0], "the first section asks the measure's question"
        assert not [
            part for part in section.parts if isinstance(part, Drawn) and part.chart(*tables, width=700, **part.options) is not None
        ]


def test_sections_are_named_by_their_measure_and_figures_are_explained(every_measure: Path) -> None:
    content = parts.load(every_measure / "run")
    found = all_sections(content, CHAPTERS)
    assert {section.id.split(".")[0] for section in found} >= set(NAMES)
    assert len({section.id for section in found}) == len(found)
    readings = "".join(path.read_text(encoding="utf-8") for path in SOURCE.rglob("reading.html"))
    for drawn in (part for section in found for part in section.parts if isinstance(part, Drawn) and part.reading):
        assert re.search(rf"macro {drawn.reading}\b", readings), f"{drawn.name}: no reading {drawn.reading!r}"


def test_chapters_have_places_of_their_own_and_a_sentence_of_five() -> None:
    places_on_page = [chapter.place for chapter in CHAPTERS.values()]
    assert len(set(places_on_page)) == len(places_on_page)
    assert {chapter.clause_of for chapter in CHAPTERS.values()} <= {1, 2, 3, 4, 5}


@each
def test_rows_are_recomputed_or_it_is_said_why_not(measure: Measure, run_of: Path) -> None:
    from mechdiff.audit.distributions import NotRecomputed
    from mechdiff.audit.rerun import Rerun

    run = Rerun(run_of / "run", EXPERIMENTS, "cpu")
    rows = read_rows(run_of / "run").filter(pl.col("measure") == measure.name).unique(subset=["metric"], keep="first", maintain_order=True)
    for row in rows.iter_rows(named=True):
        with contextlib.suppress(NotRecomputed):
            assert isinstance(AGAIN[measure.name](run, row), float)


def test_the_table_of_measures_asks_every_question() -> None:
    table = (ROOT / "docs" / "measures" / "index.md").read_text(encoding="utf-8")
    for one in MEASURES:
        assert re.search(rf"\| {re.escape(one.question)} \| \[`{one.name}`\]", table), one.name


def test_the_names_are_typed_in_one_place() -> None:
    """A list of measures by name stands nowhere but in the catalogue, and in studies, which are what a user writes."""
    allowed = {"tests/every_measure.py", "tests/measures/test_contract.py"}
    for folder in ("src", "tests", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.relative_to(ROOT).as_posix() in allowed:
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, (ast.List, ast.Tuple, ast.Set, ast.Dict)):
                    items = node.keys if isinstance(node, ast.Dict) else node.elts
                    typed = {item.value for item in items if isinstance(item, ast.Constant)} & set(NAMES)
                    assert len(typed) < len(NAMES) - 2, f"{path.relative_to(ROOT)}:{node.lineno} lists the measures"


@pytest.mark.parametrize("module", [name for name in modules() if room(name) in ROW_KITS])
def test_a_kit_types_no_measures_name(module: str) -> None:
    """It is handed what a measure declares. `rank` is a column of rows too, and `panel` a part of a figure: there they may stand, but not as what
    `measure` is."""
    nodes = list(ast.walk(syntax(module)))
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    texts = [
        (node, node.value)
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    ]
    typed = [
        (node.lineno, value) for node, value in texts if value in set(NAMES) - {*KEY, "panel"} or re.search(f"`({'|'.join(NAMES)})`", value)
    ]
    of_measure = [node for node in nodes if isinstance(node, ast.Compare) and "measure" in ast.unparse(node)]
    of_measure += [node.value for node in nodes if isinstance(node, ast.keyword) and node.arg == "measure"]
    typed += [
        (one.lineno, one.value) for node in of_measure for one in ast.walk(node) if isinstance(one, ast.Constant) and one.value in NAMES
    ]
    assert not typed


def test_one_measure_is_the_divergence_of_the_pair_itself() -> None:
    (one,) = [measure for measure in MEASURES if measure.name == shares.OF_THE_PAIR]
    assert {name for names in shares.BETWEEN.values() for name in names} <= {metric.name for metric in one.numbers.metrics}


def test_a_main_number_of_a_comparison_has_words_where_it_leads(every_measure: Path, tmp_path: Path) -> None:
    again = shutil.copytree(every_measure / "run", tmp_path / "again")
    found = beside([every_measure / "run", again], BETWEEN_RUNS)
    assert {(one.of, one.leads) for one in found.main} >= {("parts", True), ("directions", True)}
    assert all(one.noun for one in found.main if one.leads)
    assert len({one.key for one in found.main}) == len(found.main)


def test_the_catalogue_loads_neither_torch_nor_a_plotting_library() -> None:
    code = "import sys, mechdiff.measures.catalogue; sys.exit(bool({'torch', 'altair', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
