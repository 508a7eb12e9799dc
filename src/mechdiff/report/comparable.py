"""May two runs be compared, and what must be said beside it?

Refused: another base model (its files' hashes), D by another metric (of shared tokens only in one run), another position or prompt policy: numbers
of such runs answer different questions. Marked: another template, number of prompts, dtype, arms, sites or options of a measure, a quick run: they
may make a difference that the fine-tunes do not make.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mechdiff.errors import RunError
from mechdiff.report import statistics
from mechdiff.report.parts import Run

BASE = "base model"
REFUSED = (BASE, "metric of D", "prompt policy", "position")


@dataclass(frozen=True, kw_only=True)
class Unlike:
    """One thing that is not the same in all runs."""

    what: str
    said: tuple[str, ...]
    """By run."""

    @property
    def refused(self) -> bool:
        return self.what in REFUSED


def unlike(runs: Sequence[Run]) -> list[Unlike]:
    """Everything that is not the same, what forbids a comparison first."""
    told = [_told(run) for run in runs]
    names = list(dict.fromkeys(name for one in told for name in one))
    found = [Unlike(what=name, said=tuple(one.get(name, "not there") for one in told)) for name in names]
    return sorted((one for one in found if len(set(one.said)) > 1), key=lambda one: not one.refused)


def check(names: Sequence[str], found: Sequence[Unlike], *, across_bases: bool) -> None:
    """Raises RunError that names every field which forbids the comparison."""
    fatal = [one for one in found if one.refused and not (across_bases and one.what == BASE)]
    if not fatal:
        return
    told = "; ".join(f"{one.what}: {', '.join(f'{name} has {said}' for name, said in zip(names, one.said, strict=True))}" for one in fatal)
    hint = " --across-bases compares them all the same: numbers of spread and rank need no common base." if fatal[0].what == BASE else ""
    raise RunError(f"these runs do not answer the same question ({told}). Run both with the same settings.{hint}")


def _told(run: Run) -> dict[str, str]:
    manifest = run.manifest
    base = (manifest.get("pair") or {}).get("base") or {}
    weights = [digest for name, digest in (base.get("files") or {}).items() if name.endswith((".safetensors", ".gguf", ".bin"))]
    prompts = manifest.get("prompts") or {}
    told = {
        BASE: ", ".join(digest[:12] for digest in sorted(weights)) or str(base.get("ref")),
        "metric of D": statistics.d_metric(run.rows),
        "prompt policy": str(prompts.get("policy")),
        "position": str(prompts.get("position")),
        "template": str(prompts.get("template")),
        "dtype": str(manifest.get("dtype")),
        "seed": str(manifest.get("seed")),
        "quick": "a quick run" if manifest.get("quick") else "a whole run",
        **{f"{split} prompts": str(n) for split, n in (prompts.get("n") or {}).items()},
    }
    for one in (manifest.get("config") or {}).get("measures") or []:
        for measure, options in _named(one):
            told[measure] = "measured"
            told |= {f"{measure}: {option}": str(value) for option, value in options.items()}
    return told


def _named(one: str | Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(one, {})] if isinstance(one, str) else [(name, options or {}) for name, options in one.items()]
