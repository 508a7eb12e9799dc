"""A section shows the most divergent texts: where along a prompt and its continuation the two models part, with figure, texts and tables."""

import itertools
from typing import Any

import altair as alt
import polars as pl

from mechdiff.measures.divergence import findings, kinds
from mechdiff.measures.divergence.words import how_it_goes_on
from mechdiff.report import drawing, phrasing
from mechdiff.report.drawing import BLUE, LEFT, ORANGE, QUIET, WIDE, Chart
from mechdiff.report.parts import Drawn, Run, Section, note, table
from mechdiff.report.phrasing import nats, shown, visible

TITLE = "Where along a text do they part?"
LEVELS = (0.01, 0.1, 0.3, 1.0, 3.0)
"""A token is shaded k0 under the first of these, in nats, k1 under the second, ..., k5 from the last on."""
OPEN, TEXTS, TOKENS = 2, 8, 400
"""Texts shown at once, texts behind a line that opens them, and the tokens of one that are shown."""
MOVED = 12


def texts(run: Run) -> Section:
    """Q0, second half: the divergence at every token."""
    parts: list[Any] = []
    profile = findings.by_offset(run.rows, run.manifest)
    if not profile.is_empty():
        parts.append(Drawn(name="kl_by_position", chart=kl_by_position, caption=_caption(run, profile), reading="kl_by_position"))
        parts += kinds.parts(run)
    parts += [*_bits(run), *_texts(run.manifest), *_moved(run.manifest)]
    parts = parts or [note("Divergence along whole texts was not measured in this run.")]
    return Section(id="divergence.texts", title=TITLE, parts=parts, lead=how_it_goes_on(run.rows, run.manifest))


def _caption(run: Run, profile: pl.DataFrame) -> str:
    n = findings.offsets(run.prompt_rows, run.manifest)["prompt"].n_unique()
    top = profile.sort("mean", descending=True, maintain_order=True).row(0, named=True)
    where = "at the last prompt token" if top["offset"] == 0 else f"{_away(top['offset'])} it"
    here = profile.filter(pl.col("offset") == 0)
    said = f"D at each token, mean over {phrasing.prompts(n)} and what follows them. Largest: {nats(top['mean'])} nats {where}"
    if top["offset"] and len(here):
        said += f" ({nats(here['mean'][0])} at the last prompt token)"
    behind = findings.on_continuation(run.rows, run.manifest)
    if behind:
        said += f"; after it {phrasing.with_interval(behind.mean, behind.low, behind.high)} nats per token"
    found = findings.parting(run.prompt_rows, run.manifest)
    if found is None:
        return said + "."
    said += f". Of single prompts, the two top-1 tokens differ for the first time at the last prompt token on {found.at}, later on {found.after}"
    return said + f", already inside the prompt on {found.before}, nowhere on {found.never}."


def _away(offset: int) -> str:
    count = "one token" if abs(offset) == 1 else f"{abs(offset)} tokens"
    return f"{count} {'behind' if offset > 0 else 'before'}"


def _bits(run: Run) -> list[dict]:
    found = findings.bits_per_byte(run.rows)
    if not found:
        return []
    names = {"base": "base", "tuned": "tuned", "more": "base − tuned, prompt by prompt"}
    rows = [(names[name], shown(one.mean, one.low, one.high, one.n), str(one.n)) for name in names if (one := found.get(name))]
    return [
        table(("the continuation, in bits per byte", "mean", "prompts"), rows, title="Bits per byte of the continuation, in both models")
    ]


def _texts(manifest: dict) -> list[dict]:
    """The texts themselves, each token shaded by its divergence."""
    shown = [text for text in manifest.get("texts") or [] if text.get("tokens")][:TEXTS]
    if not shown:
        return []
    scale = [
        f"under {LEVELS[0]:g}",
        *(f"{low:g} to {high:g}" for low, high in itertools.pairwise(LEVELS)),
        f"{LEVELS[-1]:g} or more",
    ]
    key = {
        "kind": "key",
        "title": "The texts on which they differ most. Shade: nats between the two distributions of what follows a token",
        "levels": scale,
    }
    return [key, *(_text(text, folded=place >= OPEN) for place, text in enumerate(shown))]


def _text(text: dict, *, folded: bool) -> dict:
    n = int(text.get("n_prompt_tokens") or 0)
    tokens = text["tokens"]
    top = max((_number(token) for token in tokens), default=0.0)
    spans = [
        {
            "text": visible(token.get("text", "")),
            "level": level(_number(token)),
            "says": _says(token),
            "side": "prompt" if place < n else "answer",
        }
        for place, token in enumerate(tokens[:TOKENS])
    ]
    title = f"{visible(text.get('prompt', ''))}: at most {nats(top)} nats at a token"
    rest = f"… {len(tokens) - TOKENS} more tokens" if len(tokens) > TOKENS else ""
    return {"kind": "text", "title": title, "folded": folded, "tokens": spans, "rest": rest}


def _number(token: dict) -> float:
    value = token.get("kl")
    return float(value) if value is not None and value == value else 0.0


def level(kl: float) -> str:
    """The style class of a token, k0 to k5."""
    return f"k{sum(kl >= threshold for threshold in LEVELS)}"


def _says(token: dict) -> str:
    kl = token.get("kl")
    said = "not measured" if kl is None or kl != kl else f"{nats(kl)} nats"
    choices = [
        f"{side} goes on “{visible(token[name])}”" for side, name in (("base", "top_base"), ("tuned", "top_tuned")) if token.get(name)
    ]
    return ": ".join([said, ", ".join(choices)]) if choices else said


def _moved(manifest: dict) -> list[dict]:
    """Tokens whose mean probability at the decision position rose or fell most."""
    moved = manifest.get("moved_tokens") or {}
    found = []
    for side, title in (("up", "Tokens that gained most at the last prompt token"), ("down", "Tokens that lost most there")):
        rows = [
            (f"“{visible(one.get('token', ''))}”", nats(one.get("base")), nats(one.get("tuned"))) for one in (moved.get(side) or [])[:MOVED]
        ]
        if rows:
            found.append(table(("token", "mean probability, base", "tuned"), rows, title=title))
    return found


def kl_by_position(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, width: int = WIDE) -> Chart | None:
    """Mean D at each token, on a log scale: the prompt to the left of the decision position, the continuation to the right."""
    profile = findings.by_offset(rows, manifest)
    if profile.is_empty() or not drawing.ends(profile["mean"])[1] > 0:
        return None
    scale, bottom = drawing.log_scale(profile["mean"], profile["high"])
    ends = [pl.max_horizontal(name, pl.lit(bottom)).alias(name) for name in ("mean", "low", "high")]
    says = [f"{_where(r['offset'])}: {nats(r['mean'])} nats ({phrasing.prompts(r['n'])})" for r in profile.iter_rows(named=True)]
    data = drawing.inline(profile.with_columns(*ends, says=pl.Series(says)).to_dicts())
    first, last = drawing.ends(profile["offset"])
    x = alt.X(
        "offset:Q",
        title="tokens from the last prompt token",
        axis=alt.Axis(grid=False, format="d", tickMinStep=1, tickCount=10 if width >= WIDE else 6),
        scale=alt.Scale(domain=[first - 0.5, last + 0.5], nice=False),
    )
    axis = drawing.left_axis(values=drawing.powers(scale), format="~g")
    base = alt.Chart(data)
    here = alt.Chart(drawing.inline([{"offset": 0}])).mark_rule(aria=False, color=ORANGE, strokeWidth=2, opacity=0.7).encode(x=x)
    band = base.mark_area(aria=False, color=BLUE, opacity=0.16).encode(x=x, y=alt.Y("low:Q", scale=scale, axis=axis), y2=alt.Y2("high:Q"))
    line = base.mark_line(aria=False, color=BLUE, strokeWidth=1.6).encode(x=x, y=alt.Y("mean:Q", scale=scale, axis=axis))
    dots = base.mark_circle(size=26, color=BLUE, opacity=1).encode(
        x=x, y=alt.Y("mean:Q", scale=scale, axis=axis), description=alt.Description("says:N")
    )
    sides = [
        alt.Chart(drawing.inline([{"offset": 0}]))
        .mark_text(aria=False, align=align, dx=dx, baseline="top", color=QUIET)
        .encode(x=x, y=alt.YValue(0), text=alt.TextValue(text))
        for text, align, dx in (("prompt", "right", -6), ("continuation", "left", 6))
    ]
    title = drawing.title_of("D at each token, nats" + drawing.pinned(profile["mean"], bottom))
    return drawing.styled(drawing.layer(here, band, line, dots, *sides, width=width - LEFT - 12, height=190, title=title))


def _where(offset: int) -> str:
    return "last prompt token" if offset == 0 else f"{_away(offset)} the last prompt token"
