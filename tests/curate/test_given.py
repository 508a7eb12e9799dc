"""Whatever a user has at hand becomes prompts: files of other tools, texts in quotes, lists from Python; nothing is dropped in silence."""

import json
from pathlib import Path

import pytest

from mechdiff.curate.given import prompt_file
from mechdiff.errors import PromptError
from mechdiff.prompts.sets import Turn, read_prompts

TWO = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."},
       {"role": "user", "content": "Name a river."}, {"role": "assistant", "content": "The Ural."}]  # fmt: skip
FORMS = {
    "text": ({"text": "Name a river."}, ("Name a river.", None, ())),
    "prompt and completion": ({"prompt": "Name a river.", "completion": "The Ural."}, ("Name a river.", None, ())),
    "messages": ({"messages": TWO}, ("Name a river.", "Be brief.", (Turn("user", "Hi."), Turn("assistant", "Hello.")))),
    "conversations": ({"conversations": [{"from": "human", "value": "Name a river."}]}, ("Name a river.", None, ())),
    "instruction": ({"instruction": "Name it.", "input": "A river.", "output": "Ural"}, ("Name it.\n\nA river.", None, ())),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MECHDIFF_CACHE", str(tmp_path / "cache"))


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("form", FORMS)
def test_a_line_of_each_form_is_a_prompt_from_a_file_and_from_python(form: str, tmp_path: Path) -> None:
    row, expected = FORMS[form]
    for given in (lines(tmp_path / "given.jsonl", row), str(tmp_path / "given.jsonl"), [row]):
        (prompt,) = read_prompts(prompt_file(given).path)
        assert (prompt.text, prompt.system, prompt.before) == expected


@pytest.mark.parametrize("name", ["given.txt", "given.csv", "given.parquet"])
def test_files_of_other_kinds_are_read(name: str, tmp_path: Path) -> None:
    import polars as pl

    path, texts = tmp_path / name, ["Name a river.", "Name a lake."]
    if name.endswith(".txt"):
        path.write_text("\n".join(texts), encoding="utf-8")
    else:
        table = pl.DataFrame({"question": texts, "level": [1, 2]})
        table.write_csv(path) if name.endswith(".csv") else table.write_parquet(path)
    found = prompt_file(path)
    assert [one.text for one in read_prompts(found.path)] == texts
    assert found.said[0] == f"{name}: 2 prompts of 2 rows"


def test_a_prompt_file_is_taken_as_it_is(tmp_path: Path) -> None:
    own = lines(tmp_path / "own.jsonl", {"text": "Name a river.", "id": "a", "label": "Ural"})
    assert prompt_file(own).path == own
    assert prompt_file(own).said == ()


def test_texts_in_quotes_and_lists_of_them() -> None:
    assert [one.text for one in read_prompts(prompt_file("What is 2+2?").path)] == ["What is 2+2?"]
    assert [one.text for one in read_prompts(prompt_file(["One.", "Two."]).path)] == ["One.", "Two."]
    (said,) = read_prompts(prompt_file([TWO]).path)
    assert said.before == (Turn("user", "Hi."), Turn("assistant", "Hello."))


def test_fields_that_are_no_part_of_a_prompt_are_kept_and_said(tmp_path: Path) -> None:
    rows = [{"text": "Name a river.", "author": "Ann", "level": 3}, {"text": "Name a lake.", "author": "Bo", "level": 1}]
    found = prompt_file(lines(tmp_path / "topics.jsonl", *rows))
    assert [(one.meta["author"], one.meta["level"]) for one in read_prompts(found.path)] == [("Ann", 3), ("Bo", 1)]
    assert found.said[1] == "topics.jsonl: the fields author, level are no part of the prompts; they are kept in their meta"


def test_rows_that_are_left_out_are_counted(tmp_path: Path) -> None:
    found = prompt_file(lines(tmp_path / "some.jsonl", {"prompt": "One."}, {"prompt": "one. "}, {"prompt": ""}))
    assert found.said == ("some.jsonl: 1 prompt of 3 rows (left out: 1 no text, 1 the same text)",)


def test_the_same_prompts_lie_in_the_same_file() -> None:
    first, other = prompt_file(["One.", "Two."]).path, prompt_file(["One.", "Three."]).path
    assert prompt_file(["One.", "Two."]).path == first != other


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("prompts", "given 'prompts', expected a file .* or a text"),
        ("absent.jsonl", "absent.jsonl: no such file"),
        ("my prompts.jsonl", "my prompts.jsonl: no such file"),
        ("./no such folder/x", "no such file"),
        ([3], "entry 1: given 3, expected a text"),
        ([], "hold no rows"),
        ([{"picture": "a.png"}], "none of 1 rows gives a prompt"),
    ],
)
def test_what_cannot_be_asked_is_said(given: object, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        prompt_file(given)  # type: ignore[arg-type]


def test_a_study_file_names_prompts_of_any_form(tmp_path: Path) -> None:
    """As --prompts takes them: the study of a CSV file is that of the prompts in it, and what was made of them is said."""
    from mechdiff.api import with_prompt_files
    from mechdiff.cli.asked import Flags, study_of
    from mechdiff.measures.catalogue import load_study
    from mechdiff.study.config import config_hash, content_hashes

    (tmp_path / "mine.csv").write_text("prompt,source\nName a river.,atlas\nName a hill.,atlas\nName a river.,atlas\n", encoding="utf-8")
    lines(tmp_path / "plain.jsonl", {"text": "Name a lake."})
    file = tmp_path / "study.yaml"
    file.write_text(
        "pair: {base: a, tuned: b}\nprompts: {report: mine.csv, select: plain.jsonl}\nmeasures: [divergence]\n", encoding="utf-8"
    )
    said: list[str] = []
    study = with_prompt_files(load_study(file)[0], said.append)
    assert [prompt.text for prompt in read_prompts(Path(study.prompts.report))] == ["Name a river.", "Name a hill."]
    assert study.prompts.select == str(tmp_path / "plain.jsonl")
    assert "2 prompts of 3 rows" in " ".join(said)
    none = Flags(
        base=None, tuned=None, prompts=None, policy="auto", template="tuned", measures=None, panel=None, also=None, seed=0, dtype="auto"
    )
    asked = study_of(file, none)
    assert config_hash(asked, content_hashes(asked)) == config_hash(study, content_hashes(study))
