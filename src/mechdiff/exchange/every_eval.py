"""A run's answers are written in the schema of Every Eval Ever, in which evaluations of many harnesses are collected.

**Writes** for each model `data/BENCHMARK/DEVELOPER/MODEL/UUID.json`, one result for each task and rate with its 95 % interval (Wilson's) and its
number of prompts, and `UUID_samples.jsonl` beside it, one prompt a line, of tasks whose prompts have right answers. Schema 0.3.0, both files. Where
the schema asks for what a run does not know, nothing is guessed: a rate of which nobody can say whether more is better (refusals to the run's own
prompts) is left out, and so are prompts without a right answer from the samples; `write` returns what it left out. Scores that are no rates
(log-probabilities) are in the other two forms only.
"""

import hashlib
import json
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from mechdiff.exchange.answered import RATES, SIDES, Answered, Exported, Side, Task
from mechdiff.statistics import intervals

SCHEMA: Literal["0.3.0"] = "0.3.0"
UNKNOWN = "unknown"
"""Who made a model that is no Hub id."""
NAMES = {"exact_match": "Exact match", "mc_correct": "Accuracy", "refusal": "Refusal rate", "cut_off": "Answers cut off"}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Metric(_Part):
    """What one score is."""

    metric_id: str
    metric_name: str
    metric_kind: str
    metric_unit: Literal["proportion"] = "proportion"
    lower_is_better: bool
    score_type: Literal["continuous"] = "continuous"
    min_score: float = 0.0
    max_score: float = 1.0


class Interval(_Part):
    lower: float
    upper: float
    confidence_level: float = intervals.LEVEL
    method: str = "wilson"


class Uncertainty(_Part):
    confidence_interval: Interval
    num_samples: int


class Score(_Part):
    score: float
    uncertainty: Uncertainty


class Result(_Part):
    """One rate of one task."""

    evaluation_result_id: str
    evaluation_name: str
    source_data: dict[str, str]
    evaluation_timestamp: str
    metric_config: Metric
    score_details: Score
    generation_config: dict[str, dict[str, float]]


class Evaluation(_Part):
    """One model's file."""

    schema_version: Literal["0.3.0"] = SCHEMA
    evaluation_id: str
    evaluation_timestamp: str
    retrieved_timestamp: str
    source_metadata: dict[str, str]
    eval_library: dict[str, str]
    # `model_info` is the schema's name; pydantic keeps names that begin with model_ to itself
    about_model: dict[str, Any] = Field(serialization_alias="model_info")
    evaluation_results: list[Result]
    detailed_evaluation_results: dict[str, Any] | None = None


class Sample(_Part):
    """One line of a model's samples."""

    schema_version: Literal["0.3.0"] = SCHEMA
    evaluation_id: str
    about_model: str = Field(serialization_alias="model_id")
    evaluation_name: str
    evaluation_result_id: str
    sample_id: str
    sample_hash: str
    interaction_type: Literal["single_turn"] = "single_turn"
    input: dict[str, Any]
    output: dict[str, list[str]]
    answer_attribution: list[dict[str, Any]]
    evaluation: dict[str, Any]
    metadata: dict[str, str]


def write(of: Exported, out: Path) -> tuple[list[Path], list[str]]:
    """Both models' files under OUT/data; their paths, and what was left out and why."""
    found: list[Path] = []
    for side in SIDES:
        found += _of_model(of, side, out)
    left_out = [f"{task.name}: {name} (nothing says whether more is better)" for task, name in _unsaid(of)]
    left_out += [
        f"{task.name}: its {len(task.items)} prompts as samples (they have no right answer)" for task in of.of("base") if not task.right
    ]
    return found, [*left_out, *of.left_out]


def _of_model(of: Exported, side: Side, out: Path) -> list[Path]:
    uuid = str(UUID(bytes=of.digest("every-eval", side)[:16], version=4))
    developer, _, model = of.model(side).rpartition("/")
    benchmark = f"mechdiff-{str(of.manifest['config_hash'])[:12]}"
    name = f"{benchmark}/{of.model(side)}/{_seconds(of)}"
    folder = Path("data") / benchmark / (developer or UNKNOWN) / model
    lines = [line for task in of.of(side) if task.right for line in _samples(of, task, name)]
    text = "".join(f"{line.model_dump_json(by_alias=True)}\n" for line in lines)
    detail = {"format": "jsonl", "file_path": str(folder / f"{uuid}_samples.jsonl"), "hash_algorithm": "sha256", "total_rows": len(lines)}
    whole = Evaluation(
        evaluation_id=name,
        evaluation_timestamp=of.finished,
        retrieved_timestamp=_seconds(of),
        source_metadata={
            "source_name": "mechdiff", "source_type": "evaluation_run", "source_organization_name": "unknown", "evaluator_relationship": "other",
        },
        eval_library={"name": "mechdiff", "version": of.version},
        about_model=_model(of, side),
        evaluation_results=[_result(of, task, metric) for task in of.of(side) for metric in _rates(task)],
        detailed_evaluation_results={**detail, "checksum": hashlib.sha256(text.encode()).hexdigest()} if lines else None,
    )  # fmt: skip
    (out / folder).mkdir(parents=True, exist_ok=True)
    main, beside = out / folder / f"{uuid}.json", out / folder / f"{uuid}_samples.jsonl"
    main.write_text(json.dumps(whole.model_dump(by_alias=True, exclude_none=True), ensure_ascii=False, indent=2), encoding="utf-8")
    if lines:
        beside.write_text(text, encoding="utf-8")
    return [main, beside] if lines else [main]


def _seconds(of: Exported) -> str:
    return str(int(datetime.fromisoformat(of.finished).timestamp()))


def _model(of: Exported, side: Side) -> dict[str, Any]:
    one, engine = of.manifest["pair"][side], {"name": "transformers", "version": str(of.manifest["versions"]["transformers"])}
    said = {"deployment_type": "self_deployed", "model_availability": "unknown", "side": side, "family": str(one["family"])}
    known = {"dtype": str(of.manifest["dtype"]), "adapter": str(one["adapter"]).lower(), "parameters": str(one["parameters"])}
    developer = of.model(side).rpartition("/")[0] or UNKNOWN
    return {
        "name": of.model(side), "id": of.model(side), "developer": developer, "inference_engine": engine, "additional_details": {**said, **known},
    }  # fmt: skip


def _rates(task: Task) -> list[str]:
    return [name for name in task.metrics if name in RATES and task.better(name) is not None]


def _unsaid(of: Exported) -> list[tuple[Task, str]]:
    return [(task, name) for task in of.of("base") for name in task.metrics if name in RATES and task.better(name) is None]


def _result(of: Exported, task: Task, metric: str) -> Result:
    values = np.array([one.scores[metric] for one in task.items])
    mean, better = float(values.mean()), task.better(metric)
    low, high = (float(end) for end in intervals.wilson(np.array(mean), len(values)))
    return Result(
        evaluation_result_id=f"{task.name}/{metric}",
        evaluation_name=task.name,
        source_data={"dataset_name": task.name, "source_type": "other"},
        evaluation_timestamp=of.finished,
        metric_config=Metric(metric_id=metric, metric_name=NAMES[metric], metric_kind=metric, lower_is_better=not better),
        score_details=Score(
            score=mean, uncertainty=Uncertainty(confidence_interval=Interval(lower=low, upper=high), num_samples=len(values))
        ),
        generation_config={"generation_args": {"temperature": 0.0, "max_tokens": of.max_tokens}},
    )


def _samples(of: Exported, task: Task, name: str) -> list[Sample]:
    return [_sample(of, task, name, one) for one in task.items]


def _sample(of: Exported, task: Task, name: str, one: Answered) -> Sample:
    metric = task.right
    assert metric
    assert one.label is not None, "a prompt with a right answer has its label"
    how = "mathematical equality of the final answer" if metric == "exact_match" else "log-probability per byte of each option"
    source = {"turn_idx": 0, "source": "output.raw", "extracted_value": one.answer, "extraction_method": how, "is_terminal": True}
    known = {"kind": one.kind, "language": one.language}
    return Sample(
        evaluation_id=name,
        about_model=of.model(task.side),
        evaluation_name=task.name,
        evaluation_result_id=f"{task.name}/{metric}",
        sample_id=one.prompt,
        sample_hash=hashlib.sha256((one.text + one.label).encode()).hexdigest(),
        input={"raw": one.text, "formatted": one.read, "reference": [one.label]},
        output={"raw": [one.answer]},
        answer_attribution=[source],
        evaluation={"score": one.scores[metric], "is_correct": one.scores[metric] == 1},
        metadata={key: value for key, value in known.items() if value is not None},
    )
