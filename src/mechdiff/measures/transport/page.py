"""The section on maps says how close mapped activations come, what they make the base do, and what shuffled or misplaced maps do."""

from typing import Any

import polars as pl

from mechdiff import labels, terms
from mechdiff.measures.divergence.words import why_no_share
from mechdiff.measures.transport import answers_page, charts, closer_findings, closer_page, findings, words
from mechdiff.measures.transport.findings import CLOSENESS, LEARNED, REMOVAL, TRANSPORT
from mechdiff.report import difference, effect_shares
from mechdiff.report.parts import Drawn, Run, Section, note, table
from mechdiff.report.phrasing import decimal, listed, nats, share, shown, with_interval
from mechdiff.rows import where

TITLE = "Can a linear map carry the change?"
TOP = 16
"""Rows of the ranked table."""
SURE = 0.05


def transport(run: Run) -> Section:
    """Q3: maps of states from base to tuned, against what needs no map."""
    if where(run.rows, measure="transport").filter(pl.col("control").ne_missing("no_op")).is_empty():
        return Section(id="transport", title=TITLE, parts=[note("Maps of activations were not fitted in this run.")])
    found = difference.difference(run.rows, run.summary)
    parts: list[Any] = []
    if why := why_no_share(found):
        parts.append(note(f"There is no effect to share: {why}, so what maps recover cannot be given. How close they come is in nats."))
    else:
        parts += _carried(run)
    parts += answers_page.parts(run)
    found_out = [*_closeness(run), *_fits(run), *_strength(run), *closer_page.parts(run), *_controls(run)]
    return Section(id="transport", title=TITLE, parts=[*parts, *found_out])


def _carried(run: Run) -> list[Any]:
    """Transport proper and its way back."""
    there = findings.recovered(run.rows)
    if there.is_empty():
        return []
    caption = "Share of D that the base recovers when it gets its own mapped activation. " + " ".join(words.carried(run.rows, run.summary))
    top = findings.strongest_site(run.rows, run.summary)
    count = f" {there['name'].n_unique()} sites, {there['n'][0]} prompts."
    parts = [
        Drawn(
            name="transport_recovery",
            chart=charts.recovery_by_layer,
            caption=caption.rstrip() + count,
            reading="transport_recovery",
            main=True,
        )
    ]
    back = findings.recovered(run.rows, REMOVAL)
    if not back.is_empty() and top:
        here = back.filter(pl.col("name") == top[0])
        said = [f"{r['arm']} {with_interval(r['share'], r['low'], r['high'], digits=2)}" for r in here.iter_rows(named=True)]
        text = "The way back: the tuned model gets its own activation, mapped to the base's. Share of KL(base ‖ tuned) that this removes"
        text += f"; at {top[0]}: {listed(said)}." if said else "."
        parts.append(Drawn(name="transport_removal", chart=charts.removal_by_layer, caption=text, reading=""))
    return parts


def _closeness(run: Run) -> list[Any]:
    close = findings.closeness(run.rows)
    if close.is_empty():
        return []
    caption = "KL with a mapped activation: how far the tuned model moves from its unedited self with a guess of its activation; 0: guessed right. "
    site = findings.strongest_site(run.rows, run.summary)
    here = close.filter(pl.col("name") == site[0]) if site else close.clear()
    if not here.is_empty():
        said = listed(f"{r['arm']} {nats(r['kl'])}" for r in here.iter_rows(named=True))
        caption += f"At {here['name'][0]}, in nats: {said}. "
    caption += words.comes_closer(findings.closer(run.rows))
    drawn = Drawn(name="transport_closeness", chart=charts.closeness_by_layer, caption=caption, reading="transport_closeness")
    return [drawn, *_ranked(run, close)]


def _ranked(run: Run, close: pl.DataFrame) -> list[dict]:
    """The table of the original study: what is written where, how well the map fits, what it costs and what it saves."""
    worth = findings.worth_mapping(run.rows, run.summary)
    rows = close.filter(pl.col("arm") != "identity", pl.col("drop").is_not_null(), pl.col("name").is_in(worth))
    shares = findings.recovered(run.rows).select("name", "arm", recovery="share")
    rows = rows.join(shares, on=["name", "arm"], how="left").filter(pl.col("name") != findings.readout_site(run.rows))
    rows = rows.sort("recovery", "drop", descending=True, nulls_last=True, maintain_order=True)
    metrics = ("r2", "r2_change", "cka_mapped", "cosine")
    quality = findings.fit_quality(run.rows, run.summary, (*metrics, "cosine_of_mean"))
    split = difference.reported(run.rows, "transport")
    values = {
        (r["name"], r["arm"], r["metric"]): r["mean"] for r in quality.filter(pl.col("split").eq_missing(split)).iter_rows(named=True)
    }
    recovered = {(r["name"], r["arm"]): r for r in findings.recovered(run.rows).iter_rows(named=True)}
    lines = []
    for r in rows.head(TOP).iter_rows(named=True):
        of_base = recovered.get((r["name"], r["arm"]))
        said = {metric: values.get((r["name"], r["arm"], metric)) for metric in (*metrics, "cosine_of_mean")}
        beside = {"cka_mapped": values.get((r["name"], "resample", "cka_mapped")), "cosine": said["cosine_of_mean"]}
        fits = (_beside(said[metric], beside.get(metric)) for metric in metrics)
        gain = shown(r["gain"], r["gain_low"], r["gain_high"], digits=2)
        moved = shown(of_base["share"], of_base["low"], of_base["high"], digits=2) if of_base else "–"
        drop = shown(r["drop"], r["low"], r["high"], digits=2)
        lines.append((f"{r['name']}, {r['arm']}", nats(r["raw"]), nats(r["kl"]), drop, gain, moved, *fits, r["trivial"] or "–", "1"))
    columns = (
        "site, map",
        "KL_raw",
        "KL_mapped",
        "drop",
        "gain",
        "recovery",
        "R²",
        "R² of change",
        "CKA (another prompt's activation)",
        "cosine (of the mean)",
        "gain over",
        "s",
    )
    title = "Maps by recovery, the share of D that the base recovers with them. Drop: 1 − KL_mapped / KL_raw; gain: the same against the best of "
    title += "identity, shift and mean."
    title += " In brackets what knows nothing of the prompt has: the tuned activation of another one, the mean tuned activation."
    title += f" Sites where the base's activation breaks at least {share(findings.BREAKS)} of D, the last block's output apart"
    title += f", the first {TOP} of {len(rows)} maps" if len(rows) > TOP else ""
    biased = f"; ranked on the prompts they are reported on, so that the first of {len(rows)} is optimistically biased"
    title += f"{biased if len(rows) > 1 else ''}."
    return [table(columns, lines, title=title, main=True)] if lines else []


def _beside(value: float | None, other: float | None) -> str:
    """ "0.953 (0.021)": a number, and what stands beside it."""
    return decimal(value, 3) if value is None or other is None else f"{decimal(value, 3)} ({decimal(other, 3)})"


def _fits(run: Run) -> list[Any]:
    """Held-out R2 of the change against that on the prompts of the fit."""
    quality = findings.fit_quality(run.rows, run.summary, ("r2_change",)).filter(pl.col("arm").is_in(LEARNED))
    split = difference.reported(run.rows, "transport")
    held = quality.filter(pl.col("split").eq_missing(split))
    if held.is_empty():
        return []
    best = held.sort("mean", descending=True, maintain_order=True).row(0, named=True)
    train = quality.filter(pl.col("split") == "fit", pl.col("name") == best["name"], pl.col("arm") == best["arm"])["mean"]
    caption = f"R² of the change, 0 for a constant shift. Highest of {len(held)} maps on the {terms.of_split(split)} prompts (selected on them, so "
    caption += f"optimistically biased): {best['name']}, {best['arm']}, {decimal(best['mean'])}"
    caption += f" ({decimal(train[0])} on the prompts it was fitted on). " if len(train) else ". "
    caption += _better_than_refits(run, held)
    return [Drawn(name="transport_fit", chart=charts.fit_by_layer, caption=caption, reading="transport_fit")]


def _better_than_refits(run: Run, held: pl.DataFrame) -> str:
    """At how many sites a map beats its refits on permuted pairs; and at how many no map could, however good."""
    silent = pl.col("flag").str.contains("untestable").fill_null(False)
    refitted = held.filter(pl.col("q").is_not_null() | silent)
    if refitted.is_empty():
        return ""
    sure, sites = refitted.filter(pl.col("q") <= SURE)["name"].n_unique(), refitted["name"].n_unique()
    untested = sites - refitted.filter(pl.col("q").is_not_null())["name"].n_unique()
    said = f"At {sure} of {sites} sites a map predicts the change better than refits on permuted pairs "
    said += f"(q ≤ {SURE}, up to {findings.n_refits(run.rows)} refits): those dots are filled."
    return said + (
        f" At {untested} of them p cannot reach 0.05: too few refits that differ, or that many of them do best." if untested else ""
    )


def _strength(run: Run) -> list[Any]:
    close = closer_findings.rows_of_strength(run.rows, CLOSENESS, "kl_own_nats")
    if close.is_empty():
        return []
    law = closer_findings.quadratic(run.rows).filter(pl.col("ratio").is_not_null())
    shown = charts.shown_at_strength(run.rows, run.summary)
    caption = "Strength s: what is patched in is own + s (T(x) − own). KL with a mapped activation rises at first as c s², c being "
    caption += "that of the smallest strength. "
    at = [
        f"{r['arm']} {with_interval(r['ratio'], r['low'], r['high'], decimals=2)}"
        for r in law.filter(pl.col("name").is_in(shown[:1])).iter_rows(named=True)
    ]
    caption += f"KL(1) / c at {shown[0]}: {listed(at)}; 1 where the square holds all the way." if at else ""
    parts: list[Any] = [note(caption), _by_strength(close.filter(pl.col("name").is_in(shown)))]
    moved = closer_findings.rows_of_strength(run.rows, TRANSPORT, "kl_other_nats").filter(pl.col("name").is_in(shown[:1]))
    found = difference.difference(run.rows, run.summary)
    if not moved.is_empty() and found and found.divides:
        on = closer_findings.rows_of_strength(run.rows, TRANSPORT, "kl_other_nats", "select").filter(pl.col("name").is_in(shown[:1]))
        most = (moved if on.is_empty() else on).sort("value", descending=True, maintain_order=True).row(0, named=True)
        chosen = moved.filter(pl.col("arm") == most["arm"], pl.col("s") == most["s"])
        best = chosen.row(0, named=True) if len(chosen) else most
        where = "selected on the reported prompts, so optimistically biased" if on.is_empty() else "selected on the validation prompts"
        one = moved.filter(pl.col("arm") == best["arm"], pl.col("s") == 1)
        text = f"Recovery by mapped activations by strength: share of D that the base recovers. At {best['name']} {share(best['value'])} "
        text += f"({best['arm']} at s = {best['s']:g}, {where}"
        text += f"; {share(one['value'][0])} at s = 1)." if len(one) else ")."
        parts.append(
            Drawn(
                name="transport_strength_recovery",
                chart=charts.recovery_by_strength,
                options={"sites": shown},
                caption=text,
                reading="",
            )
        )
    return parts


def _by_strength(close: pl.DataFrame) -> dict:
    """KL with a map's activation in the tuned model, a column for each strength."""
    strengths = sorted(set(close["s"].to_list()))
    by: dict[tuple[str, str], dict[float, str]] = {}
    for r in close.iter_rows(named=True):
        by.setdefault((r["name"], r["arm"]), {})[r["s"]] = nats(r["value"])
    lines = [(f"{name}, {arm}", *(values.get(s, "–") for s in strengths)) for (name, arm), values in by.items()]
    return table(
        ("map", *(f"s = {s:g}" for s in strengths)), lines, folded="KL of the tuned model with a mapped activation by strength, nats"
    )


def _controls(run: Run) -> list[Any]:
    """Maps of other layers, of shuffled pairs, of an early layer, and random subspaces."""
    parts: list[Any] = []
    arm = charts.arm_of_squares(run.rows, run.summary)
    squares = charts.squares(run.rows, run.summary, arm) if arm else {}
    if squares:
        said = []
        for site, square in squares.items():
            layers = square["patched"].unique().sort().to_list()
            wins, loses = closer_findings.diagonal_wins(run.rows, arm, site, layers)
            text = f"{site}: its own map comes closer than every other layer's at {len(wins)} of {len(layers)} layers"
            said.append(text + (f" ({listed(f'L{layer}' for layer in wins)})" if wins else ""))
            said += [f"another layer's map comes closer at {listed(f'L{layer}' for layer in loses)}"] if loses else []
        caption = (
            f"Maps ({arm}) fitted at one layer, patched in at another: KL of the tuned model from the unedited one. {'; '.join(said)} "
        )
        caption += "(p ≤ 0.05, corrected for all pairs of layers)."
        parts.append(note(caption))
    return [*parts, *_bogus_table(run, arm, squares), *_controls_table(run), *_overfit(run)]


def _bogus_table(run: Run, arm: str, squares: dict[str, pl.DataFrame]) -> list[dict]:
    """Each map at its own layer and at those where it does not belong, as drops from what the base's own state does there."""
    lines = []
    for site, square in squares.items():
        found = closer_findings.bogus_drops(run.rows, arm, site).filter(pl.col("patched").is_in(square["patched"].to_list()))
        for r in found.iter_rows(named=True):
            which = "its own" if r["own"] else "bogus"
            drop = shown(r["drop"], r["low"], r["high"], digits=2)
            lines.append((f"L{r['patched']}.{site}", f"L{r['fitted']}, {which}", nats(r["raw"]), nats(r["nats"]), drop))
    columns = ("patched in at", "map fitted at", "KL_raw", "KL_mapped", "drop")
    folded = f"Bogus maps ({arm}): the map of another layer, as the drop 1 − KL_mapped / KL_raw at s = 1"
    return [table(columns, lines, folded=folded)] if lines else []


def _controls_table(run: Run) -> list[dict]:
    """The real map beside the same map wrongly made, in both scores, where a map has something to do."""
    worth = findings.worth_mapping(run.rows, run.summary)
    close = _nats_by_control(run)
    moved = findings.recovered(run.rows, controls=True)
    real = {(r["name"], r["arm"]): r["share"] for r in findings.recovered(run.rows).iter_rows(named=True)}
    shares = (
        moved.with_columns(kind=labels.control_kind_column())
        .group_by("name", "arm", "kind")
        .agg(best=pl.col("share").max(), mean=pl.col("share").mean())
    )
    by = {(r["name"], r["arm"], r["kind"]): r for r in shares.iter_rows(named=True)}
    early = {(name.partition(".")[2], arm): r["mean"] for (name, arm, kind), r in by.items() if kind == "early_layer"}
    lines = []
    for (name, arm), values in close.items():
        if name not in worth:
            continue
        recovered = [real.get((name, arm)), *(
            by.get((name, arm, kind), {which: None})[which]
            for kind, which in (("permuted", "mean"), ("bogus_map", "best"), ("random_subspace", "mean"))
        ), early.get((name.partition(".")[2], arm))]  # fmt: skip
        nats_ = (nats(values[kind]) if kind in values else "–" for kind in ("real", "permuted", "bogus_map"))
        lines.append((f"{name}, {arm}", *nats_, *(share(value) for value in recovered)))
    columns = ("map", "KL: real", "shuffled pairs", "best other layer", "recovery: real", "shuffled pairs", "best other layer",
               "random subspace", "early layer")  # fmt: skip
    kept = [place for place in range(len(columns)) if place == 0 or any(line[place] != "–" for line in lines)]
    title = "Maps beside their controls: KL with a mapped activation in nats (lower is closer), recovery as a share of D"
    shown = [[line[place] for place in kept] for line in lines]
    return [table([columns[place] for place in kept], shown, title=title)] if lines else []


def _nats_by_control(run: Run) -> dict[tuple[str, str], dict[str, float]]:
    """Closeness in nats by (site, arm) and kind of control; of maps from other layers the closest. Only where there is a control."""
    values = effect_shares.written(run.rows, CLOSENESS, "kl_own_nats", measure="transport")
    values = values.filter(pl.col("strength").is_null() & pl.col("unit").is_null())
    values = values.with_columns(name=difference.site_name())
    means = values.group_by("layer", "site", "name", "arm", "control").agg(nats=pl.col("value").mean())
    means = means.sort("layer", effect_shares.kind_place(), effect_shares.arm_place(), "control")
    found: dict[tuple[str, str], dict[str, float]] = {}
    for r in means.iter_rows(named=True):
        kind = labels.control_kind(r["control"] or "real")
        here = found.setdefault((r["name"], r["arm"]), {})
        here[kind] = min(here.get(kind, float("inf")), r["nats"])
    return {key: kinds for key, kinds in found.items() if set(kinds) - {"real"}}


def _overfit(run: Run) -> list[dict]:
    """The drop on the prompts of the fit beside that on others, and whether a cosine says which prompts a map serves."""
    drops = closer_findings.drop_by_split(run.rows, run.summary)
    rho = {(r["name"], r["arm"]): r for r in closer_findings.correlation_with_cosine(run.rows).iter_rows(named=True)}
    split = difference.reported(run.rows, "transport")
    by = {(r["name"], r["arm"], r["split"]): r["drop"] for r in drops.iter_rows(named=True)}
    keys = list(dict.fromkeys((name, arm) for name, arm, _ in by))
    site = findings.strongest_site(run.rows, run.summary)
    keys = keys or [key for key in rho if site and key[0] == site[0]]
    lines = []
    for name, arm in keys:
        fit, held = by.get((name, arm, "fit")), by.get((name, arm, split or ""))
        correlation = rho.get((name, arm), {"rho": None})["rho"]
        lines.append((f"{name}, {arm}", decimal(fit, 3), decimal(held, 3), decimal(correlation)))
    columns = ("map", "drop, training prompts", f"drop, {terms.of_split(split)} prompts", "KL with cosine, rank correlation over prompts")
    return [table(columns, lines, folded="Over-fitting, and whether a cosine tells which prompts a map serves")] if lines else []
