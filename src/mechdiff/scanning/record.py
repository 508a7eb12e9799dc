"""A corpus's numbers are made of finished chunks, one in memory at a time: sums, quantiles, the first texts of each list, and the table of texts."""

import hashlib
import heapq
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet
from numpy import ndarray

from mechdiff.scanning import evidence, quantiles
from mechdiff.scanning.compute import COUNTED, Aimed, load_places
from mechdiff.scanning.corpus import Scan
from mechdiff.scanning.directions import Spread, empirical_p
from mechdiff.store.disk import TEMPORARY
from mechdiff.store.run_folder import RunFolder

TABLE = "texts.parquet"
SAMPLE = 4096
"""Texts whose words are looked at: all of a smaller corpus, of a larger one those whose hashes come first."""
LISTED, CANDIDATES, NAMED = 8, 64, 3
"""Texts that a list shows, from which near copies are taken out, and that are named among texts that were left out."""
OWN = ("mass_own_base", "mass_own_tuned")
QUANTILES = {"p999": 0.999, "p99": 0.99, "p95": 0.95, "p90": 0.9, "median": 0.5, "p10": 0.1, "p5": 0.05, "p1": 0.01}


@dataclass(kw_only=True)
class Gathered:
    """What all chunks say together."""

    texts: int = 0
    scored: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, dict[str, ndarray]] = field(default_factory=dict)
    top: dict[str, list[tuple[float, int, str, int]]] = field(default_factory=dict)
    """By list, a heap of (value, -number, id, token)."""
    spread: dict[tuple[int, str], Spread] = field(default_factory=dict)
    """By place, of its own directions and of random ones."""
    left_out: dict[str, tuple[int, list[str]]] = field(default_factory=dict)
    """By reason: how many texts, and the ids of the first."""
    sample: list[tuple[int, int, tuple[float, ...]]] = field(default_factory=list)
    """A heap of (-hash, number, numbers)."""

    def note(self, name: str, value: float, number: int, text: str, token: int, most: int) -> None:
        heap = self.top.setdefault(name, [])
        if not math.isnan(value):
            (heapq.heappush if len(heap) < most else heapq.heappushpop)(heap, (value, -number, text, token))

    def first(self, name: str) -> list[dict[str, Any]]:
        """A list, the largest value first."""
        found = sorted(self.top.get(name, []), reverse=True)
        return [{"number": -number, "id": text, "value": value, "token": token} for value, number, text, token in found]


def gather(scan: Scan, folder: RunFolder, out: Path) -> Gathered:
    """All chunks, one after the other; texts.parquet is written on the way."""
    found, at, part = Gathered(), load_places(scan, folder), out / f"{TEMPORARY}{TABLE}"
    writer: Any = None
    try:
        for cell in scan.chunks:
            held = folder.load(cell.key)
            table = _table(held.tensors, held.record["notes"])
            writer = writer or pyarrow.parquet.ParquetWriter(part, table.to_arrow().schema, compression="zstd")
            writer.write_table(table.to_arrow())
            _take(found, table, held.tensors, held.record["notes"], at)
    finally:
        if writer:
            writer.close()
    part.replace(out / TABLE)
    return found


def _table(tensors: Mapping[str, ndarray], notes: Mapping[str, Any]) -> pl.DataFrame:
    """A row a text."""
    first, ids = notes["first"], notes["ids"]
    columns: dict[str, Any] = {"number": np.arange(first, first + len(ids)), "id": ids}
    columns |= {name.removeprefix("text/"): tensors[name] for name in sorted(tensors) if name.startswith("text/")}
    table = pl.DataFrame(columns).with_columns(pl.col("n_tokens").cast(pl.Int64))
    return table.with_columns(
        pl.col("kl_max_at", "loss_change_max_at").fill_nan(None).cast(pl.Int64),
        loss_change=pl.col("loss_tuned") - pl.col("loss_base"),
    )


def _take(found: Gathered, table: pl.DataFrame, tensors: Mapping[str, ndarray], notes: Mapping[str, Any], at: list[Aimed]) -> None:
    found.texts += len(table)
    for name, why in notes["left_out"]:
        n, named = found.left_out.get(why, (0, []))
        found.left_out[why] = n + 1, [*named, name][:NAMED]
    for name, value in notes["sums"].items():
        found.sums[name] = max(found.sums.get(name, 0.0), value) if name.startswith("max_") else found.sums.get(name, 0.0) + value
    for name in COUNTED:
        here = {part: tensors[f"{name}/{part}"] for part in ("bins", "counts")}
        found.counts[name] = quantiles.together(found.counts[name], here) if name in found.counts else here
    for row in table.filter(pl.col("n_tokens") > 0).iter_rows(named=True):
        found.scored += 1
        found.note("kl", row["kl_max"], row["number"], row["id"], row["kl_max_at"] or 0, CANDIDATES)
        found.note("kl_mean", row["kl_tuned_base"], row["number"], row["id"], row["kl_max_at"] or 0, LISTED)
        found.note("loss", abs(row["loss_change_max"]), row["number"], row["id"], row["loss_change_max_at"] or 0, CANDIDATES)
        _sample(found, row)
    for i, one in enumerate(at):
        _take_directions(found, i, one, tensors, notes)


def _sample(found: Gathered, row: Mapping[str, Any]) -> None:
    rank = int.from_bytes(hashlib.sha256(f"{row['number']}\0{row['id']}".encode()).digest()[:8])
    numbers = tuple(float(row[name]) for name in ("kl_tuned_base", "loss_base", "loss_change"))
    (heapq.heappush if len(found.sample) < SAMPLE else heapq.heappushpop)(found.sample, (-rank, row["number"], numbers))


def _take_directions(found: Gathered, i: int, one: Aimed, tensors: Mapping[str, ndarray], notes: Mapping[str, Any]) -> None:
    cos, where = tensors[f"{i}/cos"], tensors[f"{i}/at"]
    here = ~np.isnan(cos[:, 0, 0])
    random = Spread(
        n=int(tensors[f"{i}/random_n"]), **{name: tensors[f"{i}/random_{name}"] for name in ("total", "squares", "top")}
    )  # fmt: skip
    for name, spread in (("own", Spread.of(cos[here])), ("random", random)):
        found.spread[i, name] = found.spread[i, name] + spread if (i, name) in found.spread else spread
    for direction in range(len(one.place.names)):
        for side, sign in enumerate("+-"):
            for place in np.flatnonzero(here).tolist():
                value, token = float(cos[place, side, direction]), int(where[place, side, direction])
                found.note(f"{i} {direction} {sign}", value, notes["first"] + place, notes["ids"][place], token, LISTED)


# ---- the record --------------------------------------------------------------------------------------------------------------------


def record(scan: Scan, folder: RunFolder, found: Gathered) -> dict[str, Any]:
    """All numbers, under the names of docs/SCAN.md."""
    said = [*folder.load(scan.directions.key).record["notes"]["said"], *_left_out(found)]
    return {
        "base": scan.pair.base.ref, "tuned": scan.pair.tuned.ref, "corpus": scan.asked.corpus, "corpus_hash": scan.hash, "dtype": scan.pair.dtype,
        "longest": scan.longest, "texts": found.texts, "texts_scored": found.scored, "tokens": int(found.sums.get("tokens", 0)),
        "numbers": numbers(found), "directions": list(_directions(found, load_places(scan, folder))), "left_out": said,
        "texts_left_out": sum(n for n, _ in found.left_out.values()), "vocabularies": scan.tokens.said(), "tokens_all_shared": scan.tokens.all_shared,
        **_evidence(scan, found),
    }  # fmt: skip


def _left_out(found: Gathered) -> Iterator[str]:
    for why, (n, named) in found.left_out.items():
        yield f"{n:,} text{'s' * (n != 1)} ({', '.join(named)}{', ...' * (n > len(named))}): {why}"


def numbers(found: Gathered) -> dict[str, float]:
    """Over all tokens that something follows."""
    n = max(1.0, found.sums.get("tokens", 0))
    mean = {
        name: found.sums.get(name, float("nan")) / n for name in ("loss_base", "loss_tuned", "dp", "dp_squared", "same", *OWN, *COUNTED)
    }
    told = {
        "loss_base": mean["loss_base"], "loss_tuned": mean["loss_tuned"], "loss_change": mean["loss_tuned"] - mean["loss_base"],
        "ppl_base": math.exp(mean["loss_base"]), "ppl_tuned": math.exp(mean["loss_tuned"]),
        "ppl_ratio": math.exp(mean["loss_tuned"] - mean["loss_base"]), "top1_same": mean["same"], "dp_mean": mean["dp"],
        "dp_rms": math.sqrt(mean["dp_squared"]), **{name: mean[name] for name in OWN},
    }  # fmt: skip
    for name in COUNTED:
        told |= {f"{name}_mean": mean[name], f"{name}_max": found.sums.get(f"max_{name}", float("nan"))}
        told |= {f"{name}_{what}": quantiles.quantile(found.counts[name], share) for what, share in QUANTILES.items()}
    return told


LLAMA_CPP = {
    "Mean PPL(Q)": "ppl_tuned", "Mean PPL(base)": "ppl_base", "Mean PPL(Q)/PPL(base)": "ppl_ratio", "Mean KLD": "kl_base_tuned_mean",
    "Maximum KLD": "kl_base_tuned_max", "99.9% KLD": "kl_base_tuned_p999", "99.0% KLD": "kl_base_tuned_p99", "Median KLD": "kl_base_tuned_median",
    "Mean Δp": "dp_mean", "RMS Δp": "dp_rms", "Same top p": "top1_same",
}  # fmt: skip
"""What llama.cpp's table of divergences calls a number; it prints the last three in per cent."""


def _directions(found: Gathered, at: list[Aimed]) -> Iterator[dict[str, Any]]:
    """Each direction and sign with its first texts, how far the first stands out, and p; the one that stands out most first."""
    lines = []
    for i, one in enumerate(at):
        if not found.spread[i, "own"].n:
            continue
        z, at_random = found.spread[i, "own"].standing_out(), found.spread[i, "random"].standing_out()
        p = empirical_p(z, at_random)
        for direction, name in enumerate(one.place.names):
            for side, sign in enumerate("+-"):
                line: dict[str, Any] = {"direction": name, "sign": sign, "where": one.place.what, "end": one.place.end}
                line |= {"z": float(z[side, direction]), "p": float(p[side, direction]), "z_random": float(np.median(at_random))}
                lines.append(line | {"texts": found.first(f"{i} {direction} {sign}")})
    yield from sorted(lines, key=lambda line: (line["p"], -line["z"]))


def _evidence(scan: Scan, found: Gathered) -> dict[str, Any]:
    """Domains, features and the first contexts, by what the models read of each text."""
    chosen = sorted((number, values) for _, number, values in found.sample)
    wanted = {number for number, _ in chosen} | {one["number"] for name in ("kl", "kl_mean", "loss") for one in found.first(name)}
    texts = scan.seen(list(scan.texts.some(wanted).values()))
    told: dict[str, Any] = {"domains": [], "features": [], "contexts": {}, "looked_at": len(chosen)}
    if len(chosen) >= 4 * evidence.FEWEST:
        columns = [np.array(values) for values in zip(*(values for _, values in chosen), strict=True)]
        words = [texts[number] for number, _ in chosen]
        clusters = evidence.near_copies(words)
        half = np.array([hashlib.sha256(words[one].encode()).digest()[0] % 2 == 0 for one in clusters])
        sample = evidence.Sample(texts=words, kl=columns[0], loss_base=columns[1], loss_change=columns[2], clusters=clusters, found=half)
        labels, names = evidence.domains(sample)
        told |= {"domains": evidence.by_domain(sample, labels, names), "features": evidence.features(sample, labels, names)}
    marks = [one for one in told["features"] if one["confirmed"]]
    for name in ("kl", "loss"):
        candidates = found.first(name)
        if not candidates or not candidates[0]["value"] > 10 * evidence.ROUNDING:
            continue
        clusters = evidence.near_copies([texts[one["number"]] for one in candidates])
        kept = [one for place, one in enumerate(candidates) if clusters[place] == place][:LISTED]
        told["contexts"][name] = [one | {"confirmed_by": evidence.marking(marks, name, texts[one["number"]])} for one in kept]
    return told
