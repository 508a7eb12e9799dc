"""Every key that a run of every measure shows has its words, once; the page and the terminal take them from one table."""

from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from mechdiff import terms
from mechdiff.architectures.sites import KINDS
from mechdiff.labels import CROSSED
from mechdiff.report import parts
from mechdiff.report.sections import all_sections
from mechdiff.study.options import ARMS


def test_sites_conditions_directions_and_splits_have_all_their_words(every_measure: Path) -> None:
    rows = parts.load(every_measure / "run").rows
    assert tuple(terms.SITES) == KINDS
    assert tuple(terms.CONDITIONS) == ARMS
    assert tuple(terms.DIRECTIONS) == CROSSED
    published = rows.filter(pl.col("measure") == "patching")
    assert set(published["split"].drop_nulls()) <= set(terms.SPLITS)
    assert set(published["metric"]) - {"fisher_overlap_nats"} <= set(terms.METRICS)


def test_the_explorer_shows_the_labels_of_the_table(every_measure: Path) -> None:
    from mechdiff.measures.catalogue import CHAPTERS

    found = all_sections(parts.load(every_measure / "run"), CHAPTERS)
    (data,) = [part["data"] for section in found for part in section.parts if isinstance(part, dict) and part["kind"] == "explorer"]
    assert data["metrics"]["kl_own_nats"] == terms.METRICS["kl_own_nats"].label
    assert data["directions"] == terms.labels_of(terms.DIRECTIONS)


@pytest.mark.parametrize("term", [one for table in terms.TABLES.values() for one in table.values()], ids=lambda one: one.label)
def test_a_long_form_is_a_sentence(term: terms.Term) -> None:
    assert term.long[0].isupper() or term.long.split("_")[0].islower()
    assert term.long.endswith(".")


def test_the_terminal_says_a_term_or_which_was_meant() -> None:
    from mechdiff.cli.main import app

    said = CliRunner().invoke(app, ["terms", "resample"])
    assert said.exit_code == 0
    of_base = CliRunner().invoke(app, ["terms", "kl_own_answer_of_base_nats"])
    assert of_base.exit_code == 0
    assert "Over the base's answers, of a study that reads both models'." in " ".join(of_base.output.split())
    wrong = CliRunner().invoke(app, ["terms", "kl_own_nat"])
    assert wrong.exit_code != 0
    assert "kl_own_nats" in str(wrong.exception)
