"""Studies are run for tests: only computed, finished, or as `mechdiff.run` leaves them with the figures blank."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mechdiff import api
from mechdiff.measures.catalogue import EXPERIMENTS, NUMBERS
from mechdiff.statistics.summary import summarise
from mechdiff.store.run_folder import RunFolder
from mechdiff.store.tables import read_prompts
from mechdiff.study import run as study_run
from mechdiff.study.config import RunOptions, StudyConfig, study_yaml
from mechdiff.study.prepare import Prepared, prepare


@contextmanager
def opened(config: StudyConfig, out: Path, *, text: str = "", **options: Any) -> Iterator[tuple[Prepared, RunFolder]]:
    """A study that is about to be computed, and the folder for it; `text`: as its file has it."""
    prepared = prepare(config, RunOptions(**options), EXPERIMENTS)
    at = {"config_hash": prepared.config_hash, "study_text": text or study_yaml(config), "cells": prepared.options.cells}
    with RunFolder.open(out, **at) as folder:
        yield prepared, folder


def execute(config: StudyConfig, out: Path, **options: Any) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Rows and record of a study; the folder has no manifest."""
    with opened(config, out, **options) as (prepared, folder):
        return study_run.execute(prepared, folder)


def finish(config: StudyConfig, out: Path, **options: Any) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, Any]]:
    """Rows, summary and record of a study; the folder has all but the page."""
    with opened(config, out, **options) as (prepared, folder):
        rows, record = study_run.execute(prepared, folder)
        summary = summarise(rows, NUMBERS, prompts=read_prompts(folder.path), seed=config.seed)
        folder.write_summary(summary)
        folder.write_manifest(record)
    return rows, summary, record


def run(*study: Any, page: bool = True, **how: Any) -> api.Run:
    """What mechdiff.run does. A page takes as long as all the rest of a tiny study, so a run whose like has its page elsewhere goes without."""
    with pytest.MonkeyPatch.context() as changed:
        if not page:
            changed.setattr(api, "build_report", lambda place, chapters: None)
            changed.setattr(api.Run, "write_results", lambda finished: None)
            changed.setattr(api, "_live", lambda folder, prepared, opened: nullcontext(lambda look: None))
        return api.run(*study, **how)
