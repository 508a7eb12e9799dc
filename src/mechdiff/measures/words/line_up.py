"""The panel of a pair's evidence stands among panels of the same pair with its models exchanged at random: who picks it has seen something.

An exchanged panel is made of the same texts by the same steps, with the two models exchanged seed by seed. Where the models do not differ all
panels are alike but for chance, and the true one is picked with probability 1 / (number of panels), whoever picks. So a right pick is a test with
that p, with no truth known; of twenty panels p = 0.05.
"""

import random
from collections.abc import Iterable, Mapping
from typing import Any

PANELS = 20
"""In all, where the run exchanged the models often enough."""
SHOWN = 3
"""Lines of a panel that each reader has either way."""


def panel(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The largest lines of every reader, either way; of any evidence by the same steps."""
    kept: dict[tuple[str, bool], list[Mapping[str, Any]]] = {}
    for line in sorted(lines, key=lambda one: -one["size"]):
        here = kept.setdefault((line["reader"], line["gained"]), [])
        if len(here) < SHOWN:
            here.append(line)
    return [
        {
            "by": reader, "read_on": line["where"], "more_in": "second" if gained else "first", "what": line["text"],
            "size": round(line["size"], 3), "q": round(line["q"], 4),
        }
        for (reader, gained), found in sorted(kept.items())
        for line in found
    ]  # fmt: skip


def line_up(told: Mapping[str, Any], name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What may be shown, and what must be kept from whoever picks: the true panel's number. `told`: the record of words; `name` decides the order."""
    panels = [panel(told["lines"]), *told["panels"][: PANELS - 1]]
    order = list(range(len(panels)))
    random.Random(f"line-up {name}").shuffle(order)
    shown = {
        "question": "One panel is of two models as they are. In every other one they were exchanged at random, seed by seed. Which one stands apart?",
        "panels": [{"panel": number, "lines": panels[one]} for number, one in enumerate(order, 1)],
    }
    return shown, {"panel": order.index(0) + 1, "of": len(panels), "p": 1 / len(panels)}
