"""Files that are written whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from mechdiff.errors import RunError
from mechdiff.store.disk import canonical, replace, writing


def test_canonical_is_one_text_for_equal_values() -> None:
    assert canonical({"b": [1, 0.1], "a": "ұ"}) == canonical({"a": "ұ", "b": (1, 0.1)}) == '{"a":"\\u04b1","b":[1,0.1]}'
    with pytest.raises(ValueError, match="JSON"):
        canonical(float("nan"))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace(tmp_path / "a", b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with (
            pytest.raises(RunError, match=r"No space left on device.*MiB are free there.*Make room.*Finished cells are kept"),
            writing(tmp_path),
        ):
            replace(tmp_path / "a", b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_the_message_names_free_space_even_where_the_folder_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="MiB are free"), writing(tmp_path / "gone" / "deeper"):
        (tmp_path / "gone" / "deeper" / "x").write_text("")
