"""Maps of states in words, and the verdict's sentence on maps, rank and steering."""

import polars as pl

from mechdiff.report import findings_rank, findings_steering, findings_transport
from mechdiff.report.phrasing import share, with_interval


def carried(rows: pl.DataFrame, summary: pl.DataFrame) -> list[str]:
    """Whether a map carries the change at the strongest site, beside what needs no map, and whether maps beat a shift anywhere."""
    best = findings_transport.carried(rows, summary)
    if best is None:
        return []
    chosen = f"the {best.arm} map (chosen on the {best.chosen_on} prompts)"
    sentence = f"At {best.name} the base, its own state mapped by {chosen}, recovers {with_interval(best.share, best.low, best.high, digits=3)} of D"
    if best.trivial is not None:
        words = "the mean difference alone" if best.trivial == "shift" else "the mean tuned state"
        sentence += f"; {words} {share(best.trivial_share, 3)}"
    if best.ceiling is not None:
        sentence += f"; the tuned state itself {share(best.ceiling, 3)}"
    return [sentence + ".", *_beaten(rows)]


def _beaten(rows: pl.DataFrame) -> list[str]:
    found = findings_transport.beaten(rows)
    if found is None:
        return []
    where = f"of the {found.sites} sites where the tuned state recovers at least {share(findings_transport.WORTH)}"
    if not found.better:
        return [f"No map beats the best of mean difference and mean state (p ≤ 0.05, all of them together) at any {where}."]
    best = found.best or {}
    gain = with_interval(best["gain"], best["low"], best["high"], digits=2)
    sentence = f"A fitted map beats the best of mean difference and mean state at {found.better} {where}"
    return [
        f"{sentence} (the best map of each is taken, so a little flattered); by most at {best['name']} with {best['arm']}: {gain} of D."
    ]


def can_it_be_carried(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict) -> list[str]:
    """What the best map adds to a constant, the rank of the change, and the smallest edit that has a good part of D and does little harm."""
    said = []
    if best := findings_transport.carried(rows, summary):
        recovers = with_interval(best.share, best.low, best.high, digits=2)
        constant = "the mean difference" if best.trivial == "shift" else "the mean tuned state"
        alone = f" ({constant} alone {share(best.trivial_share, 3)})" if best.trivial else ""
        said.append(f"at {best.name} the base, its own state mapped by {best.arm}, recovers {recovers} of D{alone}")
    one = findings_rank.strongest(rows, summary)
    if one is not None and one["rank_chosen"] is not None:
        there = "there" if best and one["name"] == best.name else f"at {one['name']}"
        said.append(f"the change {there} has rank {one['rank_chosen']}")
    allowed = findings_steering.limits(manifest)
    edits = findings_steering.frontier(rows, summary, allowed)
    if not edits.filter(pl.col("control").is_null()).is_empty():
        smallest, wanted = findings_steering.smallest(edits), share(findings_steering.WANTED)
        if smallest is None:
            said.append(f"no edit along its directions has {wanted} of D without harm to neutral prompts")
        else:
            effect = with_interval(smallest["share"], smallest["low"], smallest["high"], digits=2)
            said.append(
                f"{smallest['edit']} along {smallest['rank']} of its directions at {smallest['name']} has {effect} of D with little harm"
            )
    return said
