"""A run's answers are written as lm-evaluation-harness logs them, so that what reads its samples reads a run.

**Writes** `MODEL/samples_TASK_DATE.jsonl`, one prompt a line, and `MODEL/results_DATE.json`, a mean and its standard error a score, in the form of
lm-eval 0.4.13 (`--log_samples`). A score of a line is a row of the run; `resps` is the greedy answer, `arguments` what the model read and how the
answer was made, `doc` the prompt; the hashes are SHA-256 of what lm-eval hashes. Both models' files of one task have the same lines in the same
order, so that `mechdiff compare-evals` and lm-eval's own comparison pair them. DATE is when the run finished: a second export gives the same bytes.
"""

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from mechdiff.exchange.answered import SIDES, Answered, Exported, Side, Task

FORM = "0.4.13"
"""The version of lm-eval whose form is written."""
FILTER = "none"
"""What lm-eval calls the answer as it came."""


def write(of: Exported, out: Path) -> list[Path]:
    """The sample and result files of both models, under OUT/base and OUT/tuned. The files' paths."""
    return [path for side in SIDES for path in _of_model(of, side, out / side)]


def _of_model(of: Exported, side: Side, folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    date, found = re.sub(r"\+.*", "", of.finished).replace(":", "-"), []
    for task in of.of(side):
        path = folder / f"samples_{task.name}_{date}.jsonl"
        lines = (json.dumps(sample(of, task, place), ensure_ascii=False) for place in range(len(task.items)))
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        found.append(path)
    results = folder / f"results_{date}.json"
    results.write_text(json.dumps(_results(of, side), ensure_ascii=False, indent=2), encoding="utf-8")
    return [*found, results]


def sample(of: Exported, task: Task, place: int) -> dict[str, Any]:
    """One line of a sample file."""
    one = task.items[place]
    document, target = one.document(), "" if one.label is None else one.label
    asked = {"until": [], "do_sample": False, "max_gen_toks": of.max_tokens}
    return {
        "doc_id": place,
        "doc": document,
        "target": target,
        "arguments": {"gen_args_0": {"arg_0": one.read, "arg_1": asked}},
        "resps": [[one.answer]],
        "filtered_resps": [one.answer],
        "filter": FILTER,
        "metrics": task.metrics,
        "doc_hash": _hash(json.dumps(document, indent=2, ensure_ascii=False)),
        "prompt_hash": _hash(one.read),
        "target_hash": _hash(target),
        **{metric: one.scores[metric] for metric in task.metrics},
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _results(of: Exported, side: Side) -> dict[str, Any]:
    tasks = {task.name: task for task in of.of(side)}
    counts = {name: {"original": len(task.items), "effective": len(task.items)} for name, task in tasks.items()}
    more = {name: {m: better for m in task.metrics if (better := task.better(m)) is not None} for name, task in tasks.items()}
    hashes = {name: _hash("".join(_hashes(of, task, place) for place in range(len(task.items)))) for name, task in tasks.items()}
    return {
        "results": {name: {"alias": name, **_means(task.metrics, task.items)} for name, task in tasks.items()},
        "group_subtasks": {},
        "configs": {name: {"task": name, "output_type": "generate_until", "num_fewshot": 0} for name in tasks},
        "versions": dict.fromkeys(tasks, 1.0),
        "n-shot": dict.fromkeys(tasks, 0),
        "higher_is_better": more,
        "n-samples": counts,
        "config": {"model": "mechdiff", "model_args": {"pretrained": of.model(side)}, "limit": None},
        "git_hash": None,
        "lm_eval_version": FORM,
        "mechdiff_version": of.version,
        "model_source": "mechdiff",
        "model_name": of.model(side),
        "model_name_sanitized": re.sub(r"[\"<>:/|\\?*\[\]]+", "__", of.model(side)),
        "task_hashes": hashes,
        "mechdiff_left_out": list(of.left_out),
    }


def _hashes(of: Exported, task: Task, place: int) -> str:
    line = sample(of, task, place)
    return "".join(line[name] for name in ("doc_hash", "prompt_hash", "target_hash"))


def _means(metrics: list[str], items: tuple[Answered, ...]) -> dict[str, float | str]:
    """Means and their standard errors under lm-eval's names ("exact_match,none"); "N/A" of one prompt alone, as lm-eval has it."""
    found: dict[str, float | str] = {}
    for metric in metrics:
        values = np.array([one.scores[metric] for one in items])
        found[f"{metric},{FILTER}"] = float(values.mean())
        error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else "N/A"
        found[f"{metric}_stderr,{FILTER}"] = error
    return found
