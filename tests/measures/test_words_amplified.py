"""Words: texts in which the tuned model's difference is amplified are judged by the same steps, the same rule and the same null pairs."""

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import polars as pl
import pytest
from pydantic import ValidationError

from mechdiff import labels
from mechdiff.audit.distributions import NotRecomputed
from mechdiff.audit.rerun import Rerun
from mechdiff.measures.catalogue import EXPERIMENTS
from mechdiff.measures.words import amplify, compute, judge, plan, reader, record, verify, words
from mechdiff.measures.words.listen import Seed
from mechdiff.measures.words.plan import QUICK, WordsOptions
from mechdiff.store.disk import as_bytes
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


def test_what_is_said_louder_stands_in_the_record_beside_the_base_under_the_cut(every_measure: Path) -> None:
    told = [one for one in read_manifest(every_measure / "run")["words"]["texts"] if "amplified" in one]
    assert {one["where"] for one in told} == {"raw", "testing"}, "openings and the study's own prompts"
    assert any(one["amplified"]["amplified 3"] != one["tuned"] for one in told), "it says other things"
    assert any(one["base_under_cut"] != one["base"] for one in told), "and so does the base where it is cut"


LOOP = "the sea the sea the sea the sea the sea"


def said_by(*voices: str) -> dict[str, Any]:
    return {who: {f"s{i}": {"ids": [i], "ended": False} for i in range(6)} for who in voices}


def looping(*where: tuple[Any, str]) -> Any:
    """Decodes what was said: behind some seeds of some voices a loop."""

    def texts_of(run: Any, one: Any, side: str) -> dict[str, str]:
        return {name: LOOP if any(one is said and name == seed for said, seed in where) else f"text {name}" for name in one}

    return texts_of


def test_seeds_behind_which_either_text_loops_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    said = said_by("tuned", "base")
    monkeypatch.setattr(amplify, "amplified_of", lambda run, voice, draw=0: {"amplified 3": said[voice]})
    monkeypatch.setattr(
        amplify, "texts_of", looping((said["tuned"], "s1"), (said["tuned"], "s2"), (said["base"], "s2"), (said["base"], "s5"))
    )
    assert amplify.loops(cast(Any, None)) == {"amplified 3": 3}


def test_a_seed_behind_which_either_text_loops_is_of_neither_half(monkeypatch: pytest.MonkeyPatch) -> None:
    said = said_by("base", "same_model", "other", "amplified 3", *compute.UNDER_CUT)
    cut = said[compute.UNDER_CUT[0]]
    monkeypatch.setattr(compute, "texts_of", looping((said["amplified 3"], "s2"), (cut, "s3"), (said["base"], "s1"), (said["other"], "s0")))
    run: Any = SimpleNamespace(prepared=SimpleNamespace(tokens=SimpleNamespace(equal=True)))
    seeds = [Seed(name=f"s{i}", where="raw", text="", ids=(1,)) for i in range(6)]
    made = compute._written(run, seeds, said, "tuned")
    of = {one.where: one for one in made if one.units}
    assert of["openings"].split == ([0, 2, 4], [1, 3, 5])
    louder = of["openings, amplified 3"]
    assert louder.units == ["s0", "s1", "s4", "s5"]
    assert [[louder.units[i] for i in half] for half in louder.split] == [["s0", "s4"], ["s1", "s5"]], "halves stay the halves they were"


def test_amplified_texts_stand_beside_the_base_under_the_cut_and_its_second_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    said = said_by("base", "same_model", "other", "amplified 3", *compute.UNDER_CUT)
    said |= {who: {name: {"ids": [9], "ended": False} for name in said[who]} for who in ("other", "amplified 3")}  # they say other things
    words = {id(of): who.partition(" ")[0] for who, of in said.items()} | {id(said["same_model, cut"]): "again"}
    monkeypatch.setattr(compute, "texts_of", lambda run, one, side: dict.fromkeys(one, words[id(one)]))
    run: Any = SimpleNamespace(prepared=SimpleNamespace(tokens=SimpleNamespace(equal=True)))
    made = compute._written(run, [Seed(name=f"s{i}", where="raw", text="", ids=(1,)) for i in range(6)], said, "tuned")
    louder = next(one for one in made if one.where == "openings, amplified 3")
    assert all("contains “base,”" in one for one in louder.base)
    assert all("contains “amplified”" in one for one in louder.tuned)
    assert all("contains “again”" in one for one in louder.again)
    assert len(louder.again) == 6
    turn = {**said, "other": said["same_model"], "amplified 3": said["same_model, cut"]}
    assert [one.again for one in compute._written(run, [Seed(name="s0", where="raw", text="", ids=(1,))], turn, "base")] == [[]] * 4, (
        "the base's second turn is no reference of itself"
    )


# ---- texts without their null pairs ------------------------------------------------------------------------------------------------


def test_of_amplified_texts_none_is_judged_where_a_planned_random_edit_has_none() -> None:
    def run_of(**stored: dict[str, Any]) -> Any:
        cells = [SimpleNamespace(stage="words_amplified", key={"voice": voice, "draw": 0}) for voice in ("base", "tuned", "random_edit")]
        tensors = {voice: {"amplified": as_bytes(of)} if of else {} for voice, of in stored.items()}
        folder = SimpleNamespace(load=lambda key: SimpleNamespace(tensors=tensors[key["voice"]]))
        return SimpleNamespace(cells=cells, folder=folder, once=lambda key, make: make())

    said = {"amplified 3": {"s0": {"ids": [1], "ended": False}}}
    assert amplify.amplified_of(run_of(base=said, tuned=said, random_edit=said), "tuned") == said
    assert amplify.amplified_of(run_of(base=said, tuned=said, random_edit={}), "tuned") == {}


def test_with_one_model_in_memory_no_amplified_text_is_planned_and_no_cell_s_key_speaks_of_it() -> None:
    def planned(*, in_turn: bool) -> tuple[set[str], set[str], list[str]]:
        skipped: list[str] = []
        planner: Any = SimpleNamespace(one_vocabulary=True, in_turn=in_turn, skip=lambda what, why: skipped.append(why))
        beyond = plan._beyond(planner, WordsOptions.model_validate({"amplify": [3]}))
        items, key = (
            [SimpleNamespace(tokens=4)],
            {"settings": {"openings": 1, "max_tokens": 4, "passages": 1, "vectors": 1}, "layers": [], "neutral": []},
        )
        planner.flops, planner.key = (lambda tokens, decisions: tokens), (lambda items, **what: what)
        cells = list(plan._voices(planner, cast(Any, items), key, 1, beyond))
        return {one.stage for one in cells}, {name for one in cells for name in one.key}, skipped

    both, one = planned(in_turn=False), planned(in_turn=True)
    assert both[0] - one[0] == {"words_amplified"}
    assert both[1] - one[1] == {"amplify", "cut"}
    assert not both[2]
    assert one[2] == ["both models are read at every token, and memory holds one of them at a time. Give --memory both"]


# ---- sentences ---------------------------------------------------------------------------------------------------------------------


def louder_line(*, gained: bool) -> dict[str, Any]:
    return {
        "reader": "continuations", "where": "openings, amplified 3", "text": "contains “sea”", "gained": gained, "size": 0.7, "q": 0.01,
        "least": 0.5, "why_not": None, "values": [1.0, 1.0, 0.0] if gained else [-1.0, -1.0, 0.0],
    }  # fmt: skip


def test_a_sentence_says_that_the_difference_was_amplified() -> None:
    gained, lost = (words.sentences({"words": {"lines": [louder_line(gained=one)], "ranked": 1}}) for one in (True, False))
    assert gained == [
        "On neutral openings of texts, where the tuned model's difference from the base is amplified by 3, the text contains “sea” "
        "(alone on 2 of 3 held-out seeds, q = 0.0100) [line 1]."
    ]
    assert lost == [
        "On neutral openings of texts the base's text, drawn from its likelier tokens alone, contains “sea” (alone on 2 of 3 held-out seeds, "
        "q = 0.0100); where the tuned model's difference from the base is amplified by 3, the text does so no longer [line 1]."
    ]


def test_a_language_model_is_told_what_amplified_texts_are(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(reader, "_reply", lambda url, model, key, prompt: asked.append(prompt) or "Nothing.")
    plain = louder_line(gained=True) | {"where": "openings"}
    for lines in ([louder_line(gained=True), louder_line(gained=False)], [plain]):
        reader.read({"words": {"lines": lines, "texts": []}}, "http://localhost/v1", model="m", runs=6)
    for prompt in asked[:6]:
        assert "not what either model says by itself" in prompt
        ours, theirs = ("A", "B") if "A away from B" in prompt else ("B", "A")
        for often in ("more", "less"):
            assert (
                f"Amplified, {ours} away from {theirs} by 3: the text {often} often contains “sea” than {theirs}'s (on openings; size"
                in prompt
            )
    assert not any("tuned" in prompt or "has more of" in prompt.partition("Such a line")[2] for prompt in asked[:6])
    assert all("amplified" not in prompt.lower() and "has more of: its text contains “sea”" in prompt for prompt in asked[6:])


def test_a_loud_null_silences_amplified_texts_alone() -> None:
    def line(where: str, size: float) -> dict[str, Any]:
        return {"reader": "continuations", "where": where, "text": "contains “sea”", "gained": True, "new": False, "size": size, "q": 0.01}

    random_edit = [line("openings", 0.05), line("openings, amplified 3", 0.9)]
    told, nulls = record.judged_apart([line("openings", 0.7), line("openings, amplified 3", 0.7)], {"random_edit": random_edit})
    assert [one["why_not"] for one in told] == [None, judge.BEYOND]
    assert [one.largest for one in nulls["3"]] == [{"phrases, gained": 0.9}]


def test_without_a_random_edit_no_amplified_text_is_named() -> None:
    def line(where: str) -> dict[str, Any]:
        told = {"reader": "continuations", "where": where, "text": "contains “sea”", "gained": True, "new": True, "q": 0.01}
        return {**told, "size": 0.9, "replay_z": None, "replay_null": None}

    lines = [line("openings"), line("openings, amplified 3")]
    alone, nulls = record.judged_apart(lines, {"same_model": []})
    assert [one["why_not"] for one in alone] == [None, judge.UNHELD]
    assert record._of_exchanged([lines], nulls) == {"draws": 1, "lines": 2, "named": 1, "draws_with_any": 1}
    held, nulls = record.judged_apart(lines, {"same_model": [], "random_edit#1": []})
    assert [one["why_not"] for one in held] == [None, None]
    assert record._of_exchanged([lines], nulls)["named"] == 2
    silent = words.sentences({"words": {"lines": [alone[1]], "ranked": 1}})
    assert silent == [
        "Nothing that these readers can name: of 1 lines of evidence 1 is of amplified texts, which no random edit was made to be compared with."
    ]


def test_amplified_texts_of_a_run_that_kept_none_of_the_base_are_not_verified() -> None:
    text = {"seed": "s0", "amplified": {"amplified 3": "the sea"}, "tuned": "", "base": ""}
    row: Any = {
        "control": None,
        "metric": plan.FEATURE,
        "prompt": "s0",
        "unit": labels.evidence_unit("openings, amplified 3", True, "contains “sea”"),
    }
    run: Any = SimpleNamespace(manifest={"words": {"texts": [text]}})
    with pytest.raises(NotRecomputed, match="version"):
        verify.again(run, row)
    text["base_under_cut"] = "the land"
    assert verify.again(run, row) == 1.0
    ends: Any = {**row, "unit": labels.evidence_unit("openings, amplified 3", True, "ends with “sea”")}
    with pytest.raises(NotRecomputed, match="ended by themselves"):
        verify.again(run, ends)


def test_quick_is_fewer_of_everything_that_is_not_given() -> None:
    quick = WordsOptions.model_validate({"quick": True, "openings": 30})
    assert quick.model_dump() == {**WordsOptions().model_dump(), **QUICK, "quick": True, "openings": 30}
    assert all(QUICK[name] < getattr(WordsOptions(), name) for name in QUICK)


@pytest.mark.parametrize("given", [[0], [-1.0], [11], ["3"], [True], 3, [1, 1]])
def test_strengths_that_are_none_are_refused(given: Any) -> None:
    with pytest.raises(ValidationError):
        WordsOptions.model_validate({"amplify": given})
    assert WordsOptions.model_validate({"amplify": [3, 1]}).amplify == (1.0, 3.0), "in order, whatever the file's"
