"""A run's answers are written as Inspect logs, so that `inspect view` shows them and its data frames hold them.

**Writes** one JSON log a model and task (log version 2, as of inspect_ai 0.3.285): the prompt as `input` (the user's text; what the model read,
template included, is in the sample's metadata), the label as `target`, the greedy answer as the assistant's message (stop reason `max_tokens` where
it was cut off), and every score of the run's rows under its metric's name. Ids and times come from the run: a second export gives the same bytes.
"""

import base64
import json
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np

from mechdiff.exchange.answered import SIDES, Answered, Exported, Task

VERSION = 2
"""Of the log's form."""


def write(of: Exported, out: Path) -> list[Path]:
    """A log for each model and task, under OUT. The files' paths."""
    out.mkdir(parents=True, exist_ok=True)
    found = []
    for side in SIDES:
        for task in of.of(side):
            name = f"{of.finished.replace(':', '-')}_{side}-{task.name.replace('_', '-')}_{_id(of, side, task.name)}.json"
            (out / name).write_text(json.dumps(log(of, task), ensure_ascii=False, indent=1), encoding="utf-8")
            found.append(out / name)
    return found


def log(of: Exported, task: Task) -> dict[str, Any]:
    """The log of one model's answers to one task, as plain data."""
    names, model = [one.prompt for one in task.items], f"mechdiff/{of.model(task.side)}"
    started = str(of.manifest["started"])
    return {
        "version": VERSION,
        "status": "success",
        "eval": {
            "eval_id": _id(of, "eval", task.side, task.name),
            "run_id": _id(of, "run", task.side),
            "created": started,
            "task": task.name,
            "task_id": _id(of, "task", task.name),
            "task_version": 0,
            "dataset": {"name": task.name, "samples": len(names), "sample_ids": names, "shuffled": False},
            "model": model,
            "model_generate_config": {"max_tokens": of.max_tokens, "temperature": 0.0},
            "config": {"epochs": 1},
            "packages": {"mechdiff": of.version},
            "metadata": {"side": task.side, "study_hash": str(of.manifest["config_hash"]), "left_out": list(of.left_out)},
        },
        "plan": {"name": "plan", "steps": [{"solver": "generate"}]},
        "results": {
            "total_samples": len(names),
            "completed_samples": len(names),
            "scores": [_mean(task, metric) for metric in task.metrics],
        },
        "stats": {"started_at": started, "completed_at": of.finished, "model_usage": {}},
        "samples": [_sample(of, task, model, one) for one in task.items],
    }


def _mean(task: Task, metric: str) -> dict[str, Any]:
    value = float(np.mean([one.scores[metric] for one in task.items]))
    return {"name": metric, "scorer": metric, "params": {}, "metrics": {"mean": {"name": "mean", "value": value}}}


def _sample(of: Exported, task: Task, model: str, one: Answered) -> dict[str, Any]:
    reply = {"id": _id(of, "reply", task.side, task.name, one.prompt), "role": "assistant", "source": "generate", "content": one.answer}
    reason = "max_tokens" if one.scores.get("cut_off") == 1 else "stop"
    return {
        "id": one.prompt,
        "epoch": 1,
        "input": one.text,
        "target": "" if one.label is None else one.label,
        "messages": [{"id": _id(of, "asked", task.name, one.prompt), "role": "user", "source": "input", "content": one.text}, reply],
        "output": {"model": model, "choices": [{"message": reply, "stop_reason": reason}], "completion": one.answer},
        "scores": {metric: {"value": value, "answer": one.answer} for metric, value in one.scores.items()},
        "metadata": {"read": one.read, **{key: value for key, value in one.document().items() if key in ("kind", "language")}},
        "store": {}, "events": [], "model_usage": {}, "attachments": {},
        "uuid": _id(of, "sample", task.side, task.name, one.prompt),
    }  # fmt: skip


def _id(of: Exported, *parts: str) -> str:
    """22 letters and digits, as Inspect's ids are; of the run and these parts."""
    return base64.urlsafe_b64encode(UUID(bytes=of.digest(*parts)[:16]).bytes).decode().rstrip("=").replace("-", "0").replace("_", "1")
