"""The runs under a folder, each with its pair, state, date, D and size."""

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from mechdiff.errors import RunError
from mechdiff.report import record
from mechdiff.report.difference import difference
from mechdiff.store.tables import read_manifest, read_rows, read_status, read_summary

DEEP = 3
"""Folders below the one that is asked for, within which runs are looked for."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One run."""

    path: Path
    base: str
    tuned: str
    state: str
    """finished, running, stopped; damaged: it cannot be read, and `said` says why."""
    share: float
    """Of its work that is done."""
    date: str
    """When it ended, or was last written to: ISO 8601, UTC."""
    d_nats: float | None = None
    """KL(tuned || base) of the next token, mean over test prompts; None where the run has none."""
    d_low: float | None = None
    d_high: float | None = None
    """Ends of its 95 % interval."""
    n: int | None = None
    """Prompts behind D."""
    bytes: int = 0
    """On disk."""
    said: str = ""


def listed(folder: Path) -> list[Listed]:
    """The runs at and below a folder, the newest first. Raises RunError where there is no such folder."""
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder. Give a folder that holds runs, or begin one with `mechdiff run BASE TUNED`.")
    return sorted((_listed(one) for one in _runs(folder, DEEP)), key=lambda one: one.date, reverse=True)


def _runs(folder: Path, deep: int) -> list[Path]:
    """Folders of runs; nothing is looked for inside one."""
    if (folder / "cells" / "plan.json").is_file() or ((folder / "manifest.json").is_file() and (folder / "rows.parquet").is_file()):
        return [folder]
    below = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")) if deep else []
    return [found for entry in below for found in _runs(entry, deep - 1)]


def _listed(path: Path) -> Listed:
    try:
        return _finished(path) if (path / "manifest.json").is_file() else _unfinished(path)
    except (RunError, KeyError, ValueError) as error:
        return Listed(path=path, base="?", tuned="?", state="damaged", share=0.0, date=_written(path), bytes=size(path), said=str(error))


def _finished(path: Path) -> Listed:
    manifest = read_manifest(path)
    found = difference(read_rows(path), read_summary(path))
    number: dict[str, Any] = {}
    if found is not None:
        ends = {"d_low": found.low, "d_high": found.high} if found.low == found.low else {}
        number = {"d_nats": found.mean, "n": found.n, **ends}
    base, tuned = (record.short_name(manifest, side) for side in ("base", "tuned"))
    date = str(manifest.get("finished") or _written(path))
    return Listed(path=path, base=base, tuned=tuned, state="finished", share=1.0, date=date, bytes=size(path), **number)


def _unfinished(path: Path) -> Listed:
    status = read_status(path, lines=1)
    pair = yaml.safe_load((path / "study.yaml").read_text(encoding="utf-8"))["pair"]
    base, tuned = (Path(str(pair[side]).rstrip("/")).name for side in ("base", "tuned"))
    return Listed(path=path, base=base, tuned=tuned, state=status.state, share=status.share, date=_written(path), bytes=size(path))


def _written(path: Path) -> str:
    last = max((entry.stat().st_mtime for entry in path.iterdir()), default=path.stat().st_mtime)
    return datetime.fromtimestamp(last, UTC).isoformat(timespec="seconds")


def size(path: Path) -> int:
    """Bytes of all files in it."""
    return sum(os.path.getsize(os.path.join(place, name)) for place, _, names in os.walk(path) for name in names)
