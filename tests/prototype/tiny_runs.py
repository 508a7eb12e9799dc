"""Studies of tiny pairs from end to end, without the page's pictures: rows, summary and record as a user gets them."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from torch import nn

import pico
import runs
from mechdiff.measures.catalogue import make_study
from mechdiff.report.parts import Drawn, Run, Section
from tokenizers_made import byte_tokenizer

PLAIN = {"divergence": {"over_text": False}}
"""Divergence at the decision position alone."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A finished study."""

    rows: pl.DataFrame
    summary: pl.DataFrame
    manifest: dict[str, Any]
    path: Path

    @property
    def content(self) -> Run:
        """What the page is made of."""
        return Run(rows=self.rows, summary=self.summary, manifest=self.manifest)

    def of(self, measure: str, metric: str, **where: Any) -> pl.DataFrame:
        """Rows of the report prompts; a column of `where` given as None is null there."""
        return picked(self.rows, measure, metric, **where)

    def one(self, measure: str, metric: str, **where: Any) -> dict[str, Any]:
        """The one row of the summary."""
        return picked(self.summary, measure, metric, **where).row(0, named=True)


def picked(table: pl.DataFrame, measure: str, metric: str, **where: Any) -> pl.DataFrame:
    where = {"split": "report", **where}
    found = table.filter(pl.col("measure") == measure, pl.col("metric") == metric)
    return found.filter(*(pl.col(name).eq_missing(pl.lit(wanted)) for name, wanted in where.items()))


def save_pair(folder: Path, base: nn.Module, tuned: nn.Module, tokenizer: Any = None, n_prompts: int = 40) -> Path:
    """`base`, `tuned` and `prompts.jsonl` (random letters of random lengths, so that states differ at the last token)."""
    for name, net in (("base", base), ("tuned", tuned)):
        pico.save(net, tokenizer or byte_tokenizer(), folder / name)
    draw, letters = random.Random(0), "abcdefghijklmnopqrstuvwxyz"
    texts = ["".join(draw.choice(letters + " ") for _ in range(draw.randint(8, 20))) + draw.choice(letters) for _ in range(n_prompts)]
    lines = (json.dumps({"id": f"p{i}", "text": text}) + "\n" for i, text in enumerate(texts))
    (folder / "prompts.jsonl").write_text("".join(lines))
    return folder


def study(folder: Path, *measures: Any, prompts: dict[str, Any] | None = None, **more: Any) -> Any:
    """A study of the pair in a folder: bare texts, unless `prompts` say otherwise."""
    pair = {"base": str(folder / "base"), "tuned": str(folder / "tuned"), **more.pop("pair", {})}
    given = prompts or {"file": str(folder / "prompts.jsonl"), "policy": "raw"}
    return make_study({"pair": pair, "prompts": given, "measures": list(measures), **more})


def finish(config: Any, out: Path) -> Finished:
    """Runs a study."""
    rows, summary, record = runs.finish(config, out, threads=1)
    return Finished(rows=rows, summary=summary, manifest=json.loads(json.dumps(record)), path=out)


def captions(section: Section) -> dict[str, str]:
    """What is said under each figure of a section."""
    return {part.name: part.caption for part in section.parts if isinstance(part, Drawn)}


def tables(section: Section) -> list[dict[str, Any]]:
    return [part for part in section.parts if isinstance(part, dict) and part["kind"] == "table"]


def notes(section: Section) -> str:
    return " ".join(part["text"] for part in section.parts if isinstance(part, dict) and part["kind"] == "note")
