"""This is mechdiff from Python: it runs a study, opens a finished run and shows what was found."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechdiff.corpora import moments, scan
from mechdiff.errors import StudyError
from mechdiff.measures.catalogue import AGAIN, ANSWERS, BETWEEN_RUNS, CHAPTERS, EXPERIMENTS, NUMBERS, load_study, make_study
from mechdiff.report.page import build_report
from mechdiff.results.finished import Run, open_run
from mechdiff.statistics.summary import summarise
from mechdiff.store.run_folder import RunFolder
from mechdiff.store.tables import read_prompts
from mechdiff.study.config import Prompts as PromptSettings
from mechdiff.study.config import RunOptions, StudyConfig, refuse_beside, study_yaml
from mechdiff.study.document import nearest

if TYPE_CHECKING:
    from mechdiff.audit.verification import Verification
    from mechdiff.comparison.compare import Comparison
    from mechdiff.curate.given import Prompts
    from mechdiff.study.check import Finding
    from mechdiff.study.prepare import Prepared
    from mechdiff.study.run import Crew, Progress, SoFar, Step

__all__ = ["Event", "Run", "check", "compare", "diff", "moments", "open_run", "prompt_files", "run", "run_job", "scan", "verify"]

Event = Callable[[int, dict[str, float]], None]
"""Called as a run goes on with a step, which grows, and numbers by name: "mechdiff/done" (0 to 1), and at the end those of `Run.results`."""
SAMPLE = {split: str(Path(__file__).parent / "data" / "prompts" / f"courtesy_{split}.jsonl") for split in ("fit", "select", "report")}
"""What is asked where no prompts are given."""


def diff(
    base: Any = None,
    tuned: Any = None,
    prompts: "Prompts | dict[str, Any] | None" = None,
    *,
    tokenizer: Any = None,
    preset: str | None = None,
    device: str = "auto",
    dtype: str | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    on_event: Event | None = None,
    **settings: Any,
) -> Run:
    """What did the fine-tune change? Runs a study of two models on some prompts and returns its Run, which a notebook shows as a page.

    `base`, `tuned`: a folder, a Hub id, a .gguf file, an adapter's folder (tuned); or a model in memory: a transformers model (with `tokenizer`, or
    as (model, tokenizer)), or as tuned a PeftModel, whose adapter is then switched off and on (base None). Models in memory are not copied, stay on
    their device and in their dtype, and are to the bit as before afterwards: weights, hooks, training mode, gradients, active adapter.
    `prompts`: texts, lists of messages, objects as in a file; or a file, a Hub id; none: everyday questions that ship.
    `preset`: quick, standard, paper or audit (`mechdiff presets`); none: every measure. `out`: the run's folder (runs/NAME-HASH); what is there
    already is not computed again. `progress`: shown while it runs.
    `on_event`: called with (step, {name: number}) as the run goes on: `lambda step, numbers: wandb.log(numbers, step=step)`.
    `settings`: anything that a study file or `mechdiff run` takes: measures, seed, answers, policy, template, system, position, threads, memory, ...
    Raises MechdiffError for what a user can put right.

    >>> run = mechdiff.diff(model, tuned, prompts=["What is 2+2?", "Name a river."], tokenizer=tokenizer,
    ...                     measures=["divergence", "weights"], out=folder, progress=False)
    >>> run.results.filter(section="divergence")["prompts"][0]
    'test prompts'
    """
    from mechdiff.models.in_memory import is_model, lent
    from mechdiff.models.sources import HELD
    from mechdiff.progress import shown

    if tuned is None:
        raise StudyError("diff: no tuned model is given. Use: mechdiff.diff(base, tuned, prompts=[...]).")
    options, asked = _settings(settings, device=device, out=out)
    with ExitStack() as stack:
        show, say = stack.enter_context(shown(progress))
        refs: tuple[Any, Any] = (base, tuned)
        if is_model(base) or is_model(tuned):
            if options.ray is not None:
                raise StudyError("diff: a model in memory cannot be sent to Ray's workers. Give names or folders, or leave ray out.")
            refs = stack.enter_context(lent(base, tuned, tokenizer))
            dtype = dtype or next((HELD[ref].held.dtype for ref in refs if ref in HELD and HELD[ref].held), None)
        data = {
            "pair": {side: ref if ref is None else str(ref) for side, ref in zip(("base", "tuned"), refs, strict=True)},
            **asked,
            "prompts": {**prompt_files(prompts, say), **asked.get("prompts", {})},
            **({"dtype": dtype} if dtype else {}),
            **({"preset": preset} if preset else {}),
        }
        study = make_study(data, name="diff")
        return run(study, options=options, progress=show, on_event=on_event, opened=lambda page: say(f"page, which fills in: {page}"))


def _settings(settings: dict[str, Any], *, device: str, out: str | Path | None) -> tuple[RunOptions, dict[str, Any]]:
    """Keyword arguments as options of a run, and as sections of a study."""
    how, of_prompts = {one.name for one in fields(RunOptions)}, set(PromptSettings.model_fields) - {"file", "fit", "select", "report"}
    sections = set(StudyConfig.model_fields) - {"pair", "prompts", "dtype", "preset"}
    known = how | of_prompts | sections
    if unknown := sorted(settings.keys() - known):
        raise StudyError(f"diff: given {unknown[0]}, expected some of {', '.join(sorted(known))}.{nearest(unknown[0], known)}")
    options = RunOptions(**{"device": device, "out": Path(out) if out else None} | {name: settings[name] for name in how & settings.keys()})
    told = {name: settings[name] for name in of_prompts & settings.keys()}
    return options, {name: settings[name] for name in sections & settings.keys()} | ({"prompts": told} if told else {})


def run(
    study: str | Path | StudyConfig | None = None,
    *,
    base: str | Path | None = None,
    tuned: str | Path | None = None,
    prompts: "Prompts | dict[str, Any] | None" = None,
    measures: list[Any] | None = None,
    seed: int = 0,
    dtype: str = "float32",
    out: str | Path | None = None,
    options: RunOptions | None = None,
    progress: "Progress | None" = None,
    listener: Callable[[str], None] = lambda line: None,
    opened: Callable[[Path], None] = lambda page: None,
    on_event: Event | None = None,
) -> Run:
    """Runs a study (a file, a StudyConfig, or a pair and prompts) and returns its Run. What is there already is not computed again.

    `prompts`: a file of any form that `mechdiff run --prompts` takes, a Hub id, a list of texts, of objects or of conversations (all split by the
    seed), or a mapping as in a study file; none: everyday questions that ship. `out`: the run's folder (default: runs/NAME-HASH).
    `progress` is called with what runs now and the share that is done, `listener` with every line of the log,
    `opened` with the path of the page once it stands, before the first number: it fills in as stages finish; `on_event` as in `diff`.
    Raises MechdiffError for what a user can put right.
    """
    from mechdiff.study.prepare import prepare
    from mechdiff.study.run import execute

    options = options or RunOptions()
    config, text = _study(study, base=base, tuned=tuned, prompts=prompts, measures=measures, seed=seed, dtype=dtype, listener=listener)
    prepared, progress = prepare(config, options, EXPERIMENTS), progress or (lambda what, share: None)
    place = Path(out or options.out or Path("runs") / _name(config, prepared.config_hash))
    with RunFolder.open(place, config_hash=prepared.config_hash, study_text=text, cells=options.cells) as folder:
        folder.listener = listener
        with _crew(prepared, folder) as crew, _live(folder, prepared, opened) as step:
            rows, record = execute(prepared, folder, progress, crew, _heard(step, on_event))
        progress("intervals and figures", 1.0)
        folder.write_summary(summarise(rows, NUMBERS, prompts=read_prompts(place), seed=config.seed))
        folder.write_manifest(record)
    build_report(place, CHAPTERS)
    finished = Run(place)
    finished.write_results()
    if on_event:
        found = finished.results
        on_event(
            len(prepared.plan.cells) + 1,
            {"mechdiff/done": 1.0} | {f"mechdiff/{key}": v for key, v in found.select("key", "value").iter_rows()},
        )
    return finished


def _heard(step: "Step", on_event: Event | None) -> "Step":
    """The same step, of which `on_event` hears too."""

    def both(look: "Callable[[], SoFar]") -> None:
        step(look)
        if on_event:
            so_far = look()
            on_event(so_far.done, {"mechdiff/done": so_far.share})

    return both


@contextmanager
def _live(folder: RunFolder, prepared: "Prepared", opened: Callable[[Path], None]) -> "Iterator[Step]":
    """What keeps the run's page up to date; where the run ends early, the page says so."""
    from mechdiff.live import LivePage

    page, told = LivePage(folder.path, prepared, folder.log), False

    def step(look: "Callable[[], SoFar]") -> None:
        nonlocal told
        page.step(look)
        if not told:
            opened(page.folder / "report.html")
        told = True

    try:
        yield step
    except BaseException as error:
        page.stopped(error)
        raise


def _crew(prepared: "Prepared", folder: RunFolder) -> "AbstractContextManager[Crew | None]":
    """Workers, where the options ask for them."""
    if prepared.options.ray is None:
        return nullcontext()
    from mechdiff.study.on_ray import ray_crew

    return ray_crew(prepared, folder, prepared.options.ray)


def check(
    base: str, tuned: str, *, prompts: "Prompts | None" = None, policy: str = "auto", template: str = "tuned", dtype: str = "float32",
    alternatives: Sequence[str] = (), options: RunOptions | None = None,
) -> "Iterator[Finding]":  # fmt: skip
    """Does this pair fit? Findings, each as it comes: every step that a run takes before its first number, on `prompts` (as in `run`) or, without
    them, on questions that ship with mechdiff. A study of the pair runs where none of them is a "fail"."""
    from mechdiff.study.check import Finding
    from mechdiff.study.check import check as steps

    said: list[str] = []
    asked = {**prompt_files(prompts, said.append), "policy": policy, "template": template}
    study = make_study({"pair": {"base": base, "tuned": tuned}, "prompts": asked, "dtype": dtype})
    found = steps(study, replace(options or RunOptions(), quick=prompts is None), EXPERIMENTS, alternatives)
    return chain((Finding("note", "prompts", line) for line in said), found)


def verify(
    path: "str | Path | Run", *, rows: int | None = 200, seed: int = 0, device: str = "cpu", models: tuple[Any, Any] | None = None,
    tokenizer: Any = None,
) -> "Verification":  # fmt: skip
    """Recomputes `rows` rows of a finished run by whole forward passes (None: all), and compares every file with its hash.

    `models`, `tokenizer`: of a run of models in memory, the same base and tuned once more. Raises RunError where there is no run. What was found:
    `.passed`, `.differing`, `.files`, `.models`, `.table()`.
    """
    from mechdiff.audit.rerun import Rerun
    from mechdiff.audit.verification import verify as recompute
    from mechdiff.models.in_memory import lent

    with lent(*models, tokenizer) if models else nullcontext():
        opened = Rerun(path.path if isinstance(path, Run) else Path(path), EXPERIMENTS, "auto" if models else device)
        return recompute(opened, AGAIN, ANSWERS, NUMBERS, n_rows=rows, seed=seed)


def compare(*runs: str | Path, out: str | Path | None = None, across_bases: bool = False) -> "Comparison":
    """Compares finished runs and writes the page; `out`: its folder (default runs/compare-NAMES). Raises RunError where they cannot be compared."""
    from mechdiff.comparison.compare import compare as hold_against_each_other

    return hold_against_each_other(*runs, measures=BETWEEN_RUNS, chapters=CHAPTERS, out=out, across_bases=across_bases)


def run_job(job: tuple[StudyConfig, RunOptions], threads: int, progress: "Progress") -> Run:
    """A study as a job among others: with so many threads where its options name none."""
    study, options = job
    return run(study, options=replace(options, threads=options.threads or threads), progress=progress)


def _study(study: str | Path | StudyConfig | None, *, listener: Callable[[str], None], **given: Any) -> tuple[StudyConfig, str]:
    if study is not None:
        named = study if isinstance(study, str | Path) else "as a StudyConfig"
        refuse_beside(named, {name: value not in (None, {"seed": 0, "dtype": "float32"}.get(name)) for name, value in given.items()})
    if isinstance(study, StudyConfig):
        return study, study_yaml(study)
    if study is not None:
        config, text = load_study(study)
        return with_prompt_files(config, listener), text
    data = {
        "pair": {side: None if given[side] is None else str(given[side]) for side in ("base", "tuned")},
        "prompts": prompt_files(given["prompts"], listener),
        "seed": given["seed"],
        "dtype": given["dtype"],
    } | ({"measures": given["measures"]} if given["measures"] is not None else {})
    config = make_study(data)
    return config, study_yaml(config)


def prompt_files(prompts: "Prompts | dict[str, Any] | None", say: Callable[[str], None]) -> dict[str, Any]:
    """Prompt files as a study names them; `say` hears what was made of other forms."""
    from mechdiff.curate.given import prompt_file

    if isinstance(prompts, dict):
        return prompts
    if prompts is None:
        say("no prompts are given: everyday questions that ship with mechdiff are asked")
        return SAMPLE
    found = prompt_file(prompts)
    for line in found.said:
        say(line)
    return {"file": str(found.path)}


def with_prompt_files(study: StudyConfig, say: Callable[[str], None]) -> StudyConfig:
    """The study whose prompt files of other forms (.csv, .txt, JSON Lines of other keys, ...) are read as `prompt_files` reads them."""
    from mechdiff.curate.given import prompt_file

    found = {name: prompt_file(path) for name, path in study.prompts.sources().items() if Path(path).exists()}
    for one in found.values():
        for line in one.said:
            say(line)
    files = {name: str(one.path) for name, one in found.items()}
    return study.model_copy(update={"prompts": study.prompts.model_copy(update=files)})


def _name(config: StudyConfig, config_hash: str) -> str:
    """A folder name that says whose run it is: the tuned model's name and the start of the study's hash."""
    from mechdiff.models.sources import IN_MEMORY

    tuned = config.pair.tuned.partition(IN_MEMORY)[0]
    return f"{_safe(Path(tuned.rstrip('/')).name or 'run')}-{config_hash[:8]}"


def _safe(name: str) -> str:
    """A name that any file system takes."""
    kept = "".join(character if character.isalnum() or character in "-_." else "-" for character in name).strip(".")[:60]
    return kept or hashlib.sha256(name.encode()).hexdigest()[:8]
