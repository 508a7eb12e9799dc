"""This measure asks which attention heads carry the change."""

from mechdiff.measures.measure import Later, Measure

HEADS = Measure(
    name="heads",
    question="Which heads carry it?",
    # what the study reads
    experiment=None,
    # what statistics read
    numbers=None,
    # what the page says
    chapter=None,
    # what several runs are compared in
    between_runs=None,
    # a second way
    again=Later("mechdiff.measures.heads.verify:again"),
)
