"""KL of patched runs by layer, in nats: what a state of the other model does to the one that runs, in both directions."""

import altair as alt
import polars as pl

from mechdiff.report import curves, drawing, findings, statistics
from mechdiff.report.drawing import SITE_COLOURS, SITE_DASHES, WIDE, Chart
from mechdiff.report.findings import BREAKAGE, RECOVERY
from mechdiff.report.phrasing import between, nats, power_of_ten
from mechdiff.rows import where

SITES = ("resid_post", "attn_out", "mlp_out")
TITLES = {
    BREAKAGE: "The base's state in the tuned model: KL from the tuned model",
    RECOVERY: "The tuned state in the base: KL from the base",
}
SHORT = {BREAKAGE: "Base's state in tuned: KL, nats", RECOVERY: "Tuned state in base: KL, nats"}


def cells(rows: pl.DataFrame, summary: pl.DataFrame) -> pl.DataFrame:
    """`panel line layer value low high floor`: the mean KL from the unedited running model, identity arm, by direction and site."""
    plain = (pl.col(name).is_null() for name in ("unit", "control", "rank", "strength"))
    found = where(
        summary, measure="patching", metric="kl_own_nats", arm="identity", site=SITES, split=findings.reported(rows, "patching")
    ).filter(pl.col("layer").is_not_null(), pl.col("mean").is_finite(), *plain)
    low, high = (pl.coalesce(end, "mean").alias(name) for end, name in (("ci_low", "low"), ("ci_high", "high")))
    return found.select("layer", "floor", low, high, panel="direction", line="site", value="mean").sort("panel", "line", "layer")


def kl_by_layer(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """A panel a direction, a line a site, on a log scale down to three noise floors."""
    table = cells(rows, summary)
    if table.is_empty() or not drawing.ends(table["value"])[1] > 0:
        return None
    most = drawing.ends(table["high"])[1]
    bottom = 10.0 ** int(pl.Series([max(statistics.FLOORS * drawing.ends(table["floor"].fill_null(0))[1], 1e-5 * most)]).log10().floor()[0])
    says = [
        f"L{r['layer']}.{r['line']}, {r['panel']}: {nats(r['value'])} nats, 95 % {between(r['low'], r['high'])}"
        for r in table.iter_rows(named=True)
    ]
    table = table.with_columns(pl.col("value", "low", "high").clip(lower_bound=bottom), says=pl.Series(says)).drop("floor")
    scale = alt.Scale(type="log", domain=[bottom, 1.5 * most], nice=False, clamp=True)
    axis, layers = drawing.left_axis(values=drawing.powers(scale), format="~g"), drawing.layer_range(table)
    pinned = f", nats (bottom: {power_of_ten(bottom)} or less)"
    titles = {direction: text + pinned for direction, text in TITLES.items()} if width >= WIDE else SHORT
    names = [site for site in SITE_COLOURS if site in table["line"].unique().to_list()]
    return curves.panels(
        table, lambda last: drawing.layer_axis(layers, width, title=last), titles, names, scale, axis, width,
        looks_of=(SITE_COLOURS, SITE_DASHES), height=130,
    )  # fmt: skip
