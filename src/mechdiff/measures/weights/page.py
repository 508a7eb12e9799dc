"""The section on the weights gives the change of every module and head, spectra of the most changed matrices, and their ranks."""

from typing import Any

import polars as pl

from mechdiff.measures.weights import findings
from mechdiff.measures.weights.charts import ROWS, head_map, matrix_map, spectra_of, weight_map
from mechdiff.measures.weights.findings import short_tensor
from mechdiff.report.parts import Drawn, Run, Section, note, table
from mechdiff.report.phrasing import listed, nats, share, visible

TITLE = "Which weights changed?"
TOP = 10


def weights(run: Run) -> Section:
    """Q1, first half: the change of the weights themselves."""
    found = findings.how_many(run.summary)
    statements = [note(str(text)) for text in (run.manifest.get("weights") or {}).get("statements") or []]
    if found is None:
        return Section(id="weights", title=TITLE, parts=[note("Weights were not compared in this run."), *statements])
    if not found.changed:
        said = findings.unchanged(found, run.manifest)
        said = f"{said[0].upper()}{said[1:]}."
        return Section(id="weights", title=TITLE, parts=[note(said), *statements])
    parts: list[Any] = [Drawn(name="weight_map", chart=weight_map, caption=_caption(run, found), reading="weight_map")]
    if said := _matrices(run):
        parts.append(Drawn(name="matrix_map", chart=matrix_map, caption=said, reading="matrix_map"))
    spectra = findings.spectra(run.summary, run.manifest)
    if spectra:
        said = listed(f"{short_tensor(one['unit'])} {one['rank']:.0f}" for one in spectra if one["rank"])
        caption = f"Singular values of the change of the {len(spectra)} most changed matrices"
        caption += f". Numerical rank: {said}." if said != "none" else "."
        parts.append(Drawn(name="spectra", chart=spectra_of, caption=caption, reading="spectra"))
    parts += [_tensors(run), *_directions(run)]
    heads = findings.heads(run.summary)
    if not heads.is_empty():
        top = heads.sort("change", descending=True, maintain_order=True).row(0, named=True)
        what = "what it writes" if top["metric"] == "ov_relative_norm" else "where it looks"
        caption = f"Relative change of each head's two products. Largest: L{top['layer']}H{top['head']}, {nats(top['change'])} ({what})."
        parts.append(Drawn(name="head_map", chart=head_map, caption=caption, reading="head_map"))
    return Section(id="weights", title=TITLE, parts=[*parts, *statements])


def _caption(run: Run, found: findings.Changed) -> str:
    modules, is_whole = findings.modules(run.summary)
    top = modules.sort("change", descending=True, maintain_order=True).row(0, named=True)
    name = top["site"] if top["layer"] is None else f"L{top['layer']}.{top['site']}"
    what = "‖ΔW‖ / ‖W‖ of each module" if is_whole else "The largest ‖ΔW‖ / ‖W‖ among the tensors of each module"
    changed = f"{found.changed} of {found.tensors} tensors changed, in {found.layers_changed} of {found.layers} layers"
    said = f"{what}. {changed}; most in {name}, {nats(top['change'])}"
    if top["share"] is not None:
        said += f", which holds {share(top['share'])} of the network's squared change"
    return said + "."


def _matrices(run: Run) -> str:
    """The caption of the map by matrix: which kinds changed, and how unevenly; empty where no tensor of a block changed."""
    found = findings.matrices(run.summary)
    by_kind = found.filter(pl.col("change") > 0).group_by("matrix", maintain_order=True).agg(pl.len().alias("n"), pl.col("change").median())
    if by_kind.is_empty():
        return ""
    n, top = found["matrix"].n_unique(), by_kind.sort("change", descending=True, maintain_order=True).row(0, named=True)
    caption = f"‖ΔW‖ / ‖W‖ of each tensor of a block, by layer: {len(by_kind)} of {n} kinds changed anywhere"
    caption += f"; {top['matrix']} most, {nats(top['change'])} in the median of the {top['n']} layers where it changed."
    return caption + (f" The {ROWS} kinds that changed most are drawn." if n > ROWS else "")


def _tensors(run: Run) -> dict:
    """The most changed tensors, with the columns that were measured."""
    found = findings.tensors(run.summary).filter(pl.col("relative_norm") > 0)
    columns = {name: words for name, (words, metrics) in COLUMNS.items() if any(m in found.columns and found[m].count() for m in metrics)}
    rows = [
        (short_tensor(row["unit"]), *(_cell(row, COLUMNS[name][1]) for name in columns)) for row in found.head(TOP).iter_rows(named=True)
    ]
    left = len(found) - len(rows)
    title = "The most changed tensors" + (f"; {left} others changed less" if left else "")
    return table(("tensor", *columns.values()), rows, title=title)


READ = 4
"""Tokens at each end of a direction that the table shows."""


def _directions(run: Run) -> list[dict]:
    """The first direction of the largest changes that are written into the residual stream, as the unembedding reads it."""
    found = (run.manifest.get("weights") or {}).get("decoded") or []
    rows = [
        (
            short_tensor(one["tensor"]),
            share(one["share"]),
            *(" ".join(f"“{visible(token)}”" for token in one[end][:READ]) for end in ("up", "down")),
        )
        for one in found
    ]
    title = "The first direction of the largest changes, read by the unembedding (its sign means nothing)"
    return [table(("tensor", "share of ‖ΔW‖²", "tokens at one end", "at the other"), rows, title=title)] if rows else []


COLUMNS = {
    "size": ("‖ΔW‖ / ‖W‖", ("relative_norm",)),
    "entries": ("share of entries changed", ("changed",)),
    "rank": ("rank", ("numerical_rank",)),
    "stable": ("stable rank", ("stable_rank",)),
    "energy50": ("components for 50 % of ‖ΔW‖²", ("energy_rank_50",)),
    "energy90": ("for 90 %", ("energy_rank_90",)),
    "energy99": ("for 99 %", ("energy_rank_99",)),
    "largest": ("largest singular value", ("spectral_norm",)),
    "noise": ("of noise of this size", ("spectral_norm_null",)),
    "intruders": ("intruders", ("intruder_dimensions",)),
}
"""Columns of the table of tensors: their words, and the metrics that stand in one."""


def _cell(row: dict, metrics: tuple[str, ...]) -> str:
    """One or more metrics of a tensor in one cell; a dash where none was measured."""
    values = [(metric, row.get(metric)) for metric in metrics]
    if all(value is None or value != value for _, value in values):
        return "–"
    return ", ".join(_number(metric, value) for metric, value in values)


def _number(metric: str, value: float | None) -> str:
    if value is None or value != value:
        return "–"
    if metric == "changed":
        return share(value, 3)
    return f"{value:.0f}" if metric.startswith(("numerical", "energy", "intruder")) else nats(value)
