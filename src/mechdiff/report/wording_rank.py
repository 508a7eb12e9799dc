"""The rank of the change in words."""

import polars as pl

from mechdiff.report import findings_rank


def how_many_dimensions(rows: pl.DataFrame, summary: pl.DataFrame) -> list[str]:
    """The rank of the change at the strongest site, and the rank that does nine tenths of what the largest does."""
    one = findings_rank.strongest(rows, summary)
    if one is None or one["rank_chosen"] is None:
        return []
    sentence = f"At {one['name']} the change has rank {one['rank_chosen']}"
    if one["rank_uncentred"] is not None:
        sentence += f" ({one['rank_uncentred']} with the constant shift left in)"
    constant = one["rank_chosen"] == 0 and one["rank_uncentred"]
    return [sentence + (": it is the same on every prompt, as far as regression can tell." if constant else ".")]
