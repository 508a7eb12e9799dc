"""The numbers on routing say what share of tokens goes to other experts at each layer, and whether the routers or their inputs move them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from mechdiff import labels
from mechdiff.measures.routing.plan import INPUTS_ALONE, JS, REPLACED, SET, TOP, WEIGHTS_ALONE
from mechdiff.report import difference, spoken
from mechdiff.rows import where
from mechdiff.statistics import intervals
from mechdiff.statistics.memory import once
from mechdiff.statistics.summary import prompt_matrix

METRICS = (TOP, SET, REPLACED, JS)
EVERYWHERE, DECISION = labels.experts_unit("all"), labels.experts_unit("decision")
SOURCES = {None: "both", INPUTS_ALONE: "inputs alone", WEIGHTS_ALONE: "router weights alone"}
"""Control -> which of the two is the tuned model's."""


@dataclass(frozen=True, kw_only=True)
class Moved:
    """The layer at which most tokens go to another top expert, on the reported prompts."""

    layer: int
    share: float
    low: float
    high: float
    n: int
    """Prompts (or clusters)."""
    chosen_on: str | None
    """The split whose prompts chose the layer; None where it is the largest on the reported ones, with a band for all layers."""
    candidates: int
    inputs: float | None
    """Share that the tuned model's inputs move with the base's router; None where the two were not told apart."""
    weights: float | None
    """Share that the tuned model's router moves on the base's inputs."""
    p: float
    """Of inputs less weights against 0; NaN where it is not tested."""


@once
def by_layer(rows: pl.DataFrame, summary: pl.DataFrame, metric: str = TOP, unit: str = EVERYWHERE) -> pl.DataFrame:
    """`layer source mean low high n`: one metric on the reported split; `source` as SOURCES has it. Empty where it was not measured."""
    found = where(summary, measure="routing", metric=metric, split=difference.reported(rows, "routing"), unit=unit, control=list(SOURCES))
    source = pl.col("control").replace_strict(SOURCES, default=SOURCES[None], return_dtype=pl.String)
    return found.select("layer", source.alias("source"), "mean", "n", low=pl.col("ci_low").clip(lower_bound=0.0), high="ci_high").sort(
        "layer", "source"
    )


def per_prompt(
    rows: pl.DataFrame, split: str | None, control: str | None = None, metric: str = TOP, unit: str = EVERYWHERE
) -> tuple[list[int], np.ndarray]:
    """Layers, and one metric's values [prompt, layer]."""
    _, layers, table = prompt_matrix(where(rows, measure="routing", split=split, control=control, unit=unit, metric=metric))
    return layers, table


@once
def most_moved(rows: pl.DataFrame) -> Moved | None:
    """Chosen on the select prompts where routing was read there too; None with fewer than `intervals.FEWEST` prompts, or where no token moves."""
    split = difference.reported(rows, "routing")
    layers, table = per_prompt(rows, split)
    if len(table) < intervals.FEWEST:
        return None
    others, chooser = per_prompt(rows, "select") if split == "report" else ([], np.zeros((0, 0)))
    elsewhere = others == layers and len(chooser) > 0
    place = int((chooser if elsewhere else table).mean(0).argmax())
    bands = (intervals.mean_intervals(table[:, [place]]) if elsewhere else intervals.simultaneous_bands(table))[:2]
    low, high = (float(end[0 if elsewhere else place]) for end in bands)
    share = float(table[:, place].mean())
    if not share > 0:
        return None
    apart = [per_prompt(rows, split, control) for control in (INPUTS_ALONE, WEIGHTS_ALONE)]
    told = all(names == layers for names, _ in apart)
    inputs, weights = (values[:, place] if told else None for _, values in apart)
    return Moved(
        layer=layers[place], share=share, low=max(low, 0.0), high=min(high, 1.0), n=len(table),
        chosen_on="select" if elsewhere else None, candidates=len(layers),
        inputs=None if inputs is None else float(inputs.mean()), weights=None if weights is None else float(weights.mean()),
        p=float("nan") if inputs is None or weights is None else spoken.mean_p(rows, inputs - weights),
    )  # fmt: skip


def noise(rows: pl.DataFrame) -> float | None:
    """The largest JS in nats between a router of the base in its pass and the same one asked again; None where that was not measured."""
    found = where(rows, measure="routing", metric=JS, control="no_op")["value"]
    return None if found.is_empty() else float(found.to_numpy().max())


def of_one_token(summary: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """The summary, with Wilson's interval where a value is 0 or 1 for a prompt (one token), and with the floor of JS."""
    one = where(rows, measure="routing", unit=DECISION, metric=[TOP, SET])
    place = ["split", "layer", "control", "metric"]
    counted = one.group_by(place).agg(of_one=pl.col("value").is_in([0.0, 1.0]).all())
    table = summary.join(
        counted.with_columns(measure=pl.lit("routing"), unit=pl.lit(DECISION)), on=["measure", "unit", *place], how="left", nulls_equal=True,
        maintain_order="left",
    )  # fmt: skip
    binary, counts = table["of_one"].fill_null(False), table["n"].fill_null(1).to_numpy()
    low, high = intervals.wilson(table.select(pl.when(binary).then("mean").otherwise(0.0)).to_series().to_numpy(), counts)
    js = (pl.col("measure") == "routing") & (pl.col("metric") == JS)
    return table.with_columns(
        ci_low=pl.when(binary).then(pl.Series(low)).otherwise("ci_low"),
        ci_high=pl.when(binary).then(pl.Series(high)).otherwise("ci_high"),
        floor=pl.when(js).then(pl.lit(noise(rows))).otherwise("floor"),
    )


def gates(manifest: dict) -> list[str]:
    """The gates of the routers that were read, each once."""
    return sorted({one["gate"] for one in _routers(manifest) if one["gate"]})


def experts(manifest: dict) -> list[tuple[int, int]]:
    """(chosen, of) of the routers that were read, each once."""
    return sorted({(one["chosen"], one["experts"]) for one in _routers(manifest)})


def _routers(manifest: dict) -> Iterable[dict[str, Any]]:
    return (manifest.get("routers") or {}).values()
