"""A run's folder on disk has finished cells, the tables made of them, and the record. No torch here.

```
RUN/study.yaml  manifest.json  rows.parquet  summary.parquet  log.txt     what a reader needs; the manifest comes last
RUN/cells/study.json  .lock                                               whose folder this is; who writes into it now
RUN/cells/<hash>/cell.json  rows.parquet  tensors.safetensors             one finished cell under the hash of its key
RUN/cells/plan.json                                                       what is to be computed, for `mechdiff status`
```
A cell is there whole or not at all (store.py). Its record holds the SHA-256 of its files and of itself; what does not match is removed and counts as
missing. One run owns a folder at a time, under a lock that the operating system frees when its process dies; its workers, wherever they are, join it
(`RunFolder.joined`) and put cells only. Nothing here depends on the clock.
"""

import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import safetensors.numpy
from filelock import FileLock, Timeout

from mechdiff import rows
from mechdiff.errors import RunError
from mechdiff.store.disk import TEMPORARY, canonical, read_json, replace, sha256, writing
from mechdiff.store.record import plain
from mechdiff.store.store import FILES, RECORD, Store, open_store

_TABLES = ("rows.parquet", "summary.parquet")  # what a reader of a run reads


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One result of a study's plan."""

    frame: pl.DataFrame  # rows of the contract
    tensors: dict[str, np.ndarray]
    record: dict[str, Any]  # key, n_rows, seconds, notes, files (name: SHA-256)


def cell_hash(key: Mapping[str, Any]) -> str:
    """The name of the cell with this key (names to JSON values): equal keys, in whatever order, have equal names."""
    return sha256(canonical(dict(key)).encode())


def _whole_cell(found: Mapping[str, bytes], name: str) -> tuple[dict[str, Any], dict[str, bytes]] | None:
    """The record and the files of a cell; None where anything is missing or not as it was written."""
    try:
        sealed = json.loads(found[RECORD])
        record = sealed["cell"]
        files = {file: found[file] for file in FILES if file in record["files"]}
        sealed_whole = sealed["sha256"] == sha256(canonical(record).encode()) and cell_hash(record["key"]) == name
        files_whole = record["files"] == {file: sha256(content) for file, content in files.items()}
    except (ValueError, KeyError, TypeError):
        return None
    return (record, files) if sealed_whole and files_whole else None


def _parquet(frame: pl.DataFrame) -> bytes:
    stream = io.BytesIO()
    frame.write_parquet(stream, compression="zstd")
    return stream.getvalue()


def _tensors(tensors: Mapping[str, np.ndarray]) -> bytes:
    return safetensors.numpy.save({name: np.asarray(values, order="C") for name, values in tensors.items()})


def _aligned(array: np.ndarray) -> np.ndarray:
    """The array itself where it begins at a multiple of 64 bytes, else a copy that does: sums over it then have the same bits as over what was
    written, which a file's header would decide otherwise (models/alignment.py)."""
    if array.ctypes.data % 64 == 0:
        return array
    room = np.empty(array.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    found = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    found[...] = array
    return found


class RunFolder:
    """A run's folder, open for writing by this process alone (`RunFolder.open`), or for its cells alone (`RunFolder.joined`)."""

    def __init__(self, path: Path, cells: str | None = None) -> None:
        self.path = path
        self.cells = path / "cells"
        self._store: Store = open_store(cells or self.cells)
        self.warnings: list[str] = []  # damaged cells that were removed, and what stages have to say
        self._whole: set[str] = set()  # cells that this process has seen to be whole
        self._told: list[str] | None = None
        self.listener: Callable[[str], None] = lambda line: None

    @classmethod
    def joined(cls, path: str | Path, cells: str | None = None) -> "RunFolder":
        """The cells of a run that another process owns. What is logged is kept for it (`told`)."""
        folder = cls(Path(path), cells)
        folder._told = []
        return folder

    @classmethod
    @contextmanager
    def open(cls, path: str | Path, *, config_hash: str, study_text: str, cells: str | None = None) -> Iterator["RunFolder"]:
        """The folder of the run of this study, made where it is not there, locked and swept. `cells`: a URL, if its cells lie elsewhere."""
        folder = cls(Path(path), cells)
        folder._make()
        lock = FileLock(folder.cells / ".lock", timeout=0, thread_local=False)
        with writing(folder.path):
            try:
                lock.acquire()
            except Timeout as error:
                raise RunError(f"{path}: another mechdiff run is using this folder. Wait for it to end, or give another folder.") from error
        try:
            folder._claim(config_hash, study_text)
            yield folder
        finally:
            lock.release()

    def _make(self) -> None:
        if os.path.exists(self.path) and not os.path.isdir(self.path):
            raise RunError(f"{self.path}: given a file, expected a folder for the run. Give another path.")
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            found = {entry.name for entry in self.path.iterdir()}
            begun = found <= {"cells"} and all(entry.name.startswith(".") for entry in self.path.glob("cells/*"))
            if not begun and not (self.cells / "study.json").is_file():
                names = ", ".join(sorted(found)[:3])
                raise RunError(f"{self.path}: not empty and no mechdiff run (it holds {names}). Give a new or an empty folder.")
            self.cells.mkdir(exist_ok=True)

    def _claim(self, config_hash: str, study_text: str) -> None:
        """Under the lock: this folder belongs to this study, and holds nothing half-written."""
        marker = self.cells / "study.json"
        with writing(self.path):
            if marker.is_file():
                self._same_study(marker, config_hash, study_text)
            for leftover in [*self.path.glob(f"{TEMPORARY}*"), *self.cells.glob(f"{TEMPORARY}*")]:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            replace(marker, canonical({"config_hash": config_hash, "study": study_text}).encode())
            replace(self.path / "study.yaml", study_text.encode())

    def _same_study(self, marker: Path, config_hash: str, study_text: str) -> None:
        """Refuses a folder that was made for another study."""
        try:
            owner = read_json(marker)
        except RunError:
            if (self.path / "study.yaml").read_bytes() != study_text.encode():
                raise
            self.warnings.append("cells/study.json was damaged on disk: made anew, for study.yaml is this study")
            return
        if owner.get("config_hash") == config_hash:
            return
        there, here = str(owner.get("study", "")).splitlines(), study_text.splitlines()
        only_there, only_here = [line for line in there if line not in here], [line for line in here if line not in there]
        differs = f"only there: {only_there[:3]}; only here: {only_here[:3]}"
        if not only_there and not only_here:
            differs = "the two files read the same, so a prompt file, a template or a model has changed since"
        raise RunError(
            f"{self.path}: holds the run of another study ({str(owner.get('config_hash'))[:12]}), this one is {config_hash[:12]} "
            f"({differs}). Give another folder, or the study that this folder was made for."
        )

    # cells

    def has(self, key: Mapping[str, Any]) -> bool:
        """Whether the cell is there and whole. A damaged one is named in `warnings`, removed, and counts as missing."""
        name = cell_hash(key)
        return name in self._whole or self._read(name) is not None

    def load(self, key: Mapping[str, Any]) -> Cell:
        """The finished cell; its bytes are held against their hashes on every load."""
        found = self._read(cell_hash(key))
        if found is None:
            raise RunError(f"{self.path}: the cell {canonical(dict(key))} is missing or was damaged. The same command computes it again.")
        record, files = found
        tensors = safetensors.numpy.load(files["tensors.safetensors"]) if "tensors.safetensors" in files else {}
        tensors = {name: _aligned(values) for name, values in tensors.items()}
        return Cell(frame=pl.read_parquet(io.BytesIO(files["rows.parquet"])), tensors=tensors, record=record)

    def store(
        self,
        key: Mapping[str, Any],
        frame: pl.DataFrame,
        tensors: Mapping[str, np.ndarray] | None = None,
        *,
        seconds: float = 0.0,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        """Puts a finished cell on disk, whole or not at all. A whole cell that is there already stays as it is.

        `notes` is what belongs to the result and is neither row nor tensor; it comes back as `record["notes"]`.
        """
        assert dict(frame.schema) == rows.SCHEMA, f"a cell's rows must keep the contract, not {frame.schema}"
        if self.has(key):
            return
        name = cell_hash(key)
        files = {"rows.parquet": _parquet(frame)} | ({"tensors.safetensors": _tensors(tensors)} if tensors else {})
        hashes = {file: sha256(content) for file, content in files.items()}
        record = {"key": dict(key), "n_rows": len(frame), "seconds": float(seconds), "notes": plain(notes or {}), "files": hashes}
        files[RECORD] = canonical({"cell": record, "sha256": sha256(canonical(record).encode())}).encode()
        with writing(self.path):
            self._store.put(name, files)
        self._whole.add(name)

    def _read(self, name: str) -> tuple[dict[str, Any], dict[str, bytes]] | None:
        """The record and the files of a whole cell; None where there is none, or where it was damaged and is now removed."""
        with writing(self.path):
            found = self._store.get(name)
            if found is not None and (whole := _whole_cell(found, name)):
                self._whole.add(name)
                return whole
            self._whole.discard(name)
            if found is not None:
                self.warnings.append(f"cell {name} was damaged on disk: removed, to be computed again")
                self._store.remove(name)
        return None

    # what readers read

    def write_rows(self, frames: Iterable[pl.DataFrame]) -> int:
        """Writes rows.parquet from the cells' frames, in their order; returns how many. The manifest comes after."""
        whole = pl.concat([rows.empty(), *frames], rechunk=False)
        marks = whole.select(rows.KEY).hash_rows(seed=0)  # eight bytes a row; the exact look is for those few that repeat
        twice = whole.filter(marks.is_duplicated()).select(rows.KEY)
        assert not len(twice) or not twice.is_duplicated().any(), f"rows repeat a key: {twice.filter(twice.is_duplicated()).row(0)}"
        assert not whole["value"].null_count(), "a row without a value"
        with writing(self.path):
            for outdated in ("manifest.json", "summary.parquet"):
                (self.path / outdated).unlink(missing_ok=True)
            replace(self.path / "rows.parquet", _parquet(whole))
        return len(whole)

    def write_prompts(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Writes prompts.jsonl: what the models read, one prompt a line."""
        content = "".join(json.dumps(plain(line), ensure_ascii=False) + "\n" for line in lines)
        with writing(self.path):
            replace(self.path / "prompts.jsonl", content.encode())

    def write_summary(self, frame: pl.DataFrame) -> None:
        """Writes summary.parquet: after the rows, before the manifest."""
        with writing(self.path):
            replace(self.path / "summary.parquet", _parquet(frame))

    def place(self, name: str) -> Path:
        """The path of a file that is written for readers, its folder made; `name` is like maps/L3.attn_out.rrr.safetensors."""
        assert re.fullmatch(r"\w+/[\w.-]{1,120}", name), f"not a plain name in a folder: {name!r}"
        with writing(self.path):
            (self.path / name).parent.mkdir(exist_ok=True)
        return self.path / name

    def write_manifest(self, record: Mapping[str, Any]) -> None:
        """Writes manifest.json, last: from now on the run counts as finished. Adds as `files` the SHA-256 of tables, prompts, maps and vectors."""
        with writing(self.path):
            assert (self.path / "rows.parquet").is_file(), "the manifest comes last: write_rows first"
            kept = [
                self.path / "prompts.jsonl",
                *(self.path / name for name in _TABLES),
                *sorted(self.path.glob("maps/*")),
                *sorted(self.path.glob("steering/*")),
            ]
            files = {file.relative_to(self.path).as_posix(): sha256(file.read_bytes()) for file in kept if file.is_file()}
            replace(self.path / "manifest.json", json.dumps({**plain(record), "files": files}, indent=2, allow_nan=False).encode())

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        """Writes cells/plan.json: what this run will compute, for those who look at it meanwhile."""
        with writing(self.path):
            replace(self.cells / "plan.json", canonical(plain(plan)).encode())

    def log(self, event: str, **said: Any) -> None:
        """Adds a line to log.txt: when, what, and `name=value` of the rest. A worker's lines go to the run that it works for."""
        told = plain({"event": event, "said": said})  # at once: secrets are looked for in the whole environment
        words = [str(told["event"]), *(f"{name}={_quoted(value)}" for name, value in told["said"].items())]
        line = " ".join([datetime.now(UTC).isoformat(timespec="milliseconds"), *words])
        if self._told is not None:
            self._told.append(line)
            return
        self.write_lines([line])

    def told(self) -> list[str]:
        """What a worker logged since it was last asked."""
        lines, self._told = self._told or [], []
        return lines

    def write_lines(self, lines: Iterable[str]) -> None:
        """Adds lines to log.txt, which `listener` hears too."""
        with writing(self.path), (self.path / "log.txt").open("a", encoding="utf-8") as stream:
            for line in lines:
                stream.write(f"{line}\n")
                self.listener(line)


def _quoted(value: object) -> str:
    """A value of a log line: bare where that is clear."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if re.fullmatch(r"[\w.,<>/-]+", text) else json.dumps(text, ensure_ascii=False)
