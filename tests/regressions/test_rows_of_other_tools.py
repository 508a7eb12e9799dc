"""What a user saw: files of other tools made into other prompts than they hold, or refused with advice that leads in a circle; and a traceback for
a NaN in a prompt file."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from mechdiff.curate.curation import Recipe, curate, write
from mechdiff.curate.fields import Fields
from mechdiff.errors import PromptError
from mechdiff.prompts.sets import Prompt, Turn, cluster_names, read_prompts


def made(folder: Path, rows: list[Any], near: float = 1, **fields: Any) -> list[Prompt]:
    """The prompts of some rows, written and read again as a run reads them."""
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = curate([str(file)], Recipe(fields=Fields(**fields), near=near))
    write(found, folder / "out", one_file=True)
    assert read_prompts(folder / "out" / "prompts.jsonl") == found.prompts
    return found.prompts


# ---- conversations (row 25) ----------------------------------------------------------------------------------------------------------

OPENAI = [
    {"role": "system", "content": "Count."}, {"role": "user", "content": "What comes after 1?"}, {"role": "assistant", "content": "2"},
    {"role": "user", "content": "And after 2?"}, {"role": "assistant", "content": "3"},
]  # fmt: skip
SHAREGPT = [{"from": {"user": "human", "assistant": "gpt"}.get(turn["role"], turn["role"]), "value": turn["content"]} for turn in OPENAI]
PARTS = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in OPENAI]


@pytest.mark.parametrize(
    ("row", "fields"),
    [
        ({"messages": OPENAI}, {}),
        ({"messages": OPENAI}, {"text": "messages"}),
        ({"messages": PARTS}, {}),
        ({"conversations": SHAREGPT}, {}),
        ({"prompt": OPENAI}, {}),
        ({"system": "Count.", "before": OPENAI[1:3], "text": "And after 2?"}, {}),
    ],
    ids=["messages", "named", "parts", "ShareGPT", "prompt", "mechdiff's own"],
)
def test_a_conversation_is_its_last_user_s_turn_with_all_before_it(row: dict[str, Any], fields: dict[str, Any], tmp_path: Path) -> None:
    (found,) = made(tmp_path, [row], **fields)
    assert (found.text, found.system) == ("And after 2?", "Count.")
    assert found.before == (Turn("user", "What comes after 1?"), Turn("assistant", "2"))


def test_what_was_answered_is_the_answer_of_a_sum(tmp_path: Path) -> None:
    (found,) = made(tmp_path, [{"messages": OPENAI}], preset="maths")
    assert found.label == "3"


def test_conversations_that_end_alike_are_not_copies_of_each_other(tmp_path: Path) -> None:
    """ "Go on." behind two stories is two prompts, and no cluster."""
    rows = [
        {"messages": [{"role": "user", "content": f"Tell me of {what}."}, {"role": "assistant", "content": f"{what}!"},
                      {"role": "user", "content": "Go on."}]}
        for what in ("wild horses at sea", "a clockmaker in Prague", "seven empty bottles")
    ]  # fmt: skip
    found = made(tmp_path, rows)
    assert [one.text for one in found] == ["Go on."] * 3
    assert len({one.id for one in found}) == len(set(cluster_names(found))) == 3


@pytest.mark.parametrize(
    ("turns", "why"),
    [
        ([{"role": "assistant", "content": "Hello."}], "a conversation without a user's turn"),
        ([{"role": "tool", "content": "4"}], "a conversation in which 'tool' speaks"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "a conversation with more than text in it"),
        ([*OPENAI[:3], OPENAI[0], OPENAI[3]], "a conversation with a system message in its middle"),
    ],
)
def test_a_conversation_that_is_no_prompt_is_counted_with_the_reason(turns: list[Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=f"none of 1 rows gives a prompt \\({why}"):
        made(tmp_path, [{"messages": turns}])


# ---- what a text is about (row 26) ---------------------------------------------------------------------------------------------------


def test_an_instruction_has_its_input_behind_it_and_copies_are_judged_on_both(tmp_path: Path) -> None:
    rows = [{"instruction": "Name the opposite.", "input": word, "output": "?"} for word in ("hot", "wide", "early", "")]
    assert [one.text for one in made(tmp_path, rows)] == [
        "Name the opposite.\n\nhot", "Name the opposite.\n\nwide", "Name the opposite.\n\nearly", "Name the opposite."
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"instruction": "Who is it about?", "context": "Ada wrote it.", "response": "Ada"}, "Who is it about?\n\nAda wrote it."),
        ({"context": "Ada wrote it.", "question": "Who wrote it?"}, "Ada wrote it.\n\nWho wrote it?"),
        ({"passage": "Ada wrote it.", "question": "did ada write it"}, "Ada wrote it.\n\ndid ada write it"),
        ({"question": "Who?", "context": {"title": ["a"]}}, "Who?"),
        ({"instruction": "Say 2.", "input": "", "text": "Below is an instruction.\n### Instruction:\nSay 2.\n### Response:\n2"}, "Say 2."),
        ({"text": "Say 2.", "input": "no part of it"}, "Say 2."),
    ],
    ids=["Dolly", "SQuAD", "BoolQ", "no text", "Alpaca's own frame", "a text"],
)
def test_what_a_question_is_about_stands_with_it(row: dict[str, Any], text: str, tmp_path: Path) -> None:
    (found,) = made(tmp_path, [row])
    assert found.text == text


def test_a_field_that_is_named_is_taken_alone(tmp_path: Path) -> None:
    (found,) = made(tmp_path, [{"instruction": "Name the opposite.", "input": "hot"}], text="instruction")
    assert found.text == "Name the opposite."


def test_a_system_prompt_beside_a_question_is_kept(tmp_path: Path) -> None:
    (found,) = made(tmp_path, [{"system_prompt": "Be brief.", "question": "Why?", "response": "So."}])
    assert (found.system, found.text, found.before) == ("Be brief.", "Why?", ())


# ---- labels (rows 27, 28, L6) --------------------------------------------------------------------------------------------------------


def test_the_right_option_is_the_one_with_the_answer_s_label_letters_and_digits_mixed(tmp_path: Path) -> None:
    """ARC: some rows call their options A to D, some 1 to 4."""
    rows = [
        {"question": f"Which is {i}?", "choices": {"text": [f"a{i}", f"b{i}", f"c{i}"], "label": labels}, "answerKey": key}
        for i, (labels, key) in enumerate(((["A", "B", "C"], "C"), (["1", "2", "3"], "3"), (["1", "2", "3"], "1")))
    ]
    assert [one.label for one in made(tmp_path, rows, preset="choice")] == ["c0", "c1", "a2"]


def test_a_label_that_is_nan_is_none(tmp_path: Path) -> None:
    found = made(tmp_path, [{"text": "Why?", "label": float("nan"), "meta": {"score": float("nan"), "of": [1, float("nan")]}}])
    assert found[0].label is None
    assert found[0].meta["score"] is None
    assert found[0].meta["of"] == [1, None]


def test_a_label_that_is_a_date_is_the_text_of_the_file(tmp_path: Path) -> None:
    """`datasets` reads it as a moment, with a midnight that nobody wrote."""
    rows = [{"question": f"When was {i}?", "answer": f"1940-05-0{i + 1}"} for i in range(3)]
    (tmp_path / "dates.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = datasets.load_dataset("json", data_files=str(tmp_path / "dates.jsonl"), split="train", cache_dir=str(tmp_path / "cache"))
    read.save_to_disk(str(tmp_path / "disk"))
    found = curate([str(tmp_path / "disk")], Recipe(near=1)).prompts
    assert [one.label for one in found] == [row["answer"] for row in rows]


# ---- files given to a run (rows 16, 30) ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row", [{"messages": OPENAI}, {"question": "q", "answer": "a"}, {"prompt": "p"}, {"instruction": "i", "input": "j"}]
)
def test_a_file_of_another_tool_is_told_with_the_command_that_makes_prompts_of_it(row: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "other.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(
        PromptError, match=r"line 1: the keys are .*, as in a file of another tool.*`mechdiff curate .*other\.jsonl --out prompts`"
    ):
        read_prompts(file)
    found = curate([str(file)], Recipe())
    write(found, tmp_path / "prompts", one_file=True)
    assert read_prompts(tmp_path / "prompts" / "prompts.jsonl"), "the advice works"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-1e999"])
def test_a_number_that_is_none_is_named_with_its_line(number: str, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(f'{{"text": "a"}}\n{{"text": "b", "meta": {{"score": {number}}}}}\n')
    with pytest.raises(PromptError, match=r"p\.jsonl, line 2: NaN or an infinite number, which is no JSON. Write null"):
        read_prompts(file)


@pytest.mark.parametrize("before", ["x", [{"role": "system", "content": "x"}], [{"role": "user"}], [{"role": "user", "content": " "}]])
def test_earlier_turns_are_turns(before: Any, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"text": "a", "before": before}) + "\n")
    with pytest.raises(PromptError, match=r"line 1: `before` holds .* each earlier turn must be"):
        read_prompts(file)
