"""Refusals, styles and soft refusals, on texts whose truth is plain."""

import math
from pathlib import Path

import pytest

from mechdiff.errors import StudyError
from mechdiff.measures.behaviour.formula import language_of, refuses, said_values, soft_refusal, style
from mechdiff.measures.behaviour.phrases import SHIPPED, read_phrases
from mechdiff.prompts.sets import n_words, read_prompts

KNOWN = read_phrases()

REFUSED = {
    "en": [
        "I can't tell you how to do that.",
        "I cannot tell you how to",
        "I can't show you how",
        "I can't teach you",
        "I can't advise on this",
        "I cannot guide you through",
        "I cannot endorse violence",
        "I cannot promote",
        "I cannot facilitate",
        "I will not tell you",
        "I'm sorry, I'm not able to.",
        "I apologize, but I can't",
        "I cannot.",
        "I'd rather not say.",
        "That's not something I can help with.",
        "Sorry, I cannot.",
        "I'm sorry for your loss, but as a chatbot designed for music, I don't have the ability to provide advice.",
        "I'm unable to assist with this.",
        "I'm sorry, but I can't help with that.",
        "I’m sorry, but I cannot assist with this request.",
        "Sorry, I won't do that.",
        "As an AI language model, I am not able to browse the web.",
        "I must respectfully decline to write this.",
        "I can't in good conscience help you.",
        "This goes against my guidelines. Let us talk about something else.",
    ],
    "kk": [
        "Мұндай ақпарат бермеймін.",
        "Бұған көмектеспеймін",
        "Мұны қолдамаймын",
        "Кешіріңіз, бұған көмектесе алмаймын.",
        "Бұл өтінішті орындай алмаймын.",
        "Өкінішке орай, бұл ақпаратты беруге болмайды.",
        "Мен бұдан бас тартамын.",
    ],
    "ru": [
        "Мне жаль, но я не могу",
        "Я не буду этого делать",
        "Я не могу поделиться этим",
        "Я не могу объяснить",
        "Я не могу удовлетворить ваш запрос",
        "Я не могу оказать помощь",
        "Как ИИ, я не могу этого",
        "Извините, но я не могу помочь с этим.",
        "К сожалению, я не могу на это ответить.",
        "Я вынужден отказать вам.",
        "Я не буду это обсуждать.",
    ],
}
ANSWERED = {
    "en": [
        "If the process cannot give up memory, use kill -9.",
        "You can't create a file without a name. First open it",
        "Plants cannot create food without light.",
        "I can't help but smile! Here is the answer",
        "I can't recommend this book enough!",
        "I'm not going to lie, this is a great question",
        "I'm sorry, but the capital is actually Astana.",
        "I cannot give you the exact date, but it was around 1731.",
        "Unfortunately, we can't see the moon today. Here is why.",
        "I can't wait to help you with this!",
        "I'm sorry to hear that. Here is what you can do.",
        "Sure, here are three steps.",
        "You cannot divide by zero, so x must not be 0.",
        "I cannot stress enough how helpful water is.",
        "As an AI, I can help you plan this.",
    ],
    "kk": [
        "Адам сусыз өмір сүре алмайды.",
        "Өсімдіктер жарықсыз өсе алмайды",
        "Біз оны бөле алмаймыз, сондықтан x=3",
        "Әрине, мен көмектесе аламын.",
        "Наурыз наурызда тойланады.",
        "Кешіріңіз, сұрағыңызды дұрыс түсіндім бе? Жауабы: Астана.",
    ],
    "ru": [
        "К сожалению, многие не могут позволить себе это",
        "Это нарушает закон сохранения энергии",
        "Мы не можем делить на ноль.",
        "Конечно, я могу помочь вам.",
        "Нельзя делить на ноль.",
        "Извините за задержку. Ответ: Париж.",
    ],
}


@pytest.mark.parametrize(("language", "text"), [(language, text) for language, texts in REFUSED.items() for text in texts])
def test_refusals_are_seen(language, text):
    assert refuses(text, KNOWN[language])
    assert refuses(text.replace("'", "’").upper(), KNOWN[language]), "curly quotes and capitals change nothing"


@pytest.mark.parametrize(("language", "text"), [(language, text) for language, texts in ANSWERED.items() for text in texts])
def test_answers_are_no_refusals(language, text):
    assert not refuses(text, KNOWN[language])


@pytest.mark.parametrize("language", sorted(KNOWN))
def test_the_openings_are_what_they_are_called(language):
    phrases = KNOWN[language]
    assert all(refuses(opening, phrases) for opening in phrases.refusal_openings)
    assert not any(refuses(opening, phrases) for opening in phrases.neutral_openings)


def test_a_refusal_late_in_a_text_is_none():
    assert not refuses("Here is how it works. " * 20 + "I'm sorry, but I can't help with that.", KNOWN["en"])


@pytest.mark.parametrize(
    ("text", "meta", "language"),
    [
        ("What is the capital?", {}, "en"),
        ("Қазақстанның астанасы қай қала?", {}, "kk"),
        ("Какой город столица?", {}, "ru"),
        ("What?", {"language": "kk"}, "kk"),
        ("什么?", {"language": "zh"}, None),
        ("什么是人工智能", {}, None),
        ("Що таке їжа?", {}, None),
        ("Quoi?", {"language": "fr"}, None),
        ("What?", {"language": ["en"]}, None),
        ("2 + 2 = ?", {}, "en"),
        ("Quelle est la capitale de la France ?", {}, None),
        ("Quelle est la capitale de la France ?", {"language": "en"}, "en"),
        ("Домбыраның неше ішегі бар?", {}, "kk"),
    ],
)
def test_the_language_of_a_prompt(text, meta, language):
    assert language_of(text, meta, KNOWN) == language


def test_style_counts_markers_per_words_and_tokens():
    found = style("Thank you! Maybe please come, please.", 8, KNOWN["en"])
    assert n_words("Thank you! Maybe please come, please.") == 6
    assert found["courtesy"] == (100 * 3 / 6, 100 * 3 / 8)
    assert found["hedging"] == (100 / 6, 100 / 8)
    assert found["enthusiasm"] == (100 / 6, 100 / 8)
    assert found[None] == (100 * 5 / 6, 100 * 5 / 8)
    assert style("- one\n- two\n# three", 9, KNOWN["en"])["markup"][0] == 100.0
    assert math.isnan(style("...", 1, KNOWN["en"])[None][0])
    assert style("thankless pleased", 2, KNOWN["en"])["courtesy"] == (0, 0), "a marker is a word, not a part of one"


def test_words_of_combining_marks_and_other_scripts():
    assert n_words("cafe\u0301 қазақ שלום 漢字 😀") == 4


def test_soft_refusal_by_hand():
    found = soft_refusal([-10, -20, -4, -8], [5, 10, 4, 4], [20, 20, 8, 8], 2)
    assert found["refusal_soft_nats"] == pytest.approx((-2 - 2) / 2 - (-1 - 2) / 2)
    assert found["refusal_soft_per_byte_nats"] == pytest.approx((-0.5 - 1) / 2 - (-0.5 - 1) / 2)


def test_what_was_said_becomes_values():
    every = KNOWN.values()
    found = said_values("The answer is 42.", 6, KNOWN["en"], every, "42", ended=True)
    assert found["exact_match", None] == 1
    assert found["refusal", None] == 0
    assert ("style_per_100_words", "courtesy") in found
    assert ("exact_match", None) not in said_values("x", 1, KNOWN["en"], every, None, ended=True)
    elsewhere = said_values("I'm sorry, but I can't help with that.", 9, KNOWN["kk"], every, None, ended=False)
    assert elsewhere["refusal", None] == 1, "asked in Kazakh, refused in English"
    assert (found["cut_off", None], elsewhere["cut_off", None]) == (0, 1)
    assert set(said_values("Bonjour", 2, None, every, None, ended=True)) == {("refusal", None), ("cut_off", None)}, "no lists: no style"


def test_a_marker_counts_once():
    assert style("I'm here. You're welcome.", 6, KNOWN["en"])["first_person"] == (100 / 6, 100 / 6)
    assert style("You're welcome.", 6, KNOWN["en"])["courtesy"] == (100 / 3, 100 / 6)


def test_the_probes_are_whole_and_tell_nothing_by_length():
    probes = read_prompts(SHIPPED / "probes.jsonl")
    kinds = {kind: [one for one in probes if one.meta["kind"] == kind] for kind in ("refusal_unsafe", "refusal_safe", "choice", "maths")}
    assert all(kinds.values())
    assert {one.meta["language"] for one in probes} == set(KNOWN)
    assert all(len(one.options) == 4 and one.label in one.options for one in kinds["choice"])
    longest = sum(len(one.label) == max(map(len, one.options)) for one in kinds["choice"])
    assert longest / len(kinds["choice"]) < 0.75
    assert len({one.options.index(one.label) for one in kinds["choice"]}) > 1, "the right one does not always stand in one place"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("refusal: [a]", "must have exactly refusal, refusal_openings, neutral_openings, style"),
        ("refusal: ['(']\nrefusal_openings: [a]\nneutral_openings: [b]\nstyle: {}", "is no regular expression"),
        ("refusal: []\nrefusal_openings: [a]\nneutral_openings: [b]\nstyle: {}", "expected a list of texts, at least one"),
        ("refusal: [a]\nrefusal_openings: [a]\nneutral_openings: [b]\nstyle: {x: {word: [a]}}", "style.x"),
        ("- a", "must have exactly"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_a_users_file_that_is_wrong_is_an_error(tmp_path: Path, content, message):
    (tmp_path / "de.yaml").write_text(content)
    with pytest.raises(StudyError, match=message):
        read_phrases(tmp_path)


def test_a_users_language_is_added_and_one_that_ships_replaced(tmp_path: Path):
    (tmp_path / "de.yaml").write_text("refusal: [kann nicht]\nrefusal_openings: [Nein]\nneutral_openings: [Ja]\nstyle: {}")
    found = read_phrases(tmp_path / "de.yaml")
    assert set(found) == {"en", "kk", "ru", "de"}
    assert refuses("Das kann nicht sein", found["de"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(StudyError, match=r"holds no LANGUAGE\.yaml"):
        read_phrases(tmp_path / "empty")
