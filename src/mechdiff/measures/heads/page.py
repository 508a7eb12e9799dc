"""The section on heads shows every head of every layer, sets of heads with random sets beside, the network, and what top heads attend to."""

from typing import Any

import polars as pl

from mechdiff import labels
from mechdiff.measures.divergence.words import why_no_share
from mechdiff.measures.heads import both_formulas, charts, coverage, findings, over_answers, patterns, sets
from mechdiff.measures.heads.sets import Game
from mechdiff.measures.heads.words import effective, how_many
from mechdiff.report import difference, phrasing
from mechdiff.report.difference import BREAKAGE, RECOVERY, SAID, WORDS
from mechdiff.report.parts import Drawn, Run, Section, note, table
from mechdiff.report.phrasing import INTERACTION, heads_called, listed, nats, share, shown, with_interval
from mechdiff.rows import where

TITLE = "Which heads carry it?"
TOP = 12
PAIRS = 8
LOOKED = 12
"""Heads and prompts in the table of attention, two rows each."""


def heads(run: Run) -> Section:
    """Q4: heads."""
    if where(run.rows, measure="heads").filter(pl.col("control").ne_missing("no_op")).is_empty():
        return Section(id="heads", title=TITLE, parts=[note("Heads were not swapped in this run.")])
    known = difference.difference(run.rows, run.summary)
    if why := why_no_share(known):
        said = note(f"No effect to explain at the next token: {why}. The values in nats are in summary.parquet.")
        return Section(id="heads", title=TITLE, parts=[said, *over_answers.parts(run)])
    found = findings.map_of_heads(run.rows, run.summary)
    parts: list[Any] = [*_map(run, found), *over_answers.parts(run)]
    for direction in WORDS:
        parts += _sets(run, direction, found)
    parts += [*_arms(run), *_pairs(run), *_network(run), *patterns.parts(run), *_attention(run)]
    return Section(id="heads", title=TITLE, parts=parts)


def _map(run: Run, found: pl.DataFrame) -> list[Any]:
    top = findings.strongest(found, TOP)
    if top.is_empty():
        return []
    n = len(found.filter(pl.col("head").is_not_null(), pl.col("arm") == "contribution").select("layer", "head").unique())
    best = top.row(0, named=True)
    caption = f"{n} heads, each swapped alone, as shares of D. Largest: {best['name']}, "
    caption += (
        listed(f"{SAID[d]} {shown(best[WORDS[d]], best[f'{WORDS[d]}_low'], best[f'{WORDS[d]}_high'], digits=2)}" for d in WORDS) + ". "
    )
    counted = found.filter(pl.col("head").is_not_null(), pl.col("arm") == "contribution", "counts").select("layer", "head").unique()
    caption += f"{n - len(counted)} heads are below 3 × numerical noise in both directions."
    return [Drawn(name="head_effects", chart=charts.head_map, caption=caption, reading="head_effects"), _top(run, found, top)]


def _top(run: Run, found: pl.DataFrame, top: pl.DataFrame) -> dict:
    """The heads of the largest effect: both directions, what their group has, attention."""
    js = findings.attention_js(run.summary)
    per_group = int((run.manifest.get("heads") or {}).get("heads_per_group") or 1)
    groups = findings.groups(found)
    ways = {
        direction: {row["name"]: row for row in findings.way(run.rows, direction).iter_rows(named=True)}
        for direction in (RECOVERY, BREAKAGE)
    }
    along = [direction for direction, known in ways.items() if known]
    lines = []
    for r in top.iter_rows(named=True):
        group = r["head"] // per_group
        of_group = " / ".join(share(groups.get((d, r["layer"], group))) for d in WORDS)
        ends = (shown(r[word], r[f"{word}_low"], r[f"{word}_high"], digits=2) for word in WORDS.values())
        moved = [ways[direction].get(r["name"]) for direction in along]
        way = (shown(one["additive"], one["additive_low"], one["additive_high"], digits=2) if one else "–" for one in moved)
        lines.append(
            (
                _unbroken(r["name"]),
                *way,
                *ends,
                f"{group}: {of_group}" if per_group > 1 else "–",
                nats(js[r["name"]]) if r["name"] in js else "–",
            )
        )
    moves = {RECOVERY: "base moved of the way", BREAKAGE: "tuned model moved"}
    columns = ("head", *(moves[one] for one in along), "KL increase", "recovery", "its group", "attention JS, nats")
    title = f"The {len(lines)} heads of the largest effect: " + "s, the part of the way in logits, which adds; and " * bool(along)
    title += "shares of D" + ", which bend (of a small change s² at least, and 1 − (1 − s)² at most)" * bool(along)
    title += "; beside them all heads of their key-value group (KL increase / recovery)"
    return table(columns, lines, title=title)


def _inside(run: Run, one: Game, found: pl.DataFrame) -> list[dict]:
    """Each head of a closer layer: what it reads, what it writes, and its part in the effect of all."""
    of_kl = sets.game(run.rows, run.summary, one.direction, one.layer)
    shares = sets.head_shares(run.rows, of_kl) if of_kl else None
    if of_kl is None or shares is None:
        return []
    missed = sets.needed(of_kl)
    here = found.filter(pl.col("layer") == one.layer, pl.col("direction") == one.direction)
    arms = {(r["unit"], r["arm"]): share(r["share"]) for r in here.iter_rows(named=True)}
    lines = []
    by = shares.fisher.share if shares.in_logits else shares.shapley.share
    for head in sorted(range(one.n), key=lambda head: -abs(by[head]))[:TOP]:
        split = (arms.get((labels.head_unit(head), arm), "–") for arm in ("contribution", "routing", "write"))
        of_all = (share(v) if v == v else "–" for v in (shares.fisher.share[head], shares.shapley.share[head]))
        lines.append((heads_called(one.layer, [head]), *split, *of_all, share(missed.share[head]) if missed else "–"))
    columns = ("head", "effect / D", "routing / D", "write / D", "Fisher", "Shapley (KL)", "needed (KL)")
    title = f"{_opens(one.direction)} by the heads of L{one.layer}. "
    title += "Fisher (adds), and of KL Shapley values and needed (what is lost without the head): shares of the effect of all"
    return [table(columns, lines, folded=title)]


def _unbroken(text: str) -> str:
    return text.replace(" ", "\u00a0")


def _sets(run: Run, direction: str, found: pl.DataFrame) -> list[Any]:
    """Coverage and single heads at the closer layers, in one direction."""
    layers = findings.closer_layers(run.manifest)
    games = [one for one in (sets.spoken_of(run.rows, run.summary, direction, layer) for layer in layers) if one and one.n > 1]
    nothing = [one for one in games if not one.whole.counts]
    parts: list[Any] = []
    if nothing:
        names = listed(f"L{one.layer}" for one in nothing)
        parts.append(
            note(
                f"{_opens(direction)} at {names}: no effect to explain. All heads together have no effect that differs significantly from 0."
            )
        )
    games = [one for one in games if one.whole.counts]
    if not games:
        return parts
    shown = [one.layer for one in games]
    caption = f"{_opens(direction)} by the first heads of an order, of all of their layer. " + " ".join(
        f"L{one.layer}: {how_many(run.rows, run.summary, one, run.manifest)}{_ninety(one, run)}." for one in games
    )
    options = {"direction": direction, "layers": shown}
    reading = "head_coverage" if direction == BREAKAGE else ""
    parts.append(
        Drawn(
            name=f"head_coverage_{WORDS[direction]}",
            chart=charts.coverage_by_heads,
            options=options,
            caption=caption,
            reading=reading,
        )
    )
    said = []
    for one in games:
        of_kl = sets.game(run.rows, run.summary, direction, one.layer)
        shares = sets.head_shares(run.rows, of_kl) if of_kl else None
        if shares:
            fisher = (
                f"Fisher-projected coverages add up to {shares.fisher_sum:.3f}"
                if shares.fisher_sum == shares.fisher_sum
                else "Fisher undefined"
            )
            said.append(f"L{one.layer}: {effective(shares, one.n)}; {fisher}.")
    if said:
        reading = "head_bars" if direction == BREAKAGE else ""
        parts.append(
            Drawn(
                name=f"head_bars_{WORDS[direction]}",
                chart=charts.single_heads,
                options=options,
                caption=f"{_opens(direction)} by single heads, of all of their layer. {' '.join(said)}",
                reading=reading,
            )
        )
    for one in games:
        order = sets.orders(run.manifest, direction, one.layer or 0).get("greedy") or []
        of_kl = sets.game(run.rows, run.summary, direction, one.layer)
        parts += [*_inside(run, one, found), *(both_formulas.side_by_side(of_kl, order) if of_kl else [])]
    return parts


def _ninety(one: Game, run: Run) -> str:
    """ ", 5 heads 91 % [80, 97]", the first that have 90 % on select; nothing where only all reach that, or the first alone."""
    order = sets.orders(run.manifest, one.direction, one.layer or 0).get("greedy")
    found = sets.half(run.rows, run.summary, one, order, 0.9) if order else None
    if found is None or not 1 < len(found.heads) < one.n:
        return ""
    return f", the first {len(found.heads)} of that order {with_interval(found.share, found.low, found.high, digits=2, coverage=1.0)}"


def _arms(run: Run) -> list[dict]:
    """All heads of each closer layer by what they read, by what they write, by z alone, and mapped."""
    words = {**SAID, "base<-base": "recovery with the base's own, mapped"}
    lines = []
    for r in findings.arms_of_all(run.rows).sort("layer", "direction", maintain_order=True).iter_rows(named=True):
        arm = r["arm"] + (f", s = {r['strength']:g}" if r["strength"] is not None else "") + (f", rank {r['rank']}" if r["rank"] else "")
        lines.append((f"L{r['layer']}", arm, words[r["direction"]], shown(r["share"], r["low"], r["high"], digits=2)))
    title = "All heads of a layer by each condition, as shares of D"
    return [table(("layer", "condition", "direction", "share of D"), lines, folded=title)] if lines else []


def _pairs(run: Run) -> list[dict]:
    """What pairs of top heads do beyond the sum of both."""
    lines, of = [], 0
    for direction in WORDS:
        for layer in findings.closer_layers(run.manifest):
            one = sets.game(run.rows, run.summary, direction, layer)
            order = sets.orders(run.manifest, direction, layer).get("single")
            if one is None or not order or not one.whole.counts:
                continue
            both = sets.both_interactions(run.rows, one, order[:6])
            of += len(both)
            for r in both.head(PAIRS // 2).iter_rows(named=True):
                of_kl = f"{share(r['kl_i'])}, {share(r['kl_j'])}", shown(r["kl"], r["kl_low"], r["kl_high"], digits=2)
                added = f"{share(r['v_i'])}, {share(r['v_j'])}", shown(r["value"], r["low"], r["high"], digits=2)
                lines.append((f"L{layer}H{r['i']}, L{layer}H{r['j']}", SAID[direction], *added, *of_kl))
    columns = ("heads", "direction", "v(i), v(j)", "interaction", "of KL: v(i), v(j)", "of KL: interaction")
    title = f"Interactions of top heads, v(i, j) − v(i) − v(j), as parts of how far all heads of the layer move the logits: {INTERACTION}"
    title += f"; the largest of each layer and direction, {len(lines)} of {of}, so somewhat overstated. " if len(lines) < of else ". "
    title += "Of KL beside it two heads that add seem to need each other, for a divergence grows as a square"
    return [table(columns, lines, folded=title)] if lines else []


def _network(run: Run) -> list[Any]:
    """Coverage by sets of heads, and of heads and MLPs, of all layers."""
    parts: list[Any] = []
    for direction in (BREAKAGE, RECOVERY):
        said = []
        for site, word in (("attn_proj", "heads"), (None, "heads and MLPs")):
            one = sets.spoken_of(run.rows, run.summary, direction, None, site=site)
            orders = sets.network_orders(run.manifest, direction, only_heads=site is not None)
            if one is None or not orders.get("single"):
                continue
            if not one.whole.counts:
                said.append(f"all {word}: no effect to explain")
                continue
            curve, n = sets.network_curve(one, orders["single"]), len(orders["single"])
            k = coverage.first_to(curve["share"].to_numpy(), curve["k"].to_list(), 0.5)
            half = ("the first alone reaches half" if k == 1 else f"the first {k} reach half") if k else "half is not reached"
            does = "of the overlap with the way to the other model" if one.in_logits else "of KL"
            said.append(f"all {n} {word} together {nats(one.whole.mean)} nats {does}; by single effect {half}{_random(one, k)}")
        if said:
            caption = f"{_opens(direction)} across the network: {'; '.join(said)}."
            options, reading = {"direction": direction}, "head_network" if direction == BREAKAGE else ""
            parts.append(
                Drawn(
                    name=f"head_network_{WORDS[direction]}",
                    chart=charts.network_coverage,
                    options=options,
                    caption=caption,
                    reading=reading,
                )
            )
    return parts


def _random(one: Game, k: int | None) -> str:
    band = sets.band(one).filter(pl.col("k") == k) if k else None
    return "" if band is None or band.is_empty() else f" ({k} random: {share(band['low'][0])} to {share(band['high'][0])})"


def _attention(run: Run) -> list[dict]:
    """Where the top heads look at the decision position, in both models: the prompts on which they differ most."""
    said = run.manifest.get("heads") or {}
    looked = sorted(said.get("attention") or [], key=lambda one: -one["js"])
    if not looked:
        return [note(f"Attention was not looked at: {said['attention_refused']}")] if said.get("attention_refused") else []
    lines = []
    seen: dict[str, int] = {}
    for one in looked:
        seen[one["head"]] = seen.get(one["head"], 0) + 1
        if seen[one["head"]] <= 2:
            looks = {
                side: " ".join(f"{phrasing.visible(token)}\u00a0{weight:.2f}" for token, weight in one[side][:3])
                for side in ("base", "tuned")
            }
            lines.append((one["head"], one["prompt"], "base", looks["base"], nats(one["js"])))
            lines.append(("", "", "tuned", looks["tuned"], ""))  # below, not beside: tokens are long, and the two are to be compared
    title = "Where the top heads look from the last prompt token: the tokens of the largest weights (the prompts on which the two models differ most)"
    return [table(("head", "prompt", "model", "looks at", "JS, nats"), lines[: 2 * LOOKED], folded=title)]


def _opens(direction: str) -> str:
    """ "KL increase", "Recovery": what a direction is called at the head of a sentence."""
    return SAID[direction][0].upper() + SAID[direction][1:]
