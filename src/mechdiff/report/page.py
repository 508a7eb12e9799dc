"""From a run's folder to one page: report.html and the figures, made of rows.parquet, summary.parquet and manifest.json alone.

The page is one file that opens from disk with no network; its content policy allows its own script and nothing else. Whatever comes from prompts or
models is escaped. Every number in a sentence is computed here from the summary; nothing is written by hand.
"""

import base64
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import polars as pl

from mechdiff.report import figures, findings
from mechdiff.report.findings import BREAKAGE, RECOVERY
from mechdiff.study.artifacts import read_manifest, read_rows, read_summary

HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A figure of the page: both widths as SVG, a caption whose numbers were computed, and how to read it."""

    name: str
    wide: str
    narrow: str
    caption: str
    reading: str


def build_report(run: Path) -> Path:
    """Writes report.html and figures/ of a finished run; returns the page's path. Raises RunError where the run is not finished."""
    rows, summary, manifest = read_rows(run), read_summary(run), read_manifest(run)
    script = (HERE / "page.js").read_text()
    page = _environment().get_template("page.html").render(
        base=_bare(manifest["pair"]["base"]["ref"]),
        tuned=_bare(manifest["pair"]["tuned"]["ref"]),
        manifest=manifest,
        verdict=list(verdict(rows, summary, manifest)),
        panels={panel.name: panel for panel in _panels(rows, summary, manifest, Path(run) / "figures")},
        splits=_split_table(summary),
        ranked=_ranked_table(rows, summary),
        record=list(_record(manifest)),
        style=(HERE / "page.css").read_text(),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )  # fmt: skip
    path = Path(run) / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _environment() -> jinja2.Environment:
    return jinja2.Environment(loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)


def _bare(ref: str) -> str:
    """A model reference short enough for a title: a Hub id whole, of a path the last part."""
    return Path(ref).name if ref.startswith(("/", ".", "~")) or ref.count("/") > 1 else ref


# ---- sentences ---------------------------------------------------------------------------------------------------------------------


def verdict(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict[str, Any]) -> Iterator[str]:
    """A few sentences that answer: how much, where, and what a trivial explanation would have given."""
    found = findings.difference(rows, summary)
    if found is None:
        yield "Divergence was not measured in this run."
        return
    if not found.counts:
        yield f"No effect to explain: on {found.n} {found.split} prompts D is {found.mean:.2g} nats, which is under three noise floors."
        return
    yield (
        f"On {found.n} {found.split} prompts the tuned model's next token differs from the base's by D = {_number(found.mean)} nats "
        f"(95 % {_number(found.low)} to {_number(found.high)}, median {_number(found.median)})"
        + (f"; the first choice differs on {found.other_token} of {found.n}." if found.other_token is not None else ".")
    )
    table, ranker = findings.ranked_outputs(rows, summary)
    if len(table):
        yield from _strongest(table.row(0, named=True), len(table), ranker)
    for direction, words in ((BREAKAGE, "is broken"), (RECOVERY, "is recovered")):
        crossing = findings.half_way(rows, direction)
        if crossing:
            span = f", 95 % set {crossing.earliest} to {crossing.latest}" if crossing.earliest != crossing.latest else ", with no other site in the 95 % set"
            yield f"Along the residual stream, half of D {words} from {crossing.site} on{span}."
    yield from _arms(summary, table)
    yield from _similarity(rows, summary)


def _strongest(top: dict[str, Any], n: int, ranker: str | None) -> Iterator[str]:
    parts = [
        f"{word} {_percent(top[name])} of D ({_percent(top[f'{name}_low'])} to {_percent(top[f'{name}_high'])})"
        for name, word in (("breakage", "breaks"), ("recovery", "recovers"))
        if top[name] is not None and top[f"{name}_low"] is not None
    ]
    chosen = f"chosen on the {ranker} split among {n}" if ranker == "select" else f"the largest of {n}, chosen on the same prompts"
    yield f"The strongest single output is {top['name']} ({chosen}): writing the other model's state there {' and '.join(parts)}." if parts else ""


def _arms(summary: pl.DataFrame, ranked: pl.DataFrame) -> Iterator[str]:
    """At the strongest site: does a constant, or another prompt's state, do as well?"""
    if not len(ranked):
        return
    top = ranked.row(0, named=True)
    cell = summary.filter(
        pl.col("measure") == "patching", pl.col("direction") == RECOVERY, pl.col("metric") == "kl_other_nats", pl.col("split") == "report",
        pl.col("layer") == top["layer"], pl.col("site") == top["site"], pl.col("unit").is_null(), pl.col("control").is_null(),
    )  # fmt: skip
    shares = {row["arm"]: row["share"] for row in cell.iter_rows(named=True) if row["share"] is not None}
    if shares.get("identity") and (others := {arm: shares[arm] for arm in ("mean", "resample", "shift") if arm in shares}):
        said = ", ".join(f"{_ARMS[arm]} {_percent(share)}" for arm, share in others.items())
        specific = max(others.values()) < 0.8 * shares["identity"]
        ending = "so what is carried depends on the prompt" if specific else "so most of what is carried is the same on every prompt"
        yield f"There, instead of this prompt's tuned state ({_percent(shares['identity'])}), {said}: {ending}."


_ARMS = {"mean": "the average tuned state recovers", "resample": "another prompt's tuned state", "shift": "the base's state moved by the mean difference"}


def _similarity(rows: pl.DataFrame, summary: pl.DataFrame) -> Iterator[str]:
    table = findings.similarity_by_site(rows, summary).filter(pl.col("cka").is_not_nan())
    if len(table):
        low = table.sort("cka").row(0, named=True)
        interval = "" if low["low"] is None else f" ({low['low']:.3f} to {low['high']:.3f})"
        equal = len(table.filter(pl.col("cka") > 1 - 1e-6))
        yield f"The states are least alike at {low['name']}: CKA {low['cka']:.3f}{interval}; at {equal} of {len(table)} sites they have the same geometry (CKA 1)."


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.3g}"


def _percent(share: float | None) -> str:
    if share is None:
        return "?"
    return f"{100 * share:.1f} %" if abs(share) < 0.995 or share > 1.005 else f"{100 * share:.2f} %"


# ---- figures -----------------------------------------------------------------------------------------------------------------------

_FIGURES: dict[str, tuple[figures.Figure, str]] = {
    "d_by_prompt": (
        figures.d_by_prompt,
        "Each dot is a prompt. D = KL(tuned ‖ base) is how many nats the base wastes when the tuned model's next token is the truth: 0 means the same law, "
        "above about 5 the base would hardly ever say it. It looks at one position; a change that only shows later in the answer is not in it.",
    ),
    "cka_by_layer": (
        figures.cka_by_layer,
        "Debiased linear CKA compares the geometry of the two models' states over prompts: 1 means the same up to rotation and scale, the grey band is what prompts "
        "paired at random give. Bands are jackknife 95 % intervals. It can stay near 1 although the models behave differently, and drop without any effect on "
        "behaviour: read it together with the causal map.",
    ),
    "causal_map": (
        figures.causal_map,
        "One model runs; at one block and site its state at the decision position is replaced by the other model's. Breakage asks whether the tuned state there is "
        "necessary, recovery whether it is sufficient. Dots: under three noise floors. The residual stream always ends at 1, because after the last block it is all "
        "there is; a single output hides behind others that do the same job, so low values are not proof of absence.",
    ),
    "arms_by_layer": (
        figures.arms_by_layer,
        "What is written into the tuned model: identity, the base's own state; shift, that state moved by the mean difference on the fit split; mean, the tuned "
        "model's average state; resample, the tuned state of another prompt. A curve far below identity means that guess is already nearly right. The dashed line is D.",
    ),
    "cka_against_effect": (
        figures.cka_against_effect,
        "Each mark is a site. If similarity told where a change matters, low CKA (left) would go with large effects (top). Marks at the upper right are places that "
        "look alike and matter; marks at the lower left look different and do not.",
    ),
}  # fmt: skip


def _panels(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict[str, Any], folder: Path) -> Iterator[Panel]:
    for name, (figure, reading) in _FIGURES.items():
        chart = figure(rows, summary, manifest)
        narrow = figure(rows, summary, manifest, width=figures.NARROW)
        if chart is None or narrow is None:
            continue
        wide = figures.save(chart, folder, name)
        yield Panel(
            name=name,
            wide=_scoped(wide, f"{name}-wide"),
            narrow=_scoped(figures.to_svg(narrow), f"{name}-narrow"),
            caption=_CAPTIONS[name](rows, summary),
            reading=reading,
        )


def _scoped(svg: str, scope: str) -> str:
    """The SVG with its ids made its own, so that several can stand in one page."""
    return re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{scope}-", svg)


def _caption_d(rows: pl.DataFrame, summary: pl.DataFrame) -> str:
    d = findings.d_per_prompt(rows)
    return f"D of each of {len(d)} prompts, from {_number(d['d'].min())} to {_number(d['d'].max())} nats, with the mean and its BCa 95 % interval."


def _caption_cka(rows: pl.DataFrame, summary: pl.DataFrame) -> str:
    table = findings.similarity_by_site(rows, summary).filter(pl.col("cka").is_not_nan())
    draws = findings.null_band(rows)
    null = f" Prompts paired at random reach {draws['high'].max():.2f} (97.5 %, {draws['draws'].min()} draws a site)." if len(draws) else ""
    return f"CKA of {table['n'].max()} prompts at {len(table)} sites, lowest {table['cka'].min():.3f}.{null}"


def _caption_map(rows: pl.DataFrame, summary: pl.DataFrame) -> str:
    shares = findings.site_shares(rows, summary)
    quiet = len(shares.filter(~pl.col("counts")))
    return f"{len(shares)} cells (identity arm); {quiet} of them are under three noise floors and drawn as dots. Hover for the share and its interval."


def _caption_arms(rows: pl.DataFrame, summary: pl.DataFrame) -> str:
    return "KL of the tuned model's next token against its own clean one (log scale), with 95 % intervals, for four ways to make the written state."


def _caption_against(rows: pl.DataFrame, summary: pl.DataFrame) -> str:
    points = findings.similarity_against_effect(rows, summary)
    rank = points.select(pl.corr("cka", "share", method="spearman")).item() if len(points) > 2 else None
    return f"{len(points)} sites; rank correlation of CKA with the effect {rank:+.2f}." if rank is not None and rank == rank else f"{len(points)} sites."


_CAPTIONS = {
    "d_by_prompt": _caption_d,
    "cka_by_layer": _caption_cka,
    "causal_map": _caption_map,
    "arms_by_layer": _caption_arms,
    "cka_against_effect": _caption_against,
}


# ---- tables ------------------------------------------------------------------------------------------------------------------------


def _split_table(summary: pl.DataFrame) -> list[dict[str, str]]:
    found = []
    for split in ("fit", "select", "report"):
        here = summary.filter(pl.col("measure") == "divergence", pl.col("split") == split, pl.col("control").is_null())
        rows = {row["metric"]: row for row in here.iter_rows(named=True)}
        if "kl_tuned_base_nats" in rows:
            d = rows["kl_tuned_base_nats"]
            found.append(
                {
                    "split": split,
                    "prompts": str(d["n"]),
                    "D": _number(d["mean"]),
                    "95 %": f"{_number(d['ci_low'])} to {_number(d['ci_high'])}",
                    "median": _number(d["median"]),
                    "KL(base ‖ tuned)": _number(rows["kl_base_tuned_nats"]["mean"]) if "kl_base_tuned_nats" in rows else "",
                    "JS": _number(rows["js_nats"]["mean"]) if "js_nats" in rows else "",
                    "same first choice": _percent(rows["top1_same"]["mean"]) if "top1_same" in rows else "",
                }
            )
    return found


def _ranked_table(rows: pl.DataFrame, summary: pl.DataFrame) -> list[dict[str, str]]:
    table, _ = findings.ranked_outputs(rows, summary)
    return [
        {
            "site": row["name"],
            "breakage": _percent(row["breakage"]),
            "95 % ": f"{_percent(row['breakage_low'])} to {_percent(row['breakage_high'])}",
            "recovery": _percent(row["recovery"]),
            "95 %": f"{_percent(row['recovery_low'])} to {_percent(row['recovery_high'])}",
        }
        for row in table.head(8).iter_rows(named=True)
        if max(row["breakage"] or 0, row["recovery"] or 0) >= 0.005
    ]


def _record(manifest: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What a reader needs to believe the numbers or to get them again, as name and value."""
    prompts, pair = manifest["prompts"], manifest["pair"]
    for side in ("base", "tuned"):
        one = pair[side]
        weights = next((digest[:16] for name, digest in sorted(one["files"].items(), reverse=True) if name.endswith(".safetensors")), "unknown")
        adapter = ", an adapter" if one["adapter"] else ""
        yield side, f"{one['ref']} ({one['family']}{adapter}, {one['n_layers']} blocks, d {one['d_model']}, weights sha256 {weights}…)"
    distance = manifest["lineage"]["relative_distance"]
    yield "lineage", "unknown" if distance is None else f"weights moved by {distance:.4f} of the base's size; {manifest['lineage']['changed_tensors']} tensors changed"
    counts = ", ".join(f"{split} {n}" for split, n in prompts["n"].items())
    tokens = prompts["tokens"]
    yield "prompts", f"{counts}; {tokens['min']} to {tokens['max']} tokens, median {tokens['median']}; policy {prompts['policy']}, position {prompts['position']}"
    yield "engine", f"{manifest['engine']['name']}: {manifest['engine']['reason']}; {manifest['engine']['variants']:,} counterfactual runs"
    for side, check in manifest["selfcheck"].items():
        if check:
            yield f"self-check, {side}", (
                f"{check['sites']} sites written back bit for bit; replay against whole forward passes within {check['replay_nats']:.1e} nats "
                f"(worst at {check['worst_site']})"
            )
    if manifest["noise_floor"]:
        yield "noise floor", "; ".join(f"{direction} {value:.1e} nats" for direction, value in manifest["noise_floor"].items())
    chosen = manifest["selection"]
    if chosen:
        yield "hot layers", "; ".join(f"{layer}: {why}" for layer, why in chosen["why"].items()) + f" (chosen on {chosen['split']})"
    yield "seconds", ", ".join(f"{stage} {spent:g}" for stage, spent in manifest["seconds"].items()) or "all cells were there already"
    versions = manifest.get("versions", {})
    yield "software", ", ".join(f"{name} {versions[name]}" for name in ("mechdiff", "torch", "transformers", "python") if name in versions)
    yield "run", f"{manifest['device']}, {manifest['dtype']}, {manifest['threads']} threads, seed {manifest['seed']}, finished {manifest['finished']}"
    yield "study hash", manifest["config_hash"]
