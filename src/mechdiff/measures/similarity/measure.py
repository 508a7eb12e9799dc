"""Similarity asks at which sites the two models' activations differ."""

from mechdiff.measures.measure import Later, Measure

SIMILARITY = Measure(
    name="similarity",
    question="Where do their activations differ?",
    # what the study reads
    experiment=None,
    # what statistics read
    numbers=None,
    # what the page says
    chapter=None,
    # what several runs are compared in
    between_runs=None,
    # a second way
    again=Later("mechdiff.measures.similarity.verify:again"),
)
