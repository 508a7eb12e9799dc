"""A run's record says its pair and settings, what was skipped, what was warned of, and what its engine checked."""

from pathlib import Path
from typing import Any

import polars as pl

from mechdiff.report import spoken
from mechdiff.report.difference import BREAKAGE, RECOVERY, Difference
from mechdiff.report.parts import Run, Section, note, table
from mechdiff.report.phrasing import nats
from mechdiff.statistics import summary


def short_name(manifest: dict, side: str) -> str:
    """A model's name for a title: a Hub id whole, of a path the last part without its ending."""
    ref = str((manifest.get("pair") or {}).get(side, {}).get("ref") or side)
    is_path = ref.startswith(("/", ".", "~")) or ref.count("/") > 1 or ref.endswith(".gguf")
    return (Path(ref).name.removesuffix(".gguf") or ref) if is_path else ref


def tables(manifest: dict) -> list[dict]:
    """The tables of the run's record: the pair, the run, and file hashes and versions folded away."""
    pair = manifest.get("pair") or {}
    sides = {side: pair.get(side) or {} for side in ("base", "tuned")}
    fields = ("ref", "family", "n_layers", "d_model", "n_heads", "vocab", "parameters", "active_parameters", "tokenizer", "adapter")
    models = [
        (name.replace("_", " "), *(said(side.get(name)) for side in sides.values()))
        for name in fields
        if any(name in side for side in sides.values())
    ]
    prompts, engine, git = (manifest.get(name) or {} for name in ("prompts", "engine", "git"))
    facts: dict[str, Any] = {
        "prompts": ", ".join(f"{split} {count}" for split, count in (prompts.get("n") or {}).items()),
        "prompt policy": _joined(prompts, ("policy", "template", "position")),
        "tokens per prompt": ", ".join(f"{name} {count}" for name, count in (prompts.get("tokens") or {}).items()),
        "relative weight distance": (manifest.get("lineage") or {}).get("relative_distance"),
        "engine": ": ".join(str(engine[name]) for name in ("name", "reason") if engine.get(name)),
        "patched forward passes": engine.get("variants"),
        "device, dtype, threads": _joined(manifest, ("device", "dtype", "threads")),
        "seed": manifest.get("seed"),
        "study hash": manifest.get("config_hash"),
        "seconds": ", ".join(f"{stage} {said(took)}" for stage, took in (manifest.get("seconds") or {}).items()),
        "started, finished": _joined(manifest, ("started", "finished")),
        "git": (str(git.get("commit") or "") + (" with uncommitted changes" if git.get("dirty") else "")) if git else None,
    }
    found = [table(("", "base", "tuned"), models, title="The two models")] if models else []
    found.append(table(("", ""), [(name, said(value)) for name, value in facts.items() if value not in (None, "")], title="The run"))
    hashes = [(name, side, digest) for side, content in sides.items() for name, digest in (content.get("files") or {}).items()]
    versions = [(name, str(version)) for name, version in (manifest.get("versions") or {}).items()]
    if hashes:
        found.append(table(("file", "model", "sha256"), hashes, folded="The models' files"))
    if versions:
        found.append(table(("", "version"), versions, folded="Versions"))
    return found


def warnings(manifest: dict) -> list[str]:
    """What the run warns of, each once."""
    return list(dict.fromkeys([*(manifest.get("warnings") or []), *((manifest.get("lineage") or {}).get("warnings") or [])]))


def trust(run: Run) -> Section:
    """What was skipped, what was warned of, what the engine checked about itself, which numbers are flagged."""
    manifest = run.manifest
    parts: list[Any] = []
    skipped = [{"what": item.get("what", ""), "why": item.get("why", "")} for item in manifest.get("skipped") or []]
    listed = {"kind": "list", "main": True}
    parts.append(listed | {"entries": skipped} if skipped else note("Nothing that the study asked for was skipped.", main=True))
    warned = warnings(manifest)
    parts.append(listed | {"entries": [{"what": "Warning", "why": text} for text in warned]} if warned else note("No warnings.", main=True))
    if checks := _selfcheck(manifest):
        parts.append(checks)
    if quiet := spoken.silent(run.rows):
        parts.append(note(quiet))
    real = run.summary.filter(pl.col("control").is_null())
    counts = real["flag"].drop_nulls().str.split(";").explode().value_counts().sort("count", "flag", descending=[True, False])
    flagged = [(summary.FLAGS.get(name, name), f"{count:,}") for name, count in counts.iter_rows()]
    if flagged:
        parts.append(table((f"of {len(real):,} numbers in summary.parquet", "flagged"), flagged, folded="Flags: numbers not to lean on"))
    return Section(id="trust", title="Limits and checks", parts=parts)


CHECKS = {
    "prompts": "prompts",
    "sites": "sites written back unchanged",
    "replay_nats": "replay against whole forward passes, largest KL, nats",
    "worst_site": "the site where it is largest",
    "floor_nats": "unedited row against its own model, largest KL, nats",
    "held_since": "held since, for the same weights, code, versions and device",
}


def _selfcheck(manifest: dict) -> dict | None:
    """The engine's check on itself: writing back what was read changes nothing, and replay equals the full forward."""
    checks = {side: (manifest.get("selfcheck") or {}).get(side) or {} for side in ("base", "tuned")}
    names = list(dict.fromkeys(name for content in checks.values() for name in content))
    rows = [(CHECKS.get(name, name.replace("_", " ")), *(said(content.get(name)) for content in checks.values())) for name in names]
    floors = manifest.get("noise_floor") or {}
    if floors:
        rows.append(("numerical noise: the same over all prompts, nats", said(floors.get(RECOVERY)), said(floors.get(BREAKAGE))))
    return table(("", *checks), rows, title="The engine's check on itself, by running model") if rows else None


def _joined(content: dict, names: tuple[str, ...]) -> str:
    return ", ".join(str(content[name]) for name in names if content.get(name) is not None)


def said(value: object) -> str:
    """Any value of a manifest as text."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return nats(value) if isinstance(value, float) else str(value)


def how_sure(found: Difference | None, manifest: dict) -> list[str]:
    """Noise floor against D."""
    floor = found.floor if found and found.floor is not None else max((manifest.get("noise_floor") or {}).values(), default=None)
    if floor is None:
        return []
    sentence = f"The numerical noise is {nats(floor)} nats: an unedited row, replayed, strays no further"
    if found and found.divides and floor > 0:
        sentence += f", and D is {nats(found.mean / floor)} times that"
    return [sentence + "."]
