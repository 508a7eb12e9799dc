"""The gates of the verdict: each has a sentence that it stops, though the sentence is true, and one that it lets pass."""

from pathlib import Path

import pytest

from mechdiff.report import headlines
from mechdiff.report.headlines import GATES, Candidate, admit

SOUND = Candidate(text="L22.mlp_out recovers 0.42 of D (95 %: 0.31 to 0.55; chosen on select)", n=24, whole=0.6)
SAID = "L22.mlp_out recovers 0.42 of D [0.31, 0.55] (chosen on select)"
STOPPED = {
    "construction": [{"by_construction": True}],
    "prompts": [{"n": 4}, {"n": 11, "needed": 44}],
    "test": [{"tested": False}],
    "whole": [{"whole": 0.05}, {"whole": 0.199}, {"whole": -0.3}, {"whole": float("nan")}],
    "budget": [{"at_budget": True}],
    "event": [{"happens": False}],
    "length": [{"lengths_agree": False}],
}


def changed(**fields: object) -> Candidate:
    return Candidate(**{**SOUND.__dict__, **fields})  # type: ignore[arg-type]


def test_a_sound_sentence_passes_every_gate() -> None:
    assert admit(SOUND) is None
    assert headlines.sentence([SOUND]) == f"{SAID}."
    assert headlines.refused([SOUND]) == []


def test_every_gate_has_a_sentence_that_it_stops() -> None:
    assert set(STOPPED) == {gate.name for gate in GATES}


@pytest.mark.parametrize(("name", "fields"), [(name, one) for name, several in STOPPED.items() for one in several])
def test_what_fails_a_gate_is_not_spoken_and_its_reason_is_said(name: str, fields: dict) -> None:
    one = changed(**fields)
    gate = admit(one)
    assert gate is not None
    assert gate.name == name
    assert headlines.sentence([one]) is None
    assert headlines.sentence([SOUND, one]) == f"{SAID}."
    (said,) = headlines.refused([SOUND, one])
    assert said.startswith(SOUND.text)
    assert headlines.reason(one) in said
    assert "{" not in said, "the reason's numbers are filled in"


def test_a_headline_of_few_prompts_says_how_few() -> None:
    few = changed(n=7)
    assert headlines.sentence([SOUND, few]) == f"{SAID}; {SAID} (7 prompts only)."
    assert headlines.sentence([changed(n=10)]) == f"{SAID}."
    assert headlines.sentence([changed(n=None)]) == f"{SAID}."


def test_what_has_no_room_in_its_sentence_stays_in_its_section() -> None:
    long = changed(text=" ".join(["word"] * (headlines.WORDS - 5)))
    assert headlines.sentence([long, SOUND]) == f"W{long.text[1:]}."
    (said,) = headlines.refused([long, SOUND])
    assert said.endswith(": its sentence is full")
    assert headlines.sentence([changed(text=" ".join(["word"] * 99))]) is not None, "the first always has room"


def test_the_gates_stand_in_the_document() -> None:
    page = (Path(__file__).parents[2] / "docs" / "STATISTICS.md").read_text()
    assert "\n".join(headlines.table()) in page
