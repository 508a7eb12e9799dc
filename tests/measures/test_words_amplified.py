"""Words: texts in which the tuned model's difference is amplified are judged by the same steps, the same rule and the same null pairs."""

import contextlib
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from mechdiff import labels
from mechdiff.audit.distributions import NotRecomputed
from mechdiff.audit.rerun import Rerun
from mechdiff.measures.catalogue import EXPERIMENTS
from mechdiff.measures.words import judge, record, texts, verify, words
from mechdiff.measures.words.plan import QUICK, WordsOptions
from mechdiff.store.tables import read_manifest, read_rows


def test_lines_of_amplified_texts_are_what_the_recorded_texts_say(every_measure: Path) -> None:
    run, checked = Rerun(every_measure / "run", EXPERIMENTS, "cpu"), 0
    rows = read_rows(every_measure / "run").filter(pl.col("measure") == "words", pl.col("unit").str.contains("amplified 3"))
    for row in rows.filter(pl.col("control").is_null()).iter_rows(named=True):
        assert row["split"] == ("report" if row["unit"].startswith("prompts") else "neutral")
        with contextlib.suppress(NotRecomputed):
            assert verify.again(run, row) == row["value"], row
            checked += 1
    assert checked > 0
    assert "random_edit" in {labels.control_kind(one) for one in rows["control"].drop_nulls()}, "null pairs are amplified too"


def test_texts_that_repeat_themselves_are_counted_and_left_out_with_their_seeds(every_measure: Path) -> None:
    told = read_manifest(every_measure / "run")["words"]
    louder = {one["seed"]: one["amplified"]["amplified 3"] for one in told["texts"] if "amplified" in one}
    places = {one["where"] for one in told["texts"] if "amplified" in one}
    assert places == {"raw", "testing"}, "openings and the study's own prompts"
    assert any(text != one["tuned"] for one in told["texts"] for text in one.get("amplified", {}).values()), "it says other things"
    looping = {name for name, text in louder.items() if texts.loops(text)}
    assert told["loops"]["amplified 3"] >= len(looping)
    for line in told["lines"]:
        if line["where"] == "openings, amplified 3":
            assert len(line["values"]) <= sum(not name.startswith("island") and name not in looping for name in louder)


def test_a_looping_text_s_seed_is_of_neither_half(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from mechdiff.measures.words import compute
    from mechdiff.measures.words.listen import Seed

    said = {who: {f"s{i}": {"ids": [i], "ended": False} for i in range(6)} for who in ("base", "same_model", "other", "amplified 3")}
    loop = "the sea the sea the sea the sea the sea"

    def texts_of(run: Any, one: Any, side: str) -> dict[str, str]:
        return {name: loop if one is said["amplified 3"] and name == "s2" else f"text {name}" for name in one}

    monkeypatch.setattr(compute, "texts_of", texts_of)
    run: Any = SimpleNamespace(prepared=SimpleNamespace(tokens=SimpleNamespace(equal=True)))
    seeds = [Seed(name=f"s{i}", where="raw", text="", ids=(1,)) for i in range(6)]
    made, _ = compute._written(run, seeds, said, "tuned")
    of = {one.where: one for one in made if one.units}
    assert of["openings"].split == ([0, 2, 4], [1, 3, 5])
    louder = of["openings, amplified 3"]
    assert louder.units == ["s0", "s1", "s3", "s4", "s5"]
    assert [[louder.units[i] for i in half] for half in louder.split] == [["s0", "s4"], ["s1", "s3", "s5"]], (
        "halves stay the halves they were"
    )


def test_a_sentence_says_that_the_difference_was_amplified() -> None:
    line = {
        "reader": "continuations", "where": "openings, amplified 3", "text": "contains “sea”", "gained": True, "size": 0.7, "q": 0.01,
        "why_not": None, "values": [1.0, 1.0, 0.0],
    }  # fmt: skip
    said = words.sentences({"words": {"lines": [line], "ranked": 1}})
    assert said == [
        "On neutral openings of texts, its difference from the base amplified by 3, the tuned model's text contains “sea” "
        "(alone on 2 of 3 held-out seeds, q = 0.0100) [line 1]."
    ]


def test_a_loud_null_silences_amplified_texts_alone() -> None:
    def line(where: str, size: float) -> dict[str, Any]:
        return {"reader": "continuations", "where": where, "text": "contains “sea”", "gained": True, "size": size, "q": 0.01}

    random_edit = [line("openings", 0.05), line("openings, amplified 3", 0.9)]
    told, nulls = record.judged_apart([line("openings", 0.7), line("openings, amplified 3", 0.7)], {"random_edit": random_edit})
    assert [one["why_not"] for one in told] == [None, judge.BEYOND]
    assert [one.largest for one in nulls["3"]] == [{"phrases, gained": 0.9}]


def test_quick_is_fewer_of_everything_that_is_not_given() -> None:
    quick = WordsOptions.model_validate({"quick": True, "openings": 30})
    assert quick.model_dump() == {**WordsOptions().model_dump(), **QUICK, "quick": True, "openings": 30}
    assert all(QUICK[name] < getattr(WordsOptions(), name) for name in QUICK)


@pytest.mark.parametrize("given", [[0], [-1.0], [11], ["3"], [True], 3, [1, 1]])
def test_strengths_that_are_none_are_refused(given: Any) -> None:
    with pytest.raises(ValidationError):
        WordsOptions.model_validate({"amplify": given})
    assert WordsOptions.model_validate({"amplify": [3, 1]}).amplify == (1.0, 3.0), "in order, whatever the file's"
