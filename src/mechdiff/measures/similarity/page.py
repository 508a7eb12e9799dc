"""The section on similarity shows CKA by layer, and the other measures of how alike the two models' activations are."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from mechdiff import terms
from mechdiff.measures.similarity import charts, findings, words
from mechdiff.report import difference
from mechdiff.report.difference import STREAM
from mechdiff.report.parts import Drawn, Run, Section, note, table
from mechdiff.report.phrasing import listed, shown
from mechdiff.rows import where


def similarity(run: Run) -> Section:
    """Q2, first half: CKA by layer."""
    title = "Where do their activations differ?"
    states = findings.similarity_by_site(run.rows, run.summary).filter(pl.col("cka").is_not_nan())
    if states.is_empty():
        return Section(
            id="similarity", title=title, parts=[note("Similarity was not measured in this run, or is undefined at every site.")]
        )
    lowest = findings.least_similar(run.rows, run.summary)
    assert lowest is not None, "there are activations with a CKA"
    counted = f"{states['n'][0]} prompts" if states["n"][0] else "an unknown number of prompts"
    caption = f"CKA of the two models' activations at {len(states)} sites, {counted}. Lowest at {words.lowest_cka(lowest)}."
    null = findings.null_band(run.rows)
    if not null.is_empty():
        inside = states.filter(pl.col("q") > 0.05)
        draws = null["draws"].to_numpy().min()
        said = (
            "every site lies above what random pairing gives"
            if inside.is_empty()
            else f"{len(inside)} sites cannot be told from random pairing"
        )
        caption += f" Permutation of the prompts, {draws} draws: {said} (q ≤ 0.05)."
    caption += _other_ckas(run, states)
    parts: list[Any] = [Drawn(name="cka_by_layer", chart=charts.cka_by_layer, caption=caption, reading="cka_by_layer")]
    return Section(id="similarity", title=title, parts=[*parts, *_selection(run), *_other_similarities(run, states)])


def _other_ckas(run: Run, states: pl.DataFrame) -> str:
    """Where CKA is another without the three dimensions of largest variance, and after the norm that reads the states."""
    few, normed = _beside(run, states, "cka_without_top3"), _beside(run, states, "cka_normed")
    said = ""
    if not few.is_empty():
        said += _moved(few, "without the three dimensions of largest variance") + " Layers are chosen by the value without them."
    stream = states.filter(pl.col("site").is_in(STREAM))
    if not normed.is_empty():
        said += _moved(normed, "after the norm that reads the residual stream there")
        if unread := len(stream) - len(normed):
            said += f" {unread} sites of the residual stream have no such value: no norm reads them in both models."
    elif not few.is_empty() and not stream.is_empty():
        said += " Nothing is said of CKA after a norm: in one model or both no norm reads the residual stream at these sites."
    return said


def _beside(run: Run, states: pl.DataFrame, metric: str) -> pl.DataFrame:
    """The sites where CKA and another CKA are defined: `name cka other moved`."""
    found = where(run.summary, measure="similarity", metric=metric, control=None)
    found = found.filter(pl.col("unit").is_null(), pl.col("split") == difference.splits(run.rows, "similarity")[0])
    both = states.join(found.select("layer", "site", other="mean"), on=["layer", "site"], maintain_order="left").drop_nulls("other")
    return both.filter(pl.col("other").is_not_nan()).with_columns(moved=(pl.col("cka") - pl.col("other")).abs())


def _moved(both: pl.DataFrame, how: str) -> str:
    """At how many sites the two disagree, and where most."""
    apart = both.filter(pl.col("moved") > DISAGREE)
    if apart.is_empty():
        return f" {how.capitalize()} no site's CKA moves by more than {DISAGREE} ({len(both)} sites)."
    most = apart.sort("moved", descending=True, maintain_order=True).row(0, named=True)
    return (
        f" At {len(apart)} of {len(both)} sites CKA moves by more than {DISAGREE} {how}, most at {most['name']}: "
        f"{most['cka']:.3f}, and {most['other']:.3f} {how}."
    )


DISAGREE = 0.1
"""How far CKA may move without the three dimensions of largest variance, or after the norm, before the page says so."""


def _selection(run: Run) -> list[dict]:
    """Which layers were chosen as hot and as controls, on which prompts."""
    chosen = run.manifest.get("selection") or {}
    hot, control = chosen.get("hot_layers") or [], chosen.get("control_layers") or []
    if not hot and not control:
        return []
    names = " and ".join(
        f"{word} layer{'s' * (len(layers) != 1)} {listed(layers)}" for word, layers in (("selected", hot), ("control", control)) if layers
    )
    said = f"Selected layers, chosen on the {terms.of_split(chosen.get('split', 'select'))} prompts: {names}"
    why = chosen.get("why")
    reasons = "; ".join(f"{layer}: {reason}" for layer, reason in why.items()) if isinstance(why, dict) else why
    return [note(f"{said} ({reasons})." if reasons else f"{said}.")]


def _other_similarities(run: Run, states: pl.DataFrame) -> list[dict]:
    """The other measures of similarity, at hot and control layers."""
    chosen = run.manifest.get("selection") or {}
    marked = dict.fromkeys(chosen.get("control_layers") or [], "control") | dict.fromkeys(chosen.get("hot_layers") or [], "selected")
    if not marked:
        marked = dict.fromkeys(states.sort("cka")["layer"].unique(maintain_order=True).head(3).to_list(), "lowest CKA")
    names = {
        "cka": "CKA",
        "cka_biased": "CKA, biased",
        "cka_without_top3": "CKA without 3 dimensions",
        "cka_normed": "CKA after the norm",
        "participation_ratio_base": "dimensions, base",
        "participation_ratio_tuned": "dimensions, tuned",
        "procrustes_distance": "Procrustes distance",
        "mutual_knn": "shared neighbours",
        "same_basis_change": "change / norm",
    }
    split = difference.splits(run.rows, "similarity")[0]
    wanted = where(run.summary, measure="similarity", control=None, unit=None, layer=list(marked)).filter(pl.col("split") == split)
    values = {(row["layer"], row["site"], row["metric"]): row for row in wanted.iter_rows(named=True)}
    present = [metric for metric in names if any(key[2] == metric for key in values)]
    if present == ["cka"]:
        return []
    order = states.filter(pl.col("layer").is_in(list(marked))).iter_rows(named=True)
    rows = [
        (f"{row['name']} ({marked[row['layer']]})", *(_cell(values.get((row["layer"], row["site"], m))) for m in present)) for row in order
    ]
    return [table(("site", *(names[m] for m in present)), rows, folded="Other measures of similarity, at the selected and control layers")]


def _cell(row: Mapping[str, Any] | None) -> str:
    """A value with its jackknife interval, where it has one."""
    return (
        "–"
        if row is None
        else shown(row["mean"], row["ci_low"], row["ci_high"], row["n"], decimals=3 if row["ci_low"] is not None else None)
    )
