"""Where there is nothing to find, tests find it no more often than they say, and intervals hold the truth (METHOD C: P20)."""

from collections.abc import Iterator

from mechdiff.validate import nulls
from mechdiff.validate.checks import Check, above, at_most, near
from mechdiff.validate.planted import Bench

REPEATS, COSTLY = 200, 100
"""Simulated studies; `make validate-long` takes many more."""


def p20(bench: Bench) -> Iterator[Check]:
    """Null pairs: other prompts for each model, exchanged labels, runs of one law, values of a known mean."""
    for rate in nulls.rates(REPEATS, COSTLY):
        what = f"{rate.kind}: {rate.what}"
        if rate.kind == "false alarms":
            yield at_most(what, rate.found, rate.most)
        elif rate.least == rate.most:
            yield near(what, rate.found, rate.least, 0.0)
        elif rate.most < 1:
            yield near(what, rate.found, (rate.least + rate.most) / 2, (rate.most - rate.least) / 2)
        else:
            yield above(what, rate.found, rate.least)
