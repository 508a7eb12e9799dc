"""The map of layers and positions says where in a prompt the difference lies before it arrives at the decision position."""

import altair as alt
import polars as pl

from mechdiff import labels
from mechdiff.labels import POSITIONS
from mechdiff.measures.divergence.over_answers import WAYS
from mechdiff.measures.patching import findings
from mechdiff.measures.patching.charts import sign_of
from mechdiff.report import difference, drawing, effect_shares
from mechdiff.report.difference import BREAKAGE, RECOVERY
from mechdiff.report.drawing import SHARE_RANGE, WIDE, Chart
from mechdiff.report.parts import Drawn, Run
from mechdiff.report.phrasing import listed, prompts, visible, with_interval
from mechdiff.rows import where
from mechdiff.statistics import floors

TITLES = {BREAKAGE: "Base's activation into the tuned model, after each of some blocks", RECOVERY: "Tuned activation into the base"}
TOKENS = 40
"""The last tokens of an example that are drawn."""
CELL = 26
"""Height of a layer's row of cells."""


def shares(rows: pl.DataFrame, summary: pl.DataFrame) -> pl.DataFrame:
    """`direction part layer share low high counts` of the parts of prompts, each patched alone."""
    units = where(rows, measure="patching").filter(pl.col("unit").str.starts_with("positions: "))["unit"].unique().to_list()
    found = [
        findings.site_shares(rows, summary, unit=unit).with_columns(part=pl.lit(unit.removeprefix("positions: ")))
        for unit in sorted(units, key=lambda unit: POSITIONS.index(unit.removeprefix("positions: ")))
    ]
    return pl.concat(found).filter(pl.col("share").is_not_null()) if found else pl.DataFrame()


def parts(run: Run) -> list[Drawn]:
    """The map, where it was made."""
    found = shares(run.rows, run.summary)
    if found.is_empty():
        return []
    n = where(run.rows, measure="patching").filter(labels.is_position())["prompt"].n_unique()
    caption = f"Share of D by layer and part of the prompt ({prompts(n)}): the residual stream after a block is patched at one part alone. "
    caption += _arrives(found)
    drawn = Drawn(name="position_map", chart=position_map, caption=caption.strip(), reading="position_map")
    return [drawn, *(_token_map(run, name, place) for place, name in enumerate(by_token(run.rows)["prompt"].unique().sort()))]


def by_token(rows: pl.DataFrame) -> pl.DataFrame:
    """`direction prompt place layer share`: of each prompt's own D, what one token of it carries alone; no interval, for it is one prompt."""
    found = where(rows, measure="patching", arm="identity", control=None).with_columns(place=labels.position_number())
    found = found.filter(pl.col("place").is_not_null())
    total = effect_shares.totals(rows, difference.reported(rows, "patching"))
    frames = []
    for direction in (BREAKAGE, RECOVERY):
        of = found.filter(pl.col("direction") == direction, pl.col("metric") == floors.effect_metric(rows, direction)).join(
            total, on="prompt"
        )
        share = pl.col("value") / pl.col("total")
        frames.append(of.with_columns(share=share if direction == BREAKAGE else 1 - share))
    return pl.concat(frames).filter(pl.col("share").is_finite()).select("direction", "prompt", "place", "layer", "share")


def _token_map(run: Run, name: str, place: int) -> Drawn:
    n = by_token(run.rows).filter(pl.col("prompt") == name)["place"].n_unique()
    last = f", its last {TOKENS} tokens of {n}" if n > TOKENS else ""
    caption = f"The same token by token, of one example ({visible(name)}{last}): the share of this prompt's own D, which has no interval."
    return Drawn(
        name=f"token_map_{place}", chart=token_map, options={"prompt": name}, caption=caption, reading="position_map" if not place else ""
    )


def _arrives(found: pl.DataFrame) -> str:
    """The part outside the decision position that carries most, by direction; nothing where none does."""
    said = []
    for direction, words in WAYS.items():
        elsewhere = found.filter(pl.col("direction") == direction, pl.col("part") != "decision", pl.col("counts"))
        for row in elsewhere.sort("share", descending=True).head(1).iter_rows(named=True):
            share = with_interval(row["share"], row["low"], row["high"], digits=2)
            said.append(f"{row['part']} after block {row['layer']} ({words}): {share}")
    return f"Outside the last prompt token most is carried at {listed(said)}." if said else ""


def position_map(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """Layers up, parts of the prompt from left to right, a map a direction."""
    found = shares(rows, summary)
    if found.is_empty():
        return None
    there = [part for part in POSITIONS if part in found["part"].unique().to_list()]
    panels: list[alt.LayerChart] = []
    for direction, title in TITLES.items():
        of = found.filter(pl.col("direction") == direction)
        if of.is_empty():
            continue
        records = [{**row, "says": _says(row), "sign": sign_of(row)} for row in of.iter_rows(named=True)]
        x = alt.X("part:N", sort=there, title=None, axis=alt.Axis(labelAngle=0, labelLimit=110, ticks=False, domain=False))
        y = alt.Y("layer:O", sort="descending", title=None, axis=drawing.left_axis(ticks=False, domain=False))
        legend = alt.Legend(
            orient="top", direction="horizontal", gradientLength=180, gradientThickness=9, titleOrient="left", title="share of D"
        )
        scale = alt.Scale(domain=[0, 1], range=SHARE_RANGE, clamp=True)
        colour = alt.Color("share:Q", scale=scale, legend=legend if not panels else None)
        base = alt.Chart(drawing.inline(records)).encode(x=x, y=y)
        cells = base.mark_rect(stroke="#c3ccd6", strokeWidth=0.5).encode(color=colour, description=alt.Description("says:N"))
        signs = base.mark_text(aria=False, fontSize=11, fontWeight=700, color="#b03a00").encode(text=alt.Text("sign:N"))
        height = CELL * of["layer"].n_unique()
        panels.append(drawing.layer(cells, signs, width=width - drawing.LEFT - 12, height=height, title=drawing.title_of(title)))
    return drawing.styled(drawing.vconcat(*panels, spacing=14))


def token_map(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE, prompt: str = "") -> Chart | None:
    """Layers up, the tokens of one prompt from left to right, a map a direction."""
    found = by_token(rows).filter(pl.col("prompt") == prompt)
    if found.is_empty():
        return None
    texts = (manifest.get("mapped_tokens") or {}).get(prompt, [])
    found = found.filter(pl.col("place") > found["place"].max() - TOKENS)  # type: ignore[operator]
    names = {place: f"{place} {visible(texts[place]) if place < len(texts) else ''}".strip() for place in found["place"].unique().sort()}
    panels: list[alt.LayerChart] = []
    for direction, title in TITLES.items():
        records = [
            {
                **row,
                "token": names[row["place"]],
                "says": f"after block {row['layer']}, {names[row['place']]}: share {row['share']:.2f}",
            }
            for row in found.filter(pl.col("direction") == direction).iter_rows(named=True)
        ]
        if not records:
            continue
        x = alt.X("token:N", sort=list(names.values()), title=None, axis=alt.Axis(labelAngle=-90, labelLimit=90, ticks=False, domain=False))
        y = alt.Y("layer:O", sort="descending", title=None, axis=drawing.left_axis(ticks=False, domain=False))
        colour = alt.Color("share:Q", scale=alt.Scale(domain=[0, 1], range=SHARE_RANGE, clamp=True), legend=None)
        base = alt.Chart(drawing.inline(records)).encode(x=x, y=y)
        cells = base.mark_rect(stroke="#c3ccd6", strokeWidth=0.5).encode(color=colour, description=alt.Description("says:N"))
        height = CELL * found["layer"].n_unique()
        panels.append(drawing.layer(cells, width=width - drawing.LEFT - 12, height=height, title=drawing.title_of(title)))
    return drawing.styled(drawing.vconcat(*panels, spacing=14))


def _says(row: dict) -> str:
    where = f"{row['part']}, after block {row['layer']}"
    return f"{where}: share {with_interval(row['share'], row['low'], row['high'], digits=2)}"
