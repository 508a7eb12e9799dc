"""This is mechdiff from Python: it runs a study, opens a finished run and shows what was found."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechdiff.errors import RunError
from mechdiff.measures.catalogue import AGAIN, ANSWERS, BETWEEN_RUNS, CHAPTERS, EXPERIMENTS, NUMBERS, load_study, make_study
from mechdiff.report.drawing import WIDE
from mechdiff.report.export import chart, drawn_figures, export
from mechdiff.report.overview.overview import Overview, overview
from mechdiff.report.overview.shown import html, section
from mechdiff.report.page import build_report
from mechdiff.report.parts import Drawn
from mechdiff.report.parts import Run as Content
from mechdiff.report.parts import load as load_content
from mechdiff.report.sections import all_sections
from mechdiff.report.verdict import verdict
from mechdiff.statistics.summary import summarise
from mechdiff.store.run_folder import RunFolder
from mechdiff.store.tables import read_manifest, read_prompts, read_rows, read_summary
from mechdiff.study.config import RunOptions, StudyConfig, refuse_beside, study_yaml

if TYPE_CHECKING:
    import polars as pl

    from mechdiff.audit.verification import Verification
    from mechdiff.comparison.compare import Comparison
    from mechdiff.curate.given import Prompts
    from mechdiff.study.cells import Cell
    from mechdiff.study.check import Finding
    from mechdiff.study.on_ray import Task
    from mechdiff.study.prepare import Prepared
    from mechdiff.study.run import Crew, Progress, SoFar, Step

SAMPLE = {split: str(Path(__file__).parent / "data" / "prompts" / f"courtesy_{split}.jsonl") for split in ("fit", "select", "report")}
"""What is asked where no prompts are given."""


@dataclass(frozen=True)
class Run:
    """A finished run's folder. In a notebook it shows its overview."""

    path: Path

    def rows(self) -> "pl.DataFrame":
        """Every value, by the row contract: one a row, per prompt. A polars data frame; `.to_pandas()` makes it one of pandas."""
        return read_rows(self.path)

    def summary(self) -> "pl.DataFrame":
        """Means, intervals, shares and floors, one line for each value that is not per prompt. A polars data frame, as `rows`."""
        return read_summary(self.path)

    def manifest(self) -> dict[str, Any]:
        """The run's record: models, prompts, versions, self-check, noise floor, what was skipped."""
        return read_manifest(self.path)

    def verdict(self) -> list[str]:
        """What was found, in at most five sentences."""
        return verdict(self._content, CHAPTERS)

    def overview(self) -> Overview:
        """What stands first on the page: six answers with their numbers, and pairs of answers. `.data()` makes it plain data."""
        return self._overview

    def figures(self) -> dict[str, str]:
        """The names of the report's figures, and their captions."""
        return {name: drawn.caption for name, drawn in self._drawn.items()}

    def figure(self, name: str, *, width: int = WIDE) -> Any:
        """One of the report's figures as an altair chart, which notebooks show and `.save` writes. Raises RunError for a name that is not there."""
        if name not in self._drawn:
            raise RunError(f"no figure is called {name!r} in {self.path}. There are: {', '.join(self._drawn)}.")
        return chart(self._content, self._drawn[name], width)

    def report(self) -> Path:
        """Builds report.html anew from the folder; returns the page's path."""
        return build_report(self.path, CHAPTERS)

    def export(self, out: str | Path, **options: Any) -> Path:
        """Every figure at column widths, and summary.md with every table, into a folder: see `report/export.py`. Returns the summary's path."""
        return export(self._content, CHAPTERS, Path(out), **options)

    @cached_property
    def _content(self) -> Content:
        return load_content(self.path)

    @cached_property
    def _overview(self) -> Overview:
        return overview(self._content, CHAPTERS, self.verdict())

    @cached_property
    def _drawn(self) -> dict[str, Drawn]:
        return drawn_figures([section(self._overview), *all_sections(self._content, CHAPTERS)])

    def _repr_html_(self) -> str:
        names = " → ".join(escape(name) for name in (self._overview.base, self._overview.tuned))
        return f"<b>{names}</b>{html(self._overview)}<code>{escape(str(self.path / 'report.html'))}</code>"


def open_run(path: str | Path) -> Run:
    """The finished run in a folder. Raises RunError where there is none."""
    read_manifest(path)
    return Run(Path(path))


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
) -> Run:
    """Runs a study (a file, a StudyConfig, or a pair and prompts) and returns its Run. What is there already is not computed again.

    `prompts`: a file of any form that `mechdiff run --prompts` takes, a Hub id, a list of texts, of objects or of conversations (all split by the
    seed), or a mapping as in a study file; none: everyday questions that ship. `out`: the run's folder (default: runs/NAME-HASH).
    `progress` is called with what runs now and the share that is done, `listener` with every line of the log,
    `opened` with the path of the page once it stands, before the first number: it fills in as stages finish.
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
            rows, record = execute(prepared, folder, progress, crew, step)
        progress("intervals and figures", 1.0)
        folder.write_summary(summarise(rows, NUMBERS, prompts=read_prompts(place), seed=config.seed))
        folder.write_manifest(record)
    build_report(place, CHAPTERS)
    return Run(place)


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


def verify(path: str | Path, *, rows: int | None = 200, seed: int = 0, device: str = "cpu") -> "Verification":
    """Recomputes `rows` rows of a finished run by whole forward passes (None: all), and holds every file against its hash.

    Raises RunError where there is no run. What was found: `.passed`, `.differing`, `.files`, `.models`, `.table()`.
    """
    from mechdiff.audit.rerun import Rerun
    from mechdiff.audit.verification import verify as recompute

    return recompute(Rerun(Path(path), EXPERIMENTS, device), AGAIN, ANSWERS, NUMBERS, n_rows=rows, seed=seed)


def compare(*runs: str | Path, out: str | Path | None = None, across_bases: bool = False) -> "Comparison":
    """Compares finished runs and writes the page; `out`: its folder (default runs/compare-NAMES). Raises RunError where they cannot be compared."""
    from mechdiff.comparison.compare import compare as hold_against_each_other

    return hold_against_each_other(*runs, measures=BETWEEN_RUNS, chapters=CHAPTERS, out=out, across_bases=across_bases)


def moments(
    base: str, tuned: str, corpus: str | Path, sites: list[str], *, out: str | Path, positions: str = "all", longest: int = 512, shard: int = 1024,
    dtype: str = "float32", options: RunOptions | None = None, progress: "Progress" = lambda what, share: None,
) -> dict[str, Any]:  # fmt: skip
    """Sums of both models' states over a corpus of any size, at some sites ("L3.resid_post"), and what they say: CKA, mean difference, maps, rank.

    `corpus`: JSON Lines with a `text` in every line. `shard` texts are one unit of work and of storage. Returns the record of OUT/moments.json; the
    sums and the maps (`mechdiff.load_map`) lie beside it. Raises MechdiffError for what a user can put right.
    """
    from mechdiff.models.pair import open_pair
    from mechdiff.study.corpus import open_corpus, write
    from mechdiff.study.on_ray import corpus_task

    options, out = options or RunOptions(), Path(out)
    texts = {"path": str(corpus), "sites": sites, "positions": positions, "longest": longest, "shard": shard}
    given: dict[str, Any] = {"pair": _opened_by(base, tuned, dtype, options), "texts": texts}
    read = open_corpus(open_pair(**given["pair"]), **given["texts"])
    shards = read.levels[0]
    steps = (shards[:1], shards[1:], *read.levels[1:])  # the first shard gives the centre
    with _computed(
        read, corpus_task(read, given), steps, out, options, lambda cell, done: progress(cell.stage, done / len(read.cells))
    ) as folder:
        return write(read, folder, out)


def scan(
    corpus: str | Path, *, base: str, tuned: str, out: str | Path, dtype: str = "float32", options: RunOptions | None = None,
    progress: "Progress" = lambda what, share: None, **asked: Any,
) -> dict[str, Any]:  # fmt: skip
    """Both models read every text of a corpus: where they part, on which kinds of text, and which texts hold a direction of the change.

    `corpus`: JSON Lines, text, CSV, Parquet, a folder saved by `datasets`, or a Hub id. `asked`: field, longest, chunk, matrices, vectors, as in
    `mechdiff scan`. Returns the record of OUT/scan.json (docs/SCAN.md); texts.parquet, a row a text, and report.html lie beside it.
    Raises MechdiffError for what a user can put right.
    """
    from mechdiff.scanning import scan as scanning

    options, out = options or RunOptions(), Path(out)
    given = {"pair": _opened_by(base, tuned, dtype, options), "asked": {"corpus": str(corpus), **asked}}
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    read = scanning.open_scan(given)
    n, steps = len(read.cells), ((read.directions,), read.chunks)  # texts are held against directions

    def computed(cell: "Cell", done: int) -> None:
        progress(f"{cell.stage}: {done} of {n}", done / n)

    with _computed(read, scanning.task(read, given), steps, out, options, computed) as folder:
        return scanning.write(read, folder, out)


def _opened_by(base: str, tuned: str, dtype: str, options: RunOptions) -> dict[str, Any]:
    """The arguments of `open_pair`."""
    how = {"device": options.device, "memory": options.memory, "trusted": options.trust_remote_code}
    return {"base": base, "tuned": tuned, "dtype": dtype, **how}


@contextmanager
def _computed(
    read: Any, task: "Task", steps: Sequence[Sequence["Cell"]], out: Path, options: RunOptions, computed: Callable[["Cell", int], None]
) -> Iterator[RunFolder]:
    """The folder of a corpus with all its cells, computed step by step, here or on Ray. `computed` hears of each, and how many there are by then."""
    from mechdiff.study.corpus import Here
    from mechdiff.study.on_ray import workers_for

    with ExitStack() as stack:
        folder = stack.enter_context(RunFolder.open(out, config_hash=read.hash, study_text=read.text(), cells=options.cells))
        crew: Any = Here(folder, task.compute)
        if options.ray is not None:
            crew = stack.enter_context(workers_for(task, folder, options.ray, options, read.bytes))
        done = sum(folder.has(cell.key) for cell in task.cells)
        for cells in steps:
            for cell in crew.compute([cell for cell in cells if not folder.has(cell.key)], lambda cell: None):
                done += 1
                computed(cell, done)
        yield folder


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
        return load_study(study)
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


def _name(config: StudyConfig, config_hash: str) -> str:
    """A folder name that says whose run it is: the tuned model's name and the start of the study's hash."""
    return f"{_safe(Path(config.pair.tuned.rstrip('/')).name or 'run')}-{config_hash[:8]}"


def _safe(name: str) -> str:
    """A name that any file system takes."""
    kept = "".join(character if character.isalnum() or character in "-_." else "-" for character in name).strip(".")[:60]
    return kept or hashlib.sha256(name.encode()).hexdigest()[:8]
