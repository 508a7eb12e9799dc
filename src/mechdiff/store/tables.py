"""A run's folder is read here: its manifest, its rows, its prompts, and how far it has come."""

import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from filelock import FileLock, Timeout

from mechdiff import rows
from mechdiff.errors import RunError
from mechdiff.store.disk import ANEW, read_json, sha256
from mechdiff.store.store import RECORD, open_store

# --- for readers -------------------------------------------------------------------------------------------------------


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The record of the finished run in the folder `path`."""
    folder = Path(path)
    if not os.path.isdir(folder):
        raise RunError(f"{path}: no such folder. Give the folder of a finished run.")
    if (folder / "manifest.json").is_file():
        return read_json(folder / "manifest.json")
    if (folder / "cells" / "study.json").is_file():
        raise RunError(f"{path}: this run is not finished. The same `mechdiff run` command goes on from where it stopped.")
    raise RunError(f"{path}: no mechdiff run: it holds no manifest.json. Give the folder of a finished run.")


VERIFIED = "verified.json"


def write_verified(path: str | Path, found: dict[str, Any]) -> Path:
    """Notes in a run's folder what checking it found, and of which rows; returns the file. Raises RunError where it cannot be written."""
    place = Path(path) / VERIFIED
    of = read_manifest(path).get("files", {}).get("rows.parquet")
    try:
        place.write_text(json.dumps({**found, "rows_sha256": of}, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise RunError(f"{place}: what was found cannot be noted there ({error}).") from error
    return place


def read_verified(path: str | Path) -> dict[str, Any] | None:
    """What was found when these rows were last checked (`mechdiff verify`); None where they never were."""
    place = Path(path) / VERIFIED
    found = read_json(place) if place.is_file() else None
    return found if found and found.get("rows_sha256") == read_manifest(path).get("files", {}).get("rows.parquet") else None


@dataclass(frozen=True, kw_only=True)
class Status:
    """How far a run has come, as its folder says."""

    state: str
    """finished; running: a process holds the folder; stopped: none does."""
    stages: dict[str, tuple[int, int, float]]
    """By stage in the order of the plan: cells that are there, all cells, seconds that those there took."""
    share: float
    """Of the work that is done, by operations."""
    left: float | None
    """Seconds that the rest would take one process, at the speed so far; None where nothing is done yet."""
    log: list[str]
    """The last lines."""


def read_status(path: str | Path, *, lines: int = 5) -> Status:
    """What the folder of a running, dead or finished run says of it. Raises RunError where there is no run."""
    folder = Path(path)
    if not (folder / "cells" / "plan.json").is_file():
        begun = (folder / "cells").is_dir() or (folder / "manifest.json").is_file()
        raise RunError(
            f"{path}: {'this run has no plan yet' if begun else 'no mechdiff run'}. Give the folder that `mechdiff run` was told."
        )
    plan = read_json(folder / "cells" / "plan.json")
    store = open_store(plan["cells_at"] or folder / "cells")
    there, stages = store.names(), dict[str, tuple[int, int, float]]()
    done = spent = 0.0
    for cell in plan["cells"]:
        n, of, seconds = stages.get(cell["stage"], (0, 0, 0.0))
        took = 0.0
        if cell["name"] in there:
            took = json.loads((store.get(cell["name"]) or {})[RECORD])["cell"]["seconds"]
            done, spent = done + cell["flops"], spent + took
        stages[cell["stage"]] = (n + (cell["name"] in there), of + 1, seconds + took)
    total = sum(cell["flops"] for cell in plan["cells"])
    state = "running" if _is_held(folder / "cells" / ".lock") else "finished" if (folder / "manifest.json").is_file() else "stopped"
    log = (folder / "log.txt").read_text(encoding="utf-8").splitlines()[-lines:] if (folder / "log.txt").is_file() else []
    return Status(
        state=state, stages=stages, share=done / total if total else 1.0, left=spent / done * (total - done) if done else None, log=log
    )


def _is_held(lock: Path) -> bool:
    """Whether a living process has this lock."""
    if not lock.is_file():
        return False
    try:
        with FileLock(lock, timeout=0, thread_local=False):
            return False
    except Timeout:
        return True


def read_prompts(path: str | Path) -> list[dict[str, Any]]:
    """What the models read, one prompt a line, each with its `split` and `id`; empty for a run that kept none. Raises RunError for anything else."""
    file = Path(path) / "prompts.jsonl"
    if not file.is_file():
        return []
    try:
        lines = [json.loads(line) for line in file.read_bytes().decode().split("\n") if line]
        assert all(isinstance(line["split"], str) and isinstance(line["id"], str) for line in lines)
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise RunError(
            f"{file}: cannot be read ({error!r}), expected one prompt a line. Run the study again, or take the file away."
        ) from error
    return lines


def read_rows(path: str | Path) -> pl.DataFrame:
    """Every row of the finished run in the folder `path`."""
    table = _read_table(Path(path), "rows.parquet")
    if table.columns != rows.COLUMNS:
        raise RunError(f"{path}: rows.parquet has the columns {table.columns}, expected {rows.COLUMNS}. Run it with this version.")
    return table


def read_summary(path: str | Path) -> pl.DataFrame:
    """The summary of the finished run in the folder `path`: means and intervals, one line a value."""
    return _read_table(Path(path), "summary.parquet")


def _read_table(folder: Path, name: str) -> pl.DataFrame:
    """A table of a finished run, held against its manifest's hash before anything parses it."""
    expected = read_manifest(folder).get("files", {}).get(name)
    try:
        content = (folder / name).read_bytes()
        if expected is not None and sha256(content) != expected:
            raise RunError(f"{folder / name}: not the file that its run wrote. {ANEW}")
        return pl.read_parquet(io.BytesIO(content))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise RunError(f"{folder / name}: cannot be read ({error}). {ANEW}") from error
