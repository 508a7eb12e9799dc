"""What a study is made of stays the same: which cells there are, and which rows each stage writes. Their values are another matter: they differ by
processor, and benchmarks/same_rows.py compares them between two commits.

RENEW=1 pytest tests/study/test_identity.py writes identity.json anew: after a change that is meant to give other cells or other rows.
"""

import json
import os
from hashlib import sha256
from pathlib import Path

import polars as pl
import pytest

from mechdiff.measures.catalogue import EXPERIMENTS
from mechdiff.rows import KEY
from mechdiff.store.run_folder import cell_hash
from mechdiff.study.stages import stages_of

PINS = Path(__file__).parent / "identity.json"


def identities(run: Path) -> dict[str, dict[str, str]]:
    """Stage -> how many cells and rows it has, with a hash of the cells' names and one of the rows' keys."""
    names: dict[str, list[str]] = {}
    frames: dict[str, list[pl.DataFrame]] = {}
    for folder in (run / "cells").glob("*/"):
        key = json.loads((folder / "cell.json").read_text())["cell"]["key"]
        names.setdefault(key["stage"], []).append(
            cell_hash({**key, "models": "the tiny pair"})
        )  # the models' files have other bits elsewhere
        frames.setdefault(key["stage"], []).append(pl.read_parquet(folder / "rows.parquet").select(KEY))
    found = {}
    for stage in sorted(names):
        rows = pl.concat(frames[stage]).sort(KEY)
        found[stage] = {
            "cells": f"{len(names[stage])}, SHA-256 {sha256(' '.join(sorted(names[stage])).encode()).hexdigest()[:16]}",
            "rows": f"{len(rows)}, SHA-256 {sha256(rows.write_csv(null_value='null').encode()).hexdigest()[:16]}",
        }
    return found


@pytest.fixture
def found(every_measure: Path, mixture: Path) -> dict[str, dict[str, str]]:
    """Of the study of every measure, and of a mixture of experts the stages that take one."""
    of_mixtures = {stage.name for one in EXPERIMENTS.values() if one.routers for stage in one.stages}
    beside = {stage: one for stage, one in identities(mixture / "run").items() if stage in of_mixtures}
    return dict(sorted((identities(every_measure / "run") | beside).items()))


def test_every_stage_has_the_cells_and_rows_that_are_pinned(found: dict[str, dict[str, str]]) -> None:
    if "RENEW" in os.environ:
        PINS.write_text(json.dumps(found, indent=2) + "\n")
    pinned = json.loads(PINS.read_text())
    said = [
        f"the stage {stage} has other {what}: {now[what]} (identity.json: {pinned.get(stage, {}).get(what, 'nothing')})"
        for stage, now in found.items()
        for what in ("cells", "rows")
        if now[what] != pinned.get(stage, {}).get(what)
    ]
    said += [f"the stage {stage} is gone" for stage in pinned if stage not in found]
    assert not said, "; ".join(said)


def test_the_study_of_every_measure_has_every_stage(found: dict[str, dict[str, str]]) -> None:
    missing = set(stages_of(EXPERIMENTS)) - set(found)
    assert not missing, f"no option in tests/every_measure.py or tests/mixture.py makes these stages run: {sorted(missing)}"
