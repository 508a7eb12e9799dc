"""The adjectives of the six first answers come from these scales, which the page prints: one word for one range of one number.

Where a range begins is a convention, the same for every run; the number that a word stands for is always beside it.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Words for ranges of a number, from the lowest range up."""

    of: str
    """The number, in words."""
    steps: tuple[tuple[float, str], ...]
    """(the number below which a word holds, the word); the last word has no end."""
    last: str

    def word(self, value: float) -> str:
        """The word for a value. Raises ValueError for one that is no number."""
        if value != value:
            raise ValueError(f"{self.of}: given nan, expected a number.")
        return next((word for below, word in self.steps if value < below), self.last)

    def line(self) -> str:
        """ "below 0.01 negligible, below 0.1 small, ..., above another text"."""
        ranges = [f"below {below:g} {word.lower()}" for below, word in self.steps]
        return f"{', '.join(ranges)}, else {self.last.lower()}"


KL = Scale(
    of="KL divergence in nats per token (0: the same predictions)",
    steps=((0.01, "Negligible"), (0.1, "Small"), (1.0, "Moderate"), (5.0, "Large")),
    last="Very large",
)
DEPTH = Scale(
    of="depth at which patching recovers half of the change, from 0 (first layer) to 1 (last)",
    steps=((1 / 3, "Early"), (2 / 3, "Midway")),
    last="Late",
)
ONE_PLACE = Scale(
    of="part of the change that one attention or MLP output alone recovers", steps=((0.8, "Several places"),), last="One place"
)
ONE_VECTOR = Scale(
    of="part of the change that one fixed vector recovers", steps=((0.5, "Not one vector"), (0.8, "Partly simple")), last="Simple"
)
PROMPTS = Scale(
    of="test prompts (units that count as one: clusters)",
    steps=((5, "Hardly"), (20, "Roughly"), (100, "Fairly")),
    last="Well",
)
NEARLY_ALL = 0.9
"""Part of the change that "nearly all" stands for."""

PRINTED = {"How much? What else changed?": KL, "Where? (depth)": DEPTH, "Where? (one place)": ONE_PLACE, "How complicated?": ONE_VECTOR,
           "How sure?": PROMPTS}  # fmt: skip
"""By question, in the order of the page."""


def table() -> list[tuple[str, str, str]]:
    """(question, number, words) of every scale, as the page prints them."""
    beside = {"Where? (depth)": f"; nearly all: {NEARLY_ALL:g} of it"}
    return [(question, scale.of, f"{scale.line()}{beside.get(question, '')}".replace("0.333333", "1/3").replace("0.666667", "2/3"))
            for question, scale in PRINTED.items()]  # fmt: skip
