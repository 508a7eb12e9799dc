"""The command line prints a plan, a check or a finished run as tables."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mechdiff.cli.flags import errors
from mechdiff.digits import fixed, percent

if TYPE_CHECKING:
    from mechdiff.api import Run
    from mechdiff.audit.verification import Verification
    from mechdiff.cli.gates import Verdict
    from mechdiff.curate.curation import Recipe
    from mechdiff.curate.fairness import Tokenizers
    from mechdiff.study.check import Finding
    from mechdiff.study.config import StudyConfig
    from mechdiff.study.estimate import Estimate
    from mechdiff.validate.power import Curve
    from mechdiff.validate.validation import Validation


def titled(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, header_style="dim", pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    return table


def in_bytes(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{fixed(count / 2**20, 0)} MiB"


def duration(seconds: float) -> str:
    return f"{fixed(seconds, 0)} s" if seconds < 100 else f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


# ---- a finished run ----------------------------------------------------------------------------------------------------------------


def show_run(run: "Run", console: Console) -> None:
    """The pair, the six first answers, pairs of answers, what was skipped, the warnings, and where the page is."""
    manifest, found = run.manifest(), run.overview()
    console.print(f"[bold]{escape(manifest['pair']['base']['ref'])}[/]  ->  [bold]{escape(manifest['pair']['tuned']['ref'])}[/]")
    tiles = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    tiles.add_column(style="bold", no_wrap=True)
    tiles.add_column(overflow="fold")
    for tile in found.tiles:
        tiles.add_row(escape(tile.title), escape(tile.text) if tile.measured else f"[dim]{escape(tile.text)}[/]")
    console.print(tiles)
    if found.examples:
        shown = f"{len(found.examples)} of {found.answered} pairs of answers, the largest difference first"
        console.print(f"\n[dim]{shown}[/]")
    for one in found.examples:
        console.print(f"[italic]{escape(one.asked)}[/]")
        for side, text in (("base ", one.base), ("tuned", one.tuned)):
            console.print(f"  [dim]{side}[/]  [dim]{escape(one.same)}[/][bold]{escape(text)}[/]")
    for skipped in manifest["skipped"]:
        console.print(f"[yellow]skipped[/] {escape(skipped['what'])}: {escape(skipped['why'])}")
    for warning in manifest["warnings"]:
        console.print(f"[yellow]warning[/] {escape(warning)}")
    console.print(f"[dim]the same with figures: {escape(str(run.path / 'report.html'))}[/]")


def show_gates(verdicts: "Sequence[Verdict]", console: Console) -> None:
    """A line for each condition of --fail-on: whether it fails, the number with its interval, and what was compared."""
    for one in verdicts:
        mark = "[bold red]FAIL[/]" if one.failed else "[green]pass[/]"
        ends = "" if one.low is None or one.high is None else f" (95 % interval {one.low:.4g} to {one.high:.4g})"
        number = "" if one.value is None else f"{one.value:.4g}{ends}, n = {one.n}; "
        console.print(f"{mark}  {escape(one.gate)}: {number}{escape(one.said)}", soft_wrap=True, highlight=False)


def show_budget(runs: "dict[str, Run]", console: Console) -> None:
    """What each measure of the demo took, beside its budget."""
    from mechdiff.demo import spent

    by_run = {name: spent(run.manifest()["seconds"]) for name, run in runs.items()}
    table = titled("seconds of one core, by measure", "measure", "budget", *by_run)
    for measure, (_, budget) in next(iter(by_run.values())).items():
        table.add_row(measure, str(budget), *(fixed(took[measure][0], 0) for took in by_run.values()))
    totals = [fixed(sum(took for took, _ in one.values()), 0) for one in by_run.values()]
    table.add_row("all", str(sum(budget for _, budget in next(iter(by_run.values())).values())), *totals)
    console.print(table)


# ---- a plan ------------------------------------------------------------------------------------------------------------------------


GPUS = (80, 24)
"""GiB of memory: what `plan` counts in."""


def planned(study: "StudyConfig", max_rows: int | None) -> "Estimate":
    """What a study takes; models that are not here are planned from the study's `shape`."""
    from mechdiff.measures.catalogue import EXPERIMENTS
    from mechdiff.study.estimate import estimate

    return estimate(study, EXPERIMENTS, max_rows)


def plan_data(found: "Estimate") -> dict[str, Any]:
    """An estimate as plain data: seconds, bytes, operations."""
    stages = [
        {"stage": name, "cells": cells, "patched_passes": runs, "flops": flops, "seconds": seconds}
        for name, (cells, runs, flops, seconds) in found.stages.items()
    ]
    return {**asdict(found), "stages": stages, "gpus": {str(size): found.gpus(size << 30) for size in GPUS}}


def show_plan(found: "Estimate", console: Console) -> None:
    """Cells by measure, memory, and time on this machine's processor."""
    from mechdiff.study.estimate import SHARED

    table = titled("cells", "stage", "cells", "patched forward passes", "TFLOP", "seconds")
    for stage, (cells, runs, flops, seconds) in found.stages.items():
        table.add_row(stage, str(cells), f"{runs:,}" if runs else "", fixed(flops / 1e12, 2), fixed(seconds, 0))
    console.print(table)
    console.print(f"prompts   {', '.join(f'{split} {n}' for split, n in found.prompts.items())}   ({found.tokens_from})")
    console.print(f"sizes     {found.weights}   ({found.sizes_from})")
    console.print(f"memory    {in_bytes(found.memory)} with both models, {in_bytes(found.memory_one)} with one at a time")
    counts = {size: found.gpus(size << 30) for size in GPUS}
    sizes = [f"{both} of {size} GiB" + f" ({one} with one at a time)" * (one < both) for size, (both, one) in counts.items()]
    console.print(f"GPUs      {' or '.join(sizes)}" + "; several: --device split" * any(both > 1 for both, _ in counts.values()))
    console.print(f"disk      {in_bytes(found.disk)} of captured activations")
    console.print(f"time      about {duration(found.seconds)} {found.rate_from}")
    if found.stray > SHARED:
        times = fixed(found.stray, 1)
        said = f"that time is of a quiet machine. Other programs, or a limit on processors, make a product take {times} times as long now."
        console.print(f"[yellow]shared[/]    {said}")
    for skipped in found.skipped:
        console.print(f"[yellow]skipped[/]   {escape(skipped['what'])}: {escape(skipped['why'])}")


# ---- a check -----------------------------------------------------------------------------------------------------------------------


def show_check(found: "Iterable[Finding]", console: Console) -> bool:
    """Prints what fits and what does not, each finding as it comes; True where a study of the pair can run."""
    fits = True
    for finding in found:
        mark = {"ok": "[green]ok[/]  ", "note": "[cyan]note[/]", "fail": "[red]no[/]  "}[finding.verdict]
        console.print(f"{mark}  {finding.what:<12} {escape(finding.said)}", soft_wrap=True)
        fits = fits and finding.verdict != "fail"
    return fits


# ---- a corpus --------------------------------------------------------------------------------------------------------------------------


def show_moments(found: dict[str, Any], console: Console) -> None:
    """What the sums of a corpus say, site by site."""
    table = titled("Over the corpus", "site", "rows", "CKA", "mean difference / activation", "mean's share", "R² held out", "rank")
    for site, one in found["sites"].items():
        numbers = [one[name] for name in ("cka", "mean_difference_over_state", "share_of_the_change_that_is_its_mean", "ridge_r2_held_out")]
        table.add_row(site, f"{one['rows']:,}", *(fixed(number) for number in numbers), str(one["rank"]))
    console.print(table)


def show_scan(found: dict[str, Any], console: Console) -> None:
    """What a scan found: its sentences, and domains by KL."""
    from mechdiff.scanning.words import sentences

    for sentence in sentences(found):
        console.print(f"- {escape(sentence)}")
    table = titled("By domain", "its words", "texts", "KL, nats per token", "95 %", "loss, tuned - base", "95 %")
    for one in found["domains"]:
        ends = [[one[f"{name}_{end}"] for end in ("low", "high")] for name in ("kl", "loss_change")]
        kl, loss = ["–" if None in both else f"[{', '.join(map(fixed, both))}]" for both in ends]  # of few clusters there is no interval
        table.add_row(escape(one["domain"]), str(one["texts"]), fixed(one["kl"]), kl, fixed(one["loss_change"]), loss)
    console.print(table)
    for said in found["left_out"]:
        console.print(f"left out: {said}", style="dim", markup=False, highlight=False)


# ---- a run, computed again ---------------------------------------------------------------------------------------------------------


def show_verification(found: "Verification", console: Console) -> None:
    """Files that are not what they were, rows by measure, and every row and answer that differs."""
    for said in found.models:
        console.print(f"[bold red]changed[/] {escape(said)}")
    for said in found.files:
        console.print(f"[bold red]changed[/] {escape(found.path)}/{escape(said)}")
    if not found.compared and (found.models or found.files):
        console.print("nothing was recomputed: these numbers are not those that this run wrote, or its models and prompts are others now")
    else:
        table = titled(f"{len(found.compared)} of {found.n_rows:,} rows again, by whole forward passes", "measure", "recomputed", "not recomputed",
                       "worst, of its tolerance", "differ")  # fmt: skip
        for measure, n, out, worst, differ in found.table():
            table.add_row(measure, str(n), str(out), f"{worst:.2g}" if n else "", f"[bold red]{differ}[/]" if differ else "0")
        console.print(table)
    for one in found.differing[:20]:
        console.print(f"[bold red]differs[/] {escape(one.said)}")
    for prompt, side, recorded, again in found.other_answers[:10]:
        console.print(f"[bold red]differs[/] the {side} model's answer to {escape(prompt)}: recorded {recorded!r}, generated {again!r}")
    for measure, reasons in found.left_out.items():
        for why, n in reasons.items():
            console.print(f"[dim]{n} drawn of {measure} not recomputed: {escape(why)}[/]")
    if found.compared:
        files = "all files as written" if not (found.files or found.models) else "files differ"
        bad = len(found.differing) + len(found.other_answers)
        result = f"[bold red]{bad} differ[/]" if bad else "[green]all agree[/]"
        console.print(f"{len(found.compared)} rows and {len(found.answers)} answers: {result}; {files}; {found.seconds:.0f} s")


# ---- planted truths ----------------------------------------------------------------------------------------------------------------


def show_validation(found: "Validation", console: Console) -> None:
    """Every truth: what was planted, what was expected, what was found; then the power curves."""
    from mechdiff.validate.checks import said

    table = Table(
        title=f"planted truths in {found.model}", title_justify="left", title_style="bold", box=None, header_style="dim", pad_edge=False
    )
    for column in ("", "planted, and what must hold", "expected", "found"):
        table.add_column(column, overflow="fold", justify="right" if column == "found" else "left")
    for proof in found.proofs:
        table.add_row(f"[bold]{proof.truth}[/]", f"[bold]{escape(proof.planted)}[/]", "", f"[dim]{proof.seconds:.1f} s[/]")
        for check in proof.checks:
            mark = "[green]pass[/]" if check.passed else "[bold red]FAIL[/]"
            table.add_row(mark, escape(check.what), escape(check.expectation), escape(said(check.found)))
    console.print(table)
    for truth, why in found.skipped.items():
        console.print(f"[yellow]skipped[/] {truth}: {escape(why)}")
    for curve in found.curves:
        _show_power(curve, console)
    failed = [proof.truth for proof in found.proofs if not proof.passed]
    n_checks = sum(len(proof.checks) for proof in found.proofs)
    result = f"[bold red]{len(failed)} do not hold: {', '.join(failed)}[/]" if failed else "[green]all hold[/]"
    console.print(f"{len(found.proofs)} truths, {n_checks} checks: {result}, {sum(proof.seconds for proof in found.proofs):.0f} s")


WAYS = {
    "onset": "the first block where the base's residual activation breaks the tuned model",
    "output": "the strongest output at the last prompt token",
    "graft": "the part of the network that recovers most of D",
}
"""Ways to look for an edit, in words."""


def _show_power(curve: "Curve", console: Console) -> None:
    alone = "alone" if not curve.background else f"beside noise of {curve.background:g} on every matrix"
    table = titled(f"random rank-1 edits {alone}, found by {WAYS[curve.way]}", "size, of the matrix's norm", "D, nats", "found", "95 %")
    for point in curve.points:
        table.add_row(f"{point.size:g}", f"{point.d_nats:.2g}", percent(point.found), f"{percent(point.low)} to {percent(point.high)}")
    console.print(table)
    least = f"of {curve.smallest:g} and more" if curve.smallest else "not even of the largest size"
    console.print(f"80 % are found {least} ({curve.points[0].draws} edits per size, {curve.n_prompts} prompts)")


# ---- a prompt set ------------------------------------------------------------------------------------------------------------------


def show_curation(
    sources: Sequence[str], recipe: "Recipe", tokenizers: "Tokenizers | None", out: Path, *, one_file: bool, overwrite: bool
) -> dict[str, Any]:
    """Makes and writes a prompt set, and prints on standard error what each step did; returns its record."""
    from rich.progress import Progress, TextColumn

    from mechdiff.curate.curation import curate, write

    console = errors()
    with Progress(TextColumn("{task.description}"), console=console, transient=True) as bar:
        task = bar.add_task("reading")
        made = curate(
            sources,
            recipe,
            tokenizers=tokenizers,
            progress=lambda read, kept: bar.update(task, description=f"{read} rows read, {kept} kept") if read % 50 == 0 else None,
        )
    files = write(made, out, one_file=one_file, overwrite=overwrite)
    record = made.record
    if record["shipped_set"]:
        console.print("no source given: the set that ships (everyday questions in English, questions about Kazakh culture in Kazakh)")
    table = titled(f"{record['rows_read']} rows read, {record['kept']} prompts kept", "step", "came", "dropped", "why", "the first")
    for step in record["steps"]:
        reasons = "; ".join(f"{reason}: {n}" for reason, n in step["reasons"].items())
        table.add_row(step["step"], str(step["came"]), str(step["dropped"]), escape(reasons), escape(step.get("first", "")))
    console.print(table)
    if record["stopped_early"] and not recipe.shuffle:
        console.print(
            f"reading stopped with {record['kept']} prompts: these are the first of each source, in its own order (--shuffle takes them at random)"
        )
    _show_fairness(record["fairness"], console)
    sizes = ", ".join(f"{name} {n}" for name, n in record["splits"].items())
    console.print(f"{record['clusters']} clusters of related prompts; splits: {sizes}")
    if set(record["splits"]) == {"report"}:
        console.print("[yellow]too few clusters for three splits: all are in report[/]")
    console.print(f"written: {', '.join(path.name for path in files)}")
    return record


def _show_fairness(found: dict[str, Any], console: Console) -> None:
    if not found:
        return
    console.print(escape(f"tokenizers: {found['tokenizers']}"))
    table = titled(
        "share of a prompt's tokens that both vocabularies have", "tokenizer", "mean", "least", "5 %", "median", "95 %", "tokens per word"
    )
    for side in ("base", "tuned"):
        one = found[side]
        quantiles = (fixed(one["quantiles"][q], 2) for q in ("0", "0.05", "0.5", "0.95"))
        table.add_row(side, fixed(one["mean"], 3), *quantiles, fixed(one["tokens_per_word"], 2))
    console.print(table)
    if found["limit"] is None:
        return
    console.print(f"[yellow]a limit of {found['limit']:g} keeps {found['kept']} of {found['n']}: {escape(found['said'])}[/]")
    for what in ("by_script", "by_category"):
        groups = titled(f"the limit {what.replace('_', ' ')}", what[3:], "kept", "dropped", "mean shared, base", "mean shared, tuned")
        for name, one in list(found[what].items())[:8]:
            groups.add_row(
                escape(name), str(one["kept"]), str(one["dropped"]), fixed(one["mean_shared_base"], 3), fixed(one["mean_shared_tuned"], 3)
            )
        console.print(groups)
    lengths = found["length"]
    said = ", ".join(f"{name} {one['mean_words']:.1f} words" for name, one in lengths.items() if one)
    console.print(f"mean length: {said}")
