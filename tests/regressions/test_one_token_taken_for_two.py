"""One token that two tokenizers flag otherwise was two tokens: D = 0 on the shared ones, infinite over all, where it is 2.73 nats."""

import copy
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from tokenizers import AddedToken
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import pico
from mechdiff import api
from mechdiff.api import Run
from mechdiff.measures.catalogue import make_study
from mechdiff.measures.divergence.formula import across_vocabularies, total_effect
from mechdiff.prompts.matching import Vocabulary, agreed
from mechdiff.prompts.vocabularies import Tokens, shared_tokens, vocabulary_of
from mechdiff.study.config import RunOptions
from runs import run
from tokenizers_made import bpe_tokenizer, byte_tokenizer, piece_tokenizer, wordpiece_tokenizer

TEXTS = ["count the number of words in a line", "one number and another number, word by word"] * 4
NAME = "<tool_call>"
MADE: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "bytes": byte_tokenizer,
    "byte-level": lambda: bpe_tokenizer(TEXTS, vocab_size=300),
    "SentencePiece": lambda: piece_tokenizer(TEXTS, 300),
    "SentencePiece, prefix": lambda: piece_tokenizer(TEXTS, 300, prefix=True),
    "WordPiece": lambda: wordpiece_tokenizer(TEXTS, 120),
}


@functools.cache
def trained(kind: str) -> PreTrainedTokenizerFast:
    """Trained once: two trainings may number their tokens otherwise."""
    return MADE[kind]()


def made(kind: str) -> PreTrainedTokenizerFast:
    return copy.deepcopy(trained(kind))


def added(kind: str, text: str, *, special: bool = False, **flags: bool) -> PreTrainedTokenizerFast:
    """A tokenizer of this kind with one token added; a token that it has keeps its id."""
    tokenizer = made(kind)
    tokenizer.add_tokens([AddedToken(text, special=special, **flags)], special_tokens=special)
    return tokenizer


def both(base: PreTrainedTokenizerFast, tuned: PreTrainedTokenizerFast, **rows: Any) -> Tokens:
    return shared_tokens(vocabulary_of(base), vocabulary_of(tuned), **rows)


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"special": False}, {"special": True}),
        ({"special": True, "normalized": False}, {"special": True, "normalized": True}),
        ({"lstrip": True, "rstrip": True}, {"lstrip": False, "single_word": True}),
        ({"special": False, "normalized": True}, {"special": True, "normalized": False, "lstrip": True}),
    ],
)
def test_d_was_0_of_a_token_that_is_special_in_one_tokenizer_alone(kind: str, turned: bool, one: dict, other: dict) -> None:
    flags = (other, one) if turned else (one, other)
    base, tuned = (added(kind, NAME, **one) for one in flags)
    assert base.get_vocab() == tuned.get_vocab()
    tokens = both(base, tuned)
    assert tokens.equal, "one vocabulary: grafts and distributions need no matching"
    flipped = flags[0].get("special", False) != flags[1].get("special", False)
    assert tokens.flags == ((NAME,) if flipped else ())
    assert (NAME in tokens.said()) == flipped
    place = base.convert_tokens_to_ids(NAME)
    law = torch.zeros(1, len(tokens))
    law[0, place] = 6.0
    p = math.exp(6) / (math.exp(6) + len(tokens) - 1)
    expected = p * math.log(p * len(tokens)) + (1 - p) * math.log((1 - p) * len(tokens) / (len(tokens) - 1))
    assert float(total_effect(torch.zeros(1, len(tokens)), law, tokens)) == pytest.approx(expected, rel=1e-5)
    assert expected > 1.5
    assert across_vocabularies(torch.zeros(1, len(tokens)), law, tokens) == {}, "no mass is outside"


@pytest.mark.parametrize("kind", MADE)
def test_a_flipped_token_at_another_id_was_two_tokens(kind: str) -> None:
    """The tuned tokenizer has one token more in front of it."""
    base, tuned = added(kind, NAME), made(kind)
    tuned.add_tokens([AddedToken("<new>", special=True), AddedToken(NAME, special=True)], special_tokens=True)
    assert base.convert_tokens_to_ids(NAME) != tuned.convert_tokens_to_ids(NAME)
    tokens = both(base, tuned)
    assert tokens.relation == "extended"
    only = [tokens.text(i) for i in range(tokens.n_shared, len(tokens))]
    assert only == ["<new>"]
    pairs = zip(tokens.ids["base"][: tokens.n_shared].tolist(), tokens.ids["tuned"][: tokens.n_shared].tolist(), strict=True)
    assert (base.convert_tokens_to_ids(NAME), tuned.convert_tokens_to_ids(NAME)) in list(pairs)


@pytest.mark.parametrize("kind", MADE)
def test_a_token_that_one_tokenizer_alone_has_stays_its_own(kind: str) -> None:
    for special in (False, True):
        tokens = both(made(kind), added(kind, NAME, special=special))
        assert (tokens.relation, len(tokens) - tokens.n_shared) == ("extended", 1)
        tokens = both(added(kind, NAME, special=special), made(kind))
        assert (tokens.relation, len(tokens) - tokens.n_shared) == ("reduced", 1)


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("special", [False, True])
def test_a_token_of_the_vocabulary_that_is_added_again_was_another_token(kind: str, special: bool) -> None:
    """Added content that is a plain token, in the tokenizer's own letters: no new id, and the same text (`▁number` is " number")."""
    plain = made(kind)
    proper = plain.backend_tokenizer.get_vocab(with_added_tokens=False)
    known = max(
        (text for text in proper if text.isprintable() and "[" not in text and "<" not in text), key=lambda text: ("▁" in text, text)
    )
    again = added(kind, known, special=special, normalized=False)
    assert again.get_vocab() == plain.get_vocab()
    for one, other in ((plain, again), (again, plain)):
        tokens = both(one, other)
        assert tokens.equal
        assert tokens.flags == ((known,) if special else ())
    i = plain.convert_tokens_to_ids(known)
    if not special:
        assert vocabulary_of(again).pieces[i] == vocabulary_of(plain).pieces[i], "it stands for the same text"
    settled = agreed(vocabulary_of(plain), vocabulary_of(again))
    assert settled.base.spelled([i]) == settled.tuned.spelled([i]), "both models' bits are counted over the same bytes"


def test_a_plain_token_that_spells_another_tokenizer_s_special_one_is_another_token() -> None:
    """`<s>` of a page's HTML, learned as a piece, beside the `<s>` that opens a text."""
    none: dict[str, Any] = dict.fromkeys(("byte_tokens", "added"), frozenset())
    base = Vocabulary(pieces=(b"a", "<s>"), kind="SentencePiece", written=("a", "<s>"), **{**none, "added": frozenset({1})})
    tuned = Vocabulary(pieces=(b"a", b"b", b"<s>"), kind="byte-level", written=("a", "b", "<s>"), **none)
    assert shared_tokens(base, tuned).n_shared == 1
    as_text = Vocabulary(pieces=(b"a", b"b", b"<s>"), kind="byte-level", written=("a", "b", "<s>"), **{**none, "added": frozenset({2})})
    assert shared_tokens(base, as_text).n_shared == 2, "added as text of this content it is the same one"


# ---- renamed -------------------------------------------------------------------------------------------------------------------------


def reserved(*names: str) -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken(name, special=True) for name in names], special_tokens=True)
    return tokenizer


def test_a_renamed_reserved_token_was_silently_outside_d() -> None:
    base, tuned = reserved("<|reserved_0|>", "<|reserved_1|>"), reserved(NAME, "<|reserved_1|>")
    rows = {"rows_base": 264, "rows_tuned": 264}
    tokens = both(base, tuned, **rows)
    assert tokens.relation == "overlapping"
    assert tokens.renamed == ((259, "<|reserved_0|>", NAME),)
    assert f"1 row (259: <|reserved_0|> in the base, {NAME} in the tuned model)" in tokens.said_of_renamed()
    assert "pair.same_rows: true" in tokens.said_of_renamed()
    one = both(base, tuned, **rows, same_rows=True)
    assert one.equal
    assert one.text(259) == NAME
    assert one.said_of_renamed() == ""


def test_a_row_without_a_name_that_the_fine_tune_named_is_told_too() -> None:
    base, tuned = byte_tokenizer(), reserved(NAME, "<tool_end>")
    tokens = both(base, tuned, rows_base=264, rows_tuned=264)
    assert tokens.renamed == ((259, None, NAME), (260, None, "<tool_end>"))
    assert both(base, tuned, rows_base=264, rows_tuned=264, same_rows=True).equal
    fresh = both(base, tuned, rows_base=259, rows_tuned=261)
    assert (fresh.relation, fresh.renamed) == ("extended", ()), "rows that the base does not have are new"
    assert both(base, tuned, rows_base=259, rows_tuned=261, same_rows=True).relation == "extended"


def test_another_vocabulary_is_not_called_a_renamed_one() -> None:
    base, tuned = piece_tokenizer(TEXTS, 300), bpe_tokenizer(TEXTS, vocab_size=300)
    assert both(base, tuned).renamed == ()
    assert both(byte_tokenizer(), byte_tokenizer(order=[*range(1, 259), 0])).renamed == ()


# ---- whole studies -------------------------------------------------------------------------------------------------------------------


def studied(place: Path, base: PreTrainedTokenizerFast, tuned: PreTrainedTokenizerFast, **pair: Any) -> Run:
    """A base of 264 rows and a tuned model that says row 259 more often."""
    if not (place / "base").exists():
        net = pico.pico("llama").net
        for seed, layer in enumerate((net.get_input_embeddings(), net.get_output_embeddings())):  # type: ignore[operator]
            new = 0.02 * torch.randn(5, 32, generator=torch.Generator().manual_seed(seed))
            layer.weight = nn.Parameter(torch.cat([layer.weight.detach(), new]))
        net.config.vocab_size = 264  # type: ignore[union-attr]
        pico.save(net, base, place / "base")
        with torch.no_grad():
            net.get_output_embeddings().weight[259] += 0.4 * torch.randn(32, generator=torch.Generator().manual_seed(9))  # type: ignore[operator]
        pico.save(net, tuned, place / "tuned")
    lines = [json.dumps({"id": f"p{i}", "text": f"{text} {i}"}) for i, text in enumerate(TEXTS)]
    (place / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    study = {
        "pair": {"base": str(place / "base"), "tuned": str(place / "tuned"), **pair},
        "prompts": {"report": str(place / "prompts.jsonl"), "policy": "raw"},
        "measures": [{"divergence": {"over_text": False}}, "grafting"],
    }
    return run(make_study(study), out=place / f"run{len(pair)}", options=RunOptions(threads=1))


def d_by_hand(place: Path, tokenizer: PreTrainedTokenizerFast) -> float:
    """Mean D over the prompts, of plain passes over all rows."""
    nets = [AutoModelForCausalLM.from_pretrained(place / side).eval() for side in ("tuned", "base")]
    found = []
    with torch.no_grad():
        for line in (place / "prompts.jsonl").read_text().splitlines():
            ids = torch.tensor([tokenizer(json.loads(line)["text"])["input_ids"]])
            p, q = (net(ids).logits[0, -1].double().log_softmax(-1) for net in nets)
            found.append(float((p.exp() * (p - q)).sum()))
    return sum(found) / len(found)


def d_of(done: Run) -> float:
    own = done.rows().filter(pl.col("unit").is_null(), pl.col("prompt").is_not_null())
    return float(own.filter(metric="kl_tuned_base_nats")["value"].mean())  # type: ignore[arg-type]


def test_a_study_of_a_flipped_token_had_an_infinite_d(tmp_path: Path) -> None:
    done = studied(tmp_path, added("bytes", NAME, normalized=False), added("bytes", NAME, special=True, normalized=False))
    expected = d_by_hand(tmp_path, byte_tokenizer())
    assert expected > 1e-3
    assert d_of(done) == pytest.approx(expected, rel=1e-4)
    rows = done.rows()
    assert "mass_outside" not in rows["metric"]
    assert "grafting" in rows["measure"]
    assert "1 token (<tool_call>) special in one tokenizer alone" in done.manifest()["tokenizers"]["said"]


def test_a_study_says_which_tokens_were_renamed_and_how_to_take_them_for_one(tmp_path: Path) -> None:
    base, tuned = reserved("<|reserved_0|>"), reserved(NAME)
    done = studied(tmp_path, base, tuned)
    assert math.isinf(d_of(done))
    assert [said for said in done.manifest()["warnings"] if "259: <|reserved_0|> in the base" in said and "same_rows" in said]
    notes = [
        one.said
        for one in api.check(str(tmp_path / "base"), str(tmp_path / "tuned"), options=RunOptions(device="cpu"))
        if one.verdict == "note"
    ]
    assert any("pair.same_rows: true" in said for said in notes)
    as_one = studied(tmp_path, base, tuned, same_rows=True)
    assert d_of(as_one) == pytest.approx(d_by_hand(tmp_path, byte_tokenizer()), rel=1e-4)
    assert not [said for said in as_one.manifest()["warnings"] if "same_rows" in said]
    assert "grafting" in as_one.rows()["measure"]
