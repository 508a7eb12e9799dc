"""Grafting asks which modules' tuned weights, put into the base, make it behave like the tuned model."""

from mechdiff.measures.measure import Later, Measure

GRAFTING = Measure(
    name="grafting",
    question="Which module's change matters?",
    # what the study reads
    experiment=None,
    # what statistics read
    numbers=None,
    # what the page says
    chapter=None,
    # what several runs are compared in
    between_runs=None,
    # a second way
    again=Later("mechdiff.measures.grafting.verify:again"),
)
