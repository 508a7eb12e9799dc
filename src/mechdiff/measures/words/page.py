"""The section on words shows pairs of continuations, the lines that are named, what the lens reads at each layer, and what null pairs show."""

from typing import Any

import altair as alt
import polars as pl

from mechdiff import labels
from mechdiff.measures.words import findings
from mechdiff.measures.words.judge import LEAST_SHARE, LEVEL, MARGIN, MARGIN_OF_TEXTS, WAY
from mechdiff.measures.words.words import counted, place
from mechdiff.report import drawing
from mechdiff.report.drawing import INK, LEFT, SHARE_RANGE, WIDE, Chart
from mechdiff.report.parts import Drawn, Run, Section, note, table
from mechdiff.report.phrasing import listed, nats, share, visible
from mechdiff.spacing import evenly_spaced

TITLE = "What was it taught?"
OPEN, TEXTS = 3, 8
"""Pairs of continuations that are shown at once, and in all."""
TOPS, LETTERS = 3, 40
"""Prompts whose tokens are shown layer by layer, and what a column's head has of each."""
LEGIBLE = 3.0
"""Nats from the base's final distribution up to which a layer's lens is taken to read."""
READERS = {"continuations": "texts", "tokens": "tokens", "lens": "activations"}
SIDE_BY_SIDE = {WIDE: 3}
"""Prompts side by side, by width; on a phone one."""
ROWS = 40
"""Layers that are drawn at most, evenly spaced, the last among them."""
HEIGHT, TOKEN, NAME = 16, 12, 28
"""Of that figure: pixels of a row, letters of a token and of a prompt."""
DARK = 0.55
"""Part from which letters on a cell are white."""
NULLS = {
    "same_model": "the base against itself, other draws",
    "random_edit": "the base with a random edit, scaled to diverge as far as the fine-tune",
}


def words(run: Run) -> Section:
    """The section; a note where words were not measured."""
    told = findings.record(run.manifest)
    if told is None:
        return Section(id="words", title=TITLE, parts=[note("What the model was taught was not read in this run.")])
    parts = [
        *_texts(run),
        *_lines(run),
        *_lens(run, told),
        *_layers(told),
        *_scopes(told),
        *_depth(told),
        *_nulls(told),
        note(_settings(told)),
    ]
    return Section(id="words", title=TITLE, parts=parts)


# ---- texts -------------------------------------------------------------------------------------------------------------------------


def _texts(run: Run) -> list[dict[str, Any]]:
    shown = findings.ranked(run.manifest)[:TEXTS]
    if not shown:
        return [note("No continuation of the tuned model stands apart: its texts are the base's, too short, or loops.")]
    said = (
        "Both models go on with the same seeds, with the same random draws. Shown first: where the tuned model's text is less surprising to itself "
        "than to the base by most, beyond what the base's text is to itself."
    )
    return [note(said), *(_pair(one, folded=number >= OPEN) for number, one in enumerate(shown))]


def _pair(one: dict[str, Any], *, folded: bool) -> dict[str, Any]:
    told = [
        {
            "who": f"{side}: {nats(one['gap'][side])} nats per token less surprising to itself than to the other",
            "spans": [{"text": visible(one[side]), "differs": False}],
        }
        for side in ("base", "tuned")
    ]
    return {
        "kind": "answers",
        "title": f"{one['rank']}. {visible(one['seed'])}",
        "asked": visible(one["text"]),
        "said": told,
        "folded": folded,
    }


# ---- lines -------------------------------------------------------------------------------------------------------------------------


def _lines(run: Run) -> list[dict[str, Any]]:
    named = findings.named(run.manifest)
    columns = ("line", "what", "read on", "by", "held-out half", "q", "size", "least size")
    made = []
    for gained, title in (
        (True, "What the tuned model has more of: lines of evidence that are named"),
        (False, "What it has less of, by the same rule (the mirror)"),
    ):
        lines = [line for line in named if line["gained"] == gained]
        if lines:
            made.append(table(columns, [(str(named.index(line) + 1), *_line(line)) for line in lines], title=title))
    if not made:
        made.append(note("No line of evidence is named."))
    near = [line for line in (findings.record(run.manifest) or {})["lines"] if line["why_not"] and line["q"] <= LEVEL]
    if near:
        folded = f"{len(near)} lines that replicate and are not named"
        near_lines = [(*_line(line), line["why_not"]) for line in sorted(near, key=lambda line: -line["size"])]
        made.append(table((*columns[1:], "why not"), near_lines, folded=folded))
    groups = [group for group in findings.groups(findings.named(run.manifest, gained=True)) if len(group) > 1]
    if groups:
        said = listed(f"{', '.join(dict.fromkeys(visible(line['text']) for line in group))}" for group in groups)
        made.append(note(f"Tokens whose rows of the base's unembedding point one way (cosine at least 0.35): {said}."))
    return made


def _line(line: dict[str, Any]) -> tuple[str, ...]:
    reader = READERS[line["reader"]] + ("" if line["layer"] is None else f", layer {line['layer']}")
    if line["reader"] == "continuations":
        held = counted(line).partition(", q =")[0]
    else:
        unit = "logits" if line["reader"] == "lens" else "nats"
        held = f"{nats(sum(line['values']) / len(line['values']))} {unit} on {len(line['values'])}"
        if line["replay_nats"] is not None:
            held += f"; replayed {nats(line['replay_nats'])} nats"
    return (visible(line["text"]), place(line["where"]), reader, held, nats(line["q"]), nats(line["size"]), nats(line["least"]))


def _lens(run: Run, told: dict[str, Any]) -> list[Drawn]:
    """What both models' lenses read at each layer: on the study's own prompts where these were read, else on everyday questions."""
    found = {one["where"]: len(one["prompts"]) for one in told.get("depth", [])}
    where = next((one for one in ("prompts", "neutral") if one in found), None)
    if where is None or "words" not in run.rows["measure"]:
        return []
    caption = (
        f"What each layer's lens reads at the last token of {place(where)}, both models side by side. Shade: part of {found[where]} "
        "prompts on which the layer reads the token that comes out."
    )
    return [Drawn(name="logit_lens", chart=logit_lens, options={"where": where}, caption=caption, reading="logit_lens")]


def logit_lens(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, where: str, width: int = WIDE) -> Chart | None:
    """The top token of each layer of both models at the last token of some prompts, shaded by the part of all prompts read there on which this
    layer's top token is already the one that comes out."""
    told = lens_of(manifest, where)
    if told is None:
        return None
    n = min(SIDE_BY_SIDE.get(width, 1), len(told["prompts"]))
    step = (width - LEFT - 16) / n
    panels = [_panel(told, prompt, step, first=prompt == 0) for prompt in range(n)]
    return drawing.styled(drawing.hconcat(*panels, spacing=6, resolve=drawing.scales(y="shared", color="shared")))


def lens_of(manifest: dict, where: str) -> dict[str, Any] | None:
    """What the lens read on one kind of prompt, as the run's record has it."""
    return next((one for one in (findings.record(manifest) or {}).get("depth", []) if one["where"] == where), None)


def _panel(told: dict[str, Any], prompt: int, width: float, *, first: bool) -> Chart:
    depth = len(told["base"]["tops"])
    layers = sorted({*evenly_spaced(ROWS - 1, range(depth)), depth - 1})
    records = [_cell(told, side, layer, prompt) for side in ("base", "tuned") for layer in layers]
    names = [str(layer) for layer in reversed(layers)]
    axis = drawing.left_axis(ticks=False, domain=False, labelOverlap=True) if first else None
    y = alt.Y("layer:N", sort=names, axis=axis, scale=alt.Scale(paddingInner=0.04))
    x = alt.X("model:N", sort=["base", "tuned"], title=None, axis=alt.Axis(orient="top", labelAngle=0, ticks=False, domain=False))
    colour = alt.Color("share:Q", scale=alt.Scale(domain=[0, 1], range=SHARE_RANGE), legend=None)
    data = drawing.inline(records)
    cells = alt.Chart(data).mark_rect().encode(x=x, y=y, color=colour, description=alt.Description("says:N"))
    ink = alt.condition(f"datum.share >= {DARK}", alt.value("white"), alt.value(INK))
    words = alt.Chart(data).mark_text(fontSize=10.5).encode(x=x, y=y, text="token:N", color=ink)
    asked = told["prompts"][prompt]
    title = drawing.title_of(visible(asked if len(asked) <= NAME else f"{asked[:NAME].rstrip()}…"))
    return drawing.layer(cells, words, width=width - 6, height=HEIGHT * len(layers), title=title)


def _cell(told: dict[str, Any], side: str, layer: int, prompt: int) -> dict[str, Any]:
    token, part = visible(told[side]["tops"][layer][prompt]), told[side]["top1_share"][layer]
    says = f"{side}, layer {layer}: “{token}”; on {share(part)} of prompts this layer reads the token that comes out"
    short = token if len(token) <= TOKEN else f"{token[:TOKEN]}…"
    return {"model": side, "layer": str(layer), "token": short, "share": part, "says": says}


def _layers(told: dict[str, Any]) -> list[dict[str, Any]]:
    """By layer: what both unembeddings read from the change, and how well the lens reads the base's own activations."""
    if not told["heads"]:
        return []
    own = dict(enumerate(next((one["base"]["kl_nats"] for one in told.get("depth", []) if one["where"] == "neutral"), [])))
    lines = [
        (
            str(one["layer"]), place(one["where"]), *(_read(one[side], own.get(one["layer"])) for side in ("base", "tuned")),
            nats(own.get(one["layer"])),
        )
        for one in sorted(told["heads"], key=lambda one: (one["where"] != "neutral", one["where"], one["layer"]))
    ]  # fmt: skip
    title = "What the change of activations reads by layer (logit lens): the tokens that rise most; in brackets where the lens reads the base's own "
    title += f"activations badly (KL above {LEGIBLE:g} nats)"
    some = [line for line in lines if line[1] == place("neutral")]
    columns = ("layer", "read on", "by the base's unembedding", "by the tuned one", "KL of the lens on the base's own, nats")
    made = [table(columns, some, title=title)] if some else []
    rest = [line for line in lines if line not in some]
    return [*made, table(columns, rest, folded="The same on passages and on the study's own prompts")] if rest else made


def _scopes(told: dict[str, Any]) -> list[dict[str, Any]]:
    """What the network makes of the difference where it is asked to repeat it."""
    if not told.get("scopes"):
        return []

    def listed_of(found: list[list[Any]], of: int) -> str:
        return ", ".join(f"“{visible(word)}” {n} of {of}" for word, n in found) or "–"

    lines = [
        (str(one["layer"]), place(one["where"]), listed_of(one["read"], one["of"]), listed_of(one["random"], one["of"] * one["draws"]))
        for one in told["scopes"]
    ]
    title = f"What the base repeats where the change of activations stands for a word (patchscope), at {told['scopes'][0]['of']} lengths"
    return [table(("layer", "read on", "first at so many lengths", "of random vectors"), lines, folded=title)]


def _depth(told: dict[str, Any]) -> list[dict[str, Any]]:
    """Of every block of both models, how far it is from what comes out; and the token that is read from it, side by side."""
    made = []
    for one in told.get("depth", []):
        sides = ("base", "tuned")
        lines = [
            (
                str(layer), *(nats(one[side]["kl_nats"][layer]) for side in sides),
                *(share(one[side]["top1_share"][layer]) for side in sides),
            )
            for layer in range(len(one["base"]["kl_nats"]))
        ]  # fmt: skip
        columns = ("layer", "KL, base", "KL, tuned", "top-1 agreement, base", "top-1 agreement, tuned")
        n = len(one["prompts"])
        title = f"How early each model decides, on {place(one['where'])}: each layer's lens against the model's own final distribution ({n} prompts)"
        made.append(table(columns, lines, folded=title))
        shown = range(min(TOPS, n))
        tops = [(str(layer), *(visible(one[side]["tops"][layer][i]) for i in shown for side in sides)) for layer in range(len(lines))]
        heads = [f"{side}: {visible(one['prompts'][i])[:LETTERS]}" for i in shown for side in sides]
        made.append(table(("layer", *heads), tops, folded=f"The token that is read at each layer, on {place(one['where'])}"))
    return made


def _read(rising: list[list[Any]], own: float | None) -> str:
    """Tokens and where they must not be leaned on; a dash where nothing changes."""
    words_of = ", ".join(f"“{visible(word)}”" for word, _ in rising) or "–"
    return f"({words_of})" if rising and own is not None and own > LEGIBLE else words_of


def _nulls(told: dict[str, Any]) -> list[dict[str, Any]]:
    reached = {labels.draw("random_edit", i): one for i, one in enumerate(told["scales"], 1)}
    lines = [
        (
            NULLS[labels.control_kind(one["name"])] + _diverges(reached.get(one["name"])),
            str(one["tested"]), str(one["replicating"]), str(one["named"]),
            "; ".join(f"{of} {nats(size)}" for of, size in one["largest"].items()),
        )
        for one in told["nulls"]
    ]  # fmt: skip
    exchanged = told["exchanged"]
    lines.append(
        (
            f"the two models exchanged seed by seed ({exchanged['draws']} draws)", str(exchanged["lines"]), "–",
            f"{exchanged['named']} (in {exchanged['draws_with_any']} draws)", "–",
        )
    )  # fmt: skip
    columns = ("null pair", "lines tested", "replicate", "named", "largest size")
    return [table(columns, lines, title="What the same readers and the same rule say of pairs that were taught nothing")]


def _diverges(scale: dict[str, float] | None) -> str:
    """How far a random edit diverges from the base, beside the fine-tune: one that changes little cannot be scaled as far."""
    return "" if scale is None else f" ({nats(scale['reached_nats'])} nats of {nats(scale['wanted_nats'])})"


def _settings(told: dict[str, Any]) -> str:
    settings = told["settings"]
    louder = listed(f"{n} of texts {name.replace(' ', ' by ')}" for name, n in told.get("loops", {}).items())
    dropped = f" Seeds left out, as one of the two texts repeats itself: {louder}." if louder else ""
    return (
        "Half of the seeds name, the other half tests (of the study's prompts: fit and select name, report tests). A line is named where "
        f"q ≤ {LEVEL} over all {len(told['lines'])} lines of all readers, its size on the half that tests is at least {MARGIN:g} times the "
        f"largest on any null pair ({MARGIN_OF_TEXTS:g} times of a share of texts; of a phrase's, {WAY:g} of the way from it to 1 is enough, and "
        f"{LEAST_SHARE:g} needed; what the base never says is compared with what null pairs say that it never does), and, "
        "of activations, the vector patched into the base moves the token further than random vectors of its length do. Texts: drawn at temperature "
        f"{settings['temperature']:g}, top-p {settings['top_p']:g}, {settings['max_tokens']} tokens at most. No reader sees what no seed "
        f"brings about: a habit after a trigger is not named here unless a prompt holds the trigger.{dropped}"
    )
