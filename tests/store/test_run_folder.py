"""A run's folder: what is in it is whole, belongs to one study, and survives a kill, a full disk and a flipped bit."""

import errno
import json
import os
import random
import resource
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechdiff import rows
from mechdiff.errors import RunError
from mechdiff.store.run_folder import RunFolder, cell_hash
from mechdiff.store.tables import read_manifest, read_rows, read_summary

STUDY = {"config_hash": "a" * 64, "study_text": "pair: {base: a, tuned: b}\nseed: 0\n"}


def _key(number: int) -> dict[str, Any]:
    return {"measure": "patching", "layer": number, "ids": ("p1", "p2"), "strength": 0.5, "unit": None}


def _frame(number: int = 0, n: int = 3) -> pl.DataFrame:
    prompts = [f"p{item}" for item in range(n)]
    values = [float(number + item) for item in range(n)]
    return rows.rows(values, measure="patching", layer=number, prompt=prompts, metric="kl_own_nats")


def _tensors(number: int = 0) -> dict[str, np.ndarray]:
    return {"L0.resid_post": np.arange(12, dtype=np.float32).reshape(3, 4) + number}


def _open(path: Path, **changed: str) -> None:
    with RunFolder.open(path, **{**STUDY, **changed}):
        pass


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "a run [1] – нәтиже"


@pytest.fixture
def run(folder: Path) -> Iterator[RunFolder]:
    with RunFolder.open(folder, **STUDY) as opened:
        yield opened


_IMPORTS = "import sys, time\nimport numpy as np\nfrom mechdiff import rows\nfrom mechdiff.store.run_folder import RunFolder\n"


@contextmanager
def _child(code: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Another Python process, killed at the end if it still runs."""
    program = _IMPORTS + textwrap.dedent(code)
    paths = {"PYTHONPATH": str(Path(rows.__file__).parents[1]), "POLARS_MAX_THREADS": "1"}
    child = subprocess.Popen([sys.executable, "-c", program, *words], stdout=subprocess.PIPE, text=True, env={**os.environ, **paths})
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


# --- cells


def test_a_cell_comes_back_as_it_was(run: RunFolder) -> None:
    tensors = {
        "plain": np.arange(6, dtype=np.float32).reshape(2, 3),
        "turned": np.arange(6, dtype=np.float64).reshape(2, 3).T,
        "one": np.array(2.5, dtype=np.float32),
        "none": np.zeros((0, 4), np.float32),
        "whole": np.array([1, 2]),
        "ұзақ name/..": np.array([True]),
    }
    frame = _frame().with_columns(value=pl.Series([float("nan"), float("inf"), 0.1]))
    assert not run.has(_key(0))
    run.store(_key(0), frame, tensors, seconds=np.float32(1.5), notes={"checked": np.float64(0.25), "why": "ок"})
    assert run.has(_key(0))
    cell = run.load(_key(0))
    assert cell.frame.equals(frame, null_equal=True)
    assert dict(cell.frame.schema) == rows.SCHEMA
    assert set(cell.tensors) == set(tensors)
    for name, values in tensors.items():
        assert cell.tensors[name].dtype == values.dtype
        np.testing.assert_array_equal(cell.tensors[name], values)
        assert cell.tensors[name].shape == values.shape
    assert (cell.record["seconds"], cell.record["n_rows"], cell.record["notes"]) == (1.5, 3, {"checked": 0.25, "why": "ок"})
    assert cell.record["key"] == {**_key(0), "ids": ["p1", "p2"]}


def test_a_cell_without_rows_or_tensors(run: RunFolder) -> None:
    run.store(_key(0), rows.empty())
    assert len(run.load(_key(0)).frame) == 0
    assert run.load(_key(0)).tensors == {}


def test_a_cell_is_stored_once(run: RunFolder) -> None:
    run.store(_key(0), _frame(0))
    run.store(_key(0), _frame(7))
    assert run.load(_key(0)).frame.equals(_frame(0))


def test_a_cell_that_is_missing(run: RunFolder) -> None:
    with pytest.raises(RunError, match=r"is missing or was damaged\. The same command computes it again"):
        run.load(_key(0))


def test_a_cell_must_keep_the_row_contract(run: RunFolder) -> None:
    with pytest.raises(AssertionError, match="must keep the contract"):
        run.store(_key(0), _frame().drop("arm"))


_VALUES = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
_KEYS = st.dictionaries(st.text(max_size=5), _VALUES | st.lists(_VALUES, max_size=3), max_size=6)


@settings(max_examples=100)
@given(key=_KEYS, other=_KEYS, shuffled=st.randoms(use_true_random=False))
def test_a_hash_is_the_keys_content(key: dict[str, Any], other: dict[str, Any], shuffled: random.Random) -> None:
    items = list(key.items())
    shuffled.shuffle(items)
    assert cell_hash(dict(items)) == cell_hash(key) == cell_hash({name: tuple(v) if isinstance(v, list) else v for name, v in key.items()})
    assert (cell_hash(key) == cell_hash(other)) == (json.dumps(key, sort_keys=True) == json.dumps(other, sort_keys=True))


# --- damage


@pytest.mark.parametrize("file", ["cell.json", "rows.parquet", "tensors.safetensors"])
@pytest.mark.parametrize("damage", ["flip_first", "flip_middle", "flip_last", "truncate", "empty", "remove"])
def test_damage_is_found_named_and_undone(folder: Path, file: str, damage: str) -> None:
    with RunFolder.open(folder, **STUDY) as run:
        run.store(_key(0), _frame(0), _tensors(0))
        run.store(_key(1), _frame(1), _tensors(1))
        path = run.cells / cell_hash(_key(0)) / file
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage.startswith("flip"):
        content[{"flip_first": 0, "flip_middle": len(content) // 2, "flip_last": -1}[damage]] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(content[: {"truncate": len(content) - 5, "empty": 0}[damage]])
    with RunFolder.open(folder, **STUDY) as run:
        assert not run.has(_key(0))
        assert run.has(_key(1))
        assert run.warnings == [f"cell {cell_hash(_key(0))} was damaged on disk: removed, to be computed again"]
        run.store(_key(0), _frame(0), _tensors(0))
        np.testing.assert_array_equal(run.load(_key(0)).tensors["L0.resid_post"], _tensors(0)["L0.resid_post"])


def test_damage_behind_this_process_is_found_on_load(run: RunFolder) -> None:
    run.store(_key(0), _frame())
    path = run.cells / cell_hash(_key(0)) / "rows.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError, match="damaged"):
        run.load(_key(0))
    assert not run.has(_key(0))


def test_a_cell_under_another_cells_name_is_damage(run: RunFolder) -> None:
    run.store(_key(0), _frame())
    (run.cells / cell_hash(_key(0))).rename(run.cells / cell_hash(_key(1)))
    assert not run.has(_key(1))
    assert len(run.warnings) == 1


def test_a_cell_that_cannot_be_read_for_now_is_kept(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run.store(_key(0), _frame())

    def busy(path: Path) -> bytes:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", busy)
        with pytest.raises(RunError, match="Too many open files"):
            run.load(_key(0))
    assert run.has(_key(0))


def test_a_damaged_mark_of_the_same_study_is_made_anew(folder: Path) -> None:
    with RunFolder.open(folder, **STUDY) as run:
        run.store(_key(0), _frame())
    (folder / "cells" / "study.json").write_bytes(b"{")
    with RunFolder.open(folder, **STUDY) as run:
        assert run.has(_key(0))
        assert "study.json was damaged" in run.warnings[0]
    (folder / "cells" / "study.json").write_bytes(b"{")
    with pytest.raises(RunError, match="cannot be read"):
        _open(folder, config_hash="b" * 64, study_text="other\n")


# --- whose folder


def test_a_folder_of_another_study_is_refused_and_untouched(folder: Path) -> None:
    _open(folder)
    before = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    said = r"another study \(aaaaaaaaaaaa\), this one is bbbbbbbbbbbb .*only there: \['seed: 0'\]; only here: \['seed: 1'\]"
    other = STUDY["study_text"].replace("seed: 0", "seed: 1")
    with pytest.raises(RunError, match=said):
        _open(folder, config_hash="b" * 64, study_text=other)
    with pytest.raises(RunError, match="a prompt file, a template or a model has changed"):
        _open(folder, config_hash="c")
    assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == before
    assert (folder / "study.yaml").read_text() == STUDY["study_text"]


def test_the_same_study_with_another_comment_goes_on(folder: Path) -> None:
    with RunFolder.open(folder, **STUDY) as run:
        run.store(_key(0), _frame())
    with RunFolder.open(folder, **{**STUDY, "study_text": "# new\n"}) as run:
        assert run.has(_key(0))
    assert (folder / "study.yaml").read_text() == "# new\n"


def test_a_folder_that_holds_something_else_is_refused_and_untouched(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"not empty and no mechdiff run \(it holds thesis\.tex\)"):
        _open(folder)
    assert [entry.name for entry in folder.iterdir()] == ["thesis.tex"]


def test_what_a_killed_start_leaves_is_no_obstacle(folder: Path) -> None:
    (folder / "cells").mkdir(parents=True)
    (folder / "cells" / ".lock").touch()
    (folder / "cells" / ".part-study.json").write_text("{")
    with RunFolder.open(folder, **STUDY) as run:
        assert sorted(entry.name for entry in run.cells.iterdir()) == [".lock", "study.json"]


def test_leftovers_are_swept(folder: Path) -> None:
    with RunFolder.open(folder, **STUDY) as run:
        run.store(_key(0), _frame())
    (folder / "cells" / ".part-abc").mkdir()
    (folder / "cells" / ".part-abc" / "rows.parquet").write_bytes(b"half")
    (folder / ".part-rows.parquet").write_bytes(b"half")
    with RunFolder.open(folder, **STUDY) as run:
        assert run.has(_key(0))
    assert not list(folder.rglob(".part-*"))


def test_places_that_cannot_hold_a_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="given a file, expected a folder"):
        _open(tmp_path / "file")
    with pytest.raises(RunError, match=r"cannot be read or written \(Not a directory\)"):
        _open(tmp_path / "file" / "x")
    with pytest.raises(RunError, match=r"cannot be read or written \(File name too long\)"):
        _open(tmp_path / ("x" * 300))


def test_a_folder_that_may_not_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: Any, **named: Any) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    folder.mkdir()
    monkeypatch.setattr(os, "mkdir", refused)
    with pytest.raises(RunError, match=r"Permission denied.*check that the folder may be written"):
        _open(folder)


# --- two at once


def test_one_process_at_a_time_and_the_lock_dies_with_it(folder: Path) -> None:
    code = f"""
        with RunFolder.open(sys.argv[1], config_hash={STUDY["config_hash"]!r}, study_text={STUDY["study_text"]!r}):
            print("held", flush=True)
            time.sleep(60)
    """
    with _child(code, str(folder)) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="another mechdiff run is using this folder"):
            _open(folder)
    with RunFolder.open(folder, **STUDY) as run:
        run.store(_key(0), _frame())


def test_one_opening_at_a_time_in_one_process(run: RunFolder) -> None:
    with pytest.raises(RunError, match="another mechdiff run"):
        _open(run.path)


def test_the_lock_is_free_after_an_error(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt), RunFolder.open(folder, **STUDY):
        raise KeyboardInterrupt
    _open(folder)


# --- kill -9


def test_a_killed_store_loses_at_most_the_cell_in_flight(folder: Path) -> None:
    code = f"""
        with RunFolder.open(sys.argv[1], config_hash={STUDY["config_hash"]!r}, study_text={STUDY["study_text"]!r}) as run:
            for number in range(100_000):
                key = {{"number": number}}
                if not run.has(key):
                    frame = rows.rows([float(number)] * 50, measure="weights", unit=[str(item) for item in range(50)], metric="m")
                    run.store(key, frame, {{"x": np.full((100, 2000), number, np.float32)}})
    """
    chance, n_before, n_caught, cells = random.Random(0), 0, 0, folder / "cells"
    for _ in range(3):
        with _child(code, str(folder)) as child:
            n_seen, deadline = 0, time.monotonic() + 30
            while not (n_seen > n_before + 3 and list(cells.glob(".part-*"))):
                assert time.monotonic() < deadline
                assert child.poll() is None
                n_seen = _n_cells(cells)
            time.sleep(chance.random() * 0.003)
            child.kill()
        n_caught += len(list(cells.glob(".part-*")))
        with RunFolder.open(folder, **STUDY) as run:
            n_whole = 0
            while run.has({"number": n_whole}):
                cell = run.load({"number": n_whole})
                assert cell.frame["value"].to_list() == [float(n_whole)] * 50
                assert (cell.tensors["x"] == n_whole).all()
                n_whole += 1
            assert n_whole == _n_cells(cells) > n_before + 3
            assert run.warnings == []
            assert not list(folder.rglob(".part-*"))
        n_before = n_whole
    assert n_caught, "no kill fell into a store: the test shows nothing"


def _n_cells(cells: Path) -> int:
    return sum(len(entry.name) == 64 for entry in cells.iterdir()) if cells.is_dir() else 0


# --- full disk


def _whole_run(folder: Path) -> None:
    with RunFolder.open(folder, **STUDY) as run:
        for number in range(2):
            run.store(_key(number), _frame(number), _tensors(number))
        run.write_rows(run.load(_key(number)).frame for number in range(2))
        run.write_summary(_frame())
        run.log("done")
        run.write_manifest({"status": "finished"})


def test_a_disk_that_fills_up_at_each_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flush, failures = os.fsync, 0
    while True:
        folder, left = tmp_path / str(failures), failures

        def full(descriptor: int) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            flush(descriptor)

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            try:
                _whole_run(folder)
                break
            except RunError as error:
                said = str(error)
        assert "No space left on device" in said
        assert "Finished cells are kept: the same command goes on from there." in said
        assert not list(folder.rglob(".part-*"))
        if (folder / "manifest.json").exists():  # only its name's flush failed: all is there
            assert len(read_rows(folder)) == 6
        else:
            with pytest.raises(RunError, match=r"not finished|no mechdiff run|no such folder"):
                read_manifest(folder)
        kept = {path: path.stat().st_mtime_ns for path in folder.glob("cells/*/cell.json")}
        _whole_run(folder)
        assert kept == {path: path.stat().st_mtime_ns for path in kept}  # nothing finished is written again
        assert read_manifest(folder)["status"] == "finished"
        failures += 1
    assert failures > 15


def test_a_file_that_the_system_refuses_to_grow(run: RunFolder) -> None:
    run.store(_key(0), _frame())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(RunError, match=r"File too large.*MiB are free"):
            run.store(_key(1), _frame(), {"x": np.zeros(100_000, np.float32)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert run.has(_key(0))
    assert not run.has(_key(1))
    assert run.warnings == []


# --- what readers read


def test_a_finished_run_is_read_back(folder: Path) -> None:
    _whole_run(folder)
    assert read_rows(folder).equals(pl.concat([_frame(0), _frame(1)]))
    assert read_summary(folder).equals(_frame())
    assert read_manifest(folder)["status"] == "finished"
    assert (folder / "log.txt").read_text().endswith("Z done\n") or "+00:00 done" in (folder / "log.txt").read_text()


def test_rows_are_the_cells_rows_with_a_unique_key(run: RunFolder) -> None:
    assert run.write_rows([]) == 0
    assert run.write_rows(_frame(number) for number in range(5)) == 15
    with pytest.raises(AssertionError, match="rows repeat a key"):
        run.write_rows([_frame(0), _frame(0)])
    with pytest.raises(AssertionError, match="without a value"):
        run.write_rows([_frame().with_columns(value=pl.lit(None, pl.Float64))])


def test_new_rows_take_back_the_old_manifest(folder: Path) -> None:
    _whole_run(folder)
    with RunFolder.open(folder, **STUDY) as run:
        assert read_manifest(folder)
        run.write_rows([_frame(9)])
    with pytest.raises(RunError, match="not finished"):
        read_rows(folder)


def test_the_manifest_comes_last_and_is_plain(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    with pytest.raises(AssertionError, match="write_rows first"):
        run.write_manifest({})
    run.write_rows([_frame()])
    run.write_manifest({"floor": float("nan"), "at": Path("x"), "why": "401 for hf_0123456789", "n": np.int64(2)})
    run.log("asked with hf_0123456789")
    manifest = read_manifest(run.path)
    assert {name: manifest[name] for name in ("floor", "at", "why", "n")} == {"floor": None, "at": "x", "why": "401 for [removed]", "n": 2}
    assert list(manifest["files"]) == ["rows.parquet"]
    assert not [path for path in run.path.rglob("*") if path.is_file() and b"hf_0123456789" in path.read_bytes()]


def test_readers_say_what_is_wrong(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such folder"):
        read_manifest(folder)
    with pytest.raises(RunError, match="no mechdiff run"):
        read_rows(tmp_path)
    with RunFolder.open(folder, **STUDY), pytest.raises(RunError, match=r"not finished\. The same `mechdiff run` command"):
        read_summary(folder)
    _whole_run(folder)
    for name, read in (("rows.parquet", read_rows), ("summary.parquet", read_summary)):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-9])
        with pytest.raises(RunError, match=rf"{name}: not the file that its run wrote"):
            read(folder)
        (folder / name).unlink()
        with pytest.raises(RunError, match=rf"{name}: cannot be read"):
            read(folder)
    for content in (b"{", b"[]", b"\xff"):
        (folder / "manifest.json").write_bytes(content)
        with pytest.raises(RunError, match=r"manifest\.json: "):
            read_manifest(folder)


def test_torch_is_not_needed() -> None:
    with _child("print([name for name in ('torch', 'transformers') if name in sys.modules])") as child:
        assert child.stdout
        assert child.stdout.read().strip() == "[]"
