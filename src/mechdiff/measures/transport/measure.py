"""Transport asks whether a linear map from one model's activations to the other's carries the change."""

from mechdiff.comparison.between_runs import BetweenRuns
from mechdiff.measures.measure import Later, Measure
from mechdiff.report.parts import Chapter

TRANSPORT = Measure(
    name="transport",
    question="Can a linear map carry the change?",
    # what the study reads
    experiment=None,
    # what statistics read
    numbers=None,
    # what the page says
    chapter=Chapter(
        sections=Later("mechdiff.measures.transport.page:sections"),
        lead=Later("mechdiff.measures.transport.words:lead"),
        needs="shares",
        clause=Later("mechdiff.measures.transport.words:clause"),
        clause_of=4,
        place=8,
        tile="how_complicated",
    ),
    # what several runs are compared in
    between_runs=BetweenRuns(
        place=5,
        quantities=Later("mechdiff.measures.transport.compare:quantities"),
        axis=Later("mechdiff.measures.transport.compare:axis"),
    ),
    # a second way
    again=Later("mechdiff.measures.transport.verify:again"),
)
