"""One table says, for each layer and direction, how far a patch moves the next token and by how many points it changes refusals.

The answers are those that each model gives with the other's activation at one layer; a point is a hundredth of the prompts that were answered so.
"""

import polars as pl

from mechdiff.measures.behaviour import findings
from mechdiff.report import difference
from mechdiff.report.difference import BREAKAGE, RECOVERY
from mechdiff.report.parts import Run, table
from mechdiff.report.phrasing import nats, prompts, shown
from mechdiff.rows import where
from mechdiff.statistics import intervals


def per_layer(rows: pl.DataFrame) -> pl.DataFrame:
    """`direction layer site n points low high kl`: change of the refusal rate under a plain patch, and its KL from the clean run where known."""
    found = findings.changes(rows, ("refusal",)).filter(pl.col("arm") == "identity", pl.col("unit").is_null())
    patched = where(rows, measure="patching", metric="kl_own_nats", arm="identity", split=difference.reported(rows, "patching"))
    patched = where(patched, control=None, unit=None, strength=None).filter(pl.col("prompt").is_not_null())
    kl = patched.group_by("direction", "layer", "site").agg(kl=pl.col("value").mean())
    points = found.select("direction", "layer", "site", "n", *((100 * pl.col(name)).alias(new) for name, new in _NAMES.items()))
    return points.join(kl, on=["direction", "layer", "site"], how="left").sort("site", "layer", "direction")


_NAMES = {"mean": "points", "low": "low", "high": "high"}


def effects_by_layer(run: Run) -> list[dict]:
    """The table, a line a layer and both directions beside one another; none where too few answers were given under patches."""
    found = per_layer(run.rows).filter(pl.col("n") >= intervals.FEWEST)
    if found.is_empty():
        return []
    n = int(found["n"].min() or 0)  # type: ignore[arg-type]
    by = {(r["site"], r["layer"], r["direction"]): r for r in found.iter_rows(named=True)}
    places = found.select("site", "layer").unique(maintain_order=True).iter_rows()
    lines = []
    for site, layer in places:
        both = [by.get((site, layer, direction)) for direction in (BREAKAGE, RECOVERY)]
        lines.append((f"L{layer}.{site}", *(_kl(r) for r in both), *(_points(r) for r in both)))
    columns = (
        "patch",
        "KL, base into tuned, nats",
        "KL, tuned into base, nats",
        "refusals, base into tuned, points",
        "refusals, tuned into base, points",
    )
    title = f"Per-layer effects: what the other model's activation does to the next token, and to refusals on {prompts(n)} that were answered so"
    none = bool((found["points"] == 0).all())
    title += (
        f". No patch changed one; a change of up to {100 * intervals.rule_of_three(n):.0f} points would not have shown (rule of three)."
        if none
        else "."
    )
    return [table(columns, lines, title=title)]


def _kl(r: dict | None) -> str:
    return "–" if r is None or r["kl"] is None else nats(r["kl"])


def _points(r: dict | None) -> str:
    if r is None:
        return "–"
    text = shown(r["points"], r["low"], r["high"], r["n"], decimals=0)
    return f"+{text}" if r["points"] > 0 else text
