"""mechdiff from Python: run a study, open a finished run, look at it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechdiff.report.page import build_report
from mechdiff.report.statistics import summarise
from mechdiff.study.artifacts import RunFolder, read_manifest, read_rows, read_summary
from mechdiff.study.config import RunOptions, StudyConfig, load_study, make_study, study_yaml

if TYPE_CHECKING:
    import polars as pl

    from mechdiff.study.run import Progress


@dataclass(frozen=True)
class Run:
    """A finished run's folder."""

    path: Path

    def rows(self) -> "pl.DataFrame":
        """Every value, by the row contract: one a row, per prompt."""
        return read_rows(self.path)

    def summary(self) -> "pl.DataFrame":
        """Means, intervals, shares and floors, one line for each value that is not per prompt."""
        return read_summary(self.path)

    def manifest(self) -> dict[str, Any]:
        """The run's record: models, prompts, versions, self-check, noise floor, what was skipped."""
        return read_manifest(self.path)

    def report(self) -> Path:
        """Builds report.html and the figures anew from the folder; returns the page's path."""
        return build_report(self.path)


def open_run(path: str | Path) -> Run:
    """The finished run in a folder. Raises RunError where there is none."""
    read_manifest(path)
    return Run(Path(path))


def run(
    study: str | Path | StudyConfig | None = None,
    *,
    base: str | None = None,
    tuned: str | None = None,
    prompts: str | Path | dict[str, Any] | None = None,
    measures: list[Any] | None = None,
    seed: int = 0,
    dtype: str = "float32",
    out: str | Path | None = None,
    options: RunOptions | None = None,
    progress: "Progress | None" = None,
) -> Run:
    """Runs a study (a file, a StudyConfig, or a pair and prompts) and returns its Run. What is there already is not computed again.

    `prompts`: a JSONL file (split by the seed), or a mapping as in a study file. `out`: the run's folder (default: runs/NAME-HASH).
    Raises MechdiffError for what a user can put right.
    """
    from mechdiff.study.prepare import prepare
    from mechdiff.study.run import execute

    config, text = _study(study, base=base, tuned=tuned, prompts=prompts, measures=measures, seed=seed, dtype=dtype)
    prepared = prepare(config, options or RunOptions())
    place = Path(out) if out else (options.out if options and options.out else Path("runs") / _name(config, prepared.config_hash))
    with RunFolder.open(place, config_hash=prepared.config_hash, study_text=text) as folder:
        rows, record = execute(prepared, folder, *([progress] if progress else []))
        if progress:
            progress("intervals and figures", 1.0)
        folder.write_summary(summarise(rows, seed=config.seed))
        folder.write_manifest(record)
    build_report(place)
    return Run(place)


def _study(study: str | Path | StudyConfig | None, **given: Any) -> tuple[StudyConfig, str]:
    if isinstance(study, StudyConfig):
        return study, study_yaml(study)
    if study is not None:
        return load_study(study)
    prompts = given["prompts"]
    data = {
        "pair": {"base": given["base"], "tuned": given["tuned"]},
        "prompts": prompts if isinstance(prompts, dict) else {"file": str(prompts)} if prompts is not None else None,
        "seed": given["seed"],
        "dtype": given["dtype"],
    } | ({"measures": given["measures"]} if given["measures"] is not None else {})
    config = make_study(data)
    return config, study_yaml(config)


def _name(config: StudyConfig, config_hash: str) -> str:
    """A folder name that says whose run it is: the tuned model's name and the start of the study's hash."""
    bare = Path(config.pair.tuned.rstrip("/")).name or "run"
    safe = "".join(character if character.isalnum() or character in "-_." else "-" for character in bare).strip(".")[:60]
    return f"{safe or hashlib.sha256(bare.encode()).hexdigest()[:8]}-{config_hash[:8]}"
