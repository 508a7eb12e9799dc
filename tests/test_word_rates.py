"""docs/WORDS.md: how often words names what nobody taught, as benchmarks/words.py found it under the present rule."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def rates() -> ModuleType:
    spec = importlib.util.spec_from_file_location("word_rates", ROOT / "benchmarks" / "words.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules["word_rates"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_the_rates_of_the_present_rule(rates: ModuleType) -> None:
    store = rates.Store(rates.FOUND)
    assert store.runs, "the rule has changed since its rates were measured: run make words"
    assert rates.START + rates.table(store) + rates.END in rates.PAGE.read_text(encoding="utf-8")


def test_no_kind_of_null_pair_is_named_more_often_than_one_time_in_twenty_and_what_chance_adds(rates: ModuleType) -> None:
    store = rates.Store(rates.FOUND)
    for kind in ("draws", "edits", "exchanged", "copy"):
        found = [one for pair in rates.PAIRS for one in rates.judged(store, kind, pair)]
        n, _, share, error = rates.rate(found)
        assert n > 0
        assert share <= 0.05 + 2 * max(error, np.sqrt(0.05 * 0.95 / n)), kind


def test_the_standard_error_of_single_runs_is_that_of_a_mean(rates: ModuleType) -> None:
    found = [[["x"]]] * 3 + [[[]]] * 17
    n, k, share, error = rates.rate(found)
    assert (n, k, share) == (20, 3, 0.15)
    assert error == pytest.approx(np.std([1] * 3 + [0] * 17, ddof=1) / 20**0.5)


def test_the_bound_is_clopper_and_pearsons(rates: ModuleType) -> None:
    assert rates.bound(0.0, 59) == pytest.approx(1 - 0.05 ** (1 / 59))
    assert rates.bound(1.0, 3) == 1.0


def test_runs_of_another_rule_are_not_used_and_those_of_this_one_are_kept(rates: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    path.write_text(json.dumps([{"rule": "another", "kind": "draws", "pair": "kazakh", "seed": 1}]))
    store = rates.Store(path)
    assert not store.runs
    line = rates.formula.Line(reader="tokens", where="passages", text="x", gained=True, size=9.0, size_named=9.0, p=0.001, values={})
    for seed in (1, 2):
        store.add("edits", "kazakh", seed, [line])
    store.add("nulls", "kazakh", 1, [])
    again = rates.Store(path)
    assert again.runs == store.runs
    assert rates.judged(again, "edits", "kazakh") == [[[]], [[]]], "each is held against the other, which is as large"
    store.add("edits", "kazakh", 2, [])
    assert rates.judged(rates.Store(path), "edits", "kazakh") == [[["x"]], [[]]]


def test_what_was_heard_is_not_heard_again(rates: ModuleType, tmp_path: Path) -> None:
    heard = object.__new__(rates.Heard)
    heard.kept, heard.first = tmp_path / "pair", 7
    made: list[int] = []

    def make() -> dict[str, np.ndarray]:
        made.append(1)
        return {"said": np.arange(3)}

    for _ in range(2):
        np.testing.assert_array_equal(heard.once("draw-8", make)["said"], np.arange(3))
    assert made == [1]
    heard.first = 8
    heard.once("draw-8", make)
    assert made == [1, 1], "of another first seed"
    assert rates.hearing({"openings": 4}) != rates.hearing({"openings": 5})


def test_the_rule_is_another_where_anything_that_it_reads_is(rates: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before, hearing = rates.rule(), rates.hearing({})
    for module in (rates.judge, rates.formula, rates.texts, rates.compute, rates.lens, rates.listen, rates.random_edits):
        source = Path(module.__file__).read_text(encoding="utf-8")
        changed = tmp_path / Path(module.__file__).name
        with monkeypatch.context() as patch:
            patch.setattr(module, "__file__", str(changed))
            changed.write_text(
                f'"""Other words."""\n# a comment\n{source.partition(chr(34) * 3)[2].partition(chr(34) * 3)[2]}', encoding="utf-8"
            )
            assert rates.rule() == before, "comments and docstrings decide nothing"
            changed.write_text(f"{source}\nADDED = 1\n", encoding="utf-8")
            assert rates.rule() != before, module
            assert (rates.hearing({}) != hearing) == (module in (rates.listen, rates.random_edits)), "judging anew hears nothing anew"
    assert rates.rule() == before
