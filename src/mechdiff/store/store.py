"""Where do finished cells lie? In a folder, or any place that fsspec reaches (s3://..., gs://..., file:///shared/...). No torch here.

A cell is a few files under one name, there whole or not at all. In a folder they are written under a temporary name, flushed, then renamed. Elsewhere
nothing can be renamed, so the record (`cell.json`) is written last: without it there is no cell. Who reads holds every file against the hashes in the
record, so a part is never taken for the whole. Several processes may put the same cell: the first one stays.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from mechdiff.errors import RunError
from mechdiff.store.disk import TEMPORARY, flush_folder, write_flushed

RECORD = "cell.json"
FILES = ("rows.parquet", "tensors.safetensors")
"""What a cell can hold beside its record."""


class Store(Protocol):
    """Cells by name. OSError where the place refuses."""

    def get(self, name: str) -> dict[str, bytes] | None:
        """The files of a cell, as they are; without a record where it is damaged. None where there is no such cell."""

    def put(self, name: str, files: Mapping[str, bytes]) -> None:
        """Puts a cell there, whole or not at all; one that is there already stays."""

    def remove(self, name: str) -> None: ...

    def names(self) -> set[str]:
        """Of the cells that have a record."""


class FolderStore:
    """Cells as folders in a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, name: str) -> dict[str, bytes] | None:
        place = self.path / name
        if place.is_dir():
            return {file: (place / file).read_bytes() for file in (RECORD, *FILES) if (place / file).is_file()}
        return {} if place.exists() else None

    def put(self, name: str, files: Mapping[str, bytes]) -> None:
        part = self.path / f"{TEMPORARY}{name}-{uuid4().hex[:8]}"
        try:
            part.mkdir()
            for file, content in files.items():
                write_flushed(part / file, content)
            flush_folder(part)
            try:
                part.rename(self.path / name)
            except OSError:
                if not (self.path / name / RECORD).is_file():  # else another process was first
                    raise
            flush_folder(self.path)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def remove(self, name: str) -> None:
        place = self.path / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()

    def names(self) -> set[str]:
        return {record.parent.name for record in self.path.glob(f"[0-9a-f]*/{RECORD}")}


class RemoteStore:
    """Cells under a URL."""

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        try:
            self.files, root = url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise RunError(f"--cells {url}: {error}. Give a folder, or a URL of a file system that fsspec knows here.") from error
        self.root = root.rstrip("/")

    def get(self, name: str) -> dict[str, bytes] | None:
        found: dict[str, bytes] = {}
        for file in (RECORD, *FILES):
            try:
                found[file] = self.files.cat_file(f"{self.root}/{name}/{file}")
            except FileNotFoundError:
                if file == RECORD:  # written last
                    return None
        return found

    def put(self, name: str, files: Mapping[str, bytes]) -> None:
        if self.files.exists(f"{self.root}/{name}/{RECORD}"):
            return
        self.files.makedirs(f"{self.root}/{name}", exist_ok=True)
        for file in sorted(files, key=lambda file: file == RECORD):
            self.files.pipe_file(f"{self.root}/{name}/{file}", files[file])

    def remove(self, name: str) -> None:
        self.files.rm(f"{self.root}/{name}", recursive=True)

    def names(self) -> set[str]:
        self.files.invalidate_cache()
        return {Path(record).parent.name for record in self.files.glob(f"{self.root}/*/{RECORD}")}


def open_store(place: str | Path) -> Any:
    """A FolderStore, or a RemoteStore where `place` is a URL. RunError where fsspec does not know it."""
    return RemoteStore(str(place)) if "://" in str(place) else FolderStore(Path(place))
