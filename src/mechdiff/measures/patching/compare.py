"""Where the difference matters is compared between runs."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import polars as pl

from mechdiff.comparison import additive, charts, effects
from mechdiff.comparison.comparable import Loaded
from mechdiff.comparison.compared import Compared, differences, own, said
from mechdiff.comparison.effects import PLAIN, Table
from mechdiff.comparison.profiles import Profile, shares_along
from mechdiff.comparison.quantity import Main, Plain, Quantity, by_divergence, crossing, number
from mechdiff.report.difference import BREAKAGE, RECOVERY, SAID
from mechdiff.report.parts import Drawn, Section, note
from mechdiff.report.phrasing import nats

WRITES = ("attn_out", "mlp_out")
"""What blocks write: the parts that localisation counts."""
STREAM = "resid_post"
SITES = Main(axis="where", name="effective sites", of="parts", noun="effective number of sites", leads=True)
LAYERS = Main(axis="where", name="effective layers", of="parts")
WIDER = Plain(
    says="{high}'s change is spread over more attention and MLP outputs than {low}'s: about {a} against {b}.",
    order="Over how many attention and MLP outputs it is spread",
)
LATER = Plain(
    says="{high}'s change comes later: half of it is recovered at {a}, {low}'s at {b}.", order="At which layer half of it is recovered"
)
DRAWN_PAIRS = 3
"""Pairs of runs whose differences along the layers are drawn."""


def overlaps(run: Loaded, kinds: Sequence[str], direction: str = RECOVERY) -> Table | None:
    """Overlaps of the other model's state, written at each layer's sites of these kinds; names are (layer, site)."""
    return additive.of_parts(run, "patching", direction, pl.col("site").is_in(list(kinds)), pl.col("arm") == "identity", plain=PLAIN)


def patched(run: Loaded, direction: str, kinds: Sequence[str]) -> Table | None:
    """Effects of the same, in nats of KL."""
    return effects.of_parts(run, "patching", direction, pl.col("site").is_in(list(kinds)), pl.col("arm") == "identity", plain=PLAIN)


def quantities(run: Loaded) -> Iterator[Quantity]:
    """Sites and layers that carry it, by shares that add; the same by divergences, at this D; and where half of D is passed."""
    sites, back = overlaps(run, WRITES), overlaps(run, WRITES, BREAKAGE)
    if sites is not None:
        yield replace(number(*SITES.key, sites, null=True), main=SITES, plain=WIDER)
        yield replace(number(*LAYERS.key, additive.summed(sites, lambda name: name[0]), null=True), main=LAYERS)
    if back is not None:
        yield number("where", "effective sites, where the tuned model runs", back)
    for direction, word in SAID.items():
        if (alone := patched(run, direction, WRITES)) is not None:
            yield by_divergence("where", f"effective sites by KL, {word}", alone)
        stream = patched(run, direction, (STREAM,))
        if stream is not None and stream.total.mean() > 0:
            layers = [float(layer) for layer, _ in stream.names]
            half = crossing("where", f"half of D passed, {word}", stream, [*layers, layers[-1] + 1], "layer", threshold=0.5)
            yield replace(half, plain=LATER if direction == RECOVERY else None)


def profiles(runs: Sequence[Loaded]) -> list[Profile]:
    """Every profile along the layers of every run with an effect: what blocks write, then the residual stream."""
    made = (profile(run, kind, direction) for kind in (*WRITES, STREAM) for direction in SAID for run in runs if run.counts)
    return [one for one in made if one is not None]


def profile(run: Loaded, kind: str, direction: str) -> Profile | None:
    """None where it was not measured, or of one prompt."""
    of = patched(run, direction, (kind,))
    return shares_along(run, f"{kind}, {SAID[direction]}", of, [layer for layer, _ in of.names]) if of is not None else None


def axis(of: Compared) -> Section:
    """Profiles along the layers, their differences, and where half of D is passed."""
    title = "Where along the layers?"
    if of.along.is_empty():
        return Section(id="where", title=title, parts=[note("Patching was not measured, or found no effect, in any of these runs.")])
    half = [key for key in of.of_axis("where") if key[1].startswith("half of D")]
    passed = "; ".join(f"{key[1].removeprefix('half of D passed, ')}: {said(of, key)}" for key in half)
    place = "Share of depth" if of.across_bases else "Layer"
    caption = "Shares of D by the site that is patched in, with bands that cover a whole profile with 95 %."
    caption += f" {place} of the residual stream at which half of D is passed: {passed}." if passed else ""
    options: dict[str, Any] = {"table": of.along, "names": of.names, "by_depth": of.across_bases, "title": ": share of D"}
    parts: list[Any] = [Drawn(name="compare_profiles", chart=charts.along, options=options, caption=caption, reading="compare_profiles")]
    parts += _differences(of.apart)
    keys = [key for key in of.of_axis("where") if key not in (SITES.key, LAYERS.key)]
    return Section(id="where", title=title, parts=[*parts, *own(of, keys), *differences(of, keys)])


def _differences(table_of: pl.DataFrame) -> list[Drawn]:
    if table_of.is_empty():
        return []
    table_of = table_of.with_columns(line=pl.format("{} − {}", "line", "against"))
    names = table_of["line"].unique(maintain_order=True).to_list()[:DRAWN_PAIRS]
    drawn = table_of.filter(pl.col("line").is_in(names))
    outputs = drawn.filter(~pl.col("panel").str.starts_with("resid"))
    apart = outputs.filter((pl.col("low") > 0) | (pl.col("high") < 0))
    told = []
    for name in names:
        layers = apart.filter(pl.col("line") == name)
        most = layers.sort(pl.col("value").abs(), descending=True, maintain_order=True).head(1)
        largest = "".join(
            f", most at L{r['layer']} {r['panel']} ({nats(r['value'])}, {nats(r['low'])} to {nats(r['high'])})"
            for r in most.iter_rows(named=True)
        )
        of_line = outputs.filter(pl.col("line") == name)
        told.append(f"{name}: {len(layers)} of {len(of_line)} outputs differ{largest}")
    caption = f"Differences of these shares, with simultaneous 95 % bands. {'; '.join(told)}."
    options = {"table": drawn, "names": names, "zero": True, "title": ": difference"}
    return [Drawn(name="compare_differences", chart=charts.along, options=options, caption=caption, reading="compare_differences")]
