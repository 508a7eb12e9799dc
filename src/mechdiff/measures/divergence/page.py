"""The section on divergence says how far apart the two models' predictions lie, prompt by prompt."""

import polars as pl

from mechdiff import terms
from mechdiff.measures.divergence import categories, charts
from mechdiff.measures.divergence.words import counted
from mechdiff.report import difference
from mechdiff.report.parts import Drawn, Run, Section, note, table
from mechdiff.report.phrasing import nats, share, shown, visible, with_interval
from mechdiff.rows import where
from mechdiff.statistics import floors
from mechdiff.statistics.intervals import FEWEST
from mechdiff.statistics.simulated import ENOUGH

LEANS = 1 / 3
"""Of D: a prompt with more moves every share of D so far, if its own share differs."""
TOP_PROMPTS = 5


def divergence(run: Run) -> Section:
    """Q0: D per prompt."""
    title = "How differently do they predict, and at which token?"
    found = difference.difference(run.rows, run.summary)
    if found is None:
        return Section(id="divergence", title=title, parts=[note("Divergence was not measured in this run.")])
    d = difference.d_per_prompt(run.rows)
    mean = with_interval(found.mean, found.low, found.high, coverage=found.coverage)
    caption = f"D on {counted(found, run.manifest)[0]}: mean {mean} nats, median {nats(found.median)}"
    caption += f", from {nats(d['d'][0])} to {nats(d['d'][-1])}."
    infinite = int(d["d"].is_infinite().sum())
    if infinite:
        caption += f" {infinite} prompts with infinite D are not drawn."
    drawn = Drawn(name="d_by_prompt", chart=charts.d_by_prompt, caption=caption, reading="d_by_prompt")
    said = {True: "same", False: "different", None: "not measured"}
    order = [*difference.d_per_prompt(run.prompt_rows).sort("d", descending=True).head(TOP_PROMPTS).iter_rows(named=True)]
    prompts = [(row["prompt"], nats(row["d"]), said[row["same"]]) for row in order]
    return Section(
        id="divergence",
        title=title,
        parts=[
            drawn,
            _divergences(run, found.split),
            *categories.parts(run, found.split),
            *_coverage(run, found.split),
            *_clusters(run, found.split),
            *_weight_of_one(d),
            *_other_splits(run, found.split),
            table(("prompt", "D, nats", "top-1 token"), prompts, folded="The prompts that differ most"),
        ],
    )


SHARES = ("top1_same", "mass_outside", "mass_outside_base")


def _divergences(run: Run, split: str) -> dict:
    names = terms.labels_of(
        terms.METRICS,
        "kl_tuned_base_nats",
        "kl_base_tuned_nats",
        "js_nats",
        "top1_same",
        "kl_shared_nats",
        "kl_shared_base_tuned_nats",
        "mass_outside",
        "mass_outside_base",
        "kl_byte_nats",
    )
    measured = where(run.summary, measure="divergence", control=None, unit=None).filter(pl.col("split") == split)
    by_metric = {row["metric"]: row for row in measured.iter_rows(named=True)}
    rows = [
        (
            words,
            shown(row["mean"], row["ci_low"], row["ci_high"], row["n"], digits=2 if metric in SHARES else None),
            "–" if metric == "top1_same" else shown(row["median"], digits=3 if metric in SHARES else None),
            shown(row["log_mean"] or None, row.get("log_low"), row.get("log_high"), row["n"]),
        )
        for metric, words in names.items()
        if (row := by_metric.get(metric))
    ]
    return table(
        ("over prompts", "mean", "median", "geometric mean"), rows, title=f"How far apart, over the {terms.of_split(split)} prompts"
    )


def _coverage(run: Run, split: str) -> list[dict]:
    """How far the interval of D can be trusted at its skew."""
    cells = where(run.summary, metric=floors.d_metric(run.rows), control=None, unit=None).filter(pl.col("split") == split)
    for one in cells.head(1).iter_rows(named=True):
        if (found := one.get("coverage")) is not None and found < ENOUGH:
            said = f"At the skew of these {one['n']} prompts, intervals of a mean that are called 95 % held the truth in {found:.0%} of simulations; "
            return [note(said + "those of the geometric mean held it in 95 % (docs/STATISTICS.md).")]
    return []


def _weight_of_one(d: pl.DataFrame) -> list[dict]:
    """A share of D is a ratio of means, in which a prompt weighs what its D weighs: said where one prompt weighs more than LEANS."""
    of_each = d.filter(pl.col("d").is_finite()).sort("d", descending=True)
    weight = of_each["d"][0] / of_each["d"].sum() if len(of_each) > 1 and of_each["d"].sum() > 0 else 0.0
    if weight <= LEANS:
        return []
    name, middle = of_each["prompt"][0], float(of_each["d"].to_numpy()[1:].mean())
    said = f"One prompt, {visible(name)}, makes up {share(weight)} of D over all prompts: every share of D leans on it. "
    said += f"Without it D is {nats(middle)} nats."
    return [note(said)]


def _clusters(run: Run, split: str) -> list[dict]:
    """What n counts, where prompts share a cluster."""
    units = run.manifest.get("units", {}).get(split)
    if not units:
        return []
    n = sum(one["split"] == split for one in run.prompts)
    independent = n - len(units) + len(set(units.values()))
    said = (
        f"{n} {terms.of_split(split)} prompts are {independent} independent ones: "
        "those of one cluster (the same meta.cluster, or the same text) count as one, with "
        "the mean of their values, in every n, interval, p and share."
    )
    return [note(said + (f" Of fewer than {FEWEST} there is no bootstrap interval and no test." if independent < FEWEST else ""))]


def _other_splits(run: Run, reported: str) -> list[dict]:
    """D on the splits that nothing is published on: far from the reported one, the prompts are not alike."""
    cells = where(run.summary, metric=floors.d_metric(run.rows), control=None, unit=None)
    cells = cells.filter(pl.col("split").is_not_null() & (pl.col("split") != reported)).sort("split")
    rows = [
        (terms.of_split(r["split"]), str(r["n"]), shown(r["mean"], r["ci_low"], r["ci_high"], r["n"]), nats(r["median"]))
        for r in cells.iter_rows(named=True)
    ]
    return [table(("prompts", "n", "D, nats", "median"), rows, folded="D on the training and validation prompts")] if rows else []
