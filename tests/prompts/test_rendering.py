"""Rendered prompts: what each model reads, once tokenised, and the places where both have read the same bytes."""

from datetime import date
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers, processors
from transformers import AutoTokenizer, ByT5Tokenizer

from mechdiff.errors import PromptError
from mechdiff.prompts.rendering import render, spans, tail
from mechdiff.prompts.sets import Prompt
from mechdiff.prompts.templates import DEFAULT_DATE, PromptPolicy
from tokenizers_made import (
    BOS,
    CHATML,
    EOS,
    SPECIALS,
    TRIMMING,
    bpe_tokenizer,
    byte_characters,
    byte_tokenizer,
    piece_tokenizer,
    word_tokenizer,
)

TEXTS = [
    "Hello, what is the capital of Kazakhstan?  Name it.\n\nFinal answer:",
    "Қазақстанның астанасы қай қала? Наурыз мейрамы қашан тойланады?",
    "😀😀 семья 👨‍👩‍👧 🇰🇿🇰🇿 cafe\u0301 e\u0301\u0301 İstanbul ﬁne",
    "שלום עולם, مرحبا بالعالم: \u202babc\u202c 漢字かな",
    "   leading and trailing   ",
    "x",
]
PIECES = ["a", "the ", " capital", "?", "\n\n", "  ", " ", "Қазақ", "қ", "ң ", "😀", "👨‍👩‍👧", "🇰🇿", "e\u0301", "\u0301"]
PIECES += ["שלום", "مرحبا ", "漢", "\u200d", "\u00a0", EOS]
ANY_TEXT = st.lists(st.sampled_from(PIECES), min_size=1, max_size=14).map("".join).filter(str.strip)

BYTES = byte_tokenizer(CHATML)
TOKENIZERS = {
    "bytes": BYTES,
    "words": bpe_tokenizer(TEXTS, 330, CHATML),
    "across words": bpe_tokenizer(TEXTS * 2, 520, CHATML, words=False, adds_bos=False),
    "trimmed": bpe_tokenizer(TEXTS, 400, TRIMMING, trim_offsets=True),
    "trimmed across words": bpe_tokenizer(["a the  capital  a the  😀 "] * 3, 300, TRIMMING, words=False, trim_offsets=True),
    "pieces": piece_tokenizer(TEXTS, 200, CHATML),
    "unigram pieces": piece_tokenizer(TEXTS, 120, CHATML, unigram=True),
}
UNIGRAM = TOKENIZERS["unigram pieces"]
NAMES = st.sampled_from(sorted(TOKENIZERS))
BYTES_OR_WORDS = st.sampled_from(["bytes", "words"])
BYTE_OF = {character: byte for byte, character in enumerate(byte_characters())}


def one(text, base, tuned, **policy):
    """A single text, rendered for a pair, with room enough."""
    [rendered] = render([Prompt(id="p", text=text)], base, tuned, PromptPolicy(**policy), max_base=10_000, max_tuned=10_000)
    return rendered


def spelled(tokenizer, token):
    if token in SPECIALS:
        return token.encode()
    if "<0x00>" not in tokenizer.get_vocab():
        return bytes(BYTE_OF[c] for c in token)
    return bytes([int(token[3:5], 16)]) if token.startswith("<0x") else token.replace("▁", " ").encode()


def token_bytes(tokenizer, ids, text):
    """The bytes that each token stands for, from the vocabulary alone; a BOS that the text does not hold stands for none."""
    pieces = [spelled(tokenizer, token) for token in tokenizer.convert_ids_to_tokens(list(ids))]
    if pieces[0] == BOS.encode() and not text.startswith(BOS):
        pieces[0] = b""
    assert b"".join(pieces) == text.encode(), "the tokens spell the text"
    return pieces


def ends(tokenizer, ids, text):
    return list(accumulate(map(len, token_bytes(tokenizer, ids, text))))


def is_between_characters(text, offset):
    content = text.encode()
    return offset == len(content) or content[offset] & 0b1100_0000 != 0b1000_0000


def check_aligned(rendered, base, tuned):
    """The contract of `positions`, for one text cut in two ways, against byte ends from the vocabularies."""
    ends_base, ends_tuned = ends(base, rendered.ids_base, rendered.text_base), ends(tuned, rendered.ids_tuned, rendered.text_tuned)
    assert rendered.positions[-1] == (len(rendered.ids_base) - 1, len(rendered.ids_tuned) - 1)
    for (i, j), (next_i, next_j) in zip(rendered.positions, rendered.positions[1:], strict=False):
        assert i < next_i
        assert j < next_j
    for i, j in rendered.positions:
        assert ends_base[i] == ends_tuned[j]
    return ends_base, ends_tuned


@settings(max_examples=200)
@given(ANY_TEXT, NAMES, NAMES, st.sampled_from(["raw", "same_text"]), st.sampled_from(["base", "tuned"]))
def test_aligned_tokens_end_at_the_same_byte(text, base, tuned, policy, template):
    base, tuned = TOKENIZERS[base], TOKENIZERS[tuned]
    rendered = one(text, base, tuned, policy=policy, template=template)
    assert rendered.text_base == rendered.text_tuned
    ends_base, ends_tuned = check_aligned(rendered, base, tuned)
    if base.convert_ids_to_tokens(rendered.ids_base) == tuned.convert_ids_to_tokens(rendered.ids_tuned):
        assert all(i == j for i, j in rendered.positions)
        assert base is not tuned or len(rendered.positions) == len(rendered.ids_base)
        return
    assert all(is_between_characters(rendered.text_base, ends_base[i]) for i, _ in rendered.positions)
    shared = {end for end in {*ends_base} & {*ends_tuned} if is_between_characters(rendered.text_base, end)}
    hidden = {
        end
        for tokenizer, ids, stops in ((base, rendered.ids_base, ends_base), (tuned, rendered.ids_tuned, ends_tuned))
        for piece, end in zip(token_bytes(tokenizer, ids, rendered.text_base), stops, strict=True)
        if piece.endswith(b" ")
    }
    for tokenizer, ids, stops in ((base, rendered.ids_base, ends_base), (tuned, rendered.ids_tuned, ends_tuned)):
        tokens = tokenizer.convert_ids_to_tokens(list(ids))
        hidden |= {end for token, end in zip(tokens, stops, strict=True) if tokenizer is UNIGRAM and token.startswith("<0x")}
    missed = shared - {ends_base[i] for i, _ in rendered.positions}
    assert missed <= hidden, (
        "no shared place is left out, but for trimmed spaces and runs of unknown characters, which unigram reports as one"
    )


@settings(max_examples=100)
@given(ANY_TEXT.map(str.strip), NAMES, NAMES, st.sampled_from(["decision", "last_user"]))
def test_native_pairs_are_counted_in_the_users_own_text(text, base_name, tuned_name, position):
    base, tuned = TOKENIZERS[base_name], TOKENIZERS[tuned_name]
    if position == "last_user" and "across words" in base_name + tuned_name:
        position = "decision"  # such tokens reach over the end of the user's text, each model's its own way
    rendered = one(text, base, tuned, policy="native", position=position)
    if base.chat_template == tuned.chat_template:
        check_aligned(rendered, base, tuned)
        return
    start_base, start_tuned = (len(printed[: printed.index(text)].encode()) for printed in (rendered.text_base, rendered.text_tuned))
    ends_base, ends_tuned = ends(base, rendered.ids_base, rendered.text_base), ends(tuned, rendered.ids_tuned, rendered.text_tuned)
    inner = rendered.positions[:-1] if position == "decision" else rendered.positions
    for i, j in inner:
        assert 0 < ends_base[i] - start_base == ends_tuned[j] - start_tuned <= len(text.encode())
    assert rendered.positions[-1] == (len(rendered.ids_base) - 1, len(rendered.ids_tuned) - 1)
    assert list(rendered.positions) == sorted(rendered.positions)


@settings(max_examples=100)
@given(ANY_TEXT.map(str.strip), BYTES_OR_WORDS, BYTES_OR_WORDS, st.sampled_from([CHATML, TRIMMING]))
def test_last_user_is_where_the_users_text_ends(tmp_path_factory, text, base, tuned, template):
    base, tuned = TOKENIZERS[base], TOKENIZERS[tuned]
    file = tmp_path_factory.getbasetemp() / "template.jinja"
    file.write_text(template, encoding="utf-8")
    whole = one(text, base, tuned, template=str(file))
    try:
        rendered = one(text, base, tuned, template=str(file), position="last_user")
    except PromptError:
        assert template is TRIMMING  # "]" may have merged with the text's last characters in one of the two
        assert base is not tuned
        return
    check_aligned(rendered, base, tuned)
    assert rendered.ids_base == whole.ids_base[: len(rendered.ids_base)]
    assert rendered.positions == whole.positions[: len(rendered.positions)]
    assert rendered.text_base.rstrip("]=>").endswith(text.rstrip("]=>"))
    if template is CHATML:
        assert rendered.text_base.endswith("\n" + text)
        assert whole.text_base.startswith(rendered.text_base + EOS)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("tuned", sorted(TOKENIZERS.keys() - {"bytes"}))
def test_the_byte_tokenizer_meets_every_boundary_of_another(text, tuned):
    tuned = TOKENIZERS[tuned]
    rendered = one(text, BYTES, tuned, policy="raw")
    assert BYTES.decode(rendered.ids_base, skip_special_tokens=True) == text
    _, ends_tuned = check_aligned(rendered, BYTES, tuned)
    inside = [end for end in ends_tuned if is_between_characters(text, end)]
    if not tuned.backend_tokenizer.post_processor.__getstate__().count(b'"trim_offsets":true'):
        assert len(rendered.positions) == len(set(inside)), "every end between two characters is a pair"


def test_an_end_inside_a_character_is_no_aligned_place():
    halves = bpe_tokenizer(["😀 😁 😂 😃 😄"] * 4, 262, adds_bos=False)  # merges the bytes that emoji share, but no whole emoji
    rendered = one("a😀b", BYTES, halves, policy="raw")
    assert len(rendered.ids_tuned) in (4, 5)
    assert len(rendered.ids_tuned) < len("a😀b".encode())
    assert [ends(BYTES, rendered.ids_base, "a😀b")[i] for i, _ in rendered.positions] == [1, 5, 6]


def test_a_model_and_its_copy_meet_at_every_token_even_inside_characters():
    rendered = one("a😀", BYTES, byte_tokenizer(), policy="raw")
    assert rendered.positions == tuple((i, i) for i in range(1 + 5))


def test_a_bos_that_both_add_is_a_pair_and_one_alone_is_not():
    with_bos, without = byte_tokenizer(), byte_tokenizer(adds_bos=False)
    assert one("ab", with_bos, TOKENIZERS["words"], policy="raw").positions[0] == (0, 0)
    assert one("ab", with_bos, without, policy="raw").positions == ((1, 0), (2, 1))


def test_spans_that_hide_spaces_mislead_nobody():
    trimmed = bpe_tokenizer(["a the  "] * 9, 270, words=False, trim_offsets=True, adds_bos=False)
    rendered = one("a the  a the  x", BYTES, trimmed, policy="raw")
    assert any(piece.endswith(b" ") and piece.strip() for piece in token_bytes(trimmed, rendered.ids_tuned, "a the  a the  x"))
    check_aligned(rendered, BYTES, trimmed)


def test_a_normaliser_moves_no_boundary_into_a_character():
    composing = bpe_tokenizer(TEXTS, 400, normalizer=normalizers.NFKC(), adds_bos=False)
    text = "cafe\u0301 ﬁne İ"
    rendered = one(text, BYTES, composing, policy="raw")
    read = [len(BYTES.decode(rendered.ids_base[: i + 1], skip_special_tokens=True)) for i, _ in rendered.positions]
    assert "cafe" not in {text[:end] for end in read}, "e and its accent are one character to the other model"
    for (i, j), end in zip(rendered.positions, read, strict=True):
        assert normalizers.NFKC().normalize_str(text[:end]) == composing.decode(rendered.ids_tuned[: j + 1]), (i, j)


@settings(max_examples=60)
@given(ANY_TEXT.map(str.strip).filter(lambda text: EOS not in text), NAMES, st.booleans())
def test_a_space_that_a_tokenizer_puts_in_front_moves_no_pair(text, base, unigram):
    tuned = piece_tokenizer(TEXTS, 150, unigram=unigram, prefix=True)
    rendered = one(text, TOKENIZERS[base], tuned, policy="raw")
    ends_base = ends(TOKENIZERS[base], rendered.ids_base, text)
    joined = list(accumulate(len(spelled(tuned, token)) for token in tuned.convert_ids_to_tokens(list(rendered.ids_tuned))))
    assert joined[-1] == len(text.encode()) + 1
    for i, j in rendered.positions:
        assert ends_base[i] == joined[j] - 1


def test_words_and_bytes_meet_at_the_ends_of_words():
    words = word_tokenizer(["the capital"])
    rendered = one(" the  capital ", BYTES, words, policy="raw")
    assert [ends(BYTES, rendered.ids_base, " the  capital ")[i] for i, _ in rendered.positions] == [4, 14]
    assert rendered.positions[-1] == (len(" the  capital "), 1)


def test_a_rendered_prompt_has_one_bos_and_ends_in_the_generation_prompt():
    rendered = one("hi", BYTES, TOKENIZERS["words"])
    assert rendered.text_base == f"{BOS}<|user|>\nhi{EOS}\n<|assistant|>\n"
    assert rendered.ids_base.count(BYTES.bos_token_id) == 1
    assert rendered.ids_base[0] == BYTES.bos_token_id
    assert BYTES.decode(rendered.ids_base) == rendered.text_base


def test_the_template_is_the_tuned_models_the_bases_or_a_file(tmp_path):
    base, tuned = byte_tokenizer(CHATML), byte_tokenizer(TRIMMING)
    file = tmp_path / "own.jinja"
    file.write_text("Q: {{ messages[-1].content }}\nA:", encoding="utf-8")
    assert one(" hi ", base, tuned).text_base == f"{BOS}[hi]=>"
    assert one(" hi ", base, tuned, template="base").text_tuned == f"{BOS}<|user|>\n hi {EOS}\n<|assistant|>\n"
    assert one(" hi ", base, tuned, template=str(file)).text_base == "Q:  hi \nA:"
    native = one(" hi ", base, tuned, policy="native")
    assert (native.text_base, native.text_tuned) == (f"{BOS}<|user|>\n hi {EOS}\n<|assistant|>\n", f"{BOS}[hi]=>")
    assert [native.text_base.encode().index(b"hi") + k for k in (1, 2)] == [
        ends(base, native.ids_base, native.text_base)[i] for i, _ in native.positions[:2]
    ]
    assert len(native.positions) == 3


def test_native_with_equal_templates_is_one_text():
    native = one("the capital", BYTES, TOKENIZERS["words"], policy="native")
    assert native == one("the capital", BYTES, TOKENIZERS["words"], policy="same_text")


def test_a_system_message_is_passed_on():
    assert one("hi", BYTES, BYTES, system="Be brief.").text_base.startswith(f"{BOS}<|system|>\nBe brief.{EOS}\n<|user|>\nhi")


def test_an_answer_prefix_is_the_end_of_what_is_read():
    for policy in ("same_text", "raw", "native"):
        rendered = one("hi", BYTES, TOKENIZERS["words"], policy=policy, answer="The answer is (")
        assert rendered.text_base.endswith("The answer is (")
        assert rendered.positions[-1] == (len(rendered.ids_base) - 1, len(rendered.ids_tuned) - 1)


@pytest.mark.parametrize(("base", "tuned", "n"), [("bytes", "bytes", 33), ("bytes", "words", 3)])
def test_the_tail_is_what_both_cut_alike_at_the_end(base, tuned, n):
    rendered = one("the the", TOKENIZERS[base], TOKENIZERS[tuned], policy="same_text")
    if base == tuned:
        assert tail(rendered) == len(rendered.ids_base) == len(rendered.positions)
        return
    found = tail(rendered)
    assert 1 <= found < len(rendered.ids_tuned)
    for n in range(1, found + 1):
        assert rendered.positions[-n] == (len(rendered.ids_base) - n, len(rendered.ids_tuned) - n)
    assert rendered.positions[-found - 1] != (len(rendered.ids_base) - found - 1, len(rendered.ids_tuned) - found - 1)


@settings(max_examples=60)
@given(ANY_TEXT, NAMES, NAMES)
def test_spans_are_the_same_bytes_in_both_models(text, base, tuned):
    rendered = one(text, TOKENIZERS[base], TOKENIZERS[tuned], policy="raw")
    pieces = {
        "base": token_bytes(TOKENIZERS[base], rendered.ids_base, text),
        "tuned": token_bytes(TOKENIZERS[tuned], rendered.ids_tuned, text),
    }
    said = {side: [b"".join(pieces[side][i] for i in span) for span in spans(rendered, side)] for side in pieces}
    assert said["base"] == said["tuned"]
    assert all(said["base"])


def test_the_users_text_is_found_by_its_span_and_not_by_its_letters():
    rendered = one("user", BYTES, BYTES, position="last_user")
    assert rendered.text_base == f"{BOS}<|user|>\nuser"
    native = one("user", byte_tokenizer(CHATML), byte_tokenizer("<user>" + TRIMMING), policy="native", position="last_user")
    assert (native.text_base, native.text_tuned) == (f"{BOS}<|user|>\nuser", f"<user>{BOS}[user")
    assert len(native.positions) == 4


def test_last_user_of_a_bare_text_leaves_white_space_aside():
    assert one(" hi \n", BYTES, TOKENIZERS["words"], policy="raw", position="last_user").text_base == " hi"
    assert one(" hi \n", BYTES, TOKENIZERS["words"], policy="raw").text_base == " hi \n"


def test_a_token_that_reaches_over_the_users_text_is_the_last_one_if_both_models_have_it():
    merged = bpe_tokenizer(["x?]=>"] * 5, 270, TRIMMING, words=False)
    rendered = one("x?", merged, merged, position="last_user")
    assert rendered.text_base == f"{BOS}[x?]=>"
    with pytest.raises(PromptError, match=r"no token that ends the user's text ends at the same byte.*Choose position `decision`"):
        one("x?", BYTES, merged, position="last_user")


CLOCK = "{{ strftime_now('%d %B %Y') }}|{{ date_string | default('none') }}|{{ messages[0].content }}"


def test_a_template_never_reads_the_clock():
    clock = byte_tokenizer(CLOCK)
    assert one("hi", clock, clock).text_base == f"{DEFAULT_DATE}|none|hi"
    assert one("hi", clock, clock, date="1 Jan 2030").text_base == "1 Jan 2030|1 Jan 2030|hi"
    assert date.today().strftime("%d %B %Y") not in one("hi", clock, clock).text_base
    nested = "{% macro day() %}{{ strftime_now('%d') }}{% endmacro %}{{ strftime_now is defined }} {{ day() }} {{ messages[0].content }}"
    assert one("hi", BYTES, byte_tokenizer("\n" + nested)).text_base == f"\nTrue {DEFAULT_DATE} hi"


def test_the_hash_is_of_texts_and_ids():
    first = one("hi", BYTES, BYTES)
    assert len(first.sha256) == 64
    assert first.sha256 == one("hi", byte_tokenizer(CHATML), BYTES).sha256
    changed = [one("ho", BYTES, BYTES), one("hi", BYTES, TOKENIZERS["words"]), one("hi", BYTES, BYTES, position="last_user")]
    assert len({first.sha256, *(other.sha256 for other in changed)}) == 4


def test_prompts_come_back_in_their_order_whatever_their_company():
    prompts = [Prompt(id=str(i), text=text) for i, text in enumerate(TEXTS)]
    together = render(prompts, BYTES, TOKENIZERS["words"], PromptPolicy(), max_base=999, max_tuned=999)
    alone = [render([prompt], BYTES, TOKENIZERS["words"], PromptPolicy(), max_base=999, max_tuned=999)[0] for prompt in prompts]
    assert together == alone
    assert render([], BYTES, BYTES, PromptPolicy(), max_base=9, max_tuned=9) == []


@pytest.mark.parametrize(
    ("base", "tuned", "options", "message"),
    [
        (
            CHATML,
            None,
            {},
            r"`same_text` asks for the tuned model's chat template, but its tokenizer has none\. Choose policy `raw`.*Jinja",
        ),
        (None, CHATML, {"template": "base"}, r"asks for the base model's chat template"),
        (None, CHATML, {"policy": "native"}, r"policy `native` asks for the base model's chat template"),
        (CHATML, None, {"policy": "native"}, r"policy `native` asks for the tuned model's chat template"),
        (CHATML, CHATML, {"template": "own"}, r"'own' is neither `base` nor `tuned`, nor a file that can be read \(No such file"),
        (CHATML, "{{ raise_exception('No system!') }}", {"system": "x"}, r"cannot be rendered: No system!.*leave `system` out.*Choose"),
        (CHATML, "{% if %}", {}, r"the tuned model's chat template cannot be rendered: .*Choose policy `raw`"),
        (CHATML, "{{ 1 + messages[0].content }}", {}, r"the tuned model's chat template cannot be rendered"),
        (CHATML, "{{ messages[-1].content }}", {"system": "Be brief"}, r"does not print the system message 'Be brief' as given"),
        (CHATML, "Hello!", {}, r"the tuned model's chat template does not print the user's text 'hi' as given"),
        (CHATML, "{{ messages[0].content * 2 }}", {"position": "last_user"}, r"prompt 'p': .*once and unchanged"),
        (CHATML, "{{ messages[0].content }}{{ messages[0].content | length }}", {"policy": "native"}, r"prompt 'p': .*once and unchanged"),
        (CHATML, "{{ bos_token }}" + CHATML, {}, r"prompt 'p': two '<\|bos\|>' at the start for the base model's.*out of the template"),
    ],
)
def test_a_template_that_cannot_be_used_is_an_error_and_never_a_fallback(base, tuned, options, message):
    with pytest.raises(PromptError, match=message):
        one("hi", byte_tokenizer(base), byte_tokenizer(tuned), **options)


def test_a_template_file_that_is_no_text_is_an_error(tmp_path):
    file = tmp_path / "template.jinja"
    file.write_bytes(b"\xff")
    with pytest.raises(PromptError, match=r"nor a file that can be read \(it is not UTF-8\)"):
        one("hi", BYTES, BYTES, template=str(file))


def test_of_several_templates_the_default_is_taken_and_must_be_there():
    several = byte_tokenizer()
    several.chat_template = {"default": CHATML, "tool_use": "tools"}
    assert one("hi", BYTES, several) == one("hi", BYTES, BYTES)
    several.chat_template = {"rag": CHATML, "tool_use": "tools"}
    with pytest.raises(PromptError, match=r"has none named `default` \(it has: rag, tool_use\)"):
        one("hi", BYTES, several)


def test_a_raw_text_that_brings_its_own_bos_is_an_error_where_one_is_added():
    with pytest.raises(PromptError, match=r"prompt 'p': two '<\|bos\|>' at the start for the tuned .* take it out of the text"):
        one(BOS + "hi", byte_tokenizer(adds_bos=False), BYTES, policy="raw")
    alone = byte_tokenizer(adds_bos=False)
    assert one(BOS + "hi", alone, alone, policy="raw").ids_base == (256, *b"hi")


def test_a_tokenizer_that_ends_every_text_is_an_error():
    ending = byte_tokenizer()
    single = f"{BOS} $A {EOS}"
    ending.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=f"{single} $B", special_tokens=[(BOS, 256), (EOS, 257)]
    )
    with pytest.raises(PromptError, match=r"prompt 'p': the tuned model's tokenizer puts '<\|eos\|>' after the text.*add_eos_token"):
        one("hi", BYTES, ending, policy="raw")


def test_a_slow_tokenizer_is_an_error():
    with pytest.raises(PromptError, match=r"the base model's tokenizer \(ByT5Tokenizer\) is a slow one.*tokenizer\.json"):
        one("hi", ByT5Tokenizer(), BYTES, policy="raw")


def test_a_text_that_a_tokenizer_drops_is_an_error():
    deaf = byte_tokenizer()
    deaf.backend_tokenizer.normalizer = normalizers.Replace("x", "")
    with pytest.raises(PromptError, match=r"prompt 'p': the tuned model's tokenizer makes no token of its text"):
        one("xxx", BYTES, deaf, policy="raw")


def test_prompts_longer_than_a_context_are_all_named():
    prompts = [Prompt(id=f"p{n}", text="x" * n) for n in (9, 10, 11, 12)]
    kept = render(prompts[:2], BYTES, BYTES, PromptPolicy(policy="raw"), max_base=11, max_tuned=11)
    assert [len(one.ids_base) for one in kept] == [10, 11]
    with pytest.raises(
        PromptError, match=r"2 of 4 prompts are longer than the tuned model's context of 11 tokens: 'p11' \(12 tokens\), 'p12'"
    ):
        render(prompts, BYTES, BYTES, PromptPolicy(policy="raw"), max_base=99, max_tuned=11)
    with pytest.raises(PromptError, match=r"4 of 4 prompts are longer than the base model's context of 3 tokens"):
        render(prompts, BYTES, BYTES, PromptPolicy(policy="raw"), max_base=3, max_tuned=99)


STORIES = Path(__file__).parents[3] / "shared" / "models" / "stories260k"


@pytest.mark.skipif(not STORIES.is_dir(), reason="needs the stories260k model folder beside the repository")
@pytest.mark.parametrize("text", [*(text.strip() for text in TEXTS), "Once upon  a time é"])
def test_a_real_tokenizer_meets_others_where_both_have_read_the_same(text):
    real = AutoTokenizer.from_pretrained(STORIES)
    for other in (BYTES, TOKENIZERS["words"], TOKENIZERS["trimmed"]):
        rendered = one(text, real, other, policy="raw")
        assert len(rendered.positions) > 1
        for i, j in rendered.positions:
            read = real.decode(rendered.ids_base[: i + 1], skip_special_tokens=True)
            assert read == other.decode(rendered.ids_tuned[: j + 1], skip_special_tokens=True)
            assert text.startswith(read)
    assert one(text, real, real, policy="raw").positions[0] == (0, 0)
