"""May these runs be compared, and what differs in how they were made?

Fields of their records are held against one another.

Refused: what changes the meaning of every number. Another base (another network: sites, heads and sizes are not the same things; with
`across_bases` what has no unit of its own is compared still), another prompt policy or position (another token is looked at). Marked, at the top
of the page: what changes how far a difference can be trusted, such as other prompts, another template, precision, budget, or a divergence on
shared tokens.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from mechdiff import labels, shares
from mechdiff.comparison.between_runs import BetweenRuns
from mechdiff.errors import RunError
from mechdiff.report import difference
from mechdiff.report.parts import Run
from mechdiff.report.parts import load as load_run
from mechdiff.report.phrasing import listed
from mechdiff.report.record import said, short_name
from mechdiff.rows import where
from mechdiff.statistics import clusters, floors, intervals
from mechdiff.store.tables import read_manifest, read_prompts

WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth")
"""Files that make two models one: tokenizer files change with library versions and are not held against each other."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A finished run, under the name that the page gives it."""

    name: str
    folder: Path
    content: Run
    texts: dict[tuple[str, str], str]
    """Hash of the rendered text, by split and prompt."""

    def key(self, split: str | None, prompt: str) -> str:
        """What a prompt is called across runs: its text's hash, or a name of this run's own where that is not known."""
        split = split or "probes"
        return self.texts.get((split, prompt), f"{self.folder}:{split}:{prompt}")

    @property
    def counts(self) -> bool:
        """Whether there is a D to take shares of: above its floor, on the tokens that both models have."""
        found = difference.difference(self.content.rows, self.content.summary)
        return found is not None and found.divides and found.mean > 0


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A field that the runs differ in."""

    field: str
    values: tuple[str, ...]
    """Of each run."""
    meaning: str
    """What it does to the comparison."""


def load(folders: Sequence[str | Path]) -> list[Loaded]:
    """The runs, read and named: by their tuned models, where these are alike by their folders. Raises RunError."""
    places = [Path(folder) for folder in folders]
    if len(places) < 2:
        raise RunError(f"given {len(places)} run, expected two or more to compare. `mechdiff report` shows a single one.")
    twice = {str(place) for i, place in enumerate(places) if place.resolve() in [other.resolve() for other in places[:i]]}
    if twice:
        raise RunError(f"{listed(sorted(twice))}: given twice. A run compared with itself says nothing; give different runs.")
    manifests = [read_manifest(place) for place in places]
    names = [short_name(manifest, "tuned") for manifest in manifests]
    alike = [name if names.count(name) == 1 else f"{name} ({place.resolve().name})" for name, place in zip(names, places, strict=True)]
    unique = [name if alike.count(name) == 1 else f"{name} [{i + 1}]" for i, name in enumerate(alike)]
    return [
        Loaded(
            name=name,
            folder=place,
            content=load_run(place),
            texts=rendered(place),
        )
        for name, place, manifest in zip(unique, places, manifests, strict=True)
    ]


def rendered(folder: Path) -> dict[tuple[str, str], str]:
    """Hash of each prompt's rendered text, and of a cluster's texts together, by split and name; empty where the run keeps no prompts.jsonl."""
    lines = read_prompts(folder)
    texts = {(line["split"], line["id"]): str(line.get("sha256")) for line in lines}
    members: dict[tuple[str, str], list[str]] = {}
    for (split, prompt), unit in clusters.unit_names(lines).items():
        members.setdefault((split, unit), []).append(texts[split, prompt])
    return texts | {unit: hashlib.sha256(" ".join(sorted(of)).encode()).hexdigest() for unit, of in members.items()}


def base_of(run: Loaded) -> str:
    """The base by its weights' hashes; by its name where none are recorded."""
    base = (run.content.manifest.get("pair") or {}).get("base") or {}
    hashes = sorted(digest for name, digest in (base.get("files") or {}).items() if name.endswith(WEIGHTS))
    return ", ".join(digest[:12] for digest in hashes) or str(base.get("ref"))


def _of(*names: str) -> Callable[[Loaded], str]:
    """A field of the manifest, in words."""

    def field(run: Loaded) -> str:
        value: Any = run.content.manifest
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        return said(value)

    return field


def _n_prompts(run: Loaded) -> str:
    counts = (run.content.manifest.get("prompts") or {}).get("n") or {}
    return ", ".join(f"{split} {counts[split]}" for split in ("fit", "select", "report") if split in counts) or "–"


def _measures(run: Loaded) -> str:
    real = run.content.rows.filter(pl.col("control").ne_missing("no_op"))
    return ", ".join(sorted(real["measure"].unique().to_list()))


def _arms(run: Loaded, measures: Mapping[str, BetweenRuns]) -> str:
    chosen = [name for name, one in measures.items() if one.arms]
    found = run.content.rows.filter(pl.col("measure").is_in(chosen), pl.col("arm").is_not_null())
    return ", ".join(sorted(found["arm"].unique().to_list()))


def _splits(run: Loaded, measures: Mapping[str, BetweenRuns]) -> str:
    """The split that is reported of where the change is, else of D."""
    known = (difference.reported(run.content.rows, name) for name in (*locating(measures), shares.OF_THE_PAIR))
    return next((split for split in known if split), "–")


def locating(measures: Mapping[str, BetweenRuns]) -> list[str]:
    """Names of the measures that say where a change is, in the order of a comparison."""
    return sorted((name for name, one in measures.items() if one.locates), key=lambda name: measures[name].place)


def _texts(run: Loaded) -> str:
    return f"{len(report_texts(run))} texts"


def _small(run: Loaded) -> str:
    n = len(report_texts(run))
    return f"only {n} prompts" if 0 < n < intervals.FEW else "enough prompts"


def report_texts(run: Loaded) -> frozenset[str]:
    """What the reported prompts are called across runs."""
    split = difference.reported(run.content.rows, shares.OF_THE_PAIR)
    of_split = where(run.content.rows, measure=shares.OF_THE_PAIR).filter(pl.col("split").eq_missing(split))
    of_split = of_split.filter(~labels.is_token())  # single tokens are of prompts, not of units
    return frozenset(run.key(split, prompt) for prompt in of_split["prompt"].drop_nulls().unique().to_list())


REFUSED: dict[str, Callable[[Loaded], str]] = {
    "base model": base_of,
    "layers": _of("pair", "base", "n_layers"),
    "prompt policy": _of("prompts", "policy"),
    "position": _of("prompts", "position"),
}
OF_BASES = ("base model", "layers")

FEW_PROMPTS = "few prompts"


def marked(measures: Mapping[str, BetweenRuns]) -> dict[str, tuple[Callable[[Loaded], str], str]]:
    """Field -> what a run says of it, and what it does to a comparison that it differs."""
    return {
        "D is": (
            lambda run: floors.d_metric(run.content.rows),
            "shares are of different totals: on shared tokens what is outside is not seen",
        ),
        "template": (_of("prompts", "template"), "the same question stands in other surroundings"),
        "dtype": (_of("dtype"), "the numerical noise differs; small effects may be rounding in one run"),
        "prompts": (_n_prompts, "intervals, fitted maps and choices of the smaller run are poorer"),
        "reported split": (lambda run: _splits(run, measures), "what is reported was used for choices in one run"),
        "measures": (_measures, "axes that one run lacks are left out"),
        "arms": (lambda run: _arms(run, measures), "the best map is the best of another choice"),
        "quick run": (_of("quick"), "only the first prompts of each split were used there"),
        "engine": (_of("engine", "name"), "other rounding; the numerical noise says how much"),
        "mechdiff": (_of("versions", "mechdiff"), "made by different versions"),
    }


def differing(runs: Sequence[Loaded], measures: Mapping[str, BetweenRuns]) -> list[Mark]:
    """What is not the same and yet may be compared; that the prompts are other texts is one of them."""
    found = []
    for field, (of, meaning) in marked(measures).items():
        values = tuple(of(run) for run in runs)
        if len(set(values)) > 1 or (field == "quick run" and values[0] == "yes"):
            found.append(Mark(field=field, values=values, meaning=meaning))
    if len({report_texts(run) for run in runs}) > 1:
        meaning = "other texts, so a difference may be the prompts' as well as the fine-tunes'; intervals are of unpaired samples"
        found.append(Mark(field="reported prompts", values=tuple(_texts(run) for run in runs), meaning=meaning))
    if any(_small(run).startswith("only") for run in runs):
        meaning = f"under {intervals.FEW} prompts intervals rest on the assumption of a bell curve"
        found.append(Mark(field=FEW_PROMPTS, values=tuple(_small(run) for run in runs), meaning=meaning))
    return found


def refuse(runs: Sequence[Loaded], *, across_bases: bool = False) -> list[Mark]:
    """Nothing where the runs may be compared, with `across_bases` the marks of their bases. Raises RunError that names the fields that differ."""
    differ = {field: values for field, of in REFUSED.items() if len(set(values := [of(run) for run in runs])) > 1}
    hard = {field: values for field, values in differ.items() if not (across_bases and field in OF_BASES)}
    if hard:
        told = "; ".join(
            f"{field}: {', '.join(f'{run.name} {v}' for run, v in zip(runs, values, strict=True))}" for field, values in hard.items()
        )
        only_bases = set(hard) <= set(OF_BASES)
        do = (
            "Run both on one base, or give --across-bases: then only how local and of what rank the changes are is compared."
            if only_bases
            else "Run them alike."
        )
        raise RunError(f"these runs cannot be compared: {told}. {do}")
    if not all((run.content.rows["measure"] == shares.OF_THE_PAIR).any() for run in runs):
        lacking = listed(run.name for run in runs if not (run.content.rows["measure"] == shares.OF_THE_PAIR).any())
        raise RunError(f"{lacking}: D was not measured, so no effect is a share of anything. Run `{shares.OF_THE_PAIR}` too.")
    meaning = "another network: compared are shares of the parts there are, relative depths and ranks"
    return [Mark(field=field, values=tuple(values), meaning=meaning) for field, values in differ.items()]
