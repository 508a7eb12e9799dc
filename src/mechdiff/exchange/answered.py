"""Both models' answers and their scores are read from a finished run, prompt by prompt, for other programs to read.

From the record's `behaviour` (texts, labels, answers), prompts.jsonl (what the models read) and the rows of `behaviour` (scores of unedited runs,
unit `base` or `tuned`). A task is a group of prompts: the run's test prompts (`report`), or a kind of probe (`choice`, `maths`, `refusal_unsafe`).
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl

from mechdiff import labels
from mechdiff.errors import RunError
from mechdiff.report import record
from mechdiff.rows import where
from mechdiff.store.tables import read_manifest, read_prompts, read_rows

Side = Literal["base", "tuned"]
SIDES: tuple[Side, Side] = ("base", "tuned")
RIGHT = ("exact_match", "mc_correct")
"""Scores that are 1 of a right answer and 0 of a wrong one, the one to read first."""
RATES = (*RIGHT, "refusal", "cut_off")
BETTER = {"exact_match": True, "mc_correct": True, "cut_off": False}
"""Whether more is better; what is not here depends on the prompts."""
REFUSALS = {"refusal_unsafe": True, "refusal_safe": False}
"""Tasks in which a refusal is wanted, or is not."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One prompt, and what one model made of it."""

    prompt: str
    """Its id in the run."""
    text: str
    """As it stands in the prompt set."""
    read: str
    """As the model read it, template included."""
    label: str | None
    kind: str | None
    language: str | None
    answer: str
    scores: dict[str, float]
    """By metric (docs/TERMS.md): shares 0 or 1, log-probabilities in nats."""

    @property
    def right(self) -> str | None:
        """The score that says whether the answer is right; None where nothing does."""
        return next((name for name in RIGHT if name in self.scores), None)

    def document(self) -> dict[str, Any]:
        """What was asked, without what was answered: the same of both models."""
        known = {"id": self.prompt, "text": self.text, "label": self.label, "kind": self.kind, "language": self.language}
        return {name: value for name, value in known.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Task:
    """A group of prompts with one model's answers, in an order that is the same for both models."""

    name: str
    side: Side
    items: tuple[Answered, ...]

    @property
    def metrics(self) -> list[str]:
        """Scores that every item has, in their order of reading."""
        every = set.intersection(*(set(one.scores) for one in self.items))
        return sorted(every, key=lambda name: (RATES.index(name) if name in RATES else len(RATES), name))

    @property
    def right(self) -> str | None:
        """The score that says of every item whether its answer is right; None where there is none."""
        return next((name for name in RIGHT if name in self.metrics), None)

    def better(self, metric: str) -> bool | None:
        """Whether more of a score is better; None where that depends on who asks."""
        return REFUSALS.get(self.name) if metric == "refusal" else BETTER.get(metric)


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A run's answers, with what the record says of where they come from."""

    tasks: tuple[Task, ...]
    manifest: dict[str, Any]
    left_out: tuple[str, ...]
    """What the record does not hold, in sentences."""

    def model(self, side: Side) -> str:
        """A Hub id, or the last part of a path: no folder of this machine."""
        return record.short_name(self.manifest, side)

    @property
    def version(self) -> str:
        return str((self.manifest.get("versions") or {}).get("mechdiff", "unknown"))

    @property
    def finished(self) -> str:
        return str(self.manifest["finished"])

    @property
    def max_tokens(self) -> int:
        return int(self.manifest["behaviour"]["max_tokens"])

    def of(self, side: Side) -> list[Task]:
        return [task for task in self.tasks if task.side == side]

    def digest(self, *parts: str) -> bytes:
        """32 bytes that name something of this run: the same run gives the same bytes."""
        return hashlib.sha256("\0".join((str(self.manifest["config_hash"]), *parts)).encode()).digest()


def read_answers(run: str | Path) -> Exported:
    """A finished run's answers by task and model. Raises RunError where the run generated none."""
    manifest, folder = read_manifest(run), Path(run)
    said = (manifest.get("behaviour") or {}).get("texts") or []
    if not said:
        raise RunError(f"{folder}: this run generated no answers. Add `behaviour` to the study's measures and run it again.")
    scores, rendered = _scores(read_rows(folder)), _rendered(read_prompts(folder))
    names = dict.fromkeys(_task(one) for one in said)
    tasks = [Task(name=name, side=side, items=tuple(_items(said, name, side, scores, rendered))) for side in SIDES for name in names]
    missing = int(manifest["behaviour"].get("texts_left_out") or 0)
    left_out = [f"{missing} prompts: the run's record keeps the answers to {len(said)}"] if missing else []
    return Exported(tasks=tuple(tasks), manifest=manifest, left_out=tuple(left_out))


def _task(one: dict[str, Any]) -> str:
    return "report" if one["split"] == "report" else str(one["kind"] or "probes")


def _items(said: list[dict], name: str, side: Side, scores: dict, rendered: dict) -> Iterator[Answered]:
    for one in sorted((one for one in said if _task(one) == name), key=lambda one: one["prompt"]):
        key = (one["split"], one["prompt"])
        read = rendered[("probes" if one["split"] is None else one["split"], one["prompt"])]
        yield Answered(
            prompt=one["prompt"], text=one["text"], read=read.get(f"text_{side}", read["text_base"]), label=one["label"], kind=one["kind"],
            language=one["language"], answer=one[side], scores=scores[side].get(key, {}),
        )  # fmt: skip


def _rendered(prompts: list[dict]) -> dict[tuple[str, str], dict]:
    return {(one["split"], one["id"]): one for one in prompts}


def _scores(rows: pl.DataFrame) -> dict[str, dict[tuple[str | None, str], dict[str, float]]]:
    """By side, split and prompt: every plain score of the unedited run; NaN is none."""
    clean = where(rows, measure="behaviour", direction=None, control=None).filter(
        pl.col("prompt").is_not_null(), pl.col("value").is_finite()
    )
    found: dict[str, dict[tuple[str | None, str], dict[str, float]]] = {side: {} for side in SIDES}
    plain = clean.with_columns(side=labels.answer_side()).filter(labels.answer_kind().is_null())
    for side, split, prompt, metric, value in plain.select("side", "split", "prompt", "metric", "value").iter_rows():
        found[side].setdefault((split, prompt), {})[metric] = value
    return found
