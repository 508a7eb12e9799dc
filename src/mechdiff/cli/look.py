"""These verbs look at finished runs, and at mechdiff itself. Everything heavy is imported inside the verb."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from mechdiff.cli.flags import AsJson, FailOn, Folder, escaped, say, waiting
from mechdiff.cli.json_output import print_json


def report(run: Folder) -> None:
    """Build the report and the figures of a finished run anew; prints the page's path.

    Examples:
      mechdiff report runs/demo
    """
    from mechdiff.api import open_run

    print(open_run(run).report())


def show(run: Folder, json: AsJson = False, fail_on: FailOn = None) -> None:
    """A finished run in the terminal: six answers, three pairs of answers, what was skipped and warned of.

    With --fail-on the exit code is 1 where a condition holds, or cannot be checked.

    Examples:
      mechdiff show runs/demo
      mechdiff show runs/demo --json
      mechdiff show runs/demo --fail-on "panel.everyday.kl>0.05" --fail-on "divergence.top1_same<0.9"
    """
    from rich.console import Console

    from mechdiff.api import open_run
    from mechdiff.cli.gates import checked, gates_of
    from mechdiff.cli.printing import show_gates, show_run

    gates, found = gates_of(fail_on), open_run(run)
    verdicts = checked(gates, found)
    if json:
        print_json("show", found.overview().data() | ({"gates": [one.data() for one in verdicts]} if gates else {}))
    else:
        show_run(found, Console())
        show_gates(verdicts, Console())
    raise typer.Exit(1 if any(one.failed for one in verdicts) else 0)


def terms(
    key: Annotated[
        str,
        typer.Argument(help="A word of the page, or a key of rows.parquet or of a study file: recovery, kl_own_nats.", show_default=False),
    ],
    json: AsJson = False,
) -> None:
    """What a word of the page, or a key of a run's tables, means, and where the field defines it.

    Examples:
      mechdiff terms recovery
      mechdiff terms kl_tuned_base_nats --json
    """
    from mechdiff import glossary
    from mechdiff import terms as known
    from mechdiff.errors import StudyError
    from mechdiff.shares import over_base
    from mechdiff.study.document import nearest

    plain = over_base(key)
    if found := known.find(plain or key):
        beside = " Over the base's answers, of a study that reads both models'." if plain else ""
        means = [
            {"table": table.lower(), "label": one.label, "means": f"{one.long}{beside}", "reference": one.reference or None}
            for table, one in found
        ]
    elif word := glossary.find(key):
        means = [{"table": None, "label": word.name, "means": word.means, "reference": word.reference or None}]
    elif now := glossary.retired(key):
        means = [{"table": None, "label": key, "means": f"a word of earlier pages: now {now[0][1]}.", "reference": None}]
    else:
        every = [*(name for table in known.TABLES.values() for name in table), *(one.name for one in glossary.WORDS)]
        raise StudyError(f"{key!r}: no such term. docs/TERMS.md and docs/GLOSSARY.md list all of them.{nearest(key, every)}")
    if json:
        return print_json("terms", {"key": key, "found": means})
    for one in means:
        head = f"{key} ({one['table']}): {one['label']}." if one["table"] else f"{one['label']}:"
        print(head, one["means"], *([f"{one['reference']}."] if one["reference"] else []))


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of two or more finished runs.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="The comparison's folder; default runs/compare-NAMES.", show_default=False)] = None,
    across_bases: Annotated[
        bool, typer.Option("--across-bases", help="Allow other base models: only how local the changes are is then compared.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Fine-tunes beside one another: local and low-rank, or distributed and high-rank? Prints the page's path.

    Examples:
      mechdiff compare runs/arithmetic runs/kazakh
      mechdiff compare runs/a runs/b runs/c --out runs/compared --json
    """
    from mechdiff.api import compare as side_by_side

    made = side_by_side(*runs, out=out, across_bases=across_bases)
    if json:
        return print_json("compare", made.data() | {"page": made.report()})
    for sentence in [*made.plainly(), *made.verdict()]:
        say(f"- {escaped(sentence)}")
    print(made.report())


def verify(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.", show_default=False)],
    rows: Annotated[int, typer.Option(help="How many rows are recomputed.")] = 200,
    every: Annotated[bool, typer.Option("--all", help="All rows: hours for a large run.")] = False,
    seed: Annotated[int, typer.Option(help="Which rows.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, or cuda.")] = "cpu",
    json: AsJson = False,
) -> None:
    """Recompute rows of a run by whole forward passes; compare every file with its hash; note what was found in the run's folder.

    Exit code 1 where something differs.

    Examples:
      mechdiff verify runs/demo
      mechdiff verify runs/demo --rows 50 --json
    """
    from json import loads

    from rich.console import Console

    from mechdiff.audit.rerun import Rerun
    from mechdiff.audit.verification import verify as recompute
    from mechdiff.cli.printing import show_verification
    from mechdiff.measures.catalogue import AGAIN, ANSWERS, EXPERIMENTS, NUMBERS
    from mechdiff.store.tables import write_verified

    with waiting("opening the run") as tell:
        opened = Rerun(run, EXPERIMENTS, device)
        n_rows = None if every else rows
        found = recompute(opened, AGAIN, ANSWERS, NUMBERS, n_rows=n_rows, seed=seed, progress=tell)
    write_verified(run, found.in_brief())
    if json:
        print_json("verify", loads(found.to_json()))
    else:
        show_verification(found, Console(width=None if sys.stdout.isatty() else 160))
    raise typer.Exit(0 if found.passed else 1)


def validate(
    base: Annotated[str | None, typer.Option(help="Plant them in this model: a folder, a .gguf file, a Hub id.", show_default=False)] = None,
    real: Annotated[bool, typer.Option("--real", help="Plant them in the demo's model.")] = False,
    only: Annotated[str | None, typer.Option(help="Some truths: P2,P4a.", show_default=False)] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Truths that touch every kind of measure, about a minute; says which are left out.")
    ] = False,
    power: Annotated[bool, typer.Option(help="With --base or --real: how small an edit would be found in this model?")] = True,
    seed: Annotated[int, typer.Option(help="Of the tiny network, and of the edits of the power curve.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, or cuda.")] = "cpu",
    json: AsJson = False,
) -> None:  # fmt: skip
    """Planted, known differences, and what mechdiff says of them. Exit code 1 where one does not come out.

    Examples:
      mechdiff validate
      mechdiff validate --real --no-power
      mechdiff validate --base my-org/my-model --only P2,P4a --json
    """
    from json import loads

    from rich.console import Console

    from mechdiff.cli.printing import show_validation
    from mechdiff.demo import embedded_model
    from mechdiff.errors import StudyError
    from mechdiff.validate.validation import ANY_MODEL, QUICK, TRUTHS
    from mechdiff.validate.validation import run as prove

    if base and real:
        raise StudyError("given --base and --real. Give one or the other.")
    if quick and only:
        raise StudyError("given --quick and --only. Give one or the other.")
    chosen = [name for name in QUICK if name in (ANY_MODEL if base or real else TRUTHS)] if quick else only.split(",") if only else []
    with waiting("planting") as tell:
        found = prove(
            base=str(embedded_model()) if real else base, only=[one.strip() for one in chosen], seed=seed,
            device=device, with_power=power and not (only or quick), progress=tell,
        )  # fmt: skip
    if json:
        print_json("validate", loads(found.to_json()))
    else:
        show_validation(found, Console(width=None if sys.stdout.isatty() else 160))
        for name, planted in found.left_out.items() if quick else ():
            print(f"left out: {name} ({planted.rstrip('.')})")
    raise typer.Exit(0 if found.passed else 1)
