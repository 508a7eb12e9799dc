"""The charts of a comparison: one line a run."""

from collections.abc import Sequence
from itertools import combinations

import altair as alt
import numpy as np
import polars as pl

from mechdiff.report import curves, drawing, findings_compare, findings_rank, findings_transport, findings_weights, resampling
from mechdiff.report.compare import Comparison
from mechdiff.report.drawing import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION, WIDE, Chart
from mechdiff.report.findings import BREAKAGE, EFFECTS
from mechdiff.report.phrasing import nats, share, with_interval

SITES = {"attn_out": "attention's output", "mlp_out": "the MLP's output", "resid_post": "the residual stream after the block"}
RUN_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
RUN_DASHES: tuple[list[int], ...] = ([1, 0], [7, 3], [2, 3], [5, 2, 1, 2], [10, 4], [3, 1])


def looks(names: Sequence[str]) -> tuple[dict[str, str], dict[str, list[int]]]:
    """Colour and dash of each run."""
    return (
        {name: RUN_COLOURS[place % len(RUN_COLOURS)] for place, name in enumerate(names)},
        {name: RUN_DASHES[place % len(RUN_DASHES)] for place, name in enumerate(names)},
    )


def profile(comparison: Comparison, direction: str) -> pl.DataFrame:
    """`panel line layer value low high`: the share of D by block and site, with simultaneous bands of each run and site."""
    parts = []
    for name, run, seed in zip(comparison.names, comparison.runs, comparison.seeds, strict=True):
        for site in SITES:
            found = findings_compare.effects(run, direction, sites=(site,))
            if found is not None and len(found.prompts) > 1:
                middle, low, high = resampling.bands(resampling.share_values(found.effect, found.total), seed=seed)
                layers = [layer for layer, _ in found.places]
                columns = {"panel": site, "line": name, "layer": layers, "value": middle, "low": low, "high": high}
                parts.append(pl.DataFrame(columns))
    return pl.concat(parts).sort("panel", "line", "layer") if parts else pl.DataFrame()


def difference(comparison: Comparison, direction: str) -> pl.DataFrame:
    """`panel line layer value low high`: by block and site, the first run's share less the second's, of every two runs of the same depth."""
    parts = []
    for (i, one), (j, other) in combinations(enumerate(comparison.names), 2):
        for site in SITES:
            sides = [findings_compare.effects(comparison.runs[place], direction, sites=(site,)) for place in (i, j)]
            first, second = sides
            if first is None or second is None or first.places != second.places or min(len(first.prompts), len(second.prompts)) < 2:
                continue
            values = [resampling.share_values(side.effect, side.total) for side in (first, second)]
            paired = first.prompts == second.prompts
            middle, low, high = resampling.bands(values[0], values[1], paired=paired)
            layers = [layer for layer, _ in first.places]
            columns = {"panel": site, "line": f"{one} − {other}", "layer": layers, "value": middle, "low": low, "high": high}
            parts.append(pl.DataFrame(columns))
    return pl.concat(parts).sort("panel", "line", "layer") if parts else pl.DataFrame()


def _by_block(
    table: pl.DataFrame,
    names: Sequence[str],
    titles: dict[str, str],
    width: int,
    scale: alt.Scale,
    *,
    format: str = ".1f",
    height: int = 120,
) -> Chart:
    """Lines over blocks, one a run; a dot says its value."""
    digits = [with_interval(r["value"], r.get("low"), r.get("high"), digits=3) for r in table.iter_rows(named=True)]
    says = [f"{r['line']}, L{r['layer']}: {text}" for r, text in zip(table.iter_rows(named=True), digits, strict=True)]
    layers, axis = drawing.layer_range(table), drawing.left_axis(tickCount=5, format=format)
    return curves.panels(
        table.with_columns(says=pl.Series(says)), lambda last: drawing.layer_axis(layers, width, title=last), titles, names, scale, axis, width,
        looks_of=looks(names), height=height, marks=lambda _: [curves.zero(scale, axis)],
    )  # fmt: skip


def profiles(rows: object, summary: object, manifest: object, *, comparison: Comparison, direction: str, width: int = WIDE) -> Chart | None:
    """Shares of D by block, a panel a site."""
    table = profile(comparison, direction)
    if table.is_empty():
        return None
    word = "breakage" if direction == BREAKAGE else "recovery"
    titles = {site: f"{word.capitalize()} by writing {words if width >= WIDE else site}: share of D" for site, words in SITES.items()}
    return _by_block(table, comparison.names, titles, width, curves.share_scale(table))


def differences(
    rows: object, summary: object, manifest: object, *, comparison: Comparison, direction: str, width: int = WIDE
) -> Chart | None:
    """Differences of shares of D by block, a panel a site."""
    table = difference(comparison, direction)
    if table.is_empty():
        return None
    names = table["line"].unique(maintain_order=True).to_list()
    most = max(abs(end) for end in drawing.ends(pl.concat([table["low"], table["high"]])))
    titles = {site: f"Difference, {words if width >= WIDE else site}" for site, words in SITES.items()}
    return _by_block(table, names, titles, width, alt.Scale(domain=[-1.05 * most, 1.05 * most], nice=False), height=90)


def weights(rows: object, summary: object, manifest: object, *, comparison: Comparison, width: int = WIDE) -> Chart | None:
    """Mean relative change of a block's matrices, by block."""
    parts = []
    for name, run in zip(comparison.names, comparison.runs, strict=True):
        tensors = findings_weights.tensors(run.summary)
        if not tensors.is_empty():
            of_block = tensors.filter(pl.col("layer").is_not_null(), pl.col("site").is_in(["attn", "mlp"]))
            parts.append(of_block.group_by("layer", panel="site").agg(value=pl.col("relative_norm").mean()).with_columns(line=pl.lit(name)))
    if not parts or (table := pl.concat(parts)).is_empty():
        return None
    titles = {"attn": "Attention: mean ‖ΔW‖ / ‖W‖ of its matrices", "mlp": "MLP: mean ‖ΔW‖ / ‖W‖ of its matrices"}
    scale = alt.Scale(domain=[0, 1.05 * drawing.ends(table["value"])[1] or 1.0], nice=False)
    return _by_block(table.sort("panel", "line", "layer"), comparison.names, titles, width, scale, format=".2~g", height=100)


def recovery(comparison: Comparison) -> pl.DataFrame:
    """`panel line layer value low high`: what the base recovers by block, its own state mapped as in all runs, or shifted by the mean."""
    parts = []
    for name, run in zip(comparison.names, comparison.runs, strict=True):
        split = next(iter(run.rows.filter(pl.col("measure") == "transport", pl.col("split") == "report")["split"].head(1)), None)
        values = findings_transport.plain(findings_transport.written(run.rows, findings_transport.TRANSPORT, "kl_other_nats", split=split))
        found = findings_transport.shares(values.filter(pl.col("unit").is_null()), findings_transport.totals(run.rows, split))
        if not found.is_empty():
            parts.append(found.select("layer", "site", "arm", "low", "high", value="share").with_columns(line=pl.lit(name)))
    if not parts:
        return pl.DataFrame()
    table = pl.concat(parts)
    learned = table.filter(pl.col("arm").is_in(findings_transport.LEARNED)).group_by("arm", "site").agg(pl.col("line").n_unique())
    common = learned.filter(pl.col("line") == table["line"].n_unique())
    order = [(site, arm) for site in ("resid_post", "attn_out", "mlp_out") for arm in reversed(findings_transport.LEARNED)]
    chosen = next((pair for pair in order if not common.filter(pl.col("site") == pair[0], pl.col("arm") == pair[1]).is_empty()), None)
    if chosen is None:
        return pl.DataFrame()
    site, arm = chosen
    kept = table.filter(pl.col("site") == site, pl.col("arm").is_in([arm, "shift"]))
    return kept.with_columns(panel=pl.format("{} at {}", "arm", "site")).drop("arm", "site").sort("panel", "line", "layer")


def maps(rows: object, summary: object, manifest: object, *, comparison: Comparison, width: int = WIDE) -> Chart | None:
    """What the base recovers with its own state mapped, by block."""
    table = recovery(comparison)
    if table.is_empty():
        return None
    titles = {panel: f"Base recovers, own state mapped by {panel}" for panel in table["panel"].unique(maintain_order=True)}
    return _by_block(table, comparison.names, titles, width, curves.share_scale(table))


def ranks(rows: object, summary: object, manifest: object, *, comparison: Comparison, width: int = WIDE) -> Chart | None:
    """The cross-validated rank of the change, by block, at the kinds of site that all runs have."""
    parts = []
    for name, run in zip(comparison.names, comparison.runs, strict=True):
        found = findings_rank.chosen(run.summary).filter(pl.col("rank_chosen").is_not_null())
        parts.append(found.select("layer", panel="site", value=pl.col("rank_chosen").cast(pl.Float64)).with_columns(line=pl.lit(name)))
    table = pl.concat(parts)
    shared = table.group_by("panel").agg(pl.col("line").n_unique()).filter(pl.col("line") == len(comparison.names))["panel"]
    table = table.filter(pl.col("panel").is_in(shared.to_list())).sort("panel", "line", "layer")
    if table.is_empty():
        return None
    titles = {site: f"Rank of the change at {site}" for site in table["panel"].unique(maintain_order=True)}
    scale = alt.Scale(domain=[-0.3, 1.08 * max(1.0, drawing.ends(table["value"])[1])], nice=False)
    return _by_block(table, comparison.names, titles, width, scale, format="d", height=110)


def coverage(comparison: Comparison) -> pl.DataFrame:
    """`line k value says`: the share of all single heads' effects that the k strongest have, chosen on select; the mean of both directions."""
    parts = []
    for name, run in zip(comparison.names, comparison.runs, strict=True):
        order = findings_compare.head_order(run)
        sides = {direction: findings_compare.effects(run, direction, measure="heads") for direction in EFFECTS}
        if order is None or any(side is None for side in sides.values()):
            continue
        curve = []
        for direction, side in sides.items():
            assert side
            positive = dict(zip(side.places, np.maximum(side.effect.mean(axis=0), 0.0), strict=True))
            ordered = np.array([positive.get(place, 0.0) for place in order[direction]])
            curve.append(np.cumsum(ordered) / ordered.sum() if ordered.sum() > 0 else np.full(len(ordered), np.nan))
        values = np.mean(curve, axis=0)
        ks = [k for k in range(1, len(values) + 1) if k <= 10 or k % 5 == 0 or k == len(values)]
        says = [f"{name}: the {k} strongest heads have {share(float(values[k - 1]))} of all single effects" for k in ks]
        parts.append(pl.DataFrame({"panel": "heads", "line": name, "k": ks, "value": [float(values[k - 1]) for k in ks], "says": says}))
    return pl.concat(parts) if parts else pl.DataFrame()


def heads(rows: object, summary: object, manifest: object, *, comparison: Comparison, width: int = WIDE) -> Chart | None:
    """How few heads have how much: the steeper, the more local."""
    table = coverage(comparison)
    if table.is_empty() or table["value"].is_nan().all():
        return None
    most = int(drawing.ends(table["k"])[1])
    scale, axis = alt.Scale(domain=[0, 1.02], nice=False), drawing.left_axis(tickCount=5, format=".1f")

    def x(last: bool) -> alt.X:
        ticks = [k for k in (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000) if k <= most]
        return alt.X(
            "k:Q", title="heads, strongest first (log scale)" if last else None, axis=alt.Axis(values=ticks, grid=False, format="d"),
            scale=alt.Scale(type="log", domain=[0.9, 1.1 * most], nice=False),
        )  # fmt: skip

    titles = {"heads": "Share of all single heads' effects"}
    return curves.panels(table, x, titles, comparison.names, scale, axis, width, looks_of=looks(comparison.names), height=170)


def effective(rows: object, summary: object, manifest: object, *, comparison: Comparison, width: int = WIDE) -> Chart | None:
    """Effective numbers with their intervals, one panel a number."""
    shown = {"sites": "outputs", "blocks": "blocks", "modules": "modules (weights)", "heads": "heads", "rank_90%": "dimensions"}
    colours, _ = looks(comparison.names)
    parts = []
    for key, words in shown.items():
        by_run = comparison.quantities.get(key, {})
        if len(by_run) < 2:
            continue
        records = []
        for name, one in by_run.items():
            low, high = (one.value if end != end else end for end in one.interval)
            of = f" of {one.of}" if one.of else ""
            says = f"{name}: {nats(one.value)}{of}, 95 % {nats(low)} to {nats(high)}"
            records.append({"run": name, "value": one.value, "low": low, "high": high, "says": says})
        base = alt.Chart(drawing.inline(records))
        y = alt.Y("run:N", sort=list(by_run), title=None, axis=drawing.left_axis(ticks=False, domain=False))
        x = alt.X("value:Q", title=None, scale=alt.Scale(domainMin=0, nice=True), axis=alt.Axis(tickCount=6))
        colour = alt.Color("run:N", legend=None, scale=alt.Scale(domain=list(colours), range=list(colours.values())))
        line = base.mark_rule(aria=False, strokeWidth=2).encode(x=alt.X("low:Q", title=None), x2="high:Q", y=y, color=colour)
        dot = base.mark_circle(size=60, opacity=1).encode(x=x, y=y, color=colour, description=alt.Description("says:N"))
        title = drawing.title_of("Rank with 90 % of the gain" if key == "rank_90%" else f"Effective number of {words}")
        parts.append(alt.layer(line, dot, width=width - drawing.LEFT - 12, height=22 * len(records), title=title))
    return drawing.styled(alt.vconcat(*parts, spacing=10).resolve_scale(x="independent")) if parts else None
