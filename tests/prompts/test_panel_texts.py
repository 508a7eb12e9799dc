"""Twelve groups of fifty hold what they say: keys, lengths, right answers, and no text twice, nor one that mechdiff ships elsewhere."""

import ast
import json
import re
from collections import Counter, defaultdict
from fractions import Fraction
from pathlib import Path

import pytest

from mechdiff import errors

DATA = Path(errors.__file__).parent / "data"
TEXT = ["id", "text"]
KEYS = {
    "chat": ["id", "prompt", "answer"],
    "encyclopaedia": TEXT,
    "news": TEXT,
    "code": TEXT,
    "kazakh": TEXT,
    "russian": TEXT,
    "spanish": TEXT,
    "turkish": TEXT,
    "arithmetic": ["id", "prompt", "choices", "right"],
    "multiple_choice": ["id", "prompt", "choices", "right"],
    "harmful": ["id", "prompt"],
    "borderline": ["id", "prompt"],
}
WORDS = {
    ("chat", "prompt"): (3, 25),
    ("chat", "answer"): (15, 30),
    ("encyclopaedia", "text"): (30, 45),
    ("news", "text"): (30, 45),
    ("kazakh", "text"): (12, 28),
    ("russian", "text"): (15, 28),
    ("spanish", "text"): (20, 32),
    ("turkish", "text"): (12, 28),
    ("arithmetic", "prompt"): (1, 25),
    ("multiple_choice", "prompt"): (3, 25),
    ("harmful", "prompt"): (5, 25),
    ("borderline", "prompt"): (5, 25),
}
CYRILLIC, LATIN = "абвгдеёжзийклмнопрстуфхцчшщъыьэюя", "abcdefghijklmnopqrstuvwxyz"
OWN_LETTERS = {"kazakh": "әіңғүұқө", "russian": "ёэ", "spanish": "áéíóúñ", "turkish": "çğıöşü"}
ALPHABETS = {
    "kazakh": CYRILLIC + OWN_LETTERS["kazakh"],
    "russian": CYRILLIC,
    "spanish": LATIN + OWN_LETTERS["spanish"],
    "turkish": LATIN + OWN_LETTERS["turkish"] + "âî",
}
TOLD = {
    "arithmetic-02": "14 * 5",
    "arithmetic-04": "25 * 80 / 100",
    "arithmetic-06": "4 * 35",
    "arithmetic-07": "(21 - 19) * 60 + 15 - 40",
    "arithmetic-09": "24 * 2",
    "arithmetic-11": "44 - 19",
    "arithmetic-12": "52 - 17",
    "arithmetic-14": "(8 + 12 + 19) / 3",
    "arithmetic-16": "60 - 60 * 20 / 100",
    "arithmetic-17": "3 * 3 * 3 * 3",
    "arithmetic-18": "92 / 4",
    "arithmetic-20": "5 * 24",
    "arithmetic-22": "350 / 100 * 6",
    "arithmetic-24": "58 / 2",
    "arithmetic-26": "9 * 7",
    "arithmetic-28": "50 % 7",
    "arithmetic-30": "18 * 7",
    "arithmetic-32": "3.20 + 1.45",
    "arithmetic-34": "6 * 24 - 10",
    "arithmetic-36": "45 / 180 * 100",
    "arithmetic-38": "34 - 26 + 10",
    "arithmetic-40": "2 * 100 / 4",
    "arithmetic-42": "40 / 12 * 3",
    "arithmetic-44": "31 - 9 + 14",
    "arithmetic-46": "130 / 2",
    "arithmetic-48": "(41 - 5) / 3",
}
"""What sums that are told in words come to."""
NUMBER = r"\(?\d+(?:[./]\d+)?\)?"
SUM = re.compile(rf"{NUMBER}(?: [-+×/] {NUMBER})+")


def items(group):
    with open(DATA / "panel" / f"{group}.jsonl", encoding="utf-8", newline="\n") as lines:
        return [json.loads(line) for line in lines]


def n_words(text):
    return len(text.split())


def value(expression):
    return eval(re.sub(r"[\d.]+", r"Fraction('\g<0>')", expression.replace("×", "*")), {"Fraction": Fraction})


def is_python(text):
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def grams(text):
    words = re.findall(r"\w+", text.casefold())
    return {tuple(words[at : at + 3]) for at in range(max(1, len(words) - 2))}


def likeness(texts):
    """Pairs of texts that share a run of three words, with the Jaccard index of such runs."""
    runs = [grams(text) for text in texts]
    where = defaultdict(list)
    for index, run in enumerate(runs):
        for gram in run:
            where[gram].append(index)
    shared = Counter(pair for found in where.values() for pair in ((a, b) for a in found for b in found if a < b))
    return {(texts[a], texts[b]): n / len(runs[a] | runs[b]) for (a, b), n in shared.items()}


def shipped():
    files = [DATA / "neutral.jsonl", DATA / "passages.jsonl", DATA / "behaviour/probes.jsonl", *sorted((DATA / "prompts").glob("*.jsonl"))]
    return [json.loads(line)["text"] for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def test_the_folder_holds_these_groups_alone():
    assert sorted(file.stem for file in (DATA / "panel").glob("*.jsonl")) == sorted(KEYS)


@pytest.mark.parametrize("group", KEYS)
def test_fifty_items_with_their_keys_and_ids(group):
    assert [item["id"] for item in items(group)] == [f"{group}-{number:02d}" for number in range(1, 51)]
    assert all(list(item) == KEYS[group] for item in items(group))


@pytest.mark.parametrize(("group", "key"), WORDS)
def test_texts_are_as_long_as_said(group, key):
    least, most = WORDS[group, key]
    assert [item for item in items(group) if not least <= n_words(item[key]) <= most] == []
    assert [item for item in items(group) if item[key] != item[key].strip() or "  " in item[key]] == []


@pytest.mark.parametrize("group", ["arithmetic", "multiple_choice"])
def test_right_answers_stand_at_all_four_places_alike(group):
    places = [item["right"] for item in items(group)]
    for run, each in ((4, 1), (12, 3)):
        assert sorted(Counter(places[:run]).items()) == [(place, each) for place in range(4)]
    assert sorted(Counter(places).values()) == [12, 12, 13, 13]
    assert all(len(set(item["choices"])) == 4 for item in items(group))


def test_sums_come_out_at_the_right_choice_alone():
    for item in items("arithmetic"):
        told = TOLD.get(item["id"])
        expression = told or SUM.search(item["prompt"])[0]
        right = [place for place, choice in enumerate(item["choices"]) if Fraction(choice) == value(expression)]
        assert right == [item["right"]], item
        assert len({len(choice) for choice in item["choices"]}) == 1, item
        if told:
            assert not SUM.search(item["prompt"]), item


@pytest.mark.parametrize("group", ALPHABETS)
def test_each_language_is_written_in_its_own_letters(group):
    written = {letter for item in items(group) for letter in item["text"].lower() if letter.isalpha()}
    assert written <= set(ALPHABETS[group])
    assert written >= set(OWN_LETTERS[group])


def test_thirty_snippets_are_python_and_all_are_short():
    snippets = [item["text"] for item in items("code")]
    assert sum(map(is_python, snippets)) == 30
    assert [text for text in snippets if not 120 <= len(text) <= 420 or text != text.strip()] == []
    assert not is_python(snippets[1])


def test_no_text_is_nearly_another():
    own = [value for group in KEYS for item in items(group) for key, value in item.items() if key in ("prompt", "text", "answer")]
    texts = [*own, *set(shipped())]
    new = set(own)
    assert len(own) == len(new)
    assert {pair: jaccard for pair, jaccard in likeness(texts).items() if jaccard > 0.5 and new & set(pair)} == {}


def test_copies_with_a_word_changed_are_found():
    text = "Send the blue parcel to the old harbour before nine on Monday."
    (jaccard,) = likeness([text, text.replace("nine", "ten"), "The ferry is late."]).values()
    assert jaccard == 7 / 13
