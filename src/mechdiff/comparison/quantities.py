"""Each run's own numbers, on its reported prompts, are what runs are compared in.

An axis is a question, a quantity one number of it. What is chosen (the strongest site, the best map, orders of heads and modules) was chosen by
each run on its select prompts, and is given of its reported ones. Effective numbers choose nothing: all parts are in them. They are of overlaps,
which add (additive.py); those of divergences stand beside them with the D that they are of, breakage and recovery apart, and no sentence is made of
them. A rank 0 map is a constant shift; it counts as one direction of the states' change. The weights' change is cut to k directions in every module
at once, so that its number is that of one module. These numbers of directions are participation ratios of what each direction gains, not ranks of a
regression (`rank chosen by cross-validation`), which is a larger number wherever the first directions gain most.
"""

from collections.abc import Mapping

import numpy as np

from mechdiff.comparison.between_runs import BetweenRuns
from mechdiff.comparison.comparable import Loaded
from mechdiff.comparison.quantity import Quantity


def quantities(run: Loaded, measures: Mapping[str, BetweenRuns]) -> list[Quantity]:
    """Every number of a run that others may be held against; those that it did not measure are left out.

    Of a run without an effect only those that mean something then.
    """
    asked = [one for one in sorted(measures.values(), key=lambda one: one.place) if run.counts or one.without_effect]
    return [number for one in asked for number in one.quantities(run) if np.isfinite(number.estimate.value)]
