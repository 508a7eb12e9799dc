"""Steering in words."""

import polars as pl

from mechdiff.report import findings_steering
from mechdiff.report.phrasing import nats, share, with_interval


def does_it_obey(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict) -> list[str]:
    """The edit of fewest directions with a good part of D and little harm to neutral prompts."""
    allowed = findings_steering.limits(manifest)
    edits = findings_steering.frontier(rows, summary, allowed)
    if edits.filter(pl.col("control").is_null()).is_empty():
        return []
    wanted = share(findings_steering.WANTED)
    bounds = f"{nats(allowed.kl_nats)} nats and a perplexity ratio of {share(allowed.perplexity_ratio)} on neutral prompts"
    best = findings_steering.smallest(edits)
    if best is None:
        return [f"No edit along the change's directions has {wanted} of D within the limits of {bounds}."]
    rank = "one direction is" if best["rank"] == 1 else f"{best['rank']} directions are"
    strength = "" if best["strength"] is None else f" at strength {best['strength']:g}"
    effect = with_interval(best["share"], best["low"], best["high"], digits=2)
    moves = "recovers" if best["direction"].startswith("base") else "moves the tuned model by"
    sentence = f"{rank} enough for {wanted} of D within the limits of {bounds}: {best['edit']} at {best['name']}{strength} {moves} {effect}"
    return [f"{sentence[0].upper()}{sentence[1:]}, side KL {nats(best['side_kl'])} nats."]
