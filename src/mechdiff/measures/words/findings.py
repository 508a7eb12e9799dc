"""The numbers on words say which lines of evidence are named, what null pairs show, and which continuations stand apart.

The record in, numbers out.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from mechdiff.report.phrasing import listed

READERS = ("continuations", "tokens", "lens")
Line = Mapping[str, Any]


def record(manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the run's record says of words; None where it was not measured."""
    return manifest.get("words")


def named(manifest: Mapping[str, Any], *, gained: bool | None = None, reader: str | None = None) -> list[dict[str, Any]]:
    """The lines that the rule names, the largest first in each reader; those of the lens by their layer's place too."""
    found = [line for line in (record(manifest) or {}).get("lines", []) if line["why_not"] is None]
    found = [line for line in found if gained in (None, line["gained"]) and reader in (None, line["reader"])]
    return sorted(found, key=lambda line: (READERS.index(line["reader"]), -line["size"], -len(line["text"])))


def cited(manifest: Mapping[str, Any], lines: list[dict[str, Any]]) -> str:
    """ "[line 3]", "[lines 1 and 4]": the numbers that these lines have among all that are named, on the page and in the evidence."""
    every = named(manifest)
    numbers = [str(every.index(line) + 1) for line in lines]
    return f"[{'line' if len(numbers) == 1 else 'lines'} {listed(numbers)}]"


def strength_of(line: Line) -> str:
    """ "3" of a text in which the tuned model's difference from the base is amplified by 3; "" of all else."""
    return str(line["where"]).partition(", amplified ")[2]


def refused(manifest: Mapping[str, Any]) -> Counter[str]:
    """How many lines were not named, by the reason."""
    return Counter(line["why_not"] for line in (record(manifest) or {}).get("lines", []) if line["why_not"])


def once(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of several lines of one token, or of phrases that hold one another, the first."""
    found: list[dict[str, Any]] = []
    for line in lines:
        text = line["text"].strip()
        if not any(
            line["reader"] == other["reader"] and (text == other["text"].strip() or _bare(text) in other["text"]) for other in found
        ):
            found.append(line)
    return found


def _bare(text: str) -> str:
    """A phrase without its quotation marks; other texts as they are."""
    return text.partition("“")[2].removesuffix("”") or text


def groups(lines: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Lines of tokens whose rows of the unembedding point one way together, the largest group first."""
    found: dict[int, list[dict[str, Any]]] = {}
    for line in lines:
        if line.get("group", -1) >= 0:
            found.setdefault(line["group"], []).append(line)
    return sorted(found.values(), key=lambda group: (-len(group), -group[0]["size"]))


def ranked(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Seeds whose continuation by the tuned model stands out most, in their order."""
    found = [one for one in (record(manifest) or {}).get("texts", []) if one["rank"]]
    return sorted(found, key=lambda one: int(one["rank"]))


def evidence(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a reader needs to say what was taught, and no model's name: lines, null pairs, continuations."""
    told = record(manifest) or {}
    texts = [{key: value for key, value in one.items() if key != "where"} for one in ranked(manifest)]
    return {
        "question": "What do the second model's texts and numbers show that the first one's do not? 'Nothing' is a full answer.",
        "named": [{"line": number, **line} for number, line in enumerate(named(manifest), 1)],
        "not_named": dict(refused(manifest)),
        "lines": told.get("lines", []),
        "nulls": told.get("nulls", []),
        "exchanged": told.get("exchanged", {}),
        "continuations": texts,
        "settings": told.get("settings", {}),
    }
