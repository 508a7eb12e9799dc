"""Patching asks where the difference between two models' activations matters for what they predict."""

from mechdiff.measures.measure import Later, Measure

PATCHING = Measure(
    name="patching",
    question="Where does the difference matter?",
    # what the study reads
    experiment=None,
    # what statistics read
    numbers=None,
    # what the page says
    chapter=None,
    # what several runs are compared in
    between_runs=None,
    # a second way
    again=Later("mechdiff.measures.patching.verify:again"),
)
