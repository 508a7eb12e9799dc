"""Runs with a planted truth that the tests of the report share: made once."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mechdiff.measures.catalogue import CHAPTERS, NUMBERS
from mechdiff.statistics import summary as statistics_summary
from report.planted_run import planted_manifest, planted_rows, write_run
from report.planted_sections import (
    planted_factorial,
    planted_grafting,
    planted_js,
    planted_texts,
    planted_weights,
    texts_manifest,
    weights_manifest,
)

CHANGED = 4
CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The system's browser, for as long as a file of tests runs."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM:
        pytest.skip("no chromium: apt-get install chromium")
    with sync_api.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def rows() -> pl.DataFrame:
    """Seven layers, 24 prompts a split; attention's output changed at layer 4."""
    return planted_rows(n_layers=7, n_prompts=24, changed=CHANGED, permutations=40)


@pytest.fixture(scope="session")
def summary(rows: pl.DataFrame) -> pl.DataFrame:
    return statistics_summary.summarise(rows, NUMBERS)


@pytest.fixture(scope="session")
def manifest() -> dict:
    return planted_manifest(n_layers=7, n_prompts=24, changed=CHANGED)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, rows: pl.DataFrame, manifest: dict) -> Path:
    """The run's folder, its report built."""
    from mechdiff.report.page import build_report

    folder = write_run(tmp_path_factory.mktemp("run"), rows, manifest)
    build_report(folder, CHAPTERS)
    return folder


@pytest.fixture(scope="session")
def full_rows(rows: pl.DataFrame) -> pl.DataFrame:
    """The same with texts, weights, grafting and the factorial measured too."""
    return pl.concat(
        [
            rows,
            planted_texts(rows),
            planted_js(rows),
            planted_weights(n_layers=7, changed=CHANGED),
            planted_grafting(rows, changed=CHANGED),
            planted_factorial(rows, n_layers=7, changed=CHANGED),
        ]
    )


@pytest.fixture(scope="session")
def full_summary(full_rows: pl.DataFrame) -> pl.DataFrame:
    return statistics_summary.summarise(full_rows, NUMBERS)


@pytest.fixture(scope="session")
def full_manifest(rows: pl.DataFrame, manifest: dict) -> dict:
    return {**manifest, **texts_manifest(rows), **weights_manifest(changed=CHANGED)}


@pytest.fixture(scope="session")
def full_run(tmp_path_factory: pytest.TempPathFactory, full_rows: pl.DataFrame, full_manifest: dict) -> Path:
    """A run of all measures, its report built."""
    from mechdiff.report.page import build_report

    folder = write_run(tmp_path_factory.mktemp("full"), full_rows, full_manifest)
    build_report(folder, CHAPTERS)
    return folder
