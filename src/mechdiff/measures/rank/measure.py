"""Rank asks how many dimensions the change of activations has."""

from mechdiff.measures.measure import Later, Measure

RANK = Measure(
    name="rank",
    question="How many dimensions does the change have?",
    # what the study reads
    experiment=None,
    # what statistics read
    numbers=None,
    # what the page says
    chapter=None,
    # what several runs are compared in
    between_runs=None,
    # a second way
    again=Later("mechdiff.measures.rank.verify:again"),
)
