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
        store.add("edits", "kazakh", seed, [line], 1.0)
    store.add("nulls", "kazakh", 1, [], 1.0)
    again = rates.Store(path)
    assert again.runs == store.runs
    assert rates.judged(again, "edits", "kazakh") == [[[]], [[]]], "each is held against the other, which is as large"
    store.add("edits", "kazakh", 2, [], 1.0)
    assert rates.judged(rates.Store(path), "edits", "kazakh") == [[["x"]], [[]]]
