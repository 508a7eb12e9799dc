"""Two harnesses' logs are read as the same thing: items of tasks, each with a score and what was asked.

**Reads** lm-eval's `samples_TASK_DATE.jsonl` (0.4.x, with and without its hashes; a folder: all that are in it) and Inspect's logs, JSON (version
2) or `.eval` (a zip; entries packed with zstd need Python 3.14 or `inspect log convert`). A score of Inspect counts as its own reducers count it:
C 1, P 0.5, I and N 0, numbers and truth values as they are; several epochs are averaged. One score a task is read, by name or the first of SCORES
that all items have. Nothing is skipped: an item without a score is an error that names it.
"""

import json
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechdiff.errors import RunError

SCORES = ("exact_match", "acc", "mc_correct", "accuracy", "match", "includes", "choice", "em", "pass@1", "correct", "acc_norm")
"""Scores that say right or wrong, the one to read first; else the first that a log names."""
FIXED = ("doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", "doc_hash", "prompt_hash", "target_hash")
"""What a line of lm-eval holds beside its scores."""
LETTERS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
WORDS = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question that a model was scored on."""

    id: str
    content: str
    """What makes it the same question: its text and right answer, or their hash."""
    prompt: str
    """What the model read, or as much of it as the log has."""
    messages: tuple[tuple[str, str], ...] = ()
    """Role and text of the turns that the model read, where the log has them instead of one text."""
    scores: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Logged:
    """One task of one log."""

    task: str
    file: str
    items: dict[str, Item]

    def metrics(self) -> list[str]:
        """Scores that every item has: those of SCORES first, then as the log has them."""
        every = [name for name in next(iter(self.items.values())).scores if all(name in one.scores for one in self.items.values())]
        return sorted(every, key=lambda name: SCORES.index(_last(name)) if _last(name) in SCORES else len(SCORES))


def _last(metric: str) -> str:
    return metric.rpartition("/")[2]


def read_logs(path: str | Path) -> dict[str, Logged]:
    """The tasks of a sample file, an Inspect log, or a folder of them, by name. RunError for what is neither, or is there twice."""
    given = Path(path)
    if not given.exists():
        raise RunError(f"{given}: no such file. Give lm-eval's samples_*.jsonl, an Inspect log (.json, .eval), or a folder of them.")
    files = _files(given) if given.is_dir() else [given]
    if not files:
        raise RunError(f"{given}: no samples_*.jsonl and no Inspect logs in it. Run lm-eval with --log_samples and --output_path.")
    found: dict[str, Logged] = {}
    for file in files:
        for one in _read(file):
            if one.task in found:
                other = found[one.task].file
                raise RunError(f"{given}: the task {one.task} is in two files, {other} and {one.file}. Give the one that is meant.")
            found[one.task] = one
    return found


def _files(folder: Path) -> list[Path]:
    names = sorted(folder.rglob("samples_*.jsonl"))
    return names or sorted(path for path in folder.rglob("*") if path.suffix == ".eval" or (path.suffix == ".json" and _is_inspect(path)))


def _is_inspect(path: Path) -> bool:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "eval" in content and "samples" in content


def _read(file: Path) -> list[Logged]:
    try:
        if file.suffix == ".jsonl":
            return _lm_eval(file)
        return [_inspect(file, *(_zipped(file) if file.suffix == ".eval" else _plain(file)))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, NotImplementedError) as error:
        raise RunError(
            f"{file}: this is neither lm-eval's samples nor an Inspect log ({error!r}). Give samples_*.jsonl of `lm_eval --log_samples`, or a log of "
            "`inspect eval` (of one packed with zstd: `inspect log convert --to json`)."
        ) from error


# ---- lm-eval -----------------------------------------------------------------------------------------------------------------------


def _lm_eval(file: Path) -> list[Logged]:
    """One task a filter ("strict-match"): lm-eval scores each filtered answer by itself."""
    stem = re.sub(r"_\d{4}-\d\d-\d\dT\S+$", "", file.stem).removeprefix("samples_")
    groups: dict[str, dict[str, Item]] = defaultdict(dict)
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            sample = json.loads(line)
            one, way = _sample(sample), str(sample.get("filter", "none"))
            if one.id in groups[way]:
                raise RunError(f"{file}, line {number}: item {one.id} is there twice. A file that two runs wrote to holds both: keep one.")
            groups[way][one.id] = one
    if not groups:
        raise RunError(f"{file}: no samples in it.")
    plain = len(groups) == 1
    return [Logged(task=stem if plain else f"{stem},{way}", file=file.name, items=items) for way, items in groups.items()]


def _sample(sample: dict[str, Any]) -> Item:
    names = sample.get("metrics") or [name for name in sample if name not in FIXED]
    scores = {name: float(sample[name]) for name in names if isinstance(sample.get(name), bool | int | float)}
    document = sample.get("doc_hash") or json.dumps(sample["doc"], sort_keys=True)
    arguments = sample["arguments"]
    first = arguments["gen_args_0"]["arg_0"] if isinstance(arguments, dict) else arguments[0][0]
    return Item(id=str(sample["doc_id"]), content=f"{document} {sample.get('target')}", prompt=str(first), scores=scores)


# ---- Inspect -----------------------------------------------------------------------------------------------------------------------


def _plain(file: Path) -> tuple[dict, list[dict]]:
    content = json.loads(file.read_bytes())
    return content["eval"], content["samples"]


def _zipped(file: Path) -> tuple[dict, list[dict]]:
    with zipfile.ZipFile(file) as log:
        samples = [json.loads(log.read(name)) for name in sorted(log.namelist()) if name.startswith("samples/") and name.endswith(".json")]
        return json.loads(log.read("header.json"))["eval"], samples


def _inspect(file: Path, of: dict[str, Any], samples: list[dict[str, Any]]) -> Logged:
    epochs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for sample in samples:
        epochs[str(sample["id"])].append(sample)
    if not epochs:
        raise RunError(f"{file}: no samples in it. Was the log written with --no-log-samples?")
    return Logged(task=str(of["task"]), file=file.name, items={name: _of_epochs(name, many) for name, many in epochs.items()})


def _of_epochs(name: str, samples: list[dict[str, Any]]) -> Item:
    each = [dict(_scores(sample)) for sample in samples]
    means = {key: sum(one[key] for one in each) / len(each) for key in each[0] if all(key in one for one in each)}
    first = samples[0]
    asked = first["input"]
    turns = [] if isinstance(asked, str) else [(str(turn["role"]), _text(turn["content"])) for turn in asked]
    text = asked if isinstance(asked, str) else "\n".join(text for _, text in turns)
    return Item(
        id=name, content=json.dumps([asked if isinstance(asked, str) else turns, first.get("choices"), first["target"]], sort_keys=True),
        prompt=(first.get("metadata") or {}).get("read") or text, messages=tuple(turns), scores=means,
    )  # fmt: skip


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "\n".join(str(part.get("text", "")) for part in content)


def _scores(sample: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, score in (sample.get("scores") or {}).items():
        value = score["value"]
        parts = {f"{name}/{key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
        for key, one in parts.items():
            number = _number(one)
            if number is not None:
                yield key, number


def _number(value: Any) -> float | None:
    if isinstance(value, bool | int | float):
        return float(value)
    if isinstance(value, str):
        known = LETTERS.get(value, WORDS.get(value.lower()))
        return known if known is not None else float(value) if re.fullmatch(r"-?\d+(\.\d+)?", value) else None
    return None


# ---- two of them -------------------------------------------------------------------------------------------------------------------


def refuse_unequal(a: Logged, b: Logged) -> None:
    """RunError where two logs of a task do not have the same items, by name."""
    for one, other in ((a, b), (b, a)):
        if only := [name for name in one.items if name not in other.items]:
            raise RunError(
                f"task {one.task}: {len(only)} items of {one.file} are not in {other.file} ({_listed(only)}). A paired test needs the same items "
                "on both sides: run both with the same limit."
            )
    if other_text := [name for name, one in a.items.items() if one.content != b.items[name].content]:
        raise RunError(
            f"task {a.task}: {len(other_text)} items have one name and two contents ({_listed(other_text)}): {a.file} and {b.file} are of other "
            "versions of the task, or in another order. Run both on one version."
        )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
