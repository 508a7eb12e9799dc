"""The verdict's sentences say how many heads carry the change at its strongest layer, beside random ones, and how evenly."""

import polars as pl

from mechdiff.measures.heads import findings, over_answers, sets
from mechdiff.report.difference import BREAKAGE
from mechdiff.report.headlines import Candidate
from mechdiff.report.parts import Run
from mechdiff.report.phrasing import heads_called, level, listed, share, with_interval
from mechdiff.rows import OVERLAP
from mechdiff.statistics import spread


def lead(run: Run) -> list[str]:
    """Which heads carry it."""
    return [*which_heads(run.rows, run.summary, run.manifest), *over_answers.lead(run)]


def clause(run: Run) -> list[Candidate]:
    """The same for the verdict, without what is beside it."""
    return headlines(run.rows, run.summary, run.manifest)


def which_heads(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict) -> list[str]:
    """The strongest layer's heads: what all do together, what a few have of that, beside random ones; "no effect to explain" where there is none."""
    return [f"{one.text[0].upper()}{one.text[1:]}." for one in headlines(rows, summary, manifest, all_of_it=True)]


def headlines(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, *, all_of_it: bool = False) -> list[Candidate]:
    """What may be said of heads: the whole of the strongest layer beside the part that a few of them have; `all_of_it` adds what is beside that."""
    games = [sets.spoken_of(rows, summary, BREAKAGE, layer) for layer in findings.measured_layers(rows, manifest)]
    known = [one for one in games if one is not None]
    if not known:
        return []
    counted = {game.layer: game for game in known if game.whole.counts and game.layer is not None}
    n = len(known[0].whole.values)
    if not counted:
        names = " and ".join(f"L{game.layer}" for game in known)
        return [
            Candidate(
                text=f"heads: no effect to explain at {names}; the effect of patching all of them does not differ significantly from 0", n=n
            )
        ]
    layer, split = findings.strongest_layer(rows, list(counted))
    one = counted[layer]
    way, of_d = findings.of_way(rows, BREAKAGE, layer), findings.of_d(rows, summary, BREAKAGE, layer)
    order = sets.orders(manifest, one.direction, layer).get("greedy") or []
    few = sets.half(rows, summary, one, order) if order else None
    how = _layer_chosen(rows, list(counted), split, all_of_it=all_of_it)
    together = f"of what all {one.n} heads of L{layer}{how} do together{_of_whole(way, of_d, all_of_it=all_of_it)}"
    text = f"{together}, {how_many(rows, summary, one, manifest, all_of_it=all_of_it)}"
    of_kl = sets.game(rows, summary, BREAKAGE, layer) if all_of_it else None
    shares = sets.head_shares(rows, of_kl) if of_kl else None
    return [
        Candidate(
            text=f"{text}{f'; {effective(shares, one.n)}' if shares else ''}",
            n=n,
            whole=next((share[0] for share in (way, of_d) if share), None),
            of="the way in logits" if way else "D",
            tested=bool(few and few.low is not None and few.chosen_on),
            at_budget=few is None and 0 < len(order) < one.n,
        )
    ]


def _of_whole(way: findings.Ends | None, of_d: findings.Ends | None, *, all_of_it: bool) -> str:
    """ " (the base's, patched into the tuned model, move it 65 % [95 % CI: 55, 71] of the way back in logits)", and what that is in KL.

    In KL alone where that way was not measured.
    """
    who = "the base's, patched into the tuned model,"
    if way is None:
        return "" if of_d is None else f" ({who} raise KL by {with_interval(*of_d, digits=2)} of D)"
    bent = (
        f"; in KL, which bends to s² = {share(way[0] ** 2)} at least of a small change, {with_interval(*of_d, digits=2)} of D"
        if of_d
        else ""
    )
    return f" ({who} move it {with_interval(*way, digits=2)} of the way back in logits{bent if all_of_it else ''})"


def _layer_chosen(rows: pl.DataFrame, layers: list[int], split: str | None, *, all_of_it: bool) -> str:
    """ " (the strongest of 3 layers, chosen on select; ...)": nothing where there is one."""
    if len(layers) < 2:
        return ""
    chosen = "chosen on the validation prompts" if split == "select" else "chosen on these prompts, so optimistically biased"
    steady = findings.steadiness(rows, layers) if all_of_it else ""
    return f", the strongest of {len(layers)} layers ({chosen}{steady}),"


def how_many(rows: pl.DataFrame, summary: pl.DataFrame, one: sets.Game, manifest: dict, *, all_of_it: bool = True) -> str:
    """ "heads 5 and 4 have 64 % [95 % CI: 50, 77] (order and number chosen on select; 2 random: 8 % to 14 %; in KL 41 %)".

    Of the tuned model that runs "of the move of the logits by all, wherever it leads" is said: the whole beside it is of the way back alone.
    """
    order = sets.orders(manifest, one.direction, one.layer or 0).get("greedy")
    if not order:
        return "no order of heads was chosen: there were no validation prompts"
    found = sets.half(rows, summary, one, order)
    if found is None:
        return (
            "the first head of the greedy order does not reach half"
            if len(order) == 1
            else f"the first {len(order)} of the greedy order do not reach half"
        )
    k = len(found.heads)
    names = [heads_called(one.layer, [head]) for head in order[:k]]
    words = f"{names[0]} alone has" if k == 1 else f"{listed(names)} have"
    size = with_interval(found.share, found.low, found.high, digits=2, coverage=1.0)
    number = "order and number" if found.chosen_on else "order"
    biased = "" if found.chosen_on else ", number on these prompts, so optimistically biased"
    random = sets.band(one).filter(pl.col("k") == k)
    beside = f"; {k} random: {share(random['low'][0])} to {share(random['high'][0])}" if len(random) and all_of_it else ""
    of_kl = sets.game(rows, summary, one.direction, one.layer) if one.in_logits and all_of_it else None
    bent = _in_kl(of_kl, found.heads) if of_kl else ""
    move = one.in_logits and sets.way_metric(one.direction, one.layer) != OVERLAP
    what = "of the move of the logits by all, wherever it leads; " if move else ""
    return f"{words} {size} ({what}{number} chosen on the validation prompts{biased}{beside}{bent})"


def _in_kl(of_kl: sets.Game, heads: list[int]) -> str:
    """ "; in KL 41 %": coverage by the same heads in KL, of which small parts are less than they are of the way."""
    values = of_kl.value(heads)
    return f"; in KL {share(float(values.mean()) / of_kl.whole.mean)}" if values is not None and of_kl.whole.counts else ""


def effective(shares: sets.Shares, n: int) -> str:
    """ "effective number of heads 6.1 [90 % CI: 4.0, 9.2] of 9 (10 random edits of this size: 8.1 to 8.9; by Shapley values of KL 5.2)"; a
    range to look at, no test."""
    point, low, high = shares.effective
    if shares.silent:
        return f"no number of heads is given ({shares.silent})"
    text = f"effective number of heads {point:.1f} [{level(spread.COVERAGE)}: {low:.1f}, {high:.1f}] of {n}"
    beside = [f"{shares.null[2]} random edits of this size: {shares.null[0]:.1f} to {shares.null[1]:.1f}"] if shares.null else []
    beside += [f"by Shapley values of KL {shares.by_kl[0]:.1f}"] if shares.in_logits else []
    return f"{text} ({'; '.join(beside)})" if beside else text
