"""A table and a figure say D by the categories that a user gave the prompts: every field of `meta` that is a short text with 2 to 12 values."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl

from mechdiff import terms
from mechdiff.measures.divergence.kinds import dots
from mechdiff.report import difference
from mechdiff.report.drawing import WIDE, Chart
from mechdiff.report.parts import Drawn, Run, table
from mechdiff.report.phrasing import shown, visible
from mechdiff.statistics import intervals

VALUES = (2, 12)
"""Of a field, over the test prompts; and fewer than prompts, or each would be a category of its own."""


def parts(run: Run, split: str) -> list[Any]:
    """A figure and a table for each field."""
    made: list[Any] = []
    for name, found, of in by_category(run, split):
        n = found["n"].sum()
        prompts = f"{n} {terms.of_split(split)} prompts" if n == of else f"the {n} of {of} {terms.of_split(split)} prompts that have one"
        said = f"D by {visible(name)}, over {prompts}"
        caption = f"{said}: a dot a {'prompt' if found['n'].max() == 1 else 'cluster'}, the mean of each as a mark."
        options = {"found": found}
        made.append(
            Drawn(name=f"kl_by_category_{len(made) // 2 + 1}", chart=chart, options=options, caption=caption, reading="kl_by_category")
        )
        made.append(table((visible(name), "D, nats", "prompts (clusters)"), _lines(found), title=said))
    return made


def by_category(run: Run, split: str) -> Iterator[tuple[str, pl.DataFrame, int]]:
    """Each field; `prompt kind n kl`: of the prompts of one cluster and one value how many they are, and their mean D; and of how many prompts."""
    d = difference.d_per_prompt(run.prompt_rows).filter(pl.col("d").is_finite())
    told = {one["id"]: one.get("fields") or {} for one in run.prompts if one["split"] == split}
    units = (run.manifest.get("units") or {}).get(split) or {}
    for name in dict.fromkeys(name for fields in told.values() for name in fields):
        lines = [
            (units.get(prompt, prompt), told[prompt][name], value)
            for prompt, value in d.select("prompt", "d").iter_rows()
            if name in told.get(prompt, ())
        ]
        found = pl.DataFrame(lines, schema={"prompt": pl.String, "kind": pl.String, "kl": pl.Float64}, orient="row")
        if VALUES[0] <= found["kind"].n_unique() <= min(VALUES[1], len(found) - 1):
            yield name, found.group_by("prompt", "kind", maintain_order=True).agg(pl.col("kl").mean(), n=pl.len().cast(pl.Int64)), len(told)


def _lines(found: pl.DataFrame) -> list[tuple[str, str, str]]:
    """A line a value, the largest mean first; an interval counts clusters."""
    lines = []
    for (value,), of in found.group_by("kind", maintain_order=True):
        numbers = of["kl"].sort().to_numpy()
        low, high = intervals.mean_intervals(numbers[:, None])
        lines.append((float(np.mean(numbers)), visible(value), (float(low[0]), float(high[0]), len(numbers)), int(of["n"].sum())))
    ordered = sorted(lines, key=lambda one: (-one[0], one[1]))
    return [(value, shown(mean, *ends), f"{n} ({ends[2]})" if n != ends[2] else str(n)) for mean, value, ends, n in ordered]


def chart(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, found: pl.DataFrame, width: int = WIDE) -> Chart | None:
    """A dot for each prompt or cluster, and the mean of each value as a mark, the largest above; on a log scale."""
    words = found.with_columns(pl.col("kind", "prompt").map_elements(visible, return_dtype=pl.String))
    return dots(words, "prompt", "D, nats", width)
