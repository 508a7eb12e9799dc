"""Sentences that stand at the head of each section, by its id."""

import polars as pl

from mechdiff.measures.attribution.words import what_gradients_say
from mechdiff.measures.behaviour.words import what_they_do
from mechdiff.measures.divergence.words import how_different, how_it_goes_on
from mechdiff.measures.factorial.words import early_or_late
from mechdiff.measures.grafting.words import which_module
from mechdiff.measures.heads.words import which_heads
from mechdiff.measures.patching.words import what_it_depends_on, where_it_passes, which_output
from mechdiff.measures.rank.words import how_many_dimensions
from mechdiff.measures.similarity.words import how_similar
from mechdiff.measures.steering.words import does_it_obey
from mechdiff.measures.transport.words import carried
from mechdiff.measures.weights.words import which_weights
from mechdiff.report import difference
from mechdiff.report.record import how_sure


def leads(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict) -> dict[str, list[str]]:
    """What stands at the head of each section, by its id: its measure's numbers in words. Shares of D only where there is an effect to share."""
    found = difference.difference(rows, summary)
    said = {
        "behaviour": [how_different(found, manifest)],
        "texts": how_it_goes_on(rows, manifest),
        "answers": what_they_do(rows, manifest),
        "weights": which_weights(summary, manifest, found),
        "similarity": how_similar(rows, summary),
        "trust": how_sure(found, manifest),
    }
    if found is not None and not found.counts:
        return said
    if found is not None and not found.divides:
        return said | {"rank": how_many_dimensions(rows, summary)}
    return said | {
        "grafting": which_module(rows),
        "causal": [*where_it_passes(rows), *which_output(rows, summary), *what_it_depends_on(rows, summary)],
        "factorial": early_or_late(rows, summary),
        "transport": carried(rows, summary),
        "rank": how_many_dimensions(rows, summary),
        "steering": does_it_obey(rows, summary, manifest),
        "heads": which_heads(rows, summary, manifest),
        "attribution": what_gradients_say(rows, summary, manifest),
    }
