"""The section on patching says where the difference between the two models matters."""

from typing import Any

import polars as pl
from scipy.stats import spearmanr

from mechdiff import terms
from mechdiff.measures.divergence.words import why_no_share
from mechdiff.measures.patching import answers, asymmetry, charts, findings, pairs, positions_page
from mechdiff.measures.patching.explorer import explorer
from mechdiff.measures.patching.words import is_it_where_similarity_is_lowest
from mechdiff.measures.similarity import findings as similarity_findings
from mechdiff.report import difference
from mechdiff.report.difference import BREAKAGE, RECOVERY, STREAM
from mechdiff.report.parts import Drawn, Run, Section, note, table
from mechdiff.report.phrasing import decimal, listed, nats, share, shown, with_interval
from mechdiff.statistics import floors

ARMS = terms.labels_of(terms.CONDITIONS)
TOP_SITES = 10


def patching(run: Run) -> Section:
    """Q2, second half: the causal map, wider writes, the arms."""
    title = "Where does the difference matter?"
    shares = findings.site_shares(run.rows, run.summary)
    if shares.is_empty():
        return Section(id="patching", title=title, parts=[note("Patching was not measured in this run.")])
    if shares["share"].drop_nulls().is_empty():
        why = why_no_share(difference.difference(run.rows, run.summary)) or "D is not above 0, or not finite"
        said = note(f"No share of D can be given: {why}. The values in nats are in summary.parquet.")
        return Section(id="patching", title=title, parts=[said, *answers.parts(run), *_kl_by_layer(run)])
    ranked, _ = findings.ranked_outputs(run.rows, run.summary)
    quiet = shares.filter(~pl.col("counts"))
    reading = "causal_map"
    caption = f"Share of D by layer and site, {shares['layer'].n_unique()} layers. {_strongest(shares)} {_peaks(run)}"
    caption += (
        f"{len(quiet)} of {len(shares)} cells are below 3 × numerical noise." if len(quiet) else "No cell lies below 3 × numerical noise."
    )
    parts: list[Any] = [Drawn(name="causal_map", chart=charts.causal_map, caption=caption, reading=reading, main=True)]
    parts += [closer] if (closer := explorer(run)) else []
    parts += [*answers.parts(run), *positions_page.parts(run)]
    parts.append(_top_sites(run, ranked))
    for unit in findings.units(run.rows):
        wider = findings.site_shares(run.rows, run.summary, unit=unit)
        name = "causal_map_" + "".join(letter if letter.isalnum() else "_" for letter in unit)
        text = f"The same with wider patches: {unit}. {_strongest(wider)}"
        parts.append(Drawn(name=name, chart=charts.causal_map, options={"unit": unit}, caption=text, reading=""))
    parts += [*pairs.parts(run), *_kl_by_layer(run), *_arms(run, ranked), *asymmetry.parts(run)]
    return Section(id="patching", title=title, parts=parts)


def _kl_by_layer(run: Run) -> list[Drawn]:
    """The same in nats, both directions, each held against its own running model."""
    found = charts.cells(run.rows, run.summary)
    if found.is_empty():
        return []
    said = []
    for direction, words in ((BREAKAGE, "the tuned model is moved"), (RECOVERY, "the base is moved")):
        of_stream = found.filter(pl.col("panel") == direction).sort("value", descending=True, maintain_order=True)
        for top in of_stream.head(1).iter_rows(named=True):
            said.append(f"{words} furthest at L{top['layer']}.{top['line']}, {with_interval(top['value'], top['low'], top['high'])} nats")
    caption = f"How far each patch moves the model that runs, in nats: {listed(said)}."
    return [Drawn(name="kl_by_layer", chart=charts.kl_by_layer, caption=caption, reading="kl_by_layer")]


def _strongest(shares: pl.DataFrame) -> str:
    """The largest share outside the residual stream, by direction."""
    said = []
    for direction, word in difference.SAID.items():
        single = shares.filter(pl.col("direction") == direction, pl.col("share").is_not_null())
        outputs = single.filter(~pl.col("site").is_in(STREAM))
        best = (single if outputs.is_empty() else outputs).sort("share", descending=True, maintain_order=True).head(1)
        for row in best.iter_rows(named=True):
            said.append(f"{word} {share(row['share'])} at L{row['layer']}.{row['site']}")
    return f"Largest outside the residual stream: {listed(said)}." if said else ""


def _peaks(run: Run) -> str:
    """The outputs among which the strongest lies, by direction."""
    found = {word: findings.peak(run.rows, direction) for direction, word in difference.SAID.items()}
    said = [f"{word} {listed(one[1][:4])}{f' and {len(one[1]) - 4} more' * (len(one[1]) > 4)}" for word, one in found.items() if one]
    return f"The strongest output lies, with 95 %, among: {'; '.join(said)}. " if said else ""


def _top_sites(run: Run, ranked: pl.DataFrame) -> dict:
    cka = {row["name"]: row for row in similarity_findings.similarity_by_site(run.rows, run.summary).iter_rows(named=True)}
    rows = []
    felt = ranked.filter(pl.max_horizontal(pl.col("^(breakage|recovery)$").abs()) >= 0.005)
    for row in felt.head(TOP_SITES).iter_rows(named=True):
        similar = cka.get(row["name"], {"cka": None, "low": None, "high": None})
        both = (shown(row[word], row[f"{word}_low"], row[f"{word}_high"], digits=3) for word in ("breakage", "recovery"))
        of_cka = shown(similar["cka"], similar["low"], similar["high"], decimals=3)
        rows.append((row["name"], *_way(run, row["name"]), *both, of_cka))
    along = [text for model in ("base", "tuned model") for text in (f"{model} moved of the way", BENT[model])] * bool(_way(run, ""))
    columns = ("site", *along, "KL increase", "recovery", "CKA")
    left = len(ranked) - len(rows)
    title = "The strongest single sites (shares of D)" if not along else WAY
    return table(columns, rows, title=f"{title}; {left} others are weaker" if left else title, main=True)


WAY = (
    "The strongest single sites: s, the part of the way between the two models' logits, which adds over sites that do not meet; and shares of D, "
    "which bend: of a small change KL increase is s² at least, recovery 1 − (1 − s)² at most"
)
BENT = {"base": "1 − (1 − s)²", "tuned model": "s²"}


def _way(run: Run, name: str) -> list[str]:
    """How far the patch at a site moves each model on the way to the other's logits, with its interval, and what BENT is of it.

    Nothing where no overlap was measured at any site.
    """
    ways = [(findings.way(run.rows, RECOVERY), lambda s: 1 - (1 - s) ** 2), (findings.way(run.rows, BREAKAGE), lambda s: s**2)]
    if all(found.is_empty() for found, _ in ways):
        return []
    cells = []
    for found, bent in ways:
        one = next(found.filter(pl.col("name") == name).iter_rows(named=True), None)
        ends = [one[f"additive{end}"] for end in ("", "_low", "_high")] if one else []
        cells += [shown(*ends, digits=3), share(bent(one["additive"]), 3)] if one else ["–", "–"]
    return cells


def _arms(run: Run, ranked: pl.DataFrame) -> list[Any]:
    """The arms by layer, and in numbers at the strongest site."""
    if ranked.is_empty():
        return []
    top = ranked.row(0, named=True)
    here = findings.site_cells(run.rows, run.summary, layer=top["layer"], site=top["site"])
    metrics = {direction: floors.effect_metric(run.rows, direction) for direction in (BREAKAGE, RECOVERY)}
    cells_of = (here.filter(pl.col("direction") == direction, pl.col("metric") == metric) for direction, metric in metrics.items())
    own, gained = ({row["arm"]: row for row in cells.iter_rows(named=True)} for cells in cells_of)
    if not own:
        return []
    rows = []
    for arm, words in ARMS.items():
        if arm not in own:
            continue
        row, other = own[arm], gained.get(arm, {"share": None})
        cells = (shown(row["mean"], row["ci_low"], row["ci_high"], row["n"]), share(row["drop"], 3), share(other["share"], 3))
        rows.append((f"{arm}: {words}", *cells))
    columns = ("what is patched in", "KL in tuned, nats", "drop", "recovery in base")
    stream = next((site for site in reversed(STREAM) if site in run.summary["site"].drop_nulls().unique().to_list()), None)
    sites = [site for site in (stream, top["site"]) if site]
    drawn = Drawn(
        name="arms_by_layer",
        chart=charts.arms_by_layer,
        options={"sites": sites},
        caption=_arms_caption(own, top["name"]),
        reading="arms_by_layer",
    )
    return [drawn, table(columns, rows, title=f"What is patched in at {top['name']}")] if len(own) > 1 else []


def _arms_caption(own: dict[str, dict], name: str) -> str:
    """Identity against the trivial guesses, at the strongest site."""
    said = [f"{ARMS[arm]} {nats(own[arm]['mean'])}" for arm in ARMS if arm in own and arm != "oracle"]
    caption = f"KL of the edited tuned model from the unedited one, by layer and way of guessing its activation. At {name}, in nats: {listed(said)}."
    floor = own["identity"]["floor"] if "identity" in own else None
    return caption + (f" The numerical noise is {nats(floor)} nats." if floor else "")


def agreement(run: Run) -> Section:
    """CKA against effect."""
    title = "Does similarity say where it matters?"
    points = findings.similarity_against_effect(run.rows, run.summary)
    if points.is_empty():
        missing = note("This needs similarity and patching at the same sites, and an effect to share.")
        return Section(id="patching.agreement", title=title, parts=[missing], place=13)
    caption = f"{len(points)} sites: CKA against {difference.SAID[points['direction'][0]]}."
    for name, part in (
        ("outputs of attention and MLPs", ~pl.col("site").is_in(STREAM)),
        ("the residual stream", pl.col("site").is_in(STREAM)),
    ):
        chosen = points.filter(part).with_columns(pl.col("cka", "share").round(4))  # rounding noise must not be ranked
        if chosen["cka"].n_unique() > 2 and chosen["share"].n_unique() > 2:
            rho = float(spearmanr(chosen["cka"].to_numpy(), chosen["share"].to_numpy()).statistic)
            caption += f" Rank correlation over {len(chosen)} {'sites of ' if name.startswith('the') else ''}{name}: {decimal(rho)}."
    piled = points.filter(pl.col("cka") > 0.9995, pl.col("share").abs() < 0.005)
    if len(piled) > 1:
        caption += f" {len(piled)} sites lie on top of one another at CKA 1, share 0."
    drawn = Drawn(name="cka_against_effect", chart=charts.cka_against_effect, caption=caption, reading="cka_against_effect")
    lead = is_it_where_similarity_is_lowest(run.rows, run.summary)
    return Section(id="patching.agreement", title=title, parts=[drawn], lead=lead, place=13)
