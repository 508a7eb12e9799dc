"""A scan's page says in which texts the two models part: domains with intervals, what marks those texts, the texts themselves, and directions."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl

from mechdiff.measures.divergence.texts_page import LEVELS, level
from mechdiff.report import drawing, page
from mechdiff.report.drawing import BLACK, BLUE, WIDE, Chart
from mechdiff.report.parts import Drawn, Section, note, table
from mechdiff.report.phrasing import decimal, nats, shown, visible, with_interval
from mechdiff.scanning.record import LLAMA_CPP, QUANTILES
from mechdiff.scanning.shown import CONTEXTS, DIRECTIONS, OF_A_DIRECTION, Shown
from mechdiff.scanning.words import sentences

PAGE = "report.html"
OPEN = 2
"""Texts of a list that are shown at once."""
LABELS, ROW = 190, 24
"""Pixels of a domain's name, and of its line."""


def write(record: Mapping[str, Any], shown: Shown, out: Path) -> Path:
    """The page of a scan, in its folder."""
    sections = [_numbers(record), _domains(record), _contexts(record, shown), _directions(record, shown)]
    read = [
        (name, str(record[name]))
        for name in ("base", "tuned", "corpus", "dtype", "longest", "texts", "texts_left_out", "tokens", "vocabularies", "corpus_hash")
    ]
    left_out = [table(("left out",), [(visible(one),) for one in record["left_out"]])] if record["left_out"] else []
    return page.write_page(
        out / PAGE,
        readings=[Path(__file__).with_name("reading.html")],
        kicker="mechdiff scan: in which texts the two models part",
        names=[Path(record[side]).name or record[side] for side in ("base", "tuned")],
        between={"sign": "→", "says": "to"},
        alerts=[],
        warned=len(record["left_out"]),
        verdict=sentences(record),
        sections=[page.draw_section(one) for one in sections],
        record_title="What was read",
        record=[table(("", ""), read), *left_out],
        study="",
        files=["scan.json", "texts.parquet"],
    )


def _numbers(record: Mapping[str, Any]) -> Section:
    names = {name: said for said, name in LLAMA_CPP.items()}
    rows = [(name, names.get(name, ""), nats(value)) for name, value in record["numbers"].items()]
    lead = f"All tokens that another one follows: {record['tokens']:,} of {record['texts_scored']:,} texts; quantiles to a thousandth of themselves."
    quantiles = [row for row in rows if row[0].rpartition("_")[2] in (*QUANTILES, "max")]
    columns = ("number", "in llama.cpp", "value")
    parts = [table(columns, [row for row in rows if row not in quantiles]), table(columns, quantiles, folded="Quantiles over tokens")]
    return Section(id="scan.numbers", title="How far apart are they over all texts?", lead=[lead], parts=parts)


def _domains(record: Mapping[str, Any]) -> Section:
    lines = [
        (visible(one["domain"]), f"{one['texts']} ({one['clusters']})", shown(one["kl"], one["kl_low"], one["kl_high"], one["clusters"]),
         shown(one["loss_change"], one["loss_change_low"], one["loss_change_high"], one["clusters"]), nats(one["loss_base"]))
        for one in record["domains"]
    ]  # fmt: skip
    parts: list[Any] = []
    if any(one["kl"] > 0 for one in record["domains"]):
        caption = "KL(tuned ‖ base) by domain, mean over clusters of near copies."
        options = {"domains": record["domains"]}
        parts.append(Drawn(name="kl_by_domain", chart=by_domain, options=options, caption=caption, reading="kl_by_domain"))
    if lines:
        parts.append(
            table(("domain, by its words", "texts (clusters)", "KL, nats per token", "loss, tuned − base", "loss of the base"), lines)
        )
    marks = [
        (visible(one["feature"]), "KL" if one["score"] == "kl" else "loss", _effect(one), str(one["texts"]), nats(one["p_holm"]),
         "yes" if one["confirmed"] else "no")
        for one in record["features"]
    ]  # fmt: skip
    if marks:
        confirmed = sum(one["confirmed"] for one in record["features"])
        columns = ("marks texts by", "of", "effect on the other half", "texts there", "p, corrected", "confirmed")
        parts.append(
            table(columns, marks, folded=f"What marks these texts, found on one half: {confirmed} of {len(marks)} confirmed on the other")
        )
    parts = parts or [note("Too few texts to look for domains.")]
    return Section(id="scan.domains", title="On which texts do they part?", parts=parts)


def _effect(one: Mapping[str, Any]) -> str:
    said = shown(one["effect"], one["low"], one["high"])
    return f"log KL {said}; as it is {nats(one['raw'])}" if one["score"] == "kl" else said


def _contexts(record: Mapping[str, Any], shown: Shown) -> Section:
    parts: list[Any] = []
    for name, number, what in (("kl", "kl", "KL"), ("loss", "loss_change", "change of a token's loss")):
        texts = [one for one in record["contexts"].get(name, [])[:CONTEXTS] if (one["number"], one["token"]) in shown]
        if texts:
            parts.append(_key(f"Texts with the largest {what} at one token, near copies once. Shade: its size at each token in nats"))
        for place, one in enumerate(texts):
            marks = f"; confirmed: {', '.join(map(visible, one['confirmed_by']))}" if one["confirmed_by"] else ""
            parts.append(
                _text(
                    f"{visible(one['id'])}: {nats(one['value'])} nats{marks}",
                    shown[one["number"], one["token"]],
                    number,
                    folded=place >= OPEN,
                )
            )
    return Section(id="scan.contexts", title="Which texts?", parts=parts or [note("No token differs by more than rounding.")])


def _directions(record: Mapping[str, Any], shown: Shown) -> Section:
    title = "Which texts hold a direction of the change?"
    rows = [(one["direction"], one["sign"], _first(one), nats(one["z"]), nats(one["p"])) for one in record["directions"]]
    if not rows:
        return Section(
            id="scan.directions",
            title=title,
            parts=[note("No direction was read: no matrix changed and no vector was given, or what was left out says why.")],
        )
    parts: list[Any] = [table(("direction", "sign", "texts (cosine)", "the first stands out by, spreads", "p"), rows)]
    for one in record["directions"][:DIRECTIONS]:
        for text in [text for text in one["texts"][:OF_A_DIRECTION] if (text["number"], text["token"]) in shown]:
            said = f"{one['direction']}, {one['sign']}: {visible(text['id'])}, cosine {decimal(text['value'])}"
            parts.append(_text(said, shown[text["number"], text["token"]], "kl", folded=True))
    lead = "Of each text the largest cosine over its tokens; p: the share of random directions along which a text stands out as far."
    return Section(id="scan.directions", title=title, lead=[lead], parts=parts)


def _first(one: Mapping[str, Any]) -> str:
    return ", ".join(f"{visible(text['id'])} ({decimal(text['value'])})" for text in one["texts"][:5])


def _key(title: str) -> dict:
    scale = [f"under {LEVELS[0]:g}", *(f"{low:g} to {high:g}" for low, high in pairwise(LEVELS)), f"{LEVELS[-1]:g} or more"]
    return {"kind": "key", "title": title, "levels": scale}


def _text(title: str, text: Mapping[str, Any], number: str, *, folded: bool) -> dict:
    spans = [
        {"text": visible(token["text"]), "level": level(abs(token[number] or 0.0)), "side": "answer" if token["here"] else "prompt",
         "says": f"KL {nats(token['kl'])} nats, loss {nats(token['loss_change'])}"}
        for token in text["tokens"]
    ]  # fmt: skip
    return {"kind": "text", "title": title, "folded": folded, "tokens": spans, "rest": "…" if text["more_behind"] else ""}


def by_domain(*, domains: Sequence[Mapping[str, Any]], width: int = WIDE) -> Chart | None:
    """A line a domain, the largest KL first, with its interval, on a log axis."""
    values = pl.Series([one["kl"] for one in domains if one["kl"] > 0])
    scale, bottom = drawing.log_scale(values, pl.Series([one["kl_high"] for one in domains]), decades=4)
    lines = [
        {"domain": one["domain"], "kl": max(one["kl"], bottom), "low": None if one["kl_low"] is None else max(one["kl_low"], bottom),
         "high": one["kl_high"], "says": f"{one['domain']}: {with_interval(one['kl'], one['kl_low'], one['kl_high'])} nats, {one['texts']} texts"}
        for one in domains
    ]  # fmt: skip
    base = alt.Chart(drawing.inline(lines))
    axis = alt.Axis(labelLimit=LABELS, minExtent=LABELS, maxExtent=LABELS)
    y = alt.Y("domain:N", sort=[one["domain"] for one in domains], title=None, axis=axis)
    title = f"KL(tuned ‖ base), nats per token{drawing.pinned(values, bottom)}"
    x = alt.X("kl:Q", scale=scale, title=title, axis=alt.Axis(values=drawing.powers(scale), format="~g"))
    ends = alt.X("low:Q", scale=scale), alt.X2("high:Q")
    bands = base.transform_filter("isValid(datum.low)").mark_rule(aria=False, color=BLACK, strokeWidth=2).encode(x=ends[0], x2=ends[1], y=y)
    dots = base.mark_circle(size=60, color=BLUE, opacity=1).encode(x=x, y=y, description=alt.Description("says:N"))
    return drawing.styled(drawing.layer(bands, dots, width=width - LABELS - 24, height=ROW * len(domains)))
