"""A file for programs lies beside a run's page and says what was found: results.json. Its schema ships as data/results.schema.json (docs/PYTHON.md).

VERSION counts: its first number when a field goes or means something else, its second when one is added.
"""

import json
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from mechdiff.report import record
from mechdiff.report.overview.overview import Overview
from mechdiff.report.parts import Question, Run
from mechdiff.results.numbers import Result
from mechdiff.store.disk import writing

VERSION = "1.0"
NAME = "results.json"
SCHEMA = Path(__file__).parents[1] / "data" / "results.schema.json"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ResultLine(_Strict):
    """One number (results.numbers.Result)."""

    question: Question
    name: str = Field(description="what the number is, in words")
    value: float
    unit: str = Field(description='"nats", "layer", "share" (0 to 1), ...; "" of a plain count')
    low: float | None = Field(description="lower end of the 95 % interval; null where there is none")
    high: float | None = Field(description="upper end of the 95 % interval")
    n: int | None = Field(description="prompts, texts or clusters behind it")
    prompts: str = Field(description="which: test prompts, unrelated texts, held-out texts, none")
    section: str = Field(description="id of the page's section that has more")
    sentence: str = Field(description='the sentence that it stands in; "" of what stands in none')
    caveat: str
    key: str = Field(pattern=r"^[a-z_]+/[a-z_0-9]+$", description="a name without places, phrases and sizes, for tables of several runs")


class TileNumber(_Strict):
    """A number in one of the six first answers."""

    shown: str
    value: float | None
    of: str
    unit: str
    n: int | None
    low: float | None
    high: float | None


class TileLine(_Strict):
    """One of the six first answers."""

    question: Question
    title: str
    text: str
    measured: bool
    caveats: list[str]
    link: str = Field(description="of the page's section, from this file's folder")
    numbers: list[TileNumber]


class ExampleLine(_Strict):
    """A pair of answers."""

    prompt: str
    asked: str
    base: str
    tuned: str
    kl_nats: float | None


class ModelLine(_Strict):
    """One of the two models."""

    ref: str
    adapter: bool
    family: str | None
    parameters: int | None
    files: dict[str, str] = Field(
        description="SHA-256 of every file that was read; of a model in memory tensors.in_memory is a digest of its tensors"
    )


class Checked(_Strict):
    """What `mechdiff verify` found when it recomputed rows."""

    passed: bool
    rows: int
    differing: int


class Document(_Strict):
    """A run, as results.json has it."""

    schema_version: Literal["1.0"] = VERSION  # type: ignore[assignment]
    mechdiff: str = Field(description="the version that computed the run")
    config_hash: str = Field(description="identity of the study: what was asked, of which files")
    started: str | None
    finished: str | None
    seed: int | None
    dtype: str | None
    device: str | None
    quick: bool
    measures: list[str]
    base: ModelLine
    tuned: ModelLine
    prompts: dict[str, int] = Field(description="how many, by split")
    tiles: list[TileLine] = Field(min_length=6, max_length=6)
    results: list[ResultLine]
    examples: list[ExampleLine]
    verdict: list[str]
    warnings: list[str]
    skipped: list[dict[str, str]]
    verified: Checked | None
    page: str
    run_files: dict[str, str] = Field(description="SHA-256 of the run's tables and tensors, by path from this file's folder")


def document(run: Run, overview: Overview, results: list[Result]) -> Document:
    """What results.json says of a run."""
    manifest = run.manifest
    told = overview.data()
    config, verified = manifest.get("config") or {}, run.verified
    return Document(
        mechdiff=(manifest.get("versions") or {}).get("mechdiff", ""),
        config_hash=manifest.get("config_hash", ""),
        started=manifest.get("started"),
        finished=manifest.get("finished"),
        seed=manifest.get("seed"),
        dtype=manifest.get("dtype"),
        device=manifest.get("device"),
        quick=bool(manifest.get("quick")),
        measures=[name for one in config.get("measures", []) for name in ([one] if isinstance(one, str) else one)],
        base=_model(manifest, "base"),
        tuned=_model(manifest, "tuned"),
        prompts=(manifest.get("prompts") or {}).get("n", {}),
        tiles=[TileLine.model_validate(_finite(one)) for one in told["tiles"]],
        results=[ResultLine.model_validate(_finite(vars(one))) for one in results],
        examples=[ExampleLine.model_validate(_finite(one)) for one in told["examples"]],
        verdict=told["verdict"],
        warnings=record.warnings(manifest),
        skipped=[{"what": one.get("what", ""), "why": one.get("why", "")} for one in manifest.get("skipped") or []],
        verified=Checked(**{name: verified[name] for name in ("passed", "rows", "differing")}) if verified else None,
        page="report.html",
        run_files=manifest.get("files") or {},
    )


def write(made: Document, folder: Path) -> Path:
    """Writes results.json into a run's folder; returns its path."""
    path = folder / NAME
    with writing(folder):
        path.write_text(json.dumps(made.model_dump(mode="json"), ensure_ascii=False, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of results.json."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "mechdiff results",
        **{key: value for key, value in Document.model_json_schema(mode="serialization").items() if key != "title"},
    }


def _model(manifest: dict[str, Any], side: str) -> ModelLine:
    told = (manifest.get("pair") or {}).get(side) or {}
    return ModelLine(
        ref=told.get("ref", side),
        adapter=bool(told.get("adapter")),
        family=told.get("family"),
        parameters=told.get("parameters"),
        files=told.get("files") or {},
    )


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _finite(told: Any) -> Any:
    """The same without what is no number."""
    if isinstance(told, dict):
        return {key: _finite(value) for key, value in told.items()}
    if isinstance(told, list):
        return [_finite(value) for value in told]
    plain = told.item() if isinstance(told, np.generic) else told
    return _number(plain) if isinstance(plain, float) else plain
