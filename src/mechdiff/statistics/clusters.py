"""Statistics count prompts, or clusters of prompts that say the same thing twice.

Prompts made from one template, or asking one question, share what they show: 32 prompts of 8 templates are nearer to 8 observations than to 32, and
intervals that take them for 32 hold the truth in 64 to 84 % of studies instead of 95 % (docs/NULLS.md). So the prompts of one cluster
(`meta.cluster`, or the same text) become **one unit, with the mean of their values**, before anything is computed: n, intervals, sign and
permutation tests, bands and peaks all count clusters, and each cluster counts once whatever its size (Miller 2024, arXiv 2411.00640; METHOD B18).

    run = parts.load(folder)         run.rows: one row a unit.  run.prompt_rows: one row a prompt, for what shows single prompts

Where every prompt is its own cluster, and in runs that name none, both are the same table, to the bit. A unit has the name of its cluster. Prompts
without a defined value are left out of their cluster's mean. Delete-one values (`cka_without_prompt` and its like) are no values of a prompt: what
leaving out the whole cluster does is, to first order, the sum of what leaving out each of its prompts does. Values of single tokens stay with their
prompts: `statistics` takes their mean over a prompt first.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from mechdiff import labels
from mechdiff.rows import COLUMNS, KEY, WITHOUT

WHOLE = [name for name in KEY if name not in ("prompt", "metric")]
"""What a value of all prompts and its delete-one values have in common."""
Prompts = Sequence[Mapping[str, Any]]
"""Lines of a run's prompts.jsonl: `split id cluster ...`; without `cluster` a prompt is its own."""


def clustered(rows: pl.DataFrame, prompts: Prompts) -> pl.DataFrame:
    """The rows with the prompts of each cluster of two or more made one: the same table where there is no such cluster."""
    names = unit_names(prompts)
    if not names:
        return rows
    units = pl.DataFrame(
        [(split, prompt, unit) for (split, prompt), unit in names.items()], schema=["split", "prompt", "in_cluster"], orient="row"
    )
    joined = rows.join(units, on=["split", "prompt"], how="left", maintain_order="left")
    of_token = labels.is_token()
    together = pl.col("in_cluster").is_not_null() & ~of_token
    members = joined.filter(together)
    alone = joined.filter(~together).select(COLUMNS)
    without = delete_one()
    whole = rows.filter(pl.col("prompt").is_null()).select(*WHOLE, of="metric", whole="value")
    left_out = members.filter(without).with_columns(of=whole_metric())
    left_out = left_out.join(whole, on=[*WHOLE, "of"], how="left", nulls_equal=True, maintain_order="left")
    left_out = left_out.with_columns(value=pl.col("value") - pl.col("whole"))
    key = [name for name in KEY if name != "prompt"]
    moved = left_out.group_by(*key, "in_cluster", maintain_order=True).agg(pl.col("value").sum() + pl.col("whole").first())
    means = members.filter(~without).group_by(*key, "in_cluster", maintain_order=True).agg(_mean())
    found = [part.rename({"in_cluster": "prompt"}).select(COLUMNS) for part in (means, moved)]
    return pl.concat([alone, *found])


def delete_one() -> pl.Expr:
    """Whether a row is a value of all prompts but one."""
    return pl.col("metric").str.ends_with(WITHOUT)


def whole_metric() -> pl.Expr:
    """The metric of all prompts that a delete-one value belongs to."""
    return pl.col("metric").str.strip_suffix(WITHOUT)


def _mean() -> pl.Expr:
    """Over the defined values; NaN where none is."""
    defined = pl.col("value").filter(pl.col("value").is_not_nan())
    return pl.when(defined.len() > 0).then(defined.mean()).otherwise(float("nan")).alias("value")


def n_prompts(manifest: dict, split: str | None, n_units: int) -> int:
    """How many prompts of a split `n_units` stand for: more than these where prompts share a cluster (`parts.manifest_of` says which do)."""
    shared = manifest.get("units", {}).get(split, {})
    return n_units + len(shared) - len(set(shared.values()))


def unit_names(prompts: Prompts) -> dict[tuple[str, str], str]:
    """The unit of each prompt, by split and id, that shares its cluster with another prompt of its split."""
    clusters = {(one["split"], one["id"]): str(one["cluster"]) for one in prompts if one.get("cluster") is not None}
    sizes = Counter((split, cluster) for (split, _), cluster in clusters.items())
    shared = {key: cluster for key, cluster in clusters.items() if sizes[key[0], cluster] > 1}
    alone = {(one["split"], one["id"]) for one in prompts} - set(shared)
    return {key: f"cluster {cluster}" if (key[0], cluster) in alone else cluster for key, cluster in shared.items()}
