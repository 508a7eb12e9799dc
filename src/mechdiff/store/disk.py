"""Files are written whole or not at all, a disk's refusal is explained, and content is identity. No torch here."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mechdiff.errors import MachineError, RunError

TEMPORARY = ".part-"
"""What begins so was never finished: no reader takes it, and the next run sweeps it."""


def canonical(value: object) -> str:
    """JSON that is the same for equal values: keys sorted, no spaces, ASCII; NaN and infinities are refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256(content: bytes) -> str:
    """The content's SHA-256, in hex."""
    return hashlib.sha256(content).hexdigest()


def write_flushed(path: Path, content: bytes) -> None:
    """Writes a file and waits until it is on the disk."""
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def flush_folder(path: Path) -> None:
    """Waits until the folder's names are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(path: Path, content: bytes) -> None:
    """Writes `content` to `path` so that a reader sees the old file or the new one, never a part."""
    part = path.with_name(TEMPORARY + path.name)
    try:
        write_flushed(part, content)
        part.replace(path)
        flush_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns what the disk says into a MachineError that says what is lost (nothing) and what to do."""
    try:
        yield
    except OSError as error:
        existing = next(place for place in (folder, *folder.absolute().parents) if os.path.exists(place))
        free = shutil.disk_usage(existing).free / 2**20
        raise MachineError(
            f"{folder}: cannot be read or written ({error.strerror or error}); {free:,.0f} MiB are free there. "
            "Make room, or check that the folder may be written. Finished cells are kept: the same command goes on from there."
        ) from error


ANEW = "The same `mechdiff run` command makes it anew; if it cannot, give another folder."


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path}: cannot be read ({error}). {ANEW}") from error
    if not isinstance(content, dict):
        raise RunError(f"{path}: damaged: expected a JSON object. {ANEW}")
    return content


# ---- for the record ----------------------------------------------------------------------------------------------------------------


def as_bytes(said: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(said).encode(), np.uint8)
