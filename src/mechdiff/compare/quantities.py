"""Each run's own numbers, on its reported prompts, are what runs are compared in.

An axis is a question, a quantity one number of it. What is chosen (the strongest site, the best map, orders of heads and modules) was chosen by
each run on its select prompts, and is given of its reported ones. Effective numbers choose nothing: all parts are in them. They are of overlaps,
which add (additive.py); those of divergences stand beside them with the D that they are of, breakage and recovery apart, and no sentence is made of
them. A rank 0 map is a constant shift; it counts as one direction of the states' change. The weights' change is cut to k directions in every module
at once, so that its number is that of one module. These numbers of directions are participation ratios of what each direction gains, not ranks of a
regression (`rank chosen by cross-validation`), which is a larger number wherever the first directions gain most.
"""

import numpy as np

from mechdiff.compare.comparable import Loaded
from mechdiff.compare.quantity import Quantity
from mechdiff.measures.divergence.compare import quantities as divergence_quantities
from mechdiff.measures.grafting.compare import quantities as grafting_quantities
from mechdiff.measures.heads.compare import quantities as heads_quantities
from mechdiff.measures.patching.compare import quantities as patching_quantities
from mechdiff.measures.rank.compare import quantities as rank_quantities
from mechdiff.measures.transport.compare import quantities as transport_quantities
from mechdiff.measures.weights.compare import quantities as weights_quantities


def quantities(run: Loaded) -> list[Quantity]:
    """Every number of a run that others may be held against; those that it did not measure are left out. Of a run without an effect only D."""
    makers = (
        (
            divergence_quantities,
            patching_quantities,
            weights_quantities,
            grafting_quantities,
            transport_quantities,
            rank_quantities,
            heads_quantities,
        )
        if run.counts
        else (divergence_quantities,)
    )
    return [one for make in makers for one in make(run) if np.isfinite(one.estimate.value)]
