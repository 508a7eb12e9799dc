"""What each fine-tune changed in behaviour: tuned - base on each prompt, so that two changes can be held against each other.

Prompts that all runs were asked (probes, mostly) pair. A change of what is 0 or 1 is -1, 0 or 1: its t interval is rough under some twenty prompts.
"""

from collections.abc import Iterator

import numpy as np
import polars as pl

from mechdiff.report import findings_behaviour, spread
from mechdiff.report.comparable import Loaded
from mechdiff.report.findings_behaviour import RIGHT
from mechdiff.report.quantity import Quantity, mean_of
from mechdiff.report.wording_behaviour import METRICS, group_name

SCORES = ("refusal", *RIGHT, "style_per_100_words")
LEAST = 2


def changes(run: Loaded) -> Iterator[Quantity]:
    """The mean change in each score on each kind of prompts, all languages together; scores that are 0 throughout are left out."""
    manifest = run.content.manifest
    soft = findings_behaviour.soft_metric(manifest)
    for group in findings_behaviour.groups(run.content.rows, manifest):
        if group.language is not None:
            continue
        wide = findings_behaviour.by_model(group.rows).filter(pl.col("metric").is_in([soft, *SCORES]), pl.col("style").ne_missing("drawn"))
        for (metric, style), part in wide.group_by("metric", "style", maintain_order=True):
            known = part.drop_nulls("base").drop_nulls("tuned").filter(pl.col("base").is_finite(), pl.col("tuned").is_finite())
            told = known.select("base", "tuned").to_numpy()
            if len(known) < LEAST or not told.any() or (style and group.name != "report"):
                continue
            split = "report" if group.name == "report" else None
            keys = [run.key(split, prompt) for prompt in known["prompt"]]
            name = METRICS.get(str(metric), str(metric)) + (f": {str(style).replace('_', ' ')}" if style else "")
            means = " to ".join(f"{one:.3g}" for one in told.mean(axis=0))
            yield Quantity(
                axis="behaviour", name=f"{name}, {group_name(group.name, None)}", unit=_unit(str(metric)), where=means.replace("-", "−"),
                estimate=spread.estimate(np.diff(told, axis=1), mean_of, keys),
            )  # fmt: skip


def _unit(metric: str) -> str:
    return "nats" if metric.endswith("nats") else "markers" if metric.startswith("style") else "share"
