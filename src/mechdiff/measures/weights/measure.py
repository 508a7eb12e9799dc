"""The weights are compared tensor by tensor: which changed, by how much, in how many directions."""

from mechdiff.measures.measure import Later, Measure

WEIGHTS = Measure(
    name="weights",
    question="Which weights changed?",
    # what the study reads
    experiment=None,
    # what statistics read
    numbers=None,
    # what the page says
    chapter=None,
    # what several runs are compared in
    between_runs=None,
    # a second way
    again=Later("mechdiff.measures.weights.verify:again"),
)
