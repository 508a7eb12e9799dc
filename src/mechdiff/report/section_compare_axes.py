"""The other sections of a comparison: weights, maps of states, rank, heads, behaviour."""

from typing import Any

import polars as pl

from mechdiff.report import charts_compare, findings_heads, findings_rank, profiles
from mechdiff.report.compared import Compared, differences, forest, own, said
from mechdiff.report.contrasts import HEADS, WEIGHT_RANK
from mechdiff.report.findings import BREAKAGE
from mechdiff.report.findings_compare import MODULES as GREEDY
from mechdiff.report.findings_compare import rank_curve
from mechdiff.report.findings_grafting import WANTED
from mechdiff.report.parts import Drawn, Section
from mechdiff.report.profiles import shares_along
from mechdiff.report.section_compare import lacking

FAVOURITES = ("refusal log-probability margin", "choice margin")


def weights(of: Compared) -> Section:
    """How much of the network changed, and how many modules it takes."""
    keys = of.of_axis("weights")
    sizes = profiles.weights_along(of.runs)
    caption = f"Size of each block's change against its weights, exact. Tensors changed: {said(of, ('weights', 'tensors changed'))}. "
    greedy = said(of, ("weights", GREEDY))
    caption += f"Modules for {WANTED} of D, added greedily: {greedy}." if greedy else ""
    options = {"table": sizes, "names": of.names}
    drawn = Drawn(name="compare_weights", chart=charts_compare.sizes, options=options, caption=caption, reading="compare_weights")
    parts = [drawn] if not sizes.is_empty() else []
    return Section(
        id="weights",
        title="Which weights?",
        parts=[*parts, *own(of, keys), *differences(of, keys), *lacking(of, "weights", "weights or grafts")],
    )


def transport(of: Compared) -> Section:
    """Can a map carry each of them?"""
    keys = of.of_axis("transport")
    along = profiles.maps_along(of.runs)
    caption = (
        f"What the best map of each run recovers when the base writes its own mapped state. At each run's strongest site: {said(of, keys[0])}."
        if keys
        else ""
    )
    options = {"table": along, "names": of.names, "title": ": share of D recovered by the best map"}
    drawn = Drawn(name="compare_transport", chart=charts_compare.along, options=options, caption=caption, reading="compare_transport")
    parts = [drawn] if keys and not along.is_empty() else []
    return Section(
        id="transport",
        title="Can a linear map carry it?",
        parts=[*parts, *own(of, keys), *differences(of, keys), *lacking(of, "transport", "maps")],
    )


def rank(of: Compared) -> Section:
    """How many dimensions has each?"""
    keys = of.of_axis("rank")
    cut = profiles.truncated_along(of.runs)
    curves = [cut.with_columns(panel=pl.lit("Share of D: weights cut to k directions"))] if not cut.is_empty() else []
    curves += _state_curves(of)
    table = pl.concat([part.select("panel", "line", "rank", "value", "low", "high") for part in curves]) if curves else pl.DataFrame()
    told = said(of, WEIGHT_RANK)
    caption = "What the first k directions of each change recover: of every module's weights at once, of the activations at one site. "
    caption += f"Participation ratio of what the directions of the weights' change gain, in a module: {told}." if told else ""
    options = {"table": table, "names": of.names, "title": "directions kept"}
    drawn = Drawn(name="compare_ranks", chart=charts_compare.by_rank, options=options, caption=caption, reading="compare_ranks")
    parts: list[Any] = [drawn] if not table.is_empty() else []
    return Section(
        id="rank", title="How many dimensions?", parts=[*parts, *own(of, keys), *differences(of, keys), *lacking(of, "rank", "ranks")]
    )


def _state_curves(of: Compared) -> list[pl.DataFrame]:
    """What maps of each rank recover, at each run's strongest site that has them."""
    parts = []
    for run in of.runs:
        site = next(iter(findings_rank.curve_sites(run.content.rows, run.content.summary)), "") if run.counts else ""
        curve = rank_curve(run, site) if site else None
        if curve is None:
            continue
        shares = shares_along(run, "Share of D: maps of the states", curve, [int(k) for k in curve.names])
        if shares is not None:
            parts.append(profiles.along([shares]).with_columns(rank="layer"))
    return parts


def heads(of: Compared) -> Section:
    """Do a few heads carry it?"""
    keys = of.of_axis("heads")
    parts: list[Any] = []
    curves = [made for run in of.runs if run.counts and (made := _coverage(run)) is not None]
    if curves:
        caption = (
            "Coverage of the strongest layer's effect by the first k of its heads, in the order that each run chose on its select prompts. "
        )
        told = said(of, HEADS)
        caption += f"Effective heads of the whole network, each alone: {told}." if told else ""
        options = {"table": pl.concat(curves), "names": of.names, "title": "heads in the set"}
        parts.append(Drawn(name="compare_heads", chart=charts_compare.by_rank, options=options, caption=caption, reading="compare_heads"))
    return Section(
        id="heads", title="Do a few heads carry it?", parts=[*parts, *own(of, keys), *differences(of, keys), *lacking(of, "heads", "heads")]
    )


def _coverage(run: Any) -> pl.DataFrame | None:
    """`panel line rank value low high` of one run's strongest layer."""
    rows, summary, manifest = run.content.rows, run.content.summary, run.content.manifest
    games = {layer: findings_heads.game(rows, summary, BREAKAGE, layer) for layer in findings_heads.closer_layers(manifest)}
    known = [layer for layer, one in games.items() if one and one.n > 1 and one.whole.counts]
    if not known:
        return None
    layer, _ = findings_heads.strongest_layer(rows, known)
    order, game = next(iter(findings_heads.orders(manifest, BREAKAGE, layer).values()), []), games[layer]
    assert game is not None
    curve = findings_heads.curve(game, order).select("low", "high", rank="k", value="share")
    return curve.with_columns(panel=pl.lit("Share of what all heads break"), line=pl.lit(run.name)).select(
        "panel", "line", "rank", "value", "low", "high"
    )


def behaviour(of: Compared) -> Section:
    """What each changed in what the models do."""
    keys = of.of_axis("behaviour")
    shown = [key for key in keys if key[1].startswith(FAVOURITES) and all(of.one(name, key) for name in of.names)]
    parts: list[Any] = []
    if shown:
        caption = f"Change from base to tuned, the mean over prompts with its 95 % interval. {shown[0][1]}: {said(of, shown[0])}."
        options = {"table": forest(of, shown), "names": of.names, "log": False, "title": "tuned − base, nats"}
        parts.append(
            Drawn(name="compare_behaviour", chart=charts_compare.numbers, options=options, caption=caption, reading="compare_behaviour")
        )
    title = "Change from base to tuned (95 %); below it both means"
    folded = f"All changes in behaviour ({len(keys)})" if len(keys) > 12 else ""
    return Section(
        id="behaviour",
        title="What did each change in behaviour?",
        parts=[
            *parts,
            *own(of, keys, title="" if folded else title, folded=folded),
            *differences(of, keys),
            *lacking(of, "behaviour", "behaviour"),
        ],
    )


def size(of: Compared) -> Section:
    """D of each."""
    told = said(of, ("size", "D"))
    keys = of.of_axis("size")
    return Section(
        id="size",
        title="How large is each change?",
        parts=[{"kind": "note", "text": f"D = KL(tuned ‖ base), in nats: {told}."}, *own(of, keys), *differences(of, keys)],
    )
