"""How much the activations changed, layer by layer."""

import polars as pl

from mechdiff.measures.similarity import findings
from mechdiff.report.overview.strips import Strip
from mechdiff.report.parts import Run

ROWS = {"resid_post": "stream", "attn_out": "attention", "mlp_out": "MLP"}


def strips(run: Run) -> list[Strip]:
    """1 - CKA of the residual stream, and of each block's outputs."""
    found = findings.similarity_by_site(run.rows, run.summary).filter(pl.col("cka").is_not_nan())
    changed = found.with_columns(low=1 - pl.col("high"), high=1 - pl.col("low"), changed=(1 - pl.col("cka")).clip(lower_bound=0))
    return [made for place, site in enumerate(ROWS) if (made := _strip(changed.filter(pl.col("site") == site), ROWS[site], place))]


def _strip(here: pl.DataFrame, name: str, place: int) -> Strip | None:
    if here.is_empty():
        return None
    columns = {column: dict(here.select("layer", pl.col(column).clip(lower_bound=0)).iter_rows()) for column in ("changed", "low", "high")}
    return Strip(
        group="Activations changed", number="1 − CKA", name=name, values=columns["changed"], low=columns["low"], high=columns["high"],
        n=here["n"][0], place=2 + place / 10, whole=False,
    )  # fmt: skip
