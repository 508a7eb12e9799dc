"""What the command line prints: a plan, a check, a finished run, as rich tables."""

from typing import TYPE_CHECKING, Any

import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from mechdiff.api import Run
    from mechdiff.study.config import StudyConfig


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, header_style="dim", pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    return table


def _bytes(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


# ---- a finished run ----------------------------------------------------------------------------------------------------------------


def show_run(run: "Run", console: Console) -> None:
    """The pair, what was found in sentences, D, the strongest places of both directions, what was skipped, and the warnings."""
    from mechdiff.report.statistics import d_metric
    from mechdiff.report.wording import verdict

    manifest, summary = run.manifest(), run.summary()
    console.print(f"[bold]{escape(manifest['pair']['base']['ref'])}[/]  ->  [bold]{escape(manifest['pair']['tuned']['ref'])}[/]")
    for sentence in verdict(run.rows(), summary, manifest):
        console.print(f"- {escape(sentence)}")
    table = _table(
        "How differently do they speak?  D = KL(tuned || base), nats", "split", "prompts", "mean", "95 %", "median", "same first choice"
    )
    plain = summary.filter(pl.col("control").is_null())
    for split in ("fit", "select", "report"):
        found = plain.filter((pl.col("measure") == "divergence") & (pl.col("split") == split) & pl.col("unit").is_null())
        d, same = (found.filter(pl.col("metric") == metric) for metric in (d_metric(summary), "top1_same"))
        if len(d):
            one = d.row(0, named=True)
            share = f"{same['mean'][0]:.0%}" if len(same) else ""
            table.add_row(split, str(one["n"]), f"{one['mean']:.4g}", _interval(one), f"{one['median']:.4g}", share)
    console.print(table)
    for direction, metric, words in (
        ("tuned<-base", "kl_own_nats", "Breakage: the base's state in the tuned model, share of D"),
        ("base<-tuned", "kl_other_nats", "Recovery: the tuned state in the base, share of D"),
    ):
        _show_strongest(plain, direction, metric, words, console)
    for skipped in manifest["skipped"]:
        console.print(f"[yellow]skipped[/] {escape(skipped['what'])}: {escape(skipped['why'])}")
    for warning in manifest["warnings"]:
        console.print(f"[yellow]warning[/] {escape(warning)}")


def _interval(one: dict[str, Any]) -> str:
    return "" if one["ci_low"] is None else f"{one['ci_low']:.4g} to {one['ci_high']:.4g}"


def _show_strongest(summary: pl.DataFrame, direction: str, metric: str, words: str, console: Console) -> None:
    found = summary.filter(
        (pl.col("measure") == "patching") & (pl.col("direction") == direction) & (pl.col("metric") == metric) & (pl.col("split") == "report")
        & (pl.col("arm") == "identity") & pl.col("unit").is_null() & pl.col("share").is_not_null()
    )  # fmt: skip
    if not len(found):
        return
    table = _table(words, "site", "share of D", "KL, nats", "95 %")
    for kinds in (("attn_out", "mlp_out"), ("resid_pre", "resid_mid", "resid_post")):
        for one in found.filter(pl.col("site").is_in(kinds)).sort("share", descending=True).head(4).iter_rows(named=True):
            table.add_row(f"L{one['layer']}.{one['site']}", f"{one['share']:.1%}", f"{one['mean']:.4g}", _interval(one))
    console.print(table)


# ---- a plan ------------------------------------------------------------------------------------------------------------------------


def show_plan(study: "StudyConfig", max_rows: int | None, console: Console) -> None:
    """Cells by measure, memory, and time on this machine's processor; models that are not here are planned from the study's `shape`."""
    from mechdiff.study.estimate import estimate

    found = estimate(study, max_rows)
    table = _table("cells", "stage", "cells", "counterfactual runs", "TFLOP", "seconds")
    for stage, (cells, runs, flops, seconds) in found.stages.items():
        table.add_row(stage, str(cells), f"{runs:,}" if runs else "", f"{flops / 1e12:.2f}", f"{seconds:.0f}")
    console.print(table)
    console.print(f"prompts   {', '.join(f'{split} {n}' for split, n in found.prompts.items())}   ({found.tokens_from})")
    console.print(f"sizes     {found.sizes_from}")
    console.print(f"memory    {_bytes(found.memory)} with both models, {_bytes(found.memory_one)} with one at a time")
    console.print(f"disk      {_bytes(found.disk)} of captured states")
    console.print(f"time      about {_duration(found.seconds)} {found.rate_from}")
    for skipped in found.skipped:
        console.print(f"[yellow]skipped[/]   {escape(skipped['what'])}: {escape(skipped['why'])}")


# ---- a check -----------------------------------------------------------------------------------------------------------------------


def show_check(
    base: str, tuned: str, dtype: str, device: str, memory: str, trusted: tuple[str, ...], alternatives: tuple[str, ...], console: Console
) -> bool:
    """Prints what fits and what does not; True where a study of the pair can run."""
    from mechdiff.study.check import check_pair

    fits = True
    for finding in check_pair(base, tuned, dtype=dtype, device=device, memory=memory, trusted=trusted, alternatives=alternatives):
        mark = {"ok": "[green]ok[/]  ", "note": "[cyan]note[/]", "fail": "[red]no[/]  "}[finding.verdict]
        console.print(f"{mark}  {finding.what:<12} {escape(finding.said)}", soft_wrap=True)
        fits = fits and finding.verdict != "fail"
    return fits
