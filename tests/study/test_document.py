"""YAML is read strictly, and every way of getting it wrong is one sentence with a line number."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mechdiff.errors import StudyError
from mechdiff.study.document import LARGEST, nearest, read_yaml, short


def _read(folder: Path, content: str | bytes) -> object:
    path = folder / "study.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    data, text = read_yaml(path)
    assert text.encode() == path.read_bytes()
    return data


def test_plain_yaml_and_its_text_come_back(tmp_path: Path) -> None:
    assert _read(tmp_path, "a: 1\nb: [x, 'y z', 0.5, null, true]  # говорит\n") == {"a": 1, "b": ["x", "y z", 0.5, None, True]}
    assert _read(tmp_path, "\ufeffa: 1\n") == {"a": 1}
    assert _read(tmp_path, "a: 1\r\nb: 2\r\n") == {"a": 1, "b": 2}


def test_a_date_stays_the_text_that_was_written(tmp_path: Path) -> None:
    assert _read(tmp_path, "date: 2024-07-26\n") == {"date": "2024-07-26"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", r"line 3: .*'a' stands here twice"),
        ("a: {b: 1, 'b': 2}\n", r"line 1: .*'b' stands here twice"),
        ("a: 1\n  b: 2\n", r"line 2: not a study in YAML"),
        ("a: [1, 2\n", r"line 2: not a study in YAML"),
        ("a: &x [1]\nb: *x\n", r"line 1: .*anchors"),
        ("a: !!python/object/apply:os.system [ls]\n", r"line 1: .*tags"),
        ("a: !!timestamp nonsense\n", r"line 1: .*tags"),
        ("? [a]\n: 1\n", r"line 1: .*unhashable"),
        ("a: 1\n---\nb: 2\n", r"line 2: not a study in YAML"),
        ("a: 0x_\n", r"not a study in YAML"),
        (f"a: {'9' * 5000}\n", r"not a study in YAML"),
        ("a: \x01\n", r"not a study in YAML"),
        ("[" * 1000, r"nested too deeply"),
        (b"a: \xff\n", r"not UTF-8 text at byte 3"),
        ("a" * (LARGEST + 1), r"longer than"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, content: str | bytes, said: str) -> None:
    with pytest.raises(StudyError, match=said):
        _read(tmp_path, content)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"gone\.yaml: no study can be read here"):
        read_yaml(tmp_path / "gone.yaml")
    with pytest.raises(StudyError, match="no study can be read here"):
        read_yaml(tmp_path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(content=st.binary(max_size=60) | st.text("a:-[]{}?&*!|>'\"#%@`,\n \t<=~0x_.", max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(content)
    with contextlib.suppress(StudyError):
        read_yaml(path)


def test_words_of_messages() -> None:
    assert nearest("patchng", ["patching", "similarity"]) == " Did you mean patching?"
    assert nearest("zzz", ["patching", "similarity"]) == ""
    assert short("x" * 500).endswith("...")
    assert len(short("x" * 500)) == 80
