"""The factorial asks whether a behaviour is made below a block, above it, or only by both together."""

from mechdiff.measures.measure import Later, Measure

FACTORIAL = Measure(
    name="factorial",
    question="Is it made below or above a block, or only by both?",
    # what the study reads
    experiment=None,
    # what statistics read
    numbers=None,
    # what the page says
    chapter=None,
    # what several runs are compared in
    between_runs=None,
    # a second way
    again=Later("mechdiff.measures.factorial.verify:again"),
)
