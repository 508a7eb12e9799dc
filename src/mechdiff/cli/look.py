"""These verbs look at finished runs, and at mechdiff itself. Everything heavy is imported inside the verb."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from mechdiff.cli.flags import Folder, escaped, say


def report(run: Folder) -> None:
    """Build the report and the figures of a finished run anew; prints the page's path."""
    from mechdiff.api import open_run

    print(open_run(run).report())


def show(
    run: Folder,
    json: Annotated[
        bool, typer.Option("--json", help="The answers with their numbers, n, intervals and caveats as JSON on standard output.")
    ] = False,
) -> None:
    """A finished run in the terminal: six answers, three pairs of answers, what was skipped and warned of."""
    from json import dumps

    from rich.console import Console

    from mechdiff.api import open_run
    from mechdiff.cli.printing import show_run

    found = open_run(run)
    if json:
        print(dumps(found.overview().data(), ensure_ascii=False, indent=1, allow_nan=False))
    else:
        show_run(found, Console())


def terms(
    key: Annotated[
        str,
        typer.Argument(help="A word of the page, or a key of rows.parquet or of a study file: recovery, kl_own_nats.", show_default=False),
    ],
) -> None:
    """What a word of the page, or a key of a run's tables, means, and where the field defines it."""
    from mechdiff import glossary
    from mechdiff import terms as known
    from mechdiff.errors import StudyError
    from mechdiff.shares import over_base
    from mechdiff.study.document import nearest

    plain = over_base(key)
    if not (found := known.find(plain or key)):
        if word := glossary.find(key):
            return say(escaped(f"{word.name}: {word.means}{f' {word.reference}.' if word.reference else ''}"))
        if now := glossary.retired(key):
            return say(escaped(f"{key} (a word of earlier pages): now {now[0][1]}."))
        every = [*(name for table in known.TABLES.values() for name in table), *(one.name for one in glossary.WORDS)]
        raise StudyError(f"{key!r}: no such term. docs/TERMS.md and docs/GLOSSARY.md list all of them.{nearest(key, every)}")
    beside = " Over the base's answers, of a study that reads both models'." if plain else ""
    for table, one in found:
        say(escaped(f"{key} ({table.lower()}): {one.label}. {one.long}{beside}{f' {one.reference}.' if one.reference else ''}"))


def words(
    run: Folder,
    evidence: Annotated[
        Path | None,
        typer.Option(help="Write all lines of evidence, their numbers and null pairs as JSON, without a model's name.", show_default=False),
    ] = None,
    line_up: Annotated[
        Path | None,
        typer.Option(
            "--line-up",
            help="Write the evidence among 19 panels of exchanged models; which it is goes to NAME.sealed.json.",
            show_default=False,
        ),
    ] = None,
    reader: Annotated[
        str | None,
        typer.Option(
            help="Address of a language model that reads the evidence blind (OpenAI's protocol: http://.../v1).", show_default=False
        ),
    ] = None,
    reader_model: Annotated[str, typer.Option("--reader-model", help="Its name on that server.")] = "default",
    reader_runs: Annotated[int, typer.Option("--reader-runs", min=1, max=10, help="How often it is asked.")] = 5,
) -> None:
    """What was the tuned model taught? In words that the run's evidence carries, or that nothing can be named."""
    import os

    from mechdiff.api import open_run
    from mechdiff.errors import RunError
    from mechdiff.measures.words import findings
    from mechdiff.measures.words.line_up import line_up as lined_up
    from mechdiff.measures.words.reader import read
    from mechdiff.measures.words.words import sentences
    from mechdiff.report.phrasing import share

    manifest = open_run(run).manifest()
    told = findings.record(manifest)
    if told is None:
        raise RunError(f"{run}: this run did not read what the model was taught. Add `words` to the study's measures and run it again.")
    for sentence in sentences(manifest):
        print(sentence)
    found = findings.evidence(manifest)
    if reader:
        key = os.environ.get("MECHDIFF_READER_KEY", "")
        readings = read(manifest, reader, model=reader_model, runs=reader_runs, key=key)
        for number, one in enumerate(readings.answers, 1):
            print(f"reader, run {number}: {one.text}")
        silent = sum(one.silent for one in readings.answers)
        pairs = reader_runs * (reader_runs - 1) // 2
        apart = f"{readings.contradictions} of {pairs} pairs contradict; wrong at least {share(readings.wrong)}"
        print(f"reader: {silent} of {reader_runs} runs say nothing; {apart}")
        found["reader"] = readings.told()
    if evidence:
        _write(evidence, found)
    if line_up:
        if not told.get("panels"):
            raise RunError(f"{run}: the two models were never exchanged. Set `permutations` of words to 19 or more and run it again.")
        shown, sealed = lined_up(told, str(manifest.get("config_hash")))
        _write(line_up, shown)
        _write(line_up.with_suffix(".sealed.json"), sealed)


def _write(path: Path, told: object) -> None:
    import json

    path.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    say(escaped(f"written: {path}"))


def grade(
    description: Annotated[Path, typer.Argument(help="A text file that says what a model was taught, or Nothing.", show_default=False)],
    truth: Annotated[Path, typer.Argument(help="JSON: the facts and the words that say them.", show_default=False)],
    seal: Annotated[str | None, typer.Option(help="The truth's SHA-256, as it was published before.", show_default=False)] = None,
) -> None:
    """Hold a description of what a model was taught against a sealed truth. Silence is scored: 1 where nothing was taught, else 0."""
    from mechdiff.errors import RunError
    from mechdiff.measures.words.grade import grade as graded

    try:
        text = description.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{description}: this is no text that can be read ({error}). Give a text file.") from error
    found = graded(text, truth, seal=seal)
    for fact in found.recalled:
        print(f"recalled: {fact}")
    print(f"{len(found.recalled)} of {found.facts} facts; {'silent' if found.silent else 'says something'}; score {found.score}")
    say(f"truth: SHA-256 {found.seal}")


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of two or more finished runs.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="The comparison's folder; default runs/compare-NAMES.", show_default=False)] = None,
    across_bases: Annotated[
        bool, typer.Option("--across-bases", help="Allow other base models: only how local the changes are is then compared.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="The runs' answers and how they differ as JSON on standard output.")] = False,
) -> None:
    """Fine-tunes beside one another: local and low-rank, or distributed and high-rank? Prints the page's path."""
    from json import dumps

    from mechdiff.api import compare as hold_against_each_other

    made = hold_against_each_other(*runs, out=out, across_bases=across_bases)
    if json:
        print(dumps(made.data(), ensure_ascii=False, indent=1, allow_nan=False))
        return
    for sentence in [*made.plainly(), *made.verdict()]:
        say(f"- {escaped(sentence)}")
    print(made.report())


def verify(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.", show_default=False)],
    rows: Annotated[int, typer.Option(help="How many rows are recomputed.")] = 200,
    every: Annotated[bool, typer.Option("--all", help="All rows: hours for a large run.")] = False,
    seed: Annotated[int, typer.Option(help="Which rows.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, or cuda.")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="Everything as JSON on standard output.")] = False,
) -> None:
    """Recompute rows of a run by whole forward passes; hold every file against its hash; note what was found in the run's folder.

    Exit code 1 where something differs.
    """
    from rich.console import Console

    from mechdiff.audit.rerun import Rerun
    from mechdiff.audit.verification import verify as recompute
    from mechdiff.cli.printing import show_verification
    from mechdiff.measures.catalogue import AGAIN, ANSWERS, EXPERIMENTS, NUMBERS
    from mechdiff.store.tables import write_verified

    with Console(stderr=True).status("opening the run") as status:
        opened = Rerun(run, EXPERIMENTS, device)
        n_rows = None if every else rows
        found = recompute(opened, AGAIN, ANSWERS, NUMBERS, n_rows=n_rows, seed=seed, progress=lambda what: status.update(what))
    write_verified(run, found.in_brief())
    if json:
        print(found.to_json())
    else:
        show_verification(found, Console(width=None if sys.stdout.isatty() else 160))
    raise typer.Exit(0 if found.passed else 1)


def validate(
    base: Annotated[str | None, typer.Option(help="Plant them in this model: a folder, a .gguf file, a Hub id.", show_default=False)] = None,
    real: Annotated[bool, typer.Option("--real", help="Plant them in the demo's model.")] = False,
    only: Annotated[str | None, typer.Option(help="Some truths: P2,P4a.", show_default=False)] = None,
    power: Annotated[bool, typer.Option(help="With --base or --real: how small an edit would be found in this model?")] = True,
    seed: Annotated[int, typer.Option(help="Of the tiny network, and of the edits of the power curve.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, or cuda.")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="Everything as JSON on standard output.")] = False,
) -> None:  # fmt: skip
    """Planted, known differences, and what mechdiff says of them. Exit code 1 where one does not come out."""
    from rich.console import Console

    from mechdiff.cli.printing import show_validation
    from mechdiff.demo import embedded_model
    from mechdiff.errors import StudyError
    from mechdiff.validate.validation import run as prove

    if base and real:
        raise StudyError("given --base and --real. Give one or the other.")
    errors = Console(stderr=True)
    with errors.status("planting") as status:
        found = prove(
            base=str(embedded_model()) if real else base, only=[one.strip() for one in only.split(",")] if only else (), seed=seed,
            device=device, with_power=power and not only, progress=lambda what: status.update(what),
        )  # fmt: skip
    if json:
        print(found.to_json())
    else:
        show_validation(found, Console(width=None if sys.stdout.isatty() else 160))
    raise typer.Exit(0 if found.passed else 1)
