"""Similarity asks at which sites the two models' activations differ."""

from mechdiff.comparison.between_runs import BetweenRuns
from mechdiff.measures.measure import Later, Measure
from mechdiff.report.parts import Chapter

SIMILARITY = Measure(
    name="similarity",
    question="Where do their activations differ?",
    # what the study reads
    experiment=None,
    # what statistics read
    numbers=None,
    # what the page says
    chapter=Chapter(
        sections=Later("mechdiff.measures.similarity.page:sections"),
        lead=Later("mechdiff.measures.similarity.words:lead"),
        clause_of=3,
        place=5,
    ),
    # what several runs are compared in
    between_runs=BetweenRuns(),
    # a second way
    again=Later("mechdiff.measures.similarity.verify:again"),
)
