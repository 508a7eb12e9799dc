"""These verbs run, plan and check studies. Everything heavy is imported inside the verb."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mechdiff.cli.asked import Flags, studies_of
from mechdiff.cli.flags import (
    Also,
    AsJson,
    Asked,
    AtOnce,
    Base,
    BaseModel,
    Cells,
    Device,
    Dtype,
    Engine,
    FailOn,
    Gpus,
    MaxRows,
    Measures,
    Memory,
    OnRay,
    Out,
    Panel,
    Policy,
    Preset,
    Prompts,
    Quick,
    Seed,
    Template,
    Threads,
    Trust,
    Tuned,
    TunedModel,
    Verbose,
    Workers,
    as_typed,
    errors,
    escaped,
    progress,
    say,
)

Embedded = Literal["courtesy", "arithmetic", "kazakh"]


def demo(
    name: Annotated[Embedded, typer.Argument(help="One embedded fine-tune; of courtesy the truth is known.")] = "courtesy",
    contrast: Annotated[
        bool, typer.Option("--contrast", help="Arithmetic and Kazakh with every measure, compared: a quarter of an hour.")
    ] = False,
    out: Out = None,
    full: Annotated[bool, typer.Option("--full", help="All prompts and every measure with its defaults: no budget.")] = False,
    quick: Quick = False,
    verbose: Verbose = False,
) -> None:
    """What does a fine-tune change whose truth is known? A real model, no network, five minutes: what is expected beside what is found.

    The page stands from the start and fills in; its path is the last line printed. Exit code 1 where something known was not found.

    Examples:
      mechdiff demo
      mechdiff demo kazakh --out runs/kazakh
      mechdiff demo --contrast
    """
    from mechdiff.cli import known
    from mechdiff.demo import CONTRAST, KNOWN, demo_study, embedded_model, known_study
    from mechdiff.study.config import RunOptions

    embedded_model()
    say("a real model from a package, converted once into the cache; its fine-tunes come with mechdiff")
    which = "-contrast" if contrast else f"-{name}" * (name != KNOWN)
    place = out or Path("runs") / ("demo" + which + "-full" * full + "-quick" * quick)
    if contrast:
        pairs = {one: (demo_study(one, full=full), RunOptions(out=place / one, quick=quick)) for one in CONTRAST}
        _contrast(pairs, place, stated=not (full or quick))
        return
    of_known = name == KNOWN
    if of_known:
        known.before()
    finished = _run(known_study() if of_known and not full else demo_study(name, full=full), RunOptions(out=place, quick=quick), verbose)
    came_out = known.after(finished) if of_known else True
    print(finished.path / "report.html")
    raise typer.Exit(0 if came_out else 1)


def run(
    asked: Asked = None, base: Base = None, tuned: Tuned = None, prompts: Prompts = None, policy: Policy = "auto", template: Template = "tuned",
    measures: Measures = None, panel: Panel = None, also: Also = None, preset: Preset = None, seed: Seed = 0, dtype: Dtype = "auto",
    out: Out = None, device: Device = "auto", memory: Memory = "auto",
    max_rows: MaxRows = None, threads: Threads = None, engine: Engine = "auto", quick: Quick = False, trust_remote_code: Trust = None,
    ray: OnRay = None, workers: Workers = None, gpus_per_worker: Gpus = 0.0, cells: Cells = None, at_once: AtOnce = 1,
    fail_on: FailOn = None, verbose: Verbose = False, json: AsJson = False,
) -> None:  # fmt: skip
    """What did the fine-tune change? Runs every measure on BASE and TUNED, or the studies of some files. The last line printed is the page's path.

    The same command goes on where a run was stopped.

    Examples:
      mechdiff run HuggingFaceTB/SmolLM2-135M-Instruct ./my-adapter
      mechdiff run BASE TUNED --prompts mine.jsonl --measures divergence,panel,weights
      mechdiff run BASE TUNED --preset quick --prompts "What is 2+2?" --out runs/sums
      mechdiff run BASE TUNED --also must_not_change.jsonl --fail-on "panel.everyday.kl>0.05"
      mechdiff run a.yaml b.yaml --ray auto --at-once 2
    """
    from mechdiff.cli.gates import gates_of, refuse_unmeasured
    from mechdiff.study.config import RunOptions

    gates = gates_of(fail_on)
    with as_typed():
        options = RunOptions(
            out=out, device=device, memory=memory, max_rows=max_rows, threads=threads, engine=engine, quick=quick,
            trust_remote_code=tuple(trust_remote_code or ()), ray=ray, workers=workers, gpus_per_worker=gpus_per_worker, cells=cells,
        )  # fmt: skip
    flags = Flags(
        base=base, tuned=tuned, prompts=prompts, policy=policy, template=template, measures=measures, panel=panel, also=also, preset=preset,
        seed=seed, dtype=dtype,
    )  # fmt: skip
    studies = studies_of(asked, flags)
    for config in studies.values():
        refuse_unmeasured(gates, config.measures)
    if len(studies) > 1:
        runs = _sweep(studies, options, at_once)
    else:
        ((file, config),) = studies.items()
        with as_typed(file is None):
            runs = [_run(file or config, options, verbose)]
    raise typer.Exit(_ended(runs, gates, json=json))


def _ended(runs: list[Any], gates: list[Any], *, json: bool) -> int:
    """Prints what the gates found and where the pages are, or all of it as JSON; returns the exit code."""
    from mechdiff.cli.gates import checked
    from mechdiff.cli.json_output import print_json
    from mechdiff.cli.printing import show_gates

    found = [(run, checked(gates, run)) for run in runs]
    if json:
        told = [
            {"folder": run.path, "page": run.path / "report.html", **run.overview().data(), "gates": [one.data() for one in verdicts]}
            for run, verdicts in found
        ]
        print_json("run", {"runs": told})
    for run, verdicts in found:
        show_gates(verdicts, errors())
        if not json:
            print(run.path / "report.html")
    return 1 if any(one.failed for _, verdicts in found for one in verdicts) else 0


def _contrast(pairs: dict[str, Any], place: Path, *, stated: bool) -> None:
    """Both pairs' studies side by side, then their comparison; `stated`: what they cost beside their budget."""
    from mechdiff import api
    from mechdiff.api import compare as contrast
    from mechdiff.cli.printing import show_budget
    from mechdiff.study.distribute import side_by_side

    with progress() as bar:
        tasks = {name: bar.add_task(f"{name}: preparing", total=1.0) for name in pairs}
        runs = side_by_side(
            api.run_job, pairs, lambda name, what, share: bar.update(tasks[name], description=f"{name}: {what}", completed=share)
        )
    console = errors()
    if stated:
        show_budget(runs, console)
    compared = contrast(*(run.path for run in runs.values()), out=place)
    for sentence in compared.verdict():
        console.print(f"- {escaped(sentence)}")
    print(compared.report())


def _sweep(studies: dict[Any, Any], options: Any, at_once: int) -> list[Any]:
    """The runs of several studies, each in a folder of its own under --out; on one cluster, where there is one."""
    from dataclasses import replace

    from mechdiff import api
    from mechdiff.errors import StudyError
    from mechdiff.study.distribute import side_by_side, together

    names = [study.stem for study in studies]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise StudyError(f"two study files are called {', '.join(twice)}: their runs would share a folder. Give them different names.")
    with together(options.ray) as address, progress() as bar:
        jobs = {
            name: (config, replace(options, out=(options.out or Path("runs")) / name, ray=address))
            for name, config in zip(names, studies.values(), strict=True)
        }
        tasks = {name: bar.add_task(f"{name}: waiting", total=1.0) for name in names}
        runs = side_by_side(
            api.run_job, jobs, lambda name, what, share: bar.update(tasks[name], description=f"{name}: {what}", completed=share),
            at_once=at_once,
        )  # fmt: skip
    return list(runs.values())


def _run(study: Any, options: Any, verbose: bool = False) -> Any:
    from mechdiff import api

    with progress() as bar:
        task = bar.add_task("preparing", total=1.0)
        finished = api.run(
            study, options=options, progress=lambda what, share: bar.update(task, description=what, completed=share),
            listener=lambda line: bar.console.print(line, style="dim", markup=False, highlight=False) if verbose else None,
            opened=lambda page: bar.console.print(f"page, which fills in: {page}", markup=False, highlight=False, soft_wrap=True),
        )  # fmt: skip
        bar.update(task, description="done", completed=1.0)
    from mechdiff.cli.printing import show_run

    show_run(finished, errors())
    return finished


def plan(
    asked: Asked = None, base: Base = None, tuned: Tuned = None, prompts: Prompts = None, policy: Policy = "auto", template: Template = "tuned",
    measures: Measures = None, panel: Panel = None, also: Also = None, preset: Preset = None, seed: Seed = 0, dtype: Dtype = "auto",
    max_rows: MaxRows = None,
    json: AsJson = False,
) -> None:  # fmt: skip
    """What would a study of BASE and TUNED, or of a file, compute? Its tasks, memory and time; no model is loaded.

    Examples:
      mechdiff plan BASE TUNED
      mechdiff plan study.yaml --json
    """
    from rich.console import Console

    from mechdiff.cli.json_output import print_json
    from mechdiff.cli.printing import plan_data, planned, show_plan

    flags = Flags(
        base=base, tuned=tuned, prompts=prompts, policy=policy, template=template, measures=measures, panel=panel, also=also, preset=preset,
        seed=seed, dtype=dtype,
    )  # fmt: skip
    found = [(file, planned(config, max_rows)) for file, config in studies_of(asked, flags).items()]
    if json:
        return print_json("plan", {"plans": [{"study": file, **plan_data(one)} for file, one in found]})
    for _, one in found:
        show_plan(one, Console())


def check(
    base: BaseModel, tuned: TunedModel,
    alternative: Annotated[
        list[str] | None, typer.Option(help="Another model that may be the tuned one's base; may be given again.", show_default=False)
    ] = None,
    prompts: Prompts = None, policy: Policy = "auto", template: Template = "tuned", dtype: Dtype = "auto", device: Device = "auto",
    memory: Memory = "auto", trust_remote_code: Trust = None, json: AsJson = False,
) -> None:  # fmt: skip
    """Does this pair fit? Models, tokenizers, templates, prompts, what will be left out, lineage, and the engine's self-check on both.

    Exit code 1 where a study of the pair cannot run.

    Examples:
      mechdiff check BASE TUNED
      mechdiff check BASE TUNED --alternative OTHER-BASE --json
    """
    from rich.console import Console

    from mechdiff import api
    from mechdiff.cli.json_output import print_json
    from mechdiff.cli.printing import show_check
    from mechdiff.study.config import RunOptions

    with as_typed():
        options = RunOptions(device=device, memory=memory, trust_remote_code=tuple(trust_remote_code or ()))
        found = api.check(
            base,
            tuned,
            prompts=prompts,
            policy=policy,
            template=template,
            dtype=dtype,
            alternatives=tuple(alternative or ()),
            options=options,
        )
        if json:
            listed = list(found)
            print_json("check", {"fits": all(one.verdict != "fail" for one in listed), "findings": listed})
        fits = all(one.verdict != "fail" for one in listed) if json else show_check(found, Console())
    raise typer.Exit(0 if fits else 1)
