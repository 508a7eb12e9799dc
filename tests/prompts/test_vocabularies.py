"""Which tokens of two vocabularies are the same, by the bytes that they stand for."""

import numpy as np
import pytest
import torch
from tokenizers import AddedToken

from mechdiff.errors import ModelError
from mechdiff.prompts.matching import Vocabulary
from mechdiff.prompts.vocabularies import SPECIAL, Tokens, shared_tokens, vocabulary_of
from tokenizers_made import BOS, EOS, SPECIALS, bpe_tokenizer, byte_tokenizer, piece_tokenizer, word_tokenizer, wordpiece_tokenizer

TEXTS = ["Hello, what is the capital of Kazakhstan?  Name it.", "Қазақстанның астанасы қай қала?", "😀 e\u0301 שלום"]
BYTE_LEVEL = bpe_tokenizer(TEXTS, 330)
PIECES = piece_tokenizer(TEXTS, 200)


def made(*pieces, byte_tokens=()):
    return Vocabulary(pieces=pieces, kind="plain", byte_tokens=frozenset(byte_tokens))


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, PIECES, piece_tokenizer(TEXTS, 120, unigram=True), byte_tokenizer()])
@pytest.mark.parametrize("text", TEXTS)
def test_tokens_spell_the_text_in_bytes(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert b"".join(vocabulary_of(tokenizer).spelled(ids)) == text.encode()


def test_words_of_wordpiece_open_with_the_space_that_is_not_written():
    tokenizer = wordpiece_tokenizer(["Hello what capital", "capitals"], 60)
    spelled = vocabulary_of(tokenizer).spelled(tokenizer("Hello capitals")["input_ids"])
    assert b"".join(spelled) == b" Hello capitals"


def test_special_tokens_match_by_name_and_never_a_text_of_the_same_letters():
    found = shared_tokens(made(b"a", EOS, b"b"), made(EOS.encode(), b"a", EOS))
    assert found.pieces == (b"a", EOS, b"b", EOS.encode())
    assert found.relation == "overlapping"
    assert found.n_shared == 2


def test_byte_tokens_give_way_to_common_tokens_of_the_same_byte():
    vocabulary = vocabulary_of(PIECES)
    both = [i for i, piece in enumerate(vocabulary.pieces) if piece == b"e"]
    assert len(both) == 2
    assert len(vocabulary.byte_tokens & set(both)) == 1
    twice = made(b"e", b"e", b"x", byte_tokens=[0])
    found = shared_tokens(twice, made(b"x", b"e"))
    assert found.shared_ids("base") == {1, 2}, "the byte token is the base's own"
    assert found.relation == "reduced"


@pytest.mark.parametrize(("added", "relation"), [(0, "permuted"), (2, "extended")])
def test_byte_tokens_in_another_order_are_the_same_tokens(added, relation):
    vocabulary = vocabulary_of(PIECES)
    n = len(vocabulary.pieces)
    order = np.random.default_rng(0).permutation(n)
    new = [f"word {i}".encode() for i in range(added)]
    other = made(*(vocabulary.pieces[i] for i in order), *new, byte_tokens=[k for k, i in enumerate(order) if i in vocabulary.byte_tokens])
    found = shared_tokens(vocabulary, other)
    assert (found.relation, found.n_shared) == (relation, sum(piece is not None for piece in vocabulary.pieces))
    assert all(order[found.ids["tuned"][k]] == found.ids["base"][k] for k in range(found.n_shared) if found.pieces[k] != b"e")
    twice = [(int(b), int(order[t])) for b, t in zip(found.ids["base"], found.ids["tuned"], strict=True) if b >= 0]
    assert all((b in vocabulary.byte_tokens) == (t in vocabulary.byte_tokens) for b, t in twice)


def test_equal_vocabularies_are_left_as_they_are_padding_included():
    found = shared_tokens(vocabulary_of(BYTE_LEVEL), vocabulary_of(BYTE_LEVEL), rows_base=400, rows_tuned=384)
    assert (found.relation, len(found), found.n_shared) == ("equal", 384, 384)
    logits = torch.randn(3, 400)
    assert torch.equal(found.place(logits, "base"), logits[:, :384])


@pytest.mark.parametrize(
    ("base", "tuned", "relation"),
    [
        ((b"a", b"b", EOS), (EOS, b"b", b"a"), "permuted"),
        ((b"a", b"b"), (b"a", b"b", b"ab"), "extended"),
        ((b"a", b"ab", b"b"), (b"b", b"a"), "reduced"),
        ((b"a", b"ab"), (b"a", b"ba"), "overlapping"),
    ],
)
def test_relations(base, tuned, relation):
    found = shared_tokens(made(*base), made(*tuned))
    assert found.relation == relation
    assert set(found.pieces[: found.n_shared]) == set(base) & set(tuned)
    assert set(found.pieces) == set(base) | set(tuned)
    for side, pieces in (("base", base), ("tuned", tuned)):
        for piece, i in zip(found.pieces, found.ids[side].tolist(), strict=True):
            assert (pieces[i] if i >= 0 else None) == (piece if piece in pieces else None)


def test_placing_moves_each_logit_to_its_token_and_excludes_the_others():
    found = shared_tokens(made(b"a", b"b", b"c"), made(b"c", b"x", b"a"))
    base, tuned = found.place(torch.tensor([1.0, 2, 3]), "base"), found.place(torch.tensor([[5.0, 6, 7]]), "tuned")
    assert found.pieces == (b"a", b"c", b"b", b"x")
    assert base.tolist() == [1, 3, 2, -torch.inf]
    assert tuned.tolist() == [[7, 5, -torch.inf, 6]]


def test_rows_behind_the_last_token_stand_for_nothing_and_are_left_out():
    found = shared_tokens(made(b"a", b"b"), made(b"b", b"a", b"new"), rows_base=4, rows_tuned=8)
    assert found.pieces == (b"a", b"b", b"new")
    assert found.place(torch.arange(4.0), "base").isfinite().sum() == 2


def test_a_token_added_in_a_padding_row_is_only_the_tuned_models():
    found = shared_tokens(made(b"a", b"b"), made(b"a", b"b", b"new"), rows_base=4, rows_tuned=4)
    assert (found.relation, found.n_shared) == ("extended", 2)


def test_two_real_tokenizers_share_what_has_the_same_bytes():
    base, tuned = vocabulary_of(BYTE_LEVEL), vocabulary_of(PIECES)
    assert (base.kind, tuned.kind) == ("byte-level", "SentencePiece")
    found = shared_tokens(base, tuned)
    assert all(byte in found.pieces[: found.n_shared] for byte in (bytes([value]) for value in range(256)))
    assert set(SPECIALS) <= set(found.pieces[: found.n_shared])
    for i in range(found.n_shared):
        b, t = (int(found.ids[side][i]) for side in ("base", "tuned"))
        assert base.pieces[b] == tuned.pieces[t]


def test_first_bytes():
    found = shared_tokens(made(b"ab", BOS, "қ".encode()), made(b"ab", BOS, "қ".encode()))
    assert found.first_bytes.tolist() == [ord("a"), SPECIAL, "қ".encode()[0]]


def test_an_added_token_that_is_not_special_stands_for_its_text():
    tokenizer = bpe_tokenizer(TEXTS, 330)
    tokenizer.add_tokens([AddedToken("қазақ", normalized=False)])
    assert vocabulary_of(tokenizer).pieces[tokenizer.convert_tokens_to_ids("қазақ")] == "қазақ".encode()


def test_vocabularies_without_a_common_token_are_refused():
    with pytest.raises(ModelError, match="share no token"):
        shared_tokens(made(b"a", EOS), made(b"b", EOS))


def test_the_relation_in_words():
    words = vocabulary_of(word_tokenizer(["a b"]))
    assert words.kind == "plain"
    found: Tokens = shared_tokens(made(b"a", b"b"), made(b"a", b"b", b"c"))
    assert found.said() == "2 and 3 tokens, 2 of them shared by the bytes they stand for (0 only in base, 1 only in tuned)"
    assert found.text(2) == "c"
