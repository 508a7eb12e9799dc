"""The texts that a page shows are read once more, for numbers at each of their tokens around the one that was found."""

from collections.abc import Mapping
from typing import Any

from mechdiff.rows import empty
from mechdiff.scanning.compute import numbers_of
from mechdiff.scanning.corpus import Read, Scan
from mechdiff.scanning.tokens import Numbers
from mechdiff.store.run_folder import RunFolder

AROUND = 40, 12
"""Tokens before and behind the one that was found."""
CONTEXTS, DIRECTIONS, OF_A_DIRECTION = 5, 4, 3
"""Texts of a list of contexts, directions that are shown, and texts of each."""


Shown = Mapping[tuple[int, int], Mapping[str, Any]]
"""By number and token, the tokens of a text around that one."""


def wanted(record: Mapping[str, Any]) -> list[tuple[int, int]]:
    """The numbers of the texts that are shown, and the token that each is shown around: a text of two lists around one each."""
    lists = [texts[:CONTEXTS] for texts in record["contexts"].values()]
    lists += [direction["texts"][:OF_A_DIRECTION] for direction in record["directions"][:DIRECTIONS]]
    return sorted({(one["number"], one["token"]) for texts in lists for one in texts})


def shaded(scan: Scan, folder: RunFolder, record: Mapping[str, Any]) -> Shown:
    """The texts that are shown, with their numbers; read by both models where no earlier command did."""
    asked = wanted(record)
    key = {**scan.directions.key, "stage": "shown", "texts": asked, "corpus": scan.hash}
    if not folder.has(key):
        texts = scan.texts.some({number for number, _ in asked})
        read = {one.number: (one, here) for one, here in numbers_of(scan, scan.read([texts[number] for number in sorted(texts)]))}
        told = [[number, token, _tokens(scan, *read[number], token)] for number, token in asked]
        folder.store(key, empty(), notes={"texts": told})
    return {(number, token): text for number, token, text in folder.load(key).record["notes"]["texts"]}


def _tokens(scan: Scan, one: Read, numbers: Numbers, at: int) -> dict[str, Any]:
    """The base's tokens around one of them: each with the divergence of what both say next, and how its own loss changed."""
    ids = one.ids["base"]
    start, stop = max(0, at - AROUND[0]), min(len(ids), at + AROUND[1])
    divergence = {pair[0]: float(value) for pair, value in zip(one.scored, numbers.kl_tuned_base.tolist(), strict=True)}
    ends = [pair[0] for pair in one.pairs[1:]]
    change = dict(zip(ends, numbers.loss_change.tolist(), strict=True))
    places = scan.tokens.places("base", ids[start:stop])
    return {
        "id": one.id, "more_before": start > 0, "more_behind": stop < len(ids),
        "tokens": [
            {"text": scan.tokens.text(place), "kl": divergence.get(i), "loss_change": change.get(i), "here": i == at}
            for i, place in zip(range(start, stop), places, strict=True)
        ],
    }  # fmt: skip
