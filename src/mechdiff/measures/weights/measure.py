"""The weights are compared tensor by tensor: which changed, by how much, in how many directions."""

from mechdiff.comparison.between_runs import BetweenRuns
from mechdiff.measures.measure import Later, Measure
from mechdiff.report.parts import Chapter

WEIGHTS = Measure(
    name="weights",
    question="Which weights changed?",
    # what the study reads
    experiment=None,
    # what statistics read
    numbers=None,
    # what the page says
    chapter=Chapter(
        sections=Later("mechdiff.measures.weights.page:sections"),
        lead=Later("mechdiff.measures.weights.words:lead"),
        clause=Later("mechdiff.measures.weights.words:clause"),
        clause_of=2,
        place=3,
        tile="where",
    ),
    # what several runs are compared in
    between_runs=BetweenRuns(
        place=3,
        quantities=Later("mechdiff.measures.weights.compare:quantities"),
    ),
    # a second way
    again=Later("mechdiff.measures.weights.verify:again"),
)
