"""Faulty rows: what is read is what stands there, or it is said."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mechdiff.cli.main import app


def curated(folder: Path, *options: str, code: int = 0) -> tuple[list[dict], str]:
    done = CliRunner().invoke(
        app, ["curate", str(folder / next(iter(folder.iterdir())).name), "--one-file", "--out", str(folder / "out"), *options]
    )
    assert done.exit_code == code, done.output
    lines = (folder / "out" / "prompts.jsonl").read_text().splitlines() if not code else []
    return [json.loads(line) for line in lines], " ".join(f"{done.output} {done.exception}".split())


def wrote(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder


CHOICE = ("--preset", "choice")


def test_an_empty_option_keeps_the_places_of_the_others(tmp_path: Path) -> None:
    wrote(tmp_path, "a.csv", "question,A,B,C,D,answer\nWhich?,one,,three,four,C\nWhat then?,one,two,,four,C\n")
    found, said = curated(tmp_path, *CHOICE)
    assert [(one["options"], one["label"]) for one in found] == [(["one", "three", "four"], "three")]
    assert "the right option is empty: 1" in said


def test_one_question_with_other_options_is_another_prompt_of_the_same_cluster(tmp_path: Path) -> None:
    lines = "".join(f"Which of these is correct?,{a},{b},A\n" for a, b in (("cats bark", "dogs bark"), ("two is odd", "seven is odd")))
    found, _ = curated(wrote(tmp_path, "a.csv", f"question,A,B,answer\n{lines}"), *CHOICE)
    assert len(found) == 2
    assert len({one["meta"]["cluster"] for one in found}) == 1


@pytest.mark.parametrize(
    ("name", "text", "options", "message"),
    [
        ("a.csv", "text,label\nHello, world of commas,3\n", (), "line 2: a row with more than the 2 columns"),
        ("a.csv", "text,label\nHello\n", (), "line 2: a row with fewer than the 2 columns"),
        ("a.csv", 'text,label\n"unclosed, 3\nfoo,4\n', (), "unexpected end of data"),
        ("a.jsonl", '{"text": "\\ud800"}\n', (), "half of a surrogate pair"),
        ("a.jsonl", '{"question": "q", "options": ["B", "A"], "answer": "A"}\n', CHOICE, "the letter of one option and the text of another"),
        ("a.jsonl", '{"prompt": ["Hi", "Ho"]}\n', (), "the text is a list: name the field that holds it"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said(tmp_path: Path, name: str, text: str, options: tuple[str, ...], message: str) -> None:
    assert message in curated(wrote(tmp_path, name, text), *options, code=1)[1]


def test_ten_options_have_ten_letters(tmp_path: Path) -> None:
    row = {"question": "Which?", "options": [f"thing {i}" for i in range(10)], "answer": "J"}
    (found,), _ = curated(wrote(tmp_path, "a.jsonl", json.dumps(row) + "\n"), *CHOICE, "--letters")
    assert found["label"] == "J"
    assert "J. thing 9" in found["text"]


def test_what_a_prompt_brings_along_is_kept(tmp_path: Path) -> None:
    (found,), _ = curated(wrote(tmp_path, "a.jsonl", '{"text": "Hello", "meta": {"kind": "greeting", "row": 9}}\n'))
    assert found["meta"]["kind"] == "greeting"
    assert found["meta"]["row"] == 1


def test_overwriting_leaves_nothing_of_the_old_set(tmp_path: Path) -> None:
    many, few = tmp_path / "many.txt", tmp_path / "few.txt"
    many.write_text("".join(f"A question about number {i * 7919 % 1000} and {i}\n" for i in range(30)))
    few.write_text("One question\n")
    for source, more in ((many, ()), (few, ("--overwrite",))):
        done = CliRunner().invoke(app, ["curate", str(source), "--out", str(tmp_path / "out"), *more])
        assert done.exit_code == 0, done.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.jsonl", "curation.json"}


def test_a_short_solution_is_no_final_answer(tmp_path: Path) -> None:
    row = {"problem": "What is x?", "answer": "So we get x equal to 12 apples."}
    (found,), _ = curated(wrote(tmp_path, "a.jsonl", json.dumps(row) + "\n"), "--preset", "maths")
    assert found["label"] == "12"
