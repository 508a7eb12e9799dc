"""The record of a run says what each map chose, on which rows it was fitted, and which maps lie in its folder; there they are saved."""

import json
from collections.abc import Iterator
from itertools import product
from typing import Any

from mechdiff import labels
from mechdiff.maps.maps import Map
from mechdiff.measures.patching.hot import closer_layers
from mechdiff.measures.transport.at_positions import window_maps
from mechdiff.measures.transport.compute import maps_at
from mechdiff.measures.transport.cuts import cut_map, spanned, within_span
from mechdiff.measures.transport.plan import FULL, TransportOptions
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution, positions
from mechdiff.study.planner import LAST_LEFT_OUT


def maps_record(run: Execution) -> dict[str, Any]:
    """For the record: `transport` (what each fit chose, the rows it was given, the saved maps). Saves the closer layers' maps."""
    options = run.prepared.study.asked(TransportOptions)
    cells = [cell for cell in run.cells if cell.stage == "fits"]
    if not options or not cells:
        return {}
    layers = closer_layers(run, options)
    files = [name for cell in cells for layer in layers for name in _save(run, cell, layer)]
    said = {cell.key["kind"]: json.loads(bytes(run.tensors(cell)["said"]).decode()) for cell in cells}
    records = [one for site in said.values() for arm in site.values() for one in arm.values()]
    spans = {f"L{layer}.{one.key['kind']}": (one, spanned(run, one, layer)) for one in _sweeps(run) for layer in layers}
    warnings = sorted({text for one in records for text in one["warnings"]})
    if means := sum("is_the_mean" in one for one in records):
        warnings.append(f"{means} maps explain no more of what they were fitted to than noise would: they are the mean, or the mean shift")
    for site, (one, span) in spans.items():
        if beyond := [str(cut) for cut in one.key["cuts"] if cut != FULL and cut > span]:
            said_of_it = f"what the maps are fitted on spans {span} principal components"
            warnings.append(f"the sweep at {site} has no cut at {', '.join(beyond)}: {said_of_it}")
    rows_given = {
        "per_prompt": options.rows_per_prompt,
        "prompts": len(run.prepared.rendered["fit"]),
        **_spread(run, options.rows_per_prompt),
    }
    found = {"closer_layers": layers, "fits": said, "rows": rows_given, "maps": files, "warnings": warnings}
    if spans:
        found["spanned"] = {site: span for site, (_, span) in spans.items()}
    return {"transport": found, "warnings": warnings}


def _save(run: Execution, cell: Cell, layer: int) -> list[str]:
    """Puts the maps of one site into the run's folder, for `mechdiff.load_map`; returns their names in it."""
    site, names = f"L{layer}.{cell.key['kind']}", []
    for arm, way, one in _of_site(run, cell, layer):
        names.append(f"maps/{site}.{arm}.{way}.safetensors")
        one.save(run.folder.place(names[-1]), site=site, direction=way)
    return names


def _of_site(run: Execution, cell: Cell, layer: int) -> Iterator[tuple[str, str, Map]]:
    """Name, way and map of all that were fitted at one site, those of a sweep over cuts among them."""
    for way, maps in (("base_to_tuned", maps_at(run, cell, layer).there), ("tuned_to_base", maps_at(run, cell, layer).back)):
        yield from ((arm, way, maps[arm]) for arm in cell.key["settings"]["maps"])
    for window in {
        one.key["position"]: one for one in run.cells if one.stage == "mapped_positions" and one.key["kind"] == cell.key["kind"]
    }.values():
        maps_there = window_maps(run, window, layer)
        for way, maps in (("base_to_tuned", maps_there.there), ("tuned_to_base", maps_there.back)):
            yield from ((f"{arm}.{window.key['position']}", way, one) for arm, one in maps.items())
    for swept in [one for one in _sweeps(run) if one.key["kind"] == cell.key["kind"]]:
        for arm, cut in product(swept.key["cut_maps"], within_span(run, swept, layer)):
            yield f"{arm}.{labels.cut_unit(cut).replace(' ', '_')}", "base_to_tuned", cut_map(run, swept, layer, arm, cut)


def _sweeps(run: Execution) -> list[Cell]:
    """A cell of each kind of site that cuts were swept at."""
    return list({one.key["kind"]: one for one in reversed(run.cells) if one.stage == "cuts"}.values())[::-1]


def _spread(run: Execution, k: int) -> dict[str, Any]:
    """Where in the prompts the rows stand that maps are fitted on, in tokens from the start."""
    if k == 1:
        return {"positions": "decision"}
    found = [place for one in run.prepared.rendered["fit"].values() for place in positions(one, f"spread_{k}", "base")]
    return {"positions": f"spread_{k}", "left_out": LAST_LEFT_OUT, "first": min(found), "last": max(found), "mean": sum(found) / len(found)}
