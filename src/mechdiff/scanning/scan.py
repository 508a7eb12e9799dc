"""A scan is computed, gathered and written: scan.json, texts.parquet and a page, in a folder that the same command completes."""

import json
from pathlib import Path
from typing import Any

from mechdiff.models.pair import open_pair
from mechdiff.scanning import page
from mechdiff.scanning.compute import compute
from mechdiff.scanning.corpus import Asked, Scan
from mechdiff.scanning.record import gather, record
from mechdiff.scanning.shown import shaded
from mechdiff.store.record import plain
from mechdiff.store.run_folder import RunFolder
from mechdiff.study.on_ray import Task

RECORD = "scan.json"


def open_scan(given: dict[str, Any]) -> Scan:
    """A pair and a corpus; `given`: the arguments of `open_pair` (pair) and of `Asked` (asked)."""
    return Scan(pair=open_pair(**given["pair"]), asked=Asked(**given["asked"]))


def task(scan: Scan, given: dict[str, Any]) -> Task:
    """The cells of a scan; `given` as in `open_scan`."""
    return Task(opened_by=_open, given=given, cells=scan.cells, compute=lambda folder, cell: compute(scan, folder, cell), same={})


def _open(given: dict[str, Any]) -> Task:
    return task(open_scan(given), given)


def write(scan: Scan, folder: RunFolder, out: Path) -> dict[str, Any]:
    """scan.json, texts.parquet and the page; returns the record."""
    told: dict[str, Any] = plain(record(scan, folder, gather(scan, folder, out)))
    shown = shaded(scan, folder, told)
    (out / RECORD).write_text(json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    page.write(told, shown, out)
    return told
