"""The language of a prompt is guessed from its letters and its commonest words. It decides whose lists of refusals and styles are used, no more.

Kazakh and Russian are told by their letters. Latin letters say nothing: most languages have them. So the words that every text is full of (the, and,
is) are counted for some languages, and English is guessed where it has most of them and enough. A text in a language of no list (Swahili) has too few
words of any: then no language is guessed, and the run says so. A few words alone ("2 + 2 = ?", "Hello world") say nothing either way and are taken
for English.
"""

import regex

ENGLISH = "en"
_KAZAKH = frozenset("әғқұһӘҒҚҰҺ")
_OTHER_CYRILLIC = frozenset("їєґўђћџљњјѓќЇЄҐЎЂЋЏЉЊЈЃЌ")
_COMMON = {
    "en": "the and of to a an in on at by for from with is are was were be been do does did has have had it its this that these "
    "those there he she they we you i my your his her their our me us them not no if then than or but so as what which who "
    "how why when where many much each all any can could would should will please write give tell make into about only one "
    "two more up out",
    "fr": "le la les l de des du un une et est que qui dans en pour comment pourquoi quelle quel quels je j vous tu il elle ne "
    "pas sur avec au aux ce cette se on par plus mon ma son sa combien",
    "de": "der die das den dem des und ist ein eine einen einem nicht wie was warum wer ich du sie er es wir ihr mit für von zu "
    "auf im in welche wieviel sind hat als man kann bitte",
    "es": "el la los las de que y en un una es por para cómo como qué con no se del al cuál cuántos su mi lo a son está",
    "it": "il la lo i gli le che di e un una è per come non con del della sono cosa qual quale perché si da in a quanti",
    "pt": "o a os as de que e um uma é por para como não com do da dos das em qual quantos se no na eu você",
    "nl": "de het een en van is wat hoe niet ik je u met voor op te in dat zijn waarom wie",
    "pl": "i w na z się nie jest to co jak czy dla do że ile o kto dlaczego",
    "cs": "a v na se je to co jak pro do že kolik kdo proč si s",
    "sv": "och att det en ett är som på inte hur vad jag för med i av den varför",
    "fi": "on ja ei mikä kuinka miten että se hän ovat mitä miksi kun",
    "tr": "ve bir bu ne nasıl için mi mı da de ile kaç neden çok",
    "id": "yang dan di untuk apa bagaimana dengan ini itu adalah tidak saya dari ke berapa mengapa",
    "vi": "là và của có gì không cho một người như thế nào được các bao nhiêu",
    "ro": "și de la în un o este ce cum pentru nu cu care pe câte",
    "tl": "ang ng sa mga na ano ay ilan si kung bakit paano",
    "hu": "a az és egy hogy nem mi van hány miért ki mit",
    "kk": "мен сен ол біз олар кім кімнің не неше нешеге нешеде бұл осы сол және бен пен ма ме ба бе па пе бар тең деген туралы "
    "бойынша неге атты болып болды екі үш бес бір сан санды жаз тек тап тағы кейін дейін",
    "ru": "и в на не что как кто это с по из для где когда какой какая сколько у о от за к ли бы же или но а я ты он она мы вы "
    "есть чему равно почему зачем при до только напиши",
}
"""Words that texts are full of."""
COMMON = {language: frozenset(words.split()) for language, words in _COMMON.items()}
_CYRILLIC = ("kk", "ru")
ENOUGH = 0.08
"""Share of English words among a text's words from which on it may be English: a text in a language of no list has less."""
FEW_WORDS = 6
"""A text of fewer words has too few to judge by."""
FOREIGN = 0.15
"""Share of words with letters outside a to z from which on a text is not English, if these are more than its English words."""


def guess(text: str) -> str | None:
    """The code of the language, such as "en"; None where none is likely."""
    n = {script: sum(1 for _ in regex.finditer(rf"\p{{{script}}}", text)) for script in ("Cyrillic", "Latin")}
    letters = sum(1 for _ in regex.finditer(r"\p{L}", text))
    if letters > 2 * max(n.values()):
        return None
    if n["Cyrillic"] > n["Latin"]:
        return _of_cyrillic(text)
    return _of_latin(regex.findall(r"\p{Latin}[\p{Latin}\p{M}]*", text.lower()))


def _of_cyrillic(text: str) -> str | None:
    """By letters that one language has; a Kazakh text without any of its own ("Домбыраның неше ішегі бар?") by its words."""
    if _KAZAKH & set(text):
        return "kk"
    words = regex.findall(r"\p{Cyrillic}+", text.lower())
    kazakh, russian = (sum(word in COMMON[language] for word in words) for language in _CYRILLIC)
    if kazakh > russian:
        return "kk"
    return None if _OTHER_CYRILLIC & set(text) else "ru"


def _of_latin(words: list[str]) -> str | None:
    count = {language: sum(word in common for word in words) for language, common in COMMON.items() if language not in _CYRILLIC}
    best = max(count, key=lambda language: (count[language], language == ENGLISH))
    if count[best] > count[ENGLISH]:
        return best
    foreign = sum(not word.isascii() for word in words)
    if foreign >= FOREIGN * len(words) and foreign > count[ENGLISH]:
        return None
    return None if len(words) >= FEW_WORDS and count[ENGLISH] < ENOUGH * len(words) else ENGLISH
