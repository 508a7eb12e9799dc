"""What copied weights of each block's attention and MLP do in the base, layer by layer; and which module does most, for a reader who has a minute."""

import polars as pl

from mechdiff.measures.grafting import findings
from mechdiff.report import difference
from mechdiff.report.headlines import Candidate, Number, told
from mechdiff.report.overview.strips import Strip
from mechdiff.report.parts import Run
from mechdiff.report.phrasing import share

MODULES = {"attn": "attention", "mlp": "MLP"}
LEAST = 0.2
"""Part of the change from which a module is worth a sentence."""


def where(run: Run) -> list[Candidate]:
    """The module whose copied weights recover most, where that is a fifth of the change or more."""
    alone, ranking = findings.ranked(run.rows)
    if alone.is_empty():
        return []
    top = alone.row(0, named=True)
    name = f"layer {top['layer']}'s {MODULES[top['site']]}" if top["site"] in MODULES and top["layer"] is not None else top["name"]
    part = Number(shown=share(top["share"]), value=top["share"], of=f"part of the change (KL) that {top['name']}'s copied weights alone recover",
                  n=top["n"], low=top["low"], high=top["high"])  # fmt: skip
    own = "" if ranking != difference.reported(run.rows, "grafting") else "The module was chosen on the prompts that it is reported on."
    return [
        told(
            f"Strongest weights: {name}, ",
            part,
            ".",
            n=top["n"],
            whole=top["share"],
            of="the change",
            tested=(top["low"] or 0) > 0,
            caveat=own,
        )
    ]


def strips(run: Run) -> list[Strip]:
    """What is recovered where one module's tuned weights are copied into the base."""
    alone = findings.shares(run.rows, "alone")
    made = []
    for place, (site, name) in enumerate(MODULES.items()):
        here = alone.filter(pl.col("site") == site, pl.col("layer").is_not_null())
        columns = {column: dict(here.select("layer", column).iter_rows()) for column in ("share", "low", "high")}
        n = here["n"][0] if len(here) else None
        made.append(
            Strip(group="Weights copied into the base", number="part of the change recovered", name=name, values=columns["share"], low=columns["low"],
                  high=columns["high"], n=n, place=5 + place / 10)
        )  # fmt: skip
    return [strip for strip in made if strip.values]
