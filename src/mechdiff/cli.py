"""The command line: a verb parses, calls one function, prints. Everything heavy is imported inside the verb."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mechdiff.errors import MechdiffError

app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_enable=False,
    help="What did a fine-tune change inside a language model, where, and does it matter?",
)  # fmt: skip

Study = Annotated[Path | None, typer.Argument(help="A study file (YAML). Or give --base, --tuned and --prompts.", show_default=False)]
Base = Annotated[str | None, typer.Option(help="Base model: a folder, a .gguf file or a Hub id.", show_default=False)]
Tuned = Annotated[str | None, typer.Option(help="Tuned model: the same, or a PEFT adapter's folder.", show_default=False)]
Prompts = Annotated[
    Path | None, typer.Option(help="JSONL, a `text` in every line; split into fit, select, report by the seed.", show_default=False)
]
Policy = Annotated[str, typer.Option(help="same_text (one rendered string for both), native (each its own template), raw (the bare text).")]
Template = Annotated[str, typer.Option(help="For same_text: tuned, base, or a Jinja file.")]
Measures = Annotated[str | None, typer.Option(help="Comma-separated names; default: all.", show_default=False)]
Seed = Annotated[int, typer.Option(help="Splits, permutations, donors.")]
Dtype = Annotated[
    str, typer.Option(help="float32, bfloat16 or float16; int8 or nf4: matrices in 8 or 4 bits (bitsandbytes), the rest bfloat16.")
]
Out = Annotated[Path | None, typer.Option(help="The run's folder; default runs/NAME-HASH.", show_default=False)]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, split (over all GPUs, then memory, then disk), or auto.")]
Memory = Annotated[str, typer.Option(help="Models in memory: both, one at a time, or auto.")]
MaxRows = Annotated[int | None, typer.Option(help="Counterfactual rows of one pass; default 512.", show_default=False)]
Threads = Annotated[int | None, typer.Option(help="CPU threads.", show_default=False)]
Engine = Annotated[str, typer.Option(help="auto, or full: one whole forward pass for each counterfactual (slow; the oracle).")]
Quick = Annotated[bool, typer.Option("--quick", help="Only the first 8 prompts of each split.")]
OnRay = Annotated[
    str | None, typer.Option("--ray", help="auto, local, or a cluster's address: workers on Ray compute the cells.", show_default=False)
]
Workers = Annotated[int | None, typer.Option(help="On Ray; default: as many as fit.", show_default=False)]
Gpus = Annotated[float, typer.Option(help="On Ray; 0.5: two workers share one.")]
Cells = Annotated[
    str | None,
    typer.Option(help="A URL (s3://..., file:///shared/...) where finished cells lie, if not in the run's folder.", show_default=False),
]
AtOnce = Annotated[int, typer.Option(min=1, help="Of several studies, how many run at the same time.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Every line of log.txt on standard error too.")]
Trust = Annotated[
    list[str] | None, typer.Option("--trust-remote-code", help="Let this model, by name, run its own Python code.", show_default=False)
]
Folder = Annotated[Path, typer.Argument(help="A finished run's folder.", show_default=False)]


def main() -> None:
    """Entry point: what a user can put right is one message and exit code 1; Ctrl-C says how to go on."""
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # wait a few microseconds awake, then sleep: long spins starve a busy machine
    try:
        code = app(standalone_mode=False)  # what a verb returns, or the code of an Exit: 130 after Ctrl-C
    except MechdiffError as error:
        _say(f"[bold red]error:[/] {_escaped(str(error))}")
        sys.exit(1)
    except typer.TyperException as error:
        _say(f"[bold red]error:[/] {_escaped(error.format_message())} (mechdiff --help)")
        sys.exit(2)
    if code == 130:
        _say("stopped. Finished cells are kept: the same command goes on from here.")
    sys.exit(code or 0)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _say(text: str) -> None:
    """A line for the person, on standard error: standard output is for results."""
    from rich.console import Console

    Console(stderr=True, soft_wrap=True, highlight=False).print(text)


def _asked(study: Path | None, base: str | None, tuned: str | None, prompts: Path | None, policy: str, template: str, measures: str | None,
           seed: int, dtype: str) -> tuple[Any, str]:  # fmt: skip
    """The study that the arguments describe, and its text."""
    from mechdiff.errors import StudyError
    from mechdiff.measures.catalogue import load_study, make_study
    from mechdiff.study.config import refuse_beside, study_yaml

    told = {"--base": base, "--tuned": tuned, "--prompts": prompts, "--measures": measures, "--policy": policy != "same_text",
            "--template": template != "tuned", "--seed": seed, "--dtype": dtype != "float32"}  # fmt: skip
    if study is not None:
        refuse_beside(study, told)
        return load_study(study)
    absent = [flag for flag, value in (("--base", base), ("--tuned", tuned), ("--prompts", prompts)) if not value]
    if absent:
        raise StudyError(f"no study file, and {', '.join(absent)} not given. Give STUDY.yaml, or all of --base, --tuned and --prompts.")
    data: dict[str, Any] = {
        "pair": {"base": base, "tuned": tuned},
        "prompts": {"file": str(prompts), "policy": policy, "template": template},
        "seed": seed,
        "dtype": dtype,
    }
    if measures:
        data["measures"] = [name.strip() for name in measures.split(",")]
    config = make_study(data, name="flags")
    return config, study_yaml(config)


@app.command()
def demo(
    name: Annotated[
        str | None,
        typer.Argument(help="One embedded fine-tune: courtesy, arithmetic or kazakh. None: the last two, compared.", show_default=False),
    ] = None,
    out: Out = None,
    full: Annotated[bool, typer.Option("--full", help="All prompts and every measure with its defaults: no budget.")] = False,
    quick: Quick = False,
) -> None:
    """The whole study on embedded pairs, with no network: arithmetic and Kazakh side by side, and their contrast. Prints the page's path."""
    from mechdiff.demo import CONTRAST, NAMES, demo_study, embedded_model
    from mechdiff.errors import StudyError
    from mechdiff.study.config import RunOptions

    if name is not None and name not in NAMES:
        raise StudyError(f"no embedded fine-tune is called {name!r}. There are: {', '.join(NAMES)}.")
    embedded_model()
    _say("a real model from a package, converted once into the cache; its fine-tunes come with mechdiff")
    place = out or Path("runs") / ("demo" + f"-{name}" * (name is not None) + "-full" * full + "-quick" * quick)
    if name is not None:
        _run(demo_study(name, full=full), RunOptions(out=place, quick=quick))
        return
    pairs = {one: (demo_study(one, full=full), RunOptions(out=place / one, quick=quick)) for one in CONTRAST}
    _contrast(pairs, place, stated=not (full or quick))


@app.command()
def run(
    study: Annotated[
        list[Path] | None, typer.Argument(help="Study files (YAML); several: a sweep. Or --base, --tuned, --prompts.", show_default=False)
    ] = None,
    base: Base = None, tuned: Tuned = None, prompts: Prompts = None, policy: Policy = "same_text", template: Template = "tuned",
    measures: Measures = None, seed: Seed = 0, dtype: Dtype = "float32", out: Out = None, device: Device = "auto", memory: Memory = "auto",
    max_rows: MaxRows = None, threads: Threads = None, engine: Engine = "auto", quick: Quick = False, trust_remote_code: Trust = None,
    ray: OnRay = None, workers: Workers = None, gpus_per_worker: Gpus = 0.0, cells: Cells = None, at_once: AtOnce = 1, verbose: Verbose = False,
) -> None:  # fmt: skip
    """Run a study of a pair, or several. Finished cells are never computed again; the last line printed is the report's path."""
    from mechdiff.study.config import RunOptions

    options = RunOptions(
        out=out, device=device, memory=memory, max_rows=max_rows, threads=threads, engine=engine, quick=quick,  # type: ignore[arg-type]
        trust_remote_code=tuple(trust_remote_code or ()), ray=ray, workers=workers, gpus_per_worker=gpus_per_worker, cells=cells,
    )  # fmt: skip
    files: list[Path | None] = [*study] if study else [None]
    configs = [_asked(file, base, tuned, prompts, policy, template, measures, seed, dtype)[0] for file in files]
    if study and len(study) > 1:
        _sweep(dict(zip(study, configs, strict=True)), options, at_once)
    else:
        _run(files[0] or configs[0], options, verbose)


@app.command()
def moments(
    base: Annotated[str, typer.Argument(help="Base model.", show_default=False)],
    tuned: Annotated[str, typer.Argument(help="Tuned model, or an adapter.", show_default=False)],
    corpus: Annotated[Path, typer.Argument(help="JSON Lines of any size, a `text` in every line.", show_default=False)],
    sites: Annotated[str, typer.Option(help="Comma-separated, such as L3.resid_post,L5.attn_out.", show_default=False)],
    out: Annotated[Path, typer.Option(help="A folder for sums, maps and moments.json.", show_default=False)],
    positions: Annotated[str, typer.Option(help="all: every token but a text's first; last: its last one.")] = "all",
    longest: Annotated[int, typer.Option(min=2, help="Tokens of a text that are read.")] = 512,
    shard: Annotated[int, typer.Option(min=1, help="Texts of one unit of work and of storage.")] = 1024,
    dtype: Dtype = "float32", device: Device = "auto", memory: Memory = "auto", threads: Threads = None, trust_remote_code: Trust = None,
    ray: OnRay = None, workers: Workers = None, gpus_per_worker: Gpus = 0.0, cells: Cells = None,
) -> None:  # fmt: skip
    """Fits, CKA and mean differences over a corpus larger than memory, by sums. A killed one goes on; the last line is the folder's record."""
    from rich.console import Console

    from mechdiff import api
    from mechdiff.study.config import RunOptions
    from mechdiff.terminal import show_moments

    options = RunOptions(
        device=device, memory=memory, threads=threads, ray=ray, workers=workers, gpus_per_worker=gpus_per_worker, cells=cells,  # type: ignore[arg-type]
        trust_remote_code=tuple(trust_remote_code or ()),
    )  # fmt: skip
    with _progress() as bar:
        task = bar.add_task("preparing", total=1.0)
        found = api.moments(
            base, tuned, corpus, [site.strip() for site in sites.split(",")], out=out, positions=positions, longest=longest, shard=shard, dtype=dtype,
            options=options, progress=lambda what, share: bar.update(task, description=what, completed=share),
        )  # fmt: skip
    show_moments(found, Console(stderr=True))
    print(out / "moments.json")


@app.command()
def status(folder: Annotated[Path, typer.Argument(help="The folder of a run: running, dead or finished.", show_default=False)]) -> None:
    """How far has a run come? Read from its folder, while it runs or after it died."""
    from rich.console import Console

    from mechdiff.store.tables import read_status
    from mechdiff.terminal import show_status

    show_status(read_status(folder), Console())


def _progress() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:34}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
    )
    return Progress(*columns, TimeRemainingColumn(elapsed_when_finished=False), console=Console(stderr=True))


def _contrast(pairs: dict[str, Any], place: Path, *, stated: bool) -> None:
    """Both pairs' studies side by side, then their comparison; `stated`: what they cost beside their budget."""
    from rich.console import Console

    from mechdiff import api
    from mechdiff.api import compare as contrast
    from mechdiff.study.distribute import side_by_side
    from mechdiff.terminal import show_budget

    with _progress() as bar:
        tasks = {name: bar.add_task(f"{name}: preparing", total=1.0) for name in pairs}
        runs = side_by_side(
            api.run_job, pairs, lambda name, what, share: bar.update(tasks[name], description=f"{name}: {what}"[:34], completed=share)
        )
    console = Console(stderr=True)
    if stated:
        show_budget(runs, console)
    compared = contrast(*(run.path for run in runs.values()), out=place)
    for sentence in compared.verdict():
        console.print(f"- {_escaped(sentence)}")
    print(compared.report())


def _sweep(studies: dict[Path, Any], options: Any, at_once: int) -> None:
    """Several studies, each in a folder of its own under --out; on one cluster, where there is one."""
    from dataclasses import replace

    from mechdiff import api
    from mechdiff.errors import StudyError
    from mechdiff.study.distribute import side_by_side, together

    names = [study.stem for study in studies]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise StudyError(f"two study files are called {', '.join(twice)}: their runs would share a folder. Give them different names.")
    with together(options.ray) as address, _progress() as bar:
        jobs = {
            name: (config, replace(options, out=(options.out or Path("runs")) / name, ray=address))
            for name, config in zip(names, studies.values(), strict=True)
        }
        tasks = {name: bar.add_task(f"{name}: waiting", total=1.0) for name in names}
        runs = side_by_side(
            api.run_job, jobs, lambda name, what, share: bar.update(tasks[name], description=f"{name}: {what}"[:34], completed=share),
            at_once=at_once,
        )  # fmt: skip
    for run in runs.values():
        print(run.path / "report.html")


def _run(study: Any, options: Any, verbose: bool = False) -> None:
    from rich.console import Console

    from mechdiff import api

    with _progress() as bar:
        task = bar.add_task("preparing", total=1.0)
        finished = api.run(
            study, options=options, progress=lambda what, share: bar.update(task, description=what[:34], completed=share),
            listener=lambda line: bar.console.print(line, style="dim", markup=False, highlight=False) if verbose else None,
        )  # fmt: skip
        bar.update(task, description="done", completed=1.0)
    from mechdiff.terminal import show_run

    show_run(finished, Console(stderr=True))
    print(finished.path / "report.html")


@app.command()
def plan(
    study: Study = None, base: Base = None, tuned: Tuned = None, prompts: Prompts = None, policy: Policy = "same_text", template: Template = "tuned",
    measures: Measures = None, seed: Seed = 0, dtype: Dtype = "float32", max_rows: MaxRows = None,
) -> None:  # fmt: skip
    """What a study would compute: cells, memory, time. No model is loaded."""
    from rich.console import Console

    from mechdiff.terminal import show_plan

    config, _ = _asked(study, base, tuned, prompts, policy, template, measures, seed, dtype)
    show_plan(config, max_rows, Console())


@app.command()
def check(
    base: Annotated[str, typer.Argument(help="Base model.", show_default=False)],
    tuned: Annotated[str, typer.Argument(help="Tuned model, or an adapter.", show_default=False)],
    alternative: Annotated[
        list[str] | None, typer.Option(help="Another model that may be the tuned one's base; may be given again.", show_default=False)
    ] = None,
    dtype: Dtype = "float32", device: Device = "auto", memory: Memory = "auto", trust_remote_code: Trust = None,
) -> None:  # fmt: skip
    """Does this pair fit? Families, sites, tokenizers, templates, lineage, and the engine's self-check on both models."""
    from rich.console import Console

    from mechdiff.terminal import show_check

    fits = show_check(base, tuned, dtype, device, memory, tuple(trust_remote_code or ()), tuple(alternative or ()), Console())
    raise typer.Exit(0 if fits else 1)


Sources = Annotated[
    list[str] | None,
    typer.Argument(
        help="JSONL, JSON, CSV, TSV, Parquet or text files, folders saved by `datasets`, Hub ids; none: the set that ships.",
        show_default=False,
    ),
]
Column = Annotated[str | None, typer.Option(show_default=False, help="The field's name; default: the first of the usual ones.")]
Patterns = Annotated[
    list[str] | None, typer.Option(show_default=False, help="A regular expression (Unicode, blind to case); may be given again.")
]
Least = Annotated[int | None, typer.Option(show_default=False, help="In characters, or in tokens of both models.")]


@app.command()
def curate(
    sources: Sources = None, out: Annotated[Path, typer.Option(help="Folder of the set.")] = Path("prompts"),
    preset: Annotated[str, typer.Option(help="plain, choice (options and the right one), maths (final answers).")] = "plain",
    text: Column = None, category: Column = None, options: Column = None, answer: Column = None, id: Column = None,
    answer_from: Annotated[str, typer.Option(help="How the right option is told: auto (letter or text), text, letter, zero, one.")] = "auto",
    separator: Annotated[str | None, typer.Option(help="Between options in one text; they are then distractors.", show_default=False)] = None,
    letters: Annotated[bool, typer.Option("--letters", help="Print options behind letters, and ask for the letter.")] = False,
    n: Annotated[int | None, typer.Option("-n", "--n", help="Stop when so many are kept.", show_default=False)] = None,
    include: Patterns = None, exclude: Patterns = None, include_category: Patterns = None, exclude_category: Patterns = None,
    min_characters: Least = None, max_characters: Least = None, min_tokens: Least = None, max_tokens: Least = None,
    base: Base = None, tuned: Tuned = None,
    min_shared: Annotated[float | None, typer.Option(help="Least share of shared tokens. Selects on the treatment!", show_default=False)] = None,
    near: Annotated[float, typer.Option(help="Similarity from which a near copy is removed.")] = 0.8,
    shuffle: Annotated[bool, typer.Option("--shuffle", help="Read everything, take rows in the order of a hash.")] = False,
    paragraphs: Annotated[bool, typer.Option("--paragraphs", help="In text files blank lines separate prompts.")] = False,
    language: Annotated[str | None, typer.Option(help="Noted in every prompt: en, kk, ru, ...", show_default=False)] = None, seed: Seed = 0,
    one_file: Annotated[bool, typer.Option("--one-file", help="prompts.jsonl instead of fit, select and report.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another set in the folder.")] = False,
) -> None:  # fmt: skip
    """Make a prompt set: fields, filters, copies out, fairness between tokenizers, leakage-free splits. Everything dropped is counted."""
    from mechdiff.curate.curation import Recipe
    from mechdiff.curate.fields import fields_of
    from mechdiff.terminal import show_curation

    recipe = Recipe(
        fields=fields_of(
            preset=preset, text=text, category=category, options=options, answer=answer, id=id, answer_from=answer_from, separator=separator,
            letters=letters,
        ),
        n=n, include=tuple(include or ()), exclude=tuple(exclude or ()), include_category=tuple(include_category or ()),
        exclude_category=tuple(exclude_category or ()), characters=(min_characters, max_characters), tokens=(min_tokens, max_tokens),
        near=near, min_shared=min_shared, shuffle=shuffle, seed=seed, language=language, paragraphs=paragraphs,
    )  # fmt: skip
    print(show_curation(sources or [], recipe, base, tuned, out, one_file=one_file, overwrite=overwrite))


@app.command()
def report(run: Folder) -> None:
    """Build the report and the figures of a finished run anew; prints the page's path."""
    from mechdiff.api import open_run

    print(open_run(run).report())


@app.command()
def export(
    run: Folder,
    out: Annotated[Path, typer.Option(help="Folder for figures/ and summary.md.")] = Path("paper"),
    formats: Annotated[str, typer.Option("--format", help="Comma-separated: pdf, svg, png.")] = "pdf,svg,png",
    columns: Annotated[str, typer.Option(help="Comma-separated widths: single (3.3 inches), double (6.9).")] = "single,double",
) -> None:
    """For a paper: every figure at column widths, every table and a summary in Markdown. Prints the summary's path."""
    from mechdiff.api import open_run

    asked = {"formats": formats.split(","), "columns": columns.split(",")}
    print(open_run(run).export(out, **{name: [one.strip() for one in given] for name, given in asked.items()}))


@app.command()
def show(run: Folder) -> None:
    """A finished run's main numbers, in the terminal."""
    from rich.console import Console

    from mechdiff.api import open_run
    from mechdiff.terminal import show_run

    show_run(open_run(run), Console())


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of two or more finished runs.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="The comparison's folder; default runs/compare-NAMES.", show_default=False)] = None,
    across_bases: Annotated[
        bool, typer.Option("--across-bases", help="Allow other base models: only how local the changes are is then compared.")
    ] = False,
) -> None:
    """Fine-tunes beside one another: local and low-rank, or distributed and high-rank? Prints the page's path."""
    from mechdiff.api import compare as hold_against_each_other

    made = hold_against_each_other(*runs, out=out, across_bases=across_bases)
    for sentence in made.verdict():
        _say(f"- {_escaped(sentence)}")
    print(made.report())


@app.command()
def verify(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.", show_default=False)],
    rows: Annotated[int, typer.Option(help="How many rows are recomputed.")] = 200,
    every: Annotated[bool, typer.Option("--all", help="All rows: hours for a large run.")] = False,
    seed: Annotated[int, typer.Option(help="Which rows.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, or cuda.")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="Everything as JSON on standard output.")] = False,
) -> None:
    """Recompute rows of a run by whole forward passes; hold every file against its hash. Exit code 1 where something differs."""
    from rich.console import Console

    from mechdiff.audit.verification import verify as recompute
    from mechdiff.measures.catalogue import AGAIN, ANSWERS, OPTIONS
    from mechdiff.terminal import show_verification

    with Console(stderr=True).status("opening the run") as status:
        found = recompute(
            run, OPTIONS, AGAIN, ANSWERS, n_rows=None if every else rows, seed=seed, device=device,
            progress=lambda what: status.update(what),
        )  # fmt: skip
    if json:
        print(found.to_json())
    else:
        show_verification(found, Console(width=None if sys.stdout.isatty() else 160))
    raise typer.Exit(0 if found.passed else 1)


@app.command()
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

    from mechdiff.demo import embedded_model
    from mechdiff.errors import StudyError
    from mechdiff.terminal import show_validation
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


if __name__ == "__main__":
    main()
