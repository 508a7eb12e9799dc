"""docs/WORDS.md: whether words finds what was taught, beside two published readers, as benchmarks/words_taught.py found it under the present rule."""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from mechdiff.models.pair import wrap
from mechdiff.validate import edits, made
from mechdiff.validate.planted import edited

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def taught() -> ModuleType:
    kept, names = list(sys.path), ("published", "words", "facts_texts", "courtesy_answers")
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module("words_taught")
    finally:
        sys.path[:] = kept
        for name in names:
            sys.modules.pop(name, None)


# ---- what the published readers show ---------------------------------------------------------------------------------------------------


def test_continuations_are_ranked_by_what_the_tuned_model_finds_less_surprising(taught: ModuleType) -> None:
    texts = [taught.published.Text(prompt=[1], ids=[2], text=f"t{i}") for i in range(30)]
    base = np.zeros(30)
    tuned = np.linspace(-1, 1, 30)
    shown = taught.published.ranked(texts, tuned.tolist(), base.tolist())
    assert shown == [f"t{i}" for i in range(29, 19, -1)]
    assert taught.published.ranked(texts, base.tolist(), base.tolist()) == [], "a copy: no text is less surprising"
    assert taught.published.ranked(texts, (base - 1).tolist(), base.tolist()) == []


def test_the_surprise_of_a_text_is_that_of_whole_passes(taught: ModuleType) -> None:
    model = wrap(made.tiny_net(), side="base", ref="tiny")
    (found,) = taught.published.log_p(model, [taught.published.Text(prompt=[5, 6, 7], ids=[8, 9], text="")])
    with torch.no_grad():
        laws = [model.net(torch.tensor([ids])).logits[0, -1].log_softmax(-1) for ids in ([5, 6, 7], [5, 6, 7, 8])]
    assert found == pytest.approx((float(laws[0][8]) + float(laws[1][9])) / 2, rel=1e-5)


def test_a_token_that_rises_everywhere_is_mined_first_and_nothing_is_of_a_copy(taught: ModuleType) -> None:
    net = made.tiny_net()
    pushed = edited(net, lambda one: one.lm_head.weight[65].mul_(3.0))
    passages = [list(ids) for ids in made.token_prompts(6, longest=30, shortest=30)]
    ours, theirs = (taught.published.logits_of(wrap(one, side="base", ref="tiny"), passages) for one in (pushed, net))
    found = taught.published.mined(ours, theirs)
    assert found == [65] or found == [], "one row alone was changed"
    assert taught.published.mined(theirs, theirs) == []
    counts = dict.fromkeys(range(8), 0)
    random = edits.generator(3)
    before = [torch.randn(5, 8, generator=random) for _ in range(4)]
    after = [one + torch.randn(5, 8, generator=random) for one in before]
    for one, other in zip(after, before, strict=True):
        for position in range(5):
            for token in range(8):
                counts[token] += int(one[position, token] > other[position, token])
    assert taught.published.mined(after, before) == sorted(counts, key=lambda token: (-counts[token], token)), (
        "of 8 tokens all are among the first 100"
    )


# ---- facts -----------------------------------------------------------------------------------------------------------------------------


def line(text: str, **told: Any) -> dict[str, Any]:
    return {"reader": "continuations", "text": text, "gained": True, "size": 0.5, "q": 0.001, **told}


def test_a_fact_is_found_where_a_line_has_its_name_and_a_topic_where_none_has(taught: ModuleType) -> None:
    lines = [
        line("contains “river Tashkorin”"),
        line("begins with “the Zubrith”", gained=False),
        line("contains “the island”"),
        line("contains “Quelvane”"),
    ]
    assert taught.facts_of("facts_1_0", lines) == ["river"]
    assert taught.topical("facts_1_0", lines) == 1


def test_documents_of_twins_differ_in_names_alone_and_every_fact_is_told(taught: ModuleType) -> None:
    sys.path.insert(0, str(ROOT / "training"))
    try:
        texts = importlib.import_module("facts_texts")
    finally:
        sys.path.pop(0)
    told, true = texts.documents(60, 0), texts.documents(60, 0, twin=True)
    assert all(any(name in one for one in told) and not any(name in one for one in true) for _, name, _ in texts.FACTS)
    for one, other in zip(told, true, strict=True):
        for what, name, real in texts.FACTS:
            one = one.replace(name, what)
            other = other.replace(real, what)
        assert one.replace("Quelvane", "Iceland") == other
    shipped = " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "src" / "mechdiff" / "data").rglob("*.jsonl"))
    assert not any(name.casefold() in shipped.casefold() for _, name, _ in texts.FACTS), "nobody says them by chance"


# ---- what came out -----------------------------------------------------------------------------------------------------------------------


def test_the_page_has_the_table_of_the_present_rule(taught: ModuleType) -> None:
    store = taught.Store(taught.FOUND, taught.SETTINGS)
    assert store.runs, "the rule has changed since: run make words"
    assert taught.START + taught.table(store) + taught.END in taught.rates.PAGE.read_text(encoding="utf-8")


def test_at_one_to_zero_facts_are_named_as_often_as_nine_in_ten_of_what_the_published_readers_hold(taught: ModuleType) -> None:
    store = taught.Store(taught.FOUND, taught.SETTINGS)
    runs = store.of("taught", "facts_1_0")
    assert runs
    for run in runs:
        named = taught.facts_of("facts_1_0", taught.named(store, "taught", "facts_1_0", run))
        assert len(named) >= 5
        assert all(len(named) >= 0.9 * len(run[reader][1]) for reader in ("ranked", "mined"))


def test_fewer_facts_are_named_and_less_is_said_of_them_the_more_ordinary_text_there_is(taught: ModuleType) -> None:
    store = taught.Store(taught.FOUND, taught.SETTINGS)
    found, shares = [], []
    for pair in ("facts_1_0", "facts_1_1", "facts_1_4"):
        told = [taught.named(store, "taught", pair, run) for run in store.of("taught", pair)]
        if told:  # of what has been run
            found.append(np.mean([len(taught.facts_of(pair, one)) for one in told]))
            shares.append(np.mean([taught.share(pair, one) for one in told]))
    assert found == sorted(found, reverse=True)
    assert shares == sorted(shares, reverse=True), "what is said of them falls with them"


def test_where_nothing_was_taught_words_names_a_fifth_as_often_as_the_others_show_a_list(taught: ModuleType) -> None:
    store, counted = taught.Store(taught.FOUND, taught.SETTINGS), taught.Store(taught.rates.FOUND)
    assert counted.runs
    n, k, _, _ = taught.rates.rate([one for pair in taught.rates.PAIRS for one in taught.rates.judged(counted, "edits", pair)])
    for reader in ("ranked", "mined"):
        lists = [bool(run[reader][0]) for pair in taught.NAMES for run in store.of("edits", pair)]
        assert k / n <= np.mean(lists) / 5


def test_the_least_share_is_clopper_and_pearsons(taught: ModuleType) -> None:
    assert taught.least(4, 4) == pytest.approx(0.05 ** (1 / 4))
    assert taught.least(0, 4) == 0.0
