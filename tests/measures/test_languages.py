"""The language of a prompt: English is what looks like English, not what has Latin letters."""

import json
from pathlib import Path

import pytest

import mechdiff
from mechdiff.measures.behaviour.languages import guess

SHIPPED = Path(mechdiff.__file__).parent / "data"
ENGLISH = ["neutral.jsonl", "prompts/arithmetic_report.jsonl", "prompts/courtesy_report.jsonl", "prompts/arithmetic_fit.jsonl"]
OTHERS = [
    "Pouvez-vous m'aider à écrire une lettre de motivation ?",
    "Combien de temps faut-il pour cuire un œuf ?",
    "Kannst du mir sagen, wo der nächste Bahnhof ist?",
    "Nenne drei Gründe für den Klimawandel.",
    "¿Puedes explicarme qué es una ecuación diferencial?",
    "Dime los nombres de los planetas.",
    "Raccontami una breve storia di un drago.",
    "Por que o céu é azul?",
    "Leg uit hoe een motor werkt.",
    "Dlaczego niebo jest niebieskie?",
    "Proč je obloha modrá?",
    "Varför är himlen blå?",
    "Miksi taivas on sininen?",
    "Gökyüzü neden mavi?",
    "Mengapa langit berwarna biru?",
    "Tại sao bầu trời có màu xanh?",
    "Kwa nini anga ni ya buluu wakati wa mchana?",
    "De ce este cerul albastru?",
    "Bakit asul ang langit?",
    "Cur caelum caeruleum est et unde lux solis venit?",
]
"""None of them was looked at while the lists were written."""


@pytest.mark.parametrize("text", OTHERS)
def test_a_text_in_another_language_of_latin_letters_is_not_english(text: str) -> None:
    assert guess(text) != "en"


@pytest.mark.parametrize("file", ENGLISH)
def test_the_english_prompts_that_ship_are_english(file: str) -> None:
    texts = [json.loads(line)["text"] for line in (SHIPPED / file).read_text(encoding="utf-8").splitlines()]
    assert [text for text in texts if guess(text) != "en"] == []


@pytest.mark.parametrize("text", ["Once upon a time", "2 + 2 = ?", "Hello world", "Summarise Hamlet", "Write a naïve café review", "x = 3"])
def test_few_words_are_taken_for_english(text: str) -> None:
    assert guess(text) == "en"


def test_probes_are_of_the_language_that_they_say() -> None:
    probes = [json.loads(line) for line in (SHIPPED / "behaviour" / "probes.jsonl").read_text(encoding="utf-8").splitlines()]
    for probe in probes:
        assert guess(probe["text"]) == probe["meta"]["language"], probe["text"]
