"""Rows of every kind of source, and what a row becomes."""

import json
from pathlib import Path

import polars as pl
import pytest

from mechdiff.curate.fields import Candidate, Fields, candidate, fields_of
from mechdiff.curate.raw import open_source
from mechdiff.errors import PromptError

ROWS = [{"question": "Қандай?", "kind": "a"}, {"question": "Which, one?", "kind": "b"}]


def written(folder: Path, kind: str) -> Path:
    path = folder / f"source.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8-sig")
    elif kind == "json":
        path.write_text(json.dumps({"data": ROWS}))
    elif kind in ("csv", "tsv"):
        pl.DataFrame(ROWS).write_csv(path, separator="," if kind == "csv" else "\t")
    else:
        pl.DataFrame(ROWS).write_parquet(path)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_each_kind_gives_the_same_rows(tmp_path, kind):
    source = open_source(str(written(tmp_path, kind)))
    assert list(source.rows()) == ROWS
    assert source.kind == kind
    assert len(source.sha256 or "") == 64


def test_plain_text_by_lines_and_by_paragraphs(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\nthree\n")
    assert [row["text"] for row in open_source(str(tmp_path / "a.txt")).rows()] == ["one", "two", "three"]
    assert [row["text"] for row in open_source(str(tmp_path / "a.txt"), paragraphs=True).rows()] == ["one", "two\nthree"]


def test_a_data_set_on_disk(tmp_path):
    import datasets

    datasets.disable_progress_bars()
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "saved")
    assert list(open_source(str(tmp_path / "saved")).rows()) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": 1', "line 1: malformed JSON"),
        ("a.jsonl", b"[1]", "not an object with named fields"),
        ("a.json", b'{"a": 1}', "expected a list of objects"),
        ("a.csv", "text\n\xff".encode("latin-1"), "not UTF-8"),
        ("a.parquet", b"no parquet", "cannot be read as Parquet"),
        ("a.pdf", b"x", "expected one of .jsonl"),
        ("folder", None, "no data set that `datasets` saved"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content) if content is not None else path.mkdir()
    with pytest.raises(PromptError, match=message):
        list(open_source(str(path)).rows())


def test_a_file_that_is_not_there_and_a_hub_without_a_network():
    with pytest.raises(PromptError, match="no such file"):
        open_source("./nothing.jsonl")
    with pytest.raises(PromptError, match="neither a file or folder here nor a data set that could be read from the Hub"):
        list(open_source("nobody/nothing").rows())


def choice(row, **fields):
    return candidate(row, Fields(preset="choice", **fields), "row 1")


def test_the_usual_names_are_tried_and_others_can_be_said():
    assert candidate({"question": " q ", "subject": "s"}, Fields(), "row 1") == Candidate(
        text="q", category="s", options=(), label=None, id=None
    )
    found = candidate({"a": {"b": "deep"}, "question": "q"}, Fields(text="a.b"), "row 1")
    assert isinstance(found, Candidate)
    assert found.text == "deep"
    assert candidate({"other": "q"}, Fields(), "row 1") == "no text"


@pytest.mark.parametrize(
    ("row", "fields", "label"),
    [
        ({"question": "q", "A": "x", "B": "y", "C": "z", "D": "w", "answer": "2"}, {"answer_from": "zero"}, "z"),
        ({"question": "q", "A": "x", "B": "y", "C": "z", "D": "w", "answer": 2}, {"answer_from": "one"}, "y"),
        ({"question": "q", "A": "x", "B": "y", "answer": "b"}, {}, "y"),
        ({"question": "q", "choices": ["x", "y"], "answer": "y"}, {}, "y"),
        ({"question": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answer": "A"}, {}, "x"),
        ({"question": "q", "options": ["3", "4"], "answer": "4"}, {}, "4"),
    ],
)
def test_the_right_option_by_text_letter_or_number(row, fields, label):
    found = choice(row, **fields)
    assert isinstance(found, Candidate)
    assert found.label == label


def test_distractors_in_one_text_take_the_answer_among_them():
    found = choice({"question": "q", "answer": "right", "options": "w1; w2;w3"}, separator=";")
    assert isinstance(found, Candidate)
    assert set(found.options) == {"w1", "w2", "w3", "right"}
    assert found.label == "right"


def test_letters_are_printed_and_asked_for():
    found = choice({"question": "q", "options": ["x", "y"], "answer": "y"}, letters=True)
    assert found == Candidate(text="q\nA. x\nB. y", category=None, options=("A", "B"), label="B", id=None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q", "options": ["1", "2"], "answer": "1"}, "may be the number of one. Say --answer-from text, zero or one"),
        ({"question": "q", "options": ["x", "y"], "answer": "1"}, "Say --answer-from zero or one if it is a number"),
        ({"question": "q", "options": ["x", "y"], "answer": "z"}, "none of the options"),
    ],
)
def test_an_answer_is_never_guessed(row, message):
    with pytest.raises(PromptError, match=message):
        choice(row)
    with pytest.raises(PromptError, match="counted from one"):
        choice({"question": "q", "options": ["x", "y"], "answer": "0"}, answer_from="one")


def test_rows_that_lack_something_say_what():
    assert choice({"question": "q"}) == "no options"
    assert choice({"question": "q", "options": ["x", "y"]}) == "no answer"
    assert choice({"question": "q", "options": ["x", "x"], "answer": "x"}) == "options that are the same"


@pytest.mark.parametrize(
    ("answer", "label"),
    [("5 + 5 = 10\n#### 1,000", "1,000"), (r"so \boxed{\frac{1}{\sqrt{2}}}.", r"\frac{1}{\sqrt{2}}"), ("7", "7")],
)
def test_final_answers_of_solutions(answer, label):
    found = candidate({"problem": "p", "solution": answer}, Fields(preset="maths"), "row 1")
    assert isinstance(found, Candidate)
    assert found.label == label


def test_words_that_are_no_preset_are_refused():
    with pytest.raises(PromptError, match="preset: given 'quiz', expected one of plain, choice, maths"):
        fields_of(preset="quiz", answer_from="auto")
