"""The numbers of the six first answers come as rows: about twenty, from the same sentences as the tiles of the page.

A tile has room for two numbers; here stand all that pass its gates, and two that every run has: how far the weights moved, and what the computation
itself scatters.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from mechdiff.report import headlines, spoken
from mechdiff.report.headlines import Candidate, Number
from mechdiff.report.overview.overview import TITLES, candidates
from mechdiff.report.parts import Chapter, Question, Run

PROMPTS = {"panel": "unrelated texts", "words": "held-out texts", "weights": "none", "routing": "test prompts"}
"""What a measure's numbers are of, where that is not the test prompts."""
COLUMNS = {
    "question": pl.String, "name": pl.String, "value": pl.Float64, "unit": pl.String, "low": pl.Float64, "high": pl.Float64, "n": pl.Int64,
    "prompts": pl.String, "section": pl.String, "sentence": pl.String, "caveat": pl.String, "key": pl.String,
}  # fmt: skip
LONGEST = 60
"""Letters of a key."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One number of a run, with what it takes to quote it."""

    question: Question
    name: str
    """What it is, in words, with the place where it was found."""
    value: float
    unit: str
    """ "nats", "layer", "share" (0 to 1), "prompts", ...; "" of a plain count."""
    low: float | None = None
    high: float | None = None
    """Ends of the 95 % interval; None where it has none."""
    n: int | None = None
    """Prompts, texts or clusters behind it."""
    prompts: str
    """Which: "test prompts", "unrelated texts", "held-out texts", or "none" of weights."""
    section: str
    """Id of the page's section that has more."""
    sentence: str = ""
    """The sentence that it stands in; "" of what stands in none."""
    caveat: str = ""
    """What to know before quoting it."""
    key: str
    """A name of letters, digits, _ and / for a table of several runs: without places, phrases and sizes."""


def results(run: Run, chapters: Mapping[str, Chapter]) -> list[Result]:
    """The numbers of a run, in the order of the six questions."""
    with spoken.in_measured_words(run.rows):
        found = [one for question in TITLES for one in _of(run, chapters, question)]
    return _named([*found, *_of_record(run.manifest)])


def table(found: list[Result]) -> pl.DataFrame:
    """The same as a data frame."""
    return pl.DataFrame([{name: getattr(one, name) for name in COLUMNS} for one in found], schema=COLUMNS)


def _of(run: Run, chapters: Mapping[str, Chapter], question: Question) -> Iterator[Result]:
    for section, one in candidates(run, chapters, question):
        if headlines.admit(one) is None:
            for number in (part for part in one.parts if isinstance(part, Number)):
                yield _result(number, question, section, one)


def _result(number: Number, question: Question, section: str, said: Candidate) -> Result:
    share = number.shown.endswith("%") or " of " in number.shown
    return Result(
        question=question,
        name=number.of,
        value=float(number.value),
        unit=number.unit or ("share" if share else ""),
        low=number.low,
        high=number.high,
        n=number.n,
        prompts=PROMPTS.get(section, "test prompts"),
        section=section,
        sentence=said.text,
        caveat=said.caveat,
        key=f"{question}/{slug(number.of)}",
    )


def _of_record(manifest: Mapping[str, Any]) -> Iterator[Result]:
    """What every run's record says."""
    distance = (manifest.get("lineage") or {}).get("relative_distance")
    if distance is not None:
        yield Result(
            question="how_much", name="size of the change of all weights: norm of tuned - base over norm of base", value=distance, unit="share",
            prompts="none", section="weights", key="how_much/relative_change_of_all_weights",
        )  # fmt: skip
    if floor := manifest.get("noise_floor"):
        yield Result(
            question="how_sure", name="numerical noise: largest KL of an unedited run against the model itself", value=max(floor.values()),
            unit="nats", prompts="test prompts", section="trust", key="how_sure/numerical_noise",
        )  # fmt: skip


def slug(of: str) -> str:
    """What a number is, as a key: "KL(tuned ‖ base) of the next token, mean over test prompts" is kl_of_the_next_token."""
    bare = re.sub(r"[“\"].*?[”\"]|\[.*?\]|\(.*?\)|[;,].*$", " ", of)
    bare = re.sub(r"\bL\d+[.\w]*(['’]s)?", " ", bare)
    words = re.findall(r"[a-z]+", bare.lower().replace("'s", "s").replace("’s", "s"))
    cut = ""
    for word in words:
        if len(cut) + len(word) >= LONGEST:
            break
        cut = f"{cut}_{word}" if cut else word
    return cut or "number"


def _named(found: list[Result]) -> list[Result]:
    """Finite numbers alone, each with a key of its own."""
    seen: Counter[str] = Counter()
    told = []
    for one in sorted((one for one in found if math.isfinite(one.value)), key=lambda one: list(TITLES).index(one.question)):
        seen[one.key] += 1
        key = one.key if seen[one.key] == 1 else f"{one.key}_{seen[one.key]}"
        told.append(Result(**{**vars(one), "key": key}))
    return told
