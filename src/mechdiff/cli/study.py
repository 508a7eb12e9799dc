"""These verbs run, plan and check studies. Everything heavy is imported inside the verb."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from mechdiff.cli.flags import (
    Also,
    Asked,
    AtOnce,
    Base,
    Cells,
    Device,
    Dtype,
    Engine,
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
    Verbose,
    Workers,
    escaped,
    progress,
    say,
)

SIZES = {"quick": 4, "standard": 12, "full": 50}
"""The measure that flags of its own ask for, and its texts of each group."""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """The flags describe a study where no file does."""

    base: str | None
    tuned: str | None
    prompts: str | None
    policy: str
    template: str
    measures: str | None
    panel: str | None
    also: Path | None
    seed: int
    dtype: str
    preset: str | None = None

    def told(self) -> dict[str, Any]:
        """Flag -> something true where it was given."""
        return {
            "--base": self.base, "--tuned": self.tuned, "--prompts": self.prompts, "--measures": self.measures,
            "--panel": self.panel, "--also": self.also, "--preset": self.preset,
            "--policy": self.policy != "auto", "--template": self.template != "tuned", "--seed": self.seed, "--dtype": self.dtype != "float32",
        }  # fmt: skip


def _asked(study: Path | None, flags: Flags) -> Any:
    """The study that its file or the flags describe."""
    from mechdiff.errors import StudyError
    from mechdiff.measures.catalogue import OPTIONS, load_study, make_study
    from mechdiff.study.config import refuse_beside

    told = flags.told()
    if study is not None:
        refuse_beside(study, told)
        return load_study(study)[0]
    if flags.base is None or flags.tuned is None:
        raise StudyError("no pair is given. Use: mechdiff run BASE TUNED [--prompts PROMPTS], or mechdiff run STUDY.yaml.")
    data: dict[str, Any] = {
        "pair": {"base": flags.base, "tuned": flags.tuned},
        "prompts": {**_prompts(flags.prompts), "policy": flags.policy, "template": flags.template},
        "seed": flags.seed,
        "dtype": flags.dtype,
        "preset": flags.preset,
    }
    names = [name.strip() for name in flags.measures.split(",")] if flags.measures else _of_preset(flags.preset, OPTIONS)
    if flags.measures or flags.panel or flags.also:
        panel = _panel(flags)
        data["measures"] = [name for name in names if name not in panel] + [{name: told} for name, told in panel.items()]
    return make_study(data, name="flags")


def _of_preset(name: str | None, options: Any) -> list[str]:
    """The measures of a preset; all of them without one, or for a name that the study will refuse."""
    from mechdiff.study.presets import PRESETS

    return list(PRESETS[name].measures(options) if name in PRESETS else options)


def _prompts(given: str | None) -> dict[str, Any]:
    """Prompt files as a study names them; what was made of what was given is said on standard error."""
    from mechdiff.api import prompt_files

    return prompt_files(given, lambda line: say(escaped(line)))


def _read(asked: list[str] | None, flags: Flags) -> dict[Path | None, Any]:
    """The studies that are asked for, by file; None: the one of two models, given as BASE TUNED or by flags."""
    from mechdiff.errors import StudyError

    given = asked or []
    files = [one for one in given if Path(one).suffix.lower() in (".yaml", ".yml")]
    if given and len(files) == len(given):
        return {Path(one): _asked(Path(one), flags) for one in files}
    if len(given) == 2 and not files:
        if flags.base or flags.tuned:
            raise StudyError(f"given BASE TUNED ({given[0]} {given[1]}) and --base or --tuned: name each model once.")
        flags = replace(flags, base=given[0], tuned=given[1])
    elif given:
        raise StudyError(f"given {' '.join(given)}, expected two models (mechdiff run BASE TUNED), or study files that end in .yaml.")
    return {None: _asked(None, flags)}


def _panel(flags: Flags) -> dict[str, Any]:
    """The panel as `--panel` and `--also` ask for it, by the measure's name; nothing where neither is given."""
    from mechdiff.errors import StudyError
    from mechdiff.measures.panel.measure import PANEL

    if flags.panel is not None and flags.panel not in SIZES:
        raise StudyError(f"--panel {flags.panel}: expected {', '.join(SIZES)}.")
    told = {"per_group": SIZES[flags.panel or "standard"]} | ({"also": str(flags.also)} if flags.also else {})
    return {PANEL.name: told} if flags.panel or flags.also else {}


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
    say("a real model from a package, converted once into the cache; its fine-tunes come with mechdiff")
    place = out or Path("runs") / ("demo" + f"-{name}" * (name is not None) + "-full" * full + "-quick" * quick)
    if name is not None:
        _run(demo_study(name, full=full), RunOptions(out=place, quick=quick))
        return
    pairs = {one: (demo_study(one, full=full), RunOptions(out=place / one, quick=quick)) for one in CONTRAST}
    _contrast(pairs, place, stated=not (full or quick))


def run(
    asked: Asked = None, base: Base = None, tuned: Tuned = None, prompts: Prompts = None, policy: Policy = "auto", template: Template = "tuned",
    measures: Measures = None, panel: Panel = None, also: Also = None, preset: Preset = None, seed: Seed = 0, dtype: Dtype = "float32",
    out: Out = None, device: Device = "auto", memory: Memory = "auto",
    max_rows: MaxRows = None, threads: Threads = None, engine: Engine = "auto", quick: Quick = False, trust_remote_code: Trust = None,
    ray: OnRay = None, workers: Workers = None, gpus_per_worker: Gpus = 0.0, cells: Cells = None, at_once: AtOnce = 1, verbose: Verbose = False,
) -> None:  # fmt: skip
    """What did the fine-tune change? Runs every measure on BASE and TUNED, or the studies of some files. The last line printed is the page's path.

    The same command goes on where a run was stopped."""
    from mechdiff.study.config import RunOptions

    options = RunOptions(
        out=out, device=device, memory=memory, max_rows=max_rows, threads=threads, engine=engine, quick=quick,  # type: ignore[arg-type]
        trust_remote_code=tuple(trust_remote_code or ()), ray=ray, workers=workers, gpus_per_worker=gpus_per_worker, cells=cells,
    )  # fmt: skip
    flags = Flags(
        base=base, tuned=tuned, prompts=prompts, policy=policy, template=template, measures=measures, panel=panel, also=also, preset=preset,
        seed=seed, dtype=dtype,
    )  # fmt: skip
    studies = _read(asked, flags)
    if len(studies) > 1:
        _sweep(studies, options, at_once)
    else:
        ((file, config),) = studies.items()
        _run(file or config, options, verbose)


def status(folder: Annotated[Path, typer.Argument(help="The folder of a run: running, dead or finished.", show_default=False)]) -> None:
    """How far has a run come? Read from its folder, while it runs or after it died."""
    from rich.console import Console

    from mechdiff.cli.printing import show_status
    from mechdiff.store.tables import read_status

    show_status(read_status(folder), Console())


def _contrast(pairs: dict[str, Any], place: Path, *, stated: bool) -> None:
    """Both pairs' studies side by side, then their comparison; `stated`: what they cost beside their budget."""
    from rich.console import Console

    from mechdiff import api
    from mechdiff.api import compare as contrast
    from mechdiff.cli.printing import show_budget
    from mechdiff.study.distribute import side_by_side

    with progress() as bar:
        tasks = {name: bar.add_task(f"{name}: preparing", total=1.0) for name in pairs}
        runs = side_by_side(
            api.run_job, pairs, lambda name, what, share: bar.update(tasks[name], description=f"{name}: {what}"[:34], completed=share)
        )
    console = Console(stderr=True)
    if stated:
        show_budget(runs, console)
    compared = contrast(*(run.path for run in runs.values()), out=place)
    for sentence in compared.verdict():
        console.print(f"- {escaped(sentence)}")
    print(compared.report())


def _sweep(studies: dict[Any, Any], options: Any, at_once: int) -> None:
    """Several studies, each in a folder of its own under --out; on one cluster, where there is one."""
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
            api.run_job, jobs, lambda name, what, share: bar.update(tasks[name], description=f"{name}: {what}"[:34], completed=share),
            at_once=at_once,
        )  # fmt: skip
    for run in runs.values():
        print(run.path / "report.html")


def _run(study: Any, options: Any, verbose: bool = False) -> None:
    from rich.console import Console

    from mechdiff import api

    with progress() as bar:
        task = bar.add_task("preparing", total=1.0)
        finished = api.run(
            study, options=options, progress=lambda what, share: bar.update(task, description=what[:34], completed=share),
            listener=lambda line: bar.console.print(line, style="dim", markup=False, highlight=False) if verbose else None,
            opened=lambda page: bar.console.print(f"page, which fills in: {page}", markup=False, highlight=False, soft_wrap=True),
        )  # fmt: skip
        bar.update(task, description="done", completed=1.0)
    from mechdiff.cli.printing import show_run

    show_run(finished, Console(stderr=True))
    print(finished.path / "report.html")


def plan(
    asked: Asked = None, base: Base = None, tuned: Tuned = None, prompts: Prompts = None, policy: Policy = "auto", template: Template = "tuned",
    measures: Measures = None, panel: Panel = None, also: Also = None, preset: Preset = None, seed: Seed = 0,
    dtype: Dtype = "float32", max_rows: MaxRows = None,
) -> None:  # fmt: skip
    """What would a study of BASE and TUNED, or of a file, compute? Its tasks, memory and time; no model is loaded."""
    from rich.console import Console

    from mechdiff.cli.printing import show_plan

    flags = Flags(
        base=base, tuned=tuned, prompts=prompts, policy=policy, template=template, measures=measures, panel=panel, also=also, preset=preset,
        seed=seed, dtype=dtype,
    )  # fmt: skip
    for config in _read(asked, flags).values():
        show_plan(config, max_rows, Console())


def check(
    base: Annotated[str, typer.Argument(help="Base model.", show_default=False)],
    tuned: Annotated[str, typer.Argument(help="Tuned model, or an adapter.", show_default=False)],
    alternative: Annotated[
        list[str] | None, typer.Option(help="Another model that may be the tuned one's base; may be given again.", show_default=False)
    ] = None,
    prompts: Prompts = None, policy: Policy = "auto", template: Template = "tuned", dtype: Dtype = "float32", device: Device = "auto",
    memory: Memory = "auto", trust_remote_code: Trust = None,
) -> None:  # fmt: skip
    """Does this pair fit? Models, tokenizers, templates, prompts, what will be left out, lineage, and the engine's self-check on both."""
    from rich.console import Console

    from mechdiff import api
    from mechdiff.cli.printing import show_check
    from mechdiff.study.config import RunOptions

    options = RunOptions(device=device, memory=memory, trust_remote_code=tuple(trust_remote_code or ()))  # type: ignore[arg-type]
    found = api.check(
        base, tuned, prompts=prompts, policy=policy, template=template, dtype=dtype, alternatives=tuple(alternative or ()), options=options
    )
    raise typer.Exit(0 if show_check(found, Console()) else 1)
