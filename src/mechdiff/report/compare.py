"""How do fine-tunes contrast: local and low-rank, or distributed and high-rank? Finished runs side by side.

Each number of `findings_compare` is taken of every run, and its difference between every two, with an interval: prompt by prompt where both runs
report on the same prompts, else of independent draws. Many numbers are compared, so p is by Holm within a pair of runs; two runs are told apart in
a number where the interval leaves out 0 and p is at most 0.05. Else the smallest difference that would have been seen stands beside it.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mechdiff.errors import RunError
from mechdiff.report import comparable, findings, findings_compare, intervals, resampling
from mechdiff.report.comparable import Unlike
from mechdiff.report.findings_compare import Quantity
from mechdiff.report.parts import Run
from mechdiff.report.phrasing import listed, nats, share, with_interval
from mechdiff.report.record import short_name
from mechdiff.study.artifacts import read_manifest, read_prompts, read_rows, read_summary

SCHEMA = {
    "axis": pl.String, "key": pl.String, "quantity": pl.String, "run": pl.String, "against": pl.String, "value": pl.Float64, "low": pl.Float64,
    "high": pl.Float64, "p": pl.Float64, "detectable": pl.Float64, "n": pl.Int64, "paired": pl.Boolean,
}  # fmt: skip
"""Of `compare.parquet`: a number of one run (`against` null), or the difference run - against."""
SPREAD = {"sites": "outputs", "heads": "heads", "modules": "modules"}


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """The difference of one number between two runs."""

    key: str
    run: str
    against: str
    value: float
    low: float
    high: float
    p: float
    """Two-sided, by Holm within a pair of runs."""
    detectable: float
    n: int
    paired: bool

    @property
    def told_apart(self) -> bool:
        """Whether the interval leaves out 0, and p by Holm is at most 0.05: of so many numbers a few intervals miss 0 by chance."""
        return (self.low > 0 or self.high < 0) and self.p <= 1 - intervals.LEVEL


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Finished runs side by side."""

    names: tuple[str, ...]
    runs: tuple[Run, ...]
    unlike: tuple[Unlike, ...]

    @cached_property
    def quantities(self) -> dict[str, dict[str, Quantity]]:
        """By key, then by run: every number that at least one run has."""
        told = {name: findings_compare.quantities(run, seed) for name, run, seed in zip(self.names, self.runs, self.seeds, strict=True)}
        keys = dict.fromkeys(key for found in told.values() for key in found)
        return {key: {name: found[key] for name, found in told.items() if key in found} for key in keys}

    @cached_property
    def seeds(self) -> list[int]:
        """One for runs on the same prompts, so that they are drawn together; another for each that is not."""
        texts = [tuple(sorted(findings.d_per_prompt(run.rows)["prompt"].to_list())) for run in self.runs]
        return [texts.index(one) for one in texts]

    @cached_property
    def contrasts(self) -> dict[str, list[Contrast]]:
        """By key: the differences between every two runs that have it with draws."""
        found: dict[str, list[Contrast]] = {}
        for one, other in combinations(self.names, 2):
            made = [contrast for key in self.quantities if (contrast := self._contrast(key, one, other))]
            adjusted = holm(np.array([contrast.p for contrast in made]))
            for contrast, p in zip(made, adjusted, strict=True):
                found.setdefault(contrast.key, []).append(Contrast(**{**vars(contrast), "p": float(p)}))
        return found

    def _contrast(self, key: str, one: str, other: str) -> Contrast | None:
        first, second = (self.quantities[key].get(name) for name in (one, other))
        if first is None or second is None or first.estimate is None or second.estimate is None:
            return None
        paired = first.prompts == second.prompts
        apart = resampling.difference(first.estimate, second.estimate, paired=paired)
        low, high = apart.interval
        if low != low:
            return None
        return Contrast(
            key=key, run=one, against=other, value=apart.value, low=low, high=high, p=apart.p, detectable=apart.detectable, n=apart.n,
            paired=paired,
        )  # fmt: skip

    def without_effect(self) -> list[str]:
        """The runs in which D is not above its noise floor, or was not measured."""
        found = [findings.difference(run.rows, run.summary) for run in self.runs]
        return [name for name, one in zip(self.names, found, strict=True) if one is None or not one.counts]

    def table(self) -> pl.DataFrame:
        """Every number of every run and every difference, one a row: see SCHEMA."""
        lines: list[dict[str, Any]] = []
        for key, by_run in self.quantities.items():
            for name, one in by_run.items():
                low, high, n = (*one.interval, one.estimate.n) if one.estimate else (None, None, None)
                told = {"axis": one.axis, "key": key, "quantity": one.name}
                lines.append({**told, "run": name, "value": one.value, "low": low, "high": high, "n": n})
            for contrast in self.contrasts.get(key, []):
                lines.append({"axis": next(iter(by_run.values())).axis, "quantity": "difference", **vars(contrast)})
        return pl.DataFrame([{name: line.get(name) for name in SCHEMA} for line in lines], schema=SCHEMA).with_columns(
            pl.col("low", "high", "p", "detectable").fill_nan(None)
        )

    def verdict(self) -> list[str]:
        """At most five sentences; a difference is claimed only where its interval leaves 0 out."""
        if quiet := self.without_effect():
            has = "has" if len(quiet) == 1 else "have"
            return [
                f"There is nothing to compare: {listed(quiet)} {has} no effect to explain, D is not above the noise floor or was not measured."
            ]
        said = [self._sizes(), *(self._spread(key, words) for key, words in SPREAD.items()), self._ranks()]
        return [sentence for sentence in said if sentence]

    def _sizes(self) -> str:
        told = listed(f"{said(one)} nats in {name}" for name, one in self.quantities.get("d", {}).items())
        depth = self.quantities.get("depth", {})
        where = listed(f"{share(one.value)} in {name}" for name, one in depth.items())
        return f"D is {told}" + (f"; the centre of the effect (0: first block, 1: last) lies at {where}." if depth else ".")

    def _spread(self, key: str, words: str) -> str:
        by_run = self.quantities.get(key, {})
        if len(by_run) < 2:
            return ""
        total = next(iter(by_run.values())).of
        told = listed(f"{said(one)} in {name}" for name, one in by_run.items())
        how = "; ".join(how_apart(contrast, f"it is spread over more {words}") for contrast in self.contrasts.get(key, []))
        return f"The effective number of {words} that carry the effect, of {total}, is {told}: {how}."

    def _ranks(self) -> str:
        by_run, nine = self.quantities.get("rank", {}), self.quantities.get("rank_90%", {})
        if len(by_run) < 2:
            return ""
        told = listed(f"{one.value:.0f} in {name}" for name, one in by_run.items())
        sentence = f"The change of states at each run's strongest place has rank {told}"
        if len(nine) > 1:
            how = "; ".join(how_apart(contrast, "the rank is higher") for contrast in self.contrasts.get("rank_90%", []))
            sentence += (
                f"; nine tenths of what a map gains take rank {listed(f'{said(one)} in {name}' for name, one in nine.items())}: {how}"
            )
        return sentence + "."


def said(one: Quantity) -> str:
    """The number with its interval, where it has one."""
    return with_interval(one.value, *(one.interval if one.estimate else (None, None)))


def how_apart(contrast: Contrast, words: str) -> str:
    """ "in a it is spread over more heads than in b, by 5.1 (95 %: ...)", or that the two cannot be told apart, and what would have been seen."""
    if not contrast.told_apart:
        apart = f"difference {with_interval(contrast.value, contrast.low, contrast.high)}, p = {contrast.p:.2g}"
        return f"{contrast.run} and {contrast.against} cannot be told apart ({apart}; {nats(contrast.detectable)} would have been seen)"
    more, less = (contrast.run, contrast.against) if contrast.value > 0 else (contrast.against, contrast.run)
    return f"in {more} {words} than in {less}, by {with_interval(abs(contrast.value), *sorted((abs(contrast.low), abs(contrast.high))))}"


def holm(p: np.ndarray) -> np.ndarray:
    """Family-wise p by Holm's steps (1979): valid however the tests depend on one another."""
    order = np.argsort(p, kind="stable")
    found = np.empty(len(p))
    found[order] = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p)))).clip(max=1)
    return found


def open_runs(folders: Sequence[Path], *, across_bases: bool = False) -> Comparison:
    """The runs in some folders, side by side. Raises RunError where one is not finished, is given twice, or they cannot be compared."""
    if len(folders) < 2:
        raise RunError(f"given {len(folders)} run{'s' * (len(folders) != 1)}, expected two or more folders of finished runs.")
    if len({Path(folder).resolve() for folder in folders}) < len(folders):
        raise RunError(f"given the same run twice ({', '.join(map(str, folders))}), expected different ones.")
    runs = tuple(_read(Path(folder)) for folder in folders)
    names = run_names([run.manifest for run in runs], folders)
    found = comparable.unlike(runs)
    comparable.check(names, found, across_bases=across_bases)
    return Comparison(names=names, runs=runs, unlike=tuple(found))


def run_names(manifests: Sequence[dict], folders: Sequence[Path]) -> tuple[str, ...]:
    """The tuned models' names; the folders' where two have the same."""
    names = [short_name(manifest, "tuned") for manifest in manifests]
    if len(set(names)) < len(names):
        names = [Path(folder).resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [f"{name} ({place})" for place, name in enumerate(names, start=1)]
    return tuple(names)


def _read(folder: Path) -> Run:
    """A run whose prompts are called by the hash of what was rendered, so that the same prompt has the same name in every run."""
    rows, summary, manifest = read_rows(folder), read_summary(folder), read_manifest(folder)
    called = [(one["split"], one["id"], one["sha256"]) for one in read_prompts(folder) if one["split"] in ("select", "report")]
    if len({sha for *_, sha in called}) == len(called):
        hashes = pl.DataFrame(called, schema={"split": pl.String, "prompt": pl.String, "sha": pl.String}, orient="row")
        rows = rows.join(hashes, on=["split", "prompt"], how="left", maintain_order="left")
        rows = rows.with_columns(prompt=pl.coalesce("sha", "prompt")).drop("sha")
    return Run(rows=rows, summary=summary, manifest=manifest)


def write_table(comparison: Comparison, folder: Path) -> None:
    """`compare.parquet`, whole or not at all."""
    partial = folder / "compare.parquet.partial"
    comparison.table().write_parquet(partial)
    os.replace(partial, folder / "compare.parquet")
