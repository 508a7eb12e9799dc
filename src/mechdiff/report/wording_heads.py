"""What the verdict says of heads: how many carry the change at its strongest layer, beside random ones, and how evenly."""

import polars as pl

from mechdiff.report import coverage, findings_heads
from mechdiff.report.findings import BREAKAGE
from mechdiff.report.findings_heads import WORDS

HALF = 0.5
LEAST = 0.001
"""Per cent under which no digits are given."""


def which_heads(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict) -> list[str]:
    """ "At L26, 3 of 9 heads have half of what all have ..."; "no effect to explain" where all heads together have none."""
    games = [findings_heads.game(rows, summary, BREAKAGE, layer) for layer in findings_heads.closer_layers(manifest)]
    known = [one for one in games if one is not None]
    if not known:
        return []
    counted = {game.layer: game for game in known if game.whole.counts and game.layer is not None}
    if not counted:
        names = " and ".join(f"L{game.layer}" for game in known)
        return [f"Heads: no effect to explain at {names}; what swapping all of them does to the tuned model cannot be told from 0."]
    layer, split = findings_heads.strongest_layer(rows, list(counted))
    one = counted[layer]
    how = f" (the strongest of {len(counted)} layers on these prompts)" if len(counted) > 1 and split != "select" else ""
    sentence = f"Of the {WORDS[BREAKAGE]} by all {one.n} heads of L{layer}{how}, {how_many(one, manifest)}"
    shares = findings_heads.head_shares(rows, one)
    return [f"{sentence}{f'; {effective(shares, one.n)}' if shares else ''}."]


def how_many(one: findings_heads.Game, manifest: dict) -> str:
    """ "3 heads reach half (greedy, chosen on the select prompts; 3 random ones: 8-14 %)"."""
    order = findings_heads.orders(manifest, one.direction, one.layer or 0).get("greedy")
    if not order:
        return "no order of heads was chosen: there were no select prompts"
    curve = findings_heads.curve(one, order)
    k = coverage.first_to(curve["share"].to_numpy(), curve["k"].to_list(), HALF)
    if k is None or k > len(order):  # all heads always reach it, and were not picked
        return f"the first {len(order)} heads of the greedy order do not reach half"
    at = curve.filter(pl.col("k") == k)["share"][0]
    words = f"head {order[0]} alone has" if k == 1 else f"heads {', '.join(map(str, order[: k - 1]))} and {order[k - 1]} have"
    random = findings_heads.band(one).filter(pl.col("k") == k)
    beside = f"; {k} random: {per_cent(random['low'][0])} to {per_cent(random['high'][0])}" if len(random) else ""
    return f"{words} {per_cent(at)} (chosen on the select prompts{beside})"


def effective(shares: findings_heads.Shares, n: int) -> str:
    """ "effective number of heads 6.1 [4.0, 9.2] of 9 (10 random edits of this size: 8.1 to 8.9)"; a range to look at, no test."""
    point, low, high = shares.effective
    if shares.silent:
        return f"no number of heads is given ({shares.silent})"
    text = f"effective number of heads {point:.1f} [{low:.1f}, {high:.1f}] of {n}"
    if not shares.null:
        return text
    least, most, draws = shares.null
    return f"{text} ({draws} random edits of this size: {least:.1f} to {most:.1f})"


def per_cent(value: float) -> str:
    """ "64 %", "0.14 %", "under 0.001 %"."""
    percent = 100 * value
    if 0 < abs(percent) < LEAST:
        return f"under {LEAST:g} %"
    return f"{percent:.0f} %" if abs(percent) >= 10 or percent == 0 else f"{percent:.2g} %"
