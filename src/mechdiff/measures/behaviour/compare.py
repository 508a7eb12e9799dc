"""Behaviour is compared between runs by what each fine-tune changed: tuned - base on each prompt.

Prompts that all runs were asked (probes, mostly) pair. A change of what is 0 or 1 is -1, 0 or 1: its t interval is rough under some twenty prompts.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl

from mechdiff.comparison import charts
from mechdiff.comparison.comparable import Loaded
from mechdiff.comparison.compared import Compared, differences, forest, own, said
from mechdiff.comparison.local import lacking
from mechdiff.comparison.quantity import Quantity, mean_of
from mechdiff.measures.behaviour import findings
from mechdiff.measures.behaviour.findings import RIGHT
from mechdiff.measures.behaviour.words import METRICS, group_name
from mechdiff.report.parts import Drawn, Section
from mechdiff.statistics import spread

SCORES = ("refusal", *RIGHT, "style_per_100_words")
LEAST = 2
FAVOURITES = ("refusal log-probability margin", "choice margin")
"""Numbers that are drawn, by the beginnings of their names."""


def changes(run: Loaded) -> Iterator[Quantity]:
    """The mean change in each score on each kind of prompts, all languages together; scores that are 0 throughout are left out."""
    manifest = run.content.manifest
    soft = findings.soft_metric(manifest)
    for group in findings.groups(run.content.rows, manifest):
        if group.language is not None:
            continue
        wide = findings.by_model(group.rows).filter(pl.col("metric").is_in([soft, *SCORES]), pl.col("style").ne_missing("drawn"))
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


def axis(of: Compared) -> Section:
    """What each changed in what the models do."""
    keys = of.of_axis("behaviour")
    shown = [key for key in keys if key[1].startswith(FAVOURITES) and all(of.one(name, key) for name in of.names)]
    parts: list[Any] = []
    if shown:
        caption = f"Change from base to tuned, the mean over prompts. {shown[0][1]}: {said(of, shown[0])}."
        options = {"table": forest(of, shown), "names": of.names, "log": False, "title": "tuned − base, nats"}
        parts.append(Drawn(name="compare_behaviour", chart=charts.numbers, options=options, caption=caption, reading="compare_behaviour"))
    title = "Change from base to tuned; below it both means"
    folded = f"All changes in behaviour ({len(keys)})" if len(keys) > 12 else ""
    return Section(
        id="behaviour",
        title="What did each change in behaviour?",
        parts=[
            *parts,
            *own(of, keys, title="" if folded else title, folded=folded),
            *differences(of, keys),
            *lacking(of, "behaviour", "behaviour"),
        ],
    )
