"""A comparison's first sections say what is not the same, how distributed each change is, and where along the layers it acts."""

from typing import Any

import polars as pl

from mechdiff.compare import charts
from mechdiff.compare.compared import Compared, differences, forest, own, said
from mechdiff.compare.contrasts import HEADS, LAYERS, MAIN, MODULES, SITES, STATE_RANK, WEIGHT_RANK
from mechdiff.report.parts import Drawn, Section, note, table
from mechdiff.report.phrasing import listed, nats

LOCAL = (SITES, LAYERS, MODULES, HEADS, WEIGHT_RANK, STATE_RANK)
DRAWN_PAIRS = 3
"""Pairs of runs whose differences along the layers are drawn."""


def unlike(of: Compared) -> Section:
    """What the runs differ in, and what that does."""
    rows = [(mark.field, mark.meaning, *mark.values) for mark in of.marks]
    parts = (
        [table(("", "what it does", *of.names), rows, stacked=True)]
        if rows
        else [note("Nothing that was looked at: base, prompts, settings.")]
    )
    return Section(id="unlike", title="What is not the same", parts=parts)


def local(of: Compared) -> Section:
    """The localisation index, over each kind of parts."""
    keys = [key for key in LOCAL if key in of.of_axis("where", "weights", "heads", "rank") and any(of.one(name, key) for name in of.names)]
    title = "Local or distributed, low rank or high?"
    if not keys:
        return Section(
            id="local",
            title=title,
            parts=[note("No run has shares that add of its parts (patching, grafting, heads), which this is made of.")],
        )
    told = "; ".join(f"{key[1]}: {said(of, key)}" for key in keys[:2])
    caption = f"Over how many parts each change is spread, by shares that add, where the base runs; {told}. "
    if any(one.null for name in of.names for key in keys if (one := of.one(name, key))):
        caption += "Grey: what would be found if all parts had alike, on as many prompts and with as much scatter; beside it in the table, if there "
        caption += "were nothing there but scatter (that something is there is tested by the sum of the parts, not by this range). "
    caption += "Dashed: the parts there are." if not of.across_bases else "As shares of the parts there are."
    drawn_keys = [key for key in keys if not (of.across_bases and key[0] == "rank")]
    axis = "share of the parts there are" if of.across_bases else "effective number of parts"
    chart = {"table": forest(of, drawn_keys), "names": of.names, "log": not of.across_bases, "title": axis}
    drawn = Drawn(name="compare_local", chart=charts.numbers, options=chart, caption=caption, reading="compare_local")
    main = [key for key in keys if key in MAIN]
    return Section(id="local", title=title, parts=[drawn, *own(of, keys), *differences(of, main, folded=""), *_index(of)])


def _index(of: Compared) -> list[dict]:
    """The localisation index 1 / N: 1 for one site, 1/n for evenly everywhere."""
    rows = []
    for name in of.names:
        one = of.one(name, SITES)
        if one is not None and one.unit == "parts" and one.parts:
            e = one.estimate
            if one.silent or e.value <= 0:
                continue
            most = nats(1 / e.low) if e.low > 0 else "no end"
            rows.append((name, nats(1 / e.value), f"{nats(1 / e.high)} to {most}" if e.low == e.low else "", nats(1 / one.parts)))
    columns = ("", "1 / N", "95 %", "evenly everywhere")
    return [table(columns, rows, folded="The same as localisation index of sites: 1 for a single site")] if rows else []


def where(of: Compared) -> Section:
    """Profiles along the layers, their differences, and where half of D is passed."""
    title = "Where along the layers?"
    if of.along.is_empty():
        return Section(id="where", title=title, parts=[note("Patching was not measured, or found no effect, in any of these runs.")])
    half = [key for key in of.of_axis("where") if key[1].startswith("half of D")]
    passed = "; ".join(f"{key[1].removeprefix('half of D passed, ')}: {said(of, key)}" for key in half)
    place = "Share of depth" if of.across_bases else "Layer"
    caption = "Shares of D by the site that is written, with bands that cover a whole profile with 95 %."
    caption += f" {place} of the residual stream at which half of D is passed: {passed}." if passed else ""
    options: dict[str, Any] = {"table": of.along, "names": of.names, "by_depth": of.across_bases, "title": ": share of D"}
    parts: list[Any] = [Drawn(name="compare_profiles", chart=charts.along, options=options, caption=caption, reading="compare_profiles")]
    parts += _differences(of.apart)
    keys = [key for key in of.of_axis("where") if key not in (SITES, LAYERS)]
    return Section(id="where", title=title, parts=[*parts, *own(of, keys), *differences(of, keys)])


def _differences(table_of: pl.DataFrame) -> list[Drawn]:
    if table_of.is_empty():
        return []
    table_of = table_of.with_columns(line=pl.format("{} − {}", "line", "against"))
    names = table_of["line"].unique(maintain_order=True).to_list()[:DRAWN_PAIRS]
    drawn = table_of.filter(pl.col("line").is_in(names))
    outputs = drawn.filter(~pl.col("panel").str.starts_with("resid"))
    apart = outputs.filter((pl.col("low") > 0) | (pl.col("high") < 0))
    told = []
    for name in names:
        layers = apart.filter(pl.col("line") == name)
        most = layers.sort(pl.col("value").abs(), descending=True, maintain_order=True).head(1)
        largest = "".join(
            f", most at L{r['layer']} {r['panel']} ({nats(r['value'])}, {nats(r['low'])} to {nats(r['high'])})"
            for r in most.iter_rows(named=True)
        )
        of_line = outputs.filter(pl.col("line") == name)
        told.append(f"{name}: {len(layers)} of {len(of_line)} outputs differ{largest}")
    caption = f"Differences of these shares, with simultaneous 95 % bands. {'; '.join(told)}."
    options = {"table": drawn, "names": names, "zero": True, "title": ": difference"}
    return [Drawn(name="compare_differences", chart=charts.along, options=options, caption=caption, reading="compare_differences")]


def lacking(of: Compared, axis: str, what: str) -> list[Any]:
    """A note that names the runs that have no number of an axis."""
    absent = [name for name in of.names if not any(one.axis == axis for one in of.found[name])]
    return [note(f"No {what} in {listed(absent)}: not measured, or no effect was found.")] if absent else []
