"""Charts of a run: pure functions of (rows, summary, manifest). Each returns an altair chart, or None where its rows are absent.

Colours are told apart by colour-blind readers (Okabe and Ito 2008; one hue from light to dark in the map), and line
patterns and shapes repeat what colour says. Every mark carries its values as a description, which the page shows on hover.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl
import vl_convert

from mechdiff.report import findings
from mechdiff.report.findings import BREAKAGE, RECOVERY, STREAM

Chart = alt.Chart | alt.LayerChart | alt.VConcatChart | alt.HConcatChart
Figure = Callable[..., "Chart | None"]

WIDE, NARROW = 700, 350
"""Outer widths in pixels: a page column, and a phone."""

INK, QUIET, FAINT = "#24292f", "#6a737d", "#e3e6ea"
BLUE, VERMILLION, GREEN, SKY, PURPLE, ORANGE, BLACK = "#0072b2", "#d55e00", "#009e73", "#56b4e9", "#b5579a", "#c98500", "#24292f"
SITE_COLOURS = {
    "resid_pre": SKY,
    "resid_mid": BLUE,
    "resid_post": BLACK,
    "attn_out": VERMILLION,
    "mlp_out": GREEN,
    "attn_proj": PURPLE,
    "z": ORANGE,
}
SITE_DASHES = {"resid_pre": [2, 3], "resid_mid": [7, 3], "mlp_out": [7, 3], "attn_proj": [2, 3], "z": [5, 2, 1, 2]}
SITE_SHAPES = {"resid_pre": "triangle-up", "resid_mid": "diamond", "resid_post": "square", "attn_out": "circle", "mlp_out": "cross"}
ARM_COLOURS = {"identity": BLACK, "shift": BLUE, "mean": GREEN, "resample": VERMILLION}
ARM_DASHES = {"shift": [7, 3], "mean": [2, 3], "resample": [7, 3, 2, 3]}
SHARE_RANGE = ["#eef3f8", "#bcd2e8", "#7fadd4", "#3a7dbb", "#17508f", "#08264d"]

LEFT = 92
"""Pixels before the first layer, the same in all charts whose x axis is the layer, so that columns line up on the page."""


def d_by_prompt(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """D of every prompt, ascending, with the mean and its interval; filled where the first choice differs."""
    d = findings.d_per_prompt(rows).filter(pl.col("d").is_finite()).with_row_index("rank", offset=1)
    found = findings.difference(rows, summary)
    if d.is_empty() or found is None:
        return None
    spread = d["d"].max() > 60 * max(d["d"].min(), 1e-300) and d["d"].min() > 0
    scale = alt.Scale(type="log") if spread else alt.Scale(domainMin=0, nice=True)
    text = {True: "same first choice", False: "other first choice", None: "first choice not measured"}
    points = [
        {"rank": row["rank"], "d": row["d"], "choice": text[row["same"]], "says": f"{row['prompt']}: {row['d']:.3g} nats, {text[row['same']]}"}
        for row in d.iter_rows(named=True)
    ]
    x = alt.X("rank:Q", title="prompts, sorted by D", axis=alt.Axis(tickMinStep=1, grid=False), scale=alt.Scale(domain=[0, len(d) + 1], nice=False))
    y = alt.Y("d:Q", title="D, nats", scale=scale)
    kinds = [text[key] for key in (False, True, None) if text[key] in {point["choice"] for point in points}]
    fills = {text[False]: BLUE, text[True]: "#ffffff", text[None]: "#9aa4ae"}
    dots = alt.Chart(alt.Data(values=points)).mark_circle(size=46 if len(d) < 150 else 20, stroke=BLUE, strokeWidth=1.3, opacity=1)
    colour = alt.Color("choice:N", title=None, scale=alt.Scale(domain=kinds, range=[fills[kind] for kind in kinds]), legend=_legend())
    dots = dots.encode(x=x, y=y, color=colour, description="says:N")
    mean = alt.Chart(alt.Data(values=[{"d": found.mean, "low": found.low, "high": found.high}]))
    band = mean.mark_rect(color=ORANGE, opacity=0.22).encode(y=alt.Y("low:Q", scale=scale), y2="high:Q")
    line = mean.mark_rule(color=ORANGE, strokeWidth=2).encode(y=alt.Y("d:Q", scale=scale))
    label = mean.mark_text(align="left", baseline="bottom", dx=4, dy=-4, color="#8a5c00", fontWeight=600).encode(
        x=alt.value(0), y=alt.Y("d:Q", scale=scale), text=alt.value(f"mean {found.mean:.3g}")
    )
    return _styled(alt.layer(band, line, dots, label).properties(width=width - 72, height=240))


def cka_by_layer(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """CKA at every layer with jackknife bands: the residual stream above, what attention and the MLP add below."""
    table = findings.similarity_by_site(rows, summary).filter(pl.col("cka").is_not_nan())
    if table.is_empty():
        return None
    null = findings.null_band(rows)
    low, high = pl.coalesce("low", "cka"), pl.coalesce("high", "cka")
    table = table.with_columns(low=low, high=high)
    bottom, top = table["low"].min(), max(table["high"].max(), 1.0)
    pad = 0.04 * (top - bottom) or 0.02
    scale = alt.Scale(domain=[bottom - pad, top + pad], nice=False, zero=False)
    panels = []
    for title, part in (("Residual stream", _stream(table)), ("Outputs added to it", _outputs(table))):
        if not part.is_empty():
            panels.append(_cka_panel(part, scale, manifest, _layers(table), width).properties(title=_title(title)))
    if not null.is_empty() and null["high"].max() < bottom - pad:
        panels.append(_whole_scale(table, null, width))
    return _styled(alt.vconcat(*panels, spacing=14).resolve_scale(color="independent", strokeDash="independent"))


def causal_map(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE, unit: str | None = None) -> Chart | None:
    """Share of D that writing the other model's state carries over: layer by site, one map per direction."""
    shares = findings.site_shares(rows, summary, unit=unit).filter(pl.col("layer").is_not_null())
    if shares["share"].drop_nulls().is_empty():
        return None
    titles = {BREAKAGE: "Breakage: the base's state is written into the tuned model", RECOVERY: "Recovery: the tuned state is written into the base"}
    if width < WIDE:
        titles = {BREAKAGE: "Breakage: base's state into tuned", RECOVERY: "Recovery: tuned state into base"}
    panels = [
        _map_panel(part, _layers(shares), width, titles[direction], legend=place == 0)
        for place, direction in enumerate(titles)
        if not (part := shares.filter(pl.col("direction") == direction)).is_empty()
    ]
    return _styled(alt.vconcat(*panels, spacing=12))


def arms_by_layer(
    rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE, sites: Sequence[str] = ("resid_post", "attn_out")
) -> Chart | None:
    """What each way of guessing the tuned state costs the tuned model, by layer, with D and the noise floor as references."""
    cells = summary.filter(
        pl.col("measure") == "patching",
        pl.col("direction") == BREAKAGE,
        pl.col("metric") == "kl_own_nats",
        pl.col("arm").is_in(list(ARM_COLOURS)),
        pl.col("site").is_in(list(sites)) & pl.col("layer").is_not_null(),
        pl.col("unit").is_null() & pl.col("control").is_null() & pl.col("rank").is_null() & pl.col("strength").is_null(),
        pl.col("split") == (findings.splits(rows, "patching") or [None])[0],
    )
    if cells.is_empty() or not cells["mean"].max() > 0:
        return None
    found = findings.difference(rows, summary)
    floor = cells["floor"].max()
    bottom = max(3 * floor if floor else 0, 1e-5 * cells["mean"].max())
    top = 1.5 * max(cells["ci_high"].fill_null(0).max(), cells["mean"].max(), found.mean if found else 0)
    scale = alt.Scale(type="log", domain=[bottom, top], nice=False, clamp=True)
    present = [site for site in sites if site in cells["site"]]
    panels = [
        _arms_panel(cells.filter(pl.col("site") == site), scale, bottom, found.mean if found else None, _layers(cells), width, legend=place == 0)
        for place, site in enumerate(present)
    ]
    return _styled(alt.vconcat(*panels, spacing=14))


def cka_against_effect(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """Similarity of the states at a site against the share of D that writing that site carries over."""
    points = findings.similarity_against_effect(rows, summary)
    if points.is_empty():
        return None
    word = points["direction"][0]
    label = "breakage" if word == BREAKAGE else "recovery"
    top = points.filter(~pl.col("site").is_in(STREAM)).sort("share", descending=True).head(3).filter(pl.col("share") > 0.05)
    records = [
        {**row, "says": f"{row['name']}: CKA {row['cka']:.3f}, {label} {row['share']:.2f}"} for row in points.iter_rows(named=True)
    ]
    domain = [site for site in SITE_COLOURS if site in points["site"].unique().to_list()]
    colour = alt.Color("site:N", title=None, scale=alt.Scale(domain=domain, range=[SITE_COLOURS[s] for s in domain]), legend=_legend(domain, width))
    shapes = [SITE_SHAPES.get(s, "stroke") for s in domain]
    shape = alt.Shape("site:N", title=None, scale=alt.Scale(domain=domain, range=shapes), legend=_legend(domain, width))
    x = alt.X("cka:Q", title="CKA of the two models' states (1: same shape)", scale=alt.Scale(zero=False, padding=14))
    y = alt.Y("share:Q", title=f"{label}, share of D", scale=alt.Scale(padding=10))
    dots = alt.Chart(alt.Data(values=records)).mark_point(size=56, filled=True, opacity=0.72)
    dots = dots.encode(x=x, y=y, color=colour, shape=shape, description="says:N")
    marked = alt.Chart(alt.Data(values=top.to_dicts())).mark_text(align="left", dx=9, dy=-1, fontWeight=600, color=INK)
    return _styled(alt.layer(dots, marked.encode(x=x, y=y, text="name:N")).properties(width=width - 72, height=270))


def to_svg(chart: Chart) -> str:
    """The chart as an SVG document."""
    return str(vl_convert.vegalite_to_svg(chart.to_dict()))


def save(chart: Chart, folder: Path, name: str) -> str:
    """Writes NAME.svg and NAME.png (two pixels a point) to `folder` and returns the SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    svg = to_svg(chart)
    (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
    (folder / f"{name}.png").write_bytes(vl_convert.svg_to_png(svg, scale=2))
    return svg


def _stream(table: pl.DataFrame) -> pl.DataFrame:
    return table.filter(pl.col("site").is_in(STREAM))


def _outputs(table: pl.DataFrame) -> pl.DataFrame:
    return table.filter(~pl.col("site").is_in(STREAM))


def _layers(table: pl.DataFrame) -> tuple[int, int]:
    return int(table["layer"].min()), int(table["layer"].max())  # type: ignore[arg-type]


def _layer_axis(layers: tuple[int, int], width: int, *, field: str = "layer") -> alt.X:
    """Layers from left to right, half a layer of room at both ends, so that curves and map columns share their places."""
    first, last = layers
    step = next(step for step in (1, 2, 5, 10, 20, 50) if (last - first) / step <= (16 if width >= WIDE else 8))
    ticks = list(range(-(-first // step) * step, last + 1, step))
    axis = alt.Axis(values=ticks, format="d", grid=False, labelOverlap=False)
    return alt.X(f"{field}:Q", title="layer", axis=axis, scale=alt.Scale(domain=[first - 0.5, last + 0.5], nice=False, zero=False))


def _left_axis(title: str | None, **options: Any) -> alt.Axis:
    return alt.Axis(minExtent=LEFT - 30, maxExtent=LEFT - 30, title=title, titlePadding=6, **options)


def _legend(names: Sequence[str] = (), width: int = WIDE) -> alt.Legend:
    columns = 3 if width < WIDE and len(names) > 3 else 0
    return alt.Legend(orient="top", direction="horizontal", symbolSize=70, symbolStrokeWidth=2, columns=columns, offset=4, padding=0)


def _title(text: str) -> alt.TitleParams:
    return alt.TitleParams(text, anchor="start", frame="group", fontSize=12.5, fontWeight=600, color=INK, offset=6)


def _lines(table: pl.DataFrame, names: Sequence[str], column: str, colours: dict, dashes: dict, width: int, legend: bool = True) -> tuple:
    shown = _legend(names, width) if legend else None
    colour = alt.Color(f"{column}:N", title=None, scale=alt.Scale(domain=names, range=[colours[n] for n in names]), legend=shown)
    dash = alt.StrokeDash(f"{column}:N", title=None, scale=alt.Scale(domain=names, range=[dashes.get(n, [1, 0]) for n in names]), legend=shown)
    plain = alt.Color(f"{column}:N", title=None, scale=alt.Scale(domain=names, range=[colours[n] for n in names]), legend=None)
    return colour, dash, plain


def _cka_panel(table: pl.DataFrame, scale: alt.Scale, manifest: dict, layers: tuple[int, int], width: int) -> alt.LayerChart:
    names = [name for name in SITE_COLOURS if name in table["site"].unique().to_list()]
    says = [f"{row['name']}: CKA {row['cka']:.3f}, 95 % {row['low']:.3f} to {row['high']:.3f}" for row in table.iter_rows(named=True)]
    data = alt.Data(values=table.select("layer", "site", "cka", "low", "high").with_columns(says=pl.Series(says)).to_dicts())
    colour, dash, plain = _lines(table, names, "site", SITE_COLOURS, SITE_DASHES, width)
    x, axis = _layer_axis(layers, width), _left_axis("CKA (debiased)")
    base = alt.Chart(data)
    band = base.mark_area(opacity=0.16).encode(x=x, y=alt.Y("low:Q", scale=scale, axis=axis), y2="high:Q", color=plain)
    line = base.mark_line(strokeWidth=2).encode(x=x, y=alt.Y("cka:Q", scale=scale, axis=axis), color=colour, strokeDash=dash)
    dots = base.mark_circle(size=22, opacity=1).encode(x=x, y=alt.Y("cka:Q", scale=scale, axis=axis), color=plain, description="says:N")
    marks = _marked_layers(manifest, layers, x)
    return alt.layer(*marks, band, line, dots).properties(width=width - LEFT - 12, height=150)


def _marked_layers(manifest: dict, layers: tuple[int, int], x: alt.X) -> list[alt.Chart]:
    """Grey columns behind the hot layers."""
    hot = [layer for layer in (manifest.get("selection") or {}).get("hot_layers") or [] if layers[0] <= layer <= layers[1]]
    if not hot:
        return []
    records = [{"layer": layer - 0.5, "end": layer + 0.5, "says": f"hot layer {layer}"} for layer in hot]
    return [alt.Chart(alt.Data(values=records)).mark_rect(color=ORANGE, opacity=0.16).encode(x=x, x2="end:Q", description="says:N")]


def _whole_scale(table: pl.DataFrame, null: pl.DataFrame, width: int) -> alt.LayerChart:
    """The same lines on the scale from 0 to 1, above what unrelated states would give."""
    x = _layer_axis(_layers(table), width)
    scale = alt.Scale(domain=[min(0.0, null["low"].min()), 1.0], nice=False)  # type: ignore[type-var]
    axis = _left_axis("CKA", values=[0, 0.5, 1])
    chance = alt.Chart(alt.Data(values=null.select("layer", "low", "high").to_dicts())).mark_area(color="#9aa4ae", opacity=0.6)
    chance = chance.encode(x=x, y=alt.Y("low:Q", scale=scale, axis=axis), y2="high:Q")
    lines = alt.Chart(alt.Data(values=table.select("layer", "site", "cka").to_dicts())).mark_line(strokeWidth=1.2)
    names = [name for name in SITE_COLOURS if name in table["site"].unique().to_list()]
    colour = alt.Color("site:N", legend=None, scale=alt.Scale(domain=names, range=[SITE_COLOURS[n] for n in names]))
    lines = lines.encode(x=x, y=alt.Y("cka:Q", scale=scale, axis=axis), color=colour)
    title = _title("Whole scale; grey: prompts paired at random")
    return alt.layer(chance, lines).properties(width=width - LEFT - 12, height=64, title=title)


def _map_panel(table: pl.DataFrame, layers: tuple[int, int], width: int, title: str, *, legend: bool) -> alt.LayerChart:
    sites = sorted(table["site"].unique().to_list(), key=lambda kind: list(SITE_COLOURS).index(kind))
    records = [{**row, "says": _cell_says(row), "x": row["layer"] - 0.47, "end": row["layer"] + 0.47, "sign": _sign(row)} for row in table.iter_rows(named=True)]
    x = _layer_axis(layers, width)
    y = alt.Y("site:N", sort=sites, axis=_left_axis(None, ticks=False, domain=False), scale=alt.Scale(paddingInner=0.08, paddingOuter=0))
    bar = alt.Legend(orient="top", direction="horizontal", gradientLength=180, gradientThickness=9, titleOrient="left", title="share of D", offset=6)
    colour = alt.Color("share:Q", scale=alt.Scale(domain=[0, 1], range=SHARE_RANGE, clamp=True), legend=bar if legend else None)
    base = alt.Chart(alt.Data(values=[r for r in records if r["counts"] and r["share"] is not None]))
    left = _layer_axis(layers, width, field="x")
    cells = base.mark_rect(stroke="#c3ccd6", strokeWidth=0.5).encode(x=left, x2="end:Q", y=y, color=colour, description="says:N")
    signs = base.mark_text(fontSize=11, fontWeight=700, color="#b03a00").encode(x=x, y=y, text="sign:N")
    quiet = alt.Chart(alt.Data(values=[r for r in records if not r["counts"]]))
    empty = quiet.mark_circle(size=6, color="#9aa4ae", opacity=1).encode(x=x, y=y, description="says:N")
    return alt.layer(cells, signs, empty).properties(width=width - LEFT - 12, height=24 * len(sites), title=_title(title))


def _sign(row: dict) -> str:
    """Marks shares outside the colour scale: the write overshoots, or does the opposite."""
    share = row["share"]
    return "" if share is None else "+" if share > 1.05 else "−" if share < -0.05 else ""


def _cell_says(row: dict) -> str:
    where = f"L{row['layer']}.{row['site']}"
    if not row["counts"]:
        return f"{where}: under three noise floors"
    ends = "" if row["low"] is None else f", 95 % {row['low']:.2f} to {row['high']:.2f}"
    return f"{where}: share {row['share']:.2f}{ends}" if row["share"] is not None else where


def _arms_panel(
    table: pl.DataFrame, scale: alt.Scale, bottom: float, d: float | None, layers: tuple[int, int], width: int, *, legend: bool
) -> alt.LayerChart:
    names = [arm for arm in ARM_COLOURS if arm in table["arm"].unique().to_list()]
    says = [f"L{r['layer']}.{r['site']}, {r['arm']}: {r['mean']:.3g} nats" for r in table.iter_rows(named=True)]
    ends = [pl.max_horizontal(pl.coalesce(name, "mean"), pl.lit(bottom)).alias(name) for name in ("ci_low", "ci_high", "mean")]
    data = alt.Data(values=table.select("layer", "arm", "mean", "ci_low", "ci_high").with_columns(*ends, says=pl.Series(says)).to_dicts())
    x, axis = _layer_axis(layers, width), _left_axis("KL, nats", tickCount=4, format="~g")
    colour, dash, plain = _lines(table, names, "arm", ARM_COLOURS, ARM_DASHES, width, legend)
    base = alt.Chart(data)
    y = alt.Y("mean:Q", scale=scale, axis=axis)
    band = base.mark_area(opacity=0.13).encode(x=x, y=alt.Y("ci_low:Q", scale=scale, axis=axis), y2="ci_high:Q", color=plain)
    line = base.mark_line(strokeWidth=2).encode(x=x, y=y, color=colour, strokeDash=dash)
    dots = base.mark_circle(size=18, opacity=1).encode(x=x, y=y, color=plain, description="says:N")
    marks = [band, line, dots]
    if d and d > bottom:
        rule = alt.Chart(alt.Data(values=[{"mean": d}]))
        marks.insert(0, rule.mark_rule(color=QUIET, strokeDash=[3, 3]).encode(y=y))
        text = rule.mark_text(align="left", baseline="bottom", dx=3, dy=-2, color=QUIET)
        marks.append(text.encode(x=alt.value(0), y=y, text=alt.value(f"D = {d:.3g}")))
    site = table["site"][0]
    return alt.layer(*marks).properties(width=width - LEFT - 12, height=150, title=_title(site))


def _styled(chart: Any) -> Any:
    font = "Helvetica Neue, Helvetica, Arial, Liberation Sans, sans-serif"
    axis = {"labelFontSize": 11.5, "titleFontSize": 12, "titleFontWeight": "normal", "labelColor": INK, "titleColor": INK}
    lines = {"gridColor": FAINT, "domainColor": "#9aa4ae", "tickColor": "#9aa4ae", "tickSize": 4, "labelPadding": 4}
    config = {
        "font": font,
        "background": "white",
        "padding": 4,
        "view": {"stroke": None},
        "axis": {**axis, **lines},
        "legend": {"labelFontSize": 11.5, "titleFontSize": 11.5, "titleFontWeight": "normal", "labelColor": INK, "titleColor": INK},
        "text": {"font": font, "fontSize": 11.5},
    }
    return chart.configure(**config)
