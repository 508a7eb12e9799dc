"""The size of the divergence is compared between runs."""

from collections.abc import Iterator

import polars as pl

from mechdiff.comparison.comparable import Loaded
from mechdiff.comparison.compared import Compared, differences, own, said
from mechdiff.comparison.quantity import Plain, Quantity, mean_of
from mechdiff.report import difference, effect_shares
from mechdiff.report.parts import Section
from mechdiff.statistics import spread

MORE = Plain(
    says="{high} changes the next token more than {low}: {a} against {b} nats{times}.", order="How much the next token changes, nats"
)


def quantities(run: Loaded) -> Iterator[Quantity]:
    """D."""
    split = difference.reported(run.content.rows, "divergence")
    d = effect_shares.totals(run.content.rows, split).filter(pl.col("total").is_finite()).sort("prompt")
    if len(d):
        keys = [run.key(split, prompt) for prompt in d["prompt"]]
        estimate = spread.estimate(d["total"].to_numpy()[:, None], mean_of, keys)
        yield Quantity(axis="size", name="D", estimate=estimate, unit="nats", plain=MORE)


def axis(of: Compared) -> Section:
    """D of each."""
    told = said(of, ("size", "D"))
    keys = of.of_axis("size")
    return Section(
        id="size",
        title="How large is each change?",
        parts=[{"kind": "note", "text": f"D = KL(tuned ‖ base), in nats: {told}."}, *own(of, keys), *differences(of, keys)],
    )
