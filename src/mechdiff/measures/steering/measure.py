"""Steering asks whether one vector, or a few directions, switch the change on or off."""

from mechdiff.comparison.between_runs import BetweenRuns
from mechdiff.measures.measure import Later, Measure
from mechdiff.report.parts import Chapter

STEERING = Measure(
    name="steering",
    question="Can one vector switch it on or off?",
    # what the study reads
    experiment=None,
    # what statistics read
    numbers=None,
    # what the page says
    chapter=Chapter(
        sections=Later("mechdiff.measures.steering.page:sections"),
        lead=Later("mechdiff.measures.steering.words:lead"),
        needs="shares",
        clause=Later("mechdiff.measures.steering.words:clause"),
        clause_of=4,
        place=10,
        tile="how_complicated",
    ),
    # what several runs are compared in
    between_runs=BetweenRuns(),
    # a second way
    again=Later("mechdiff.measures.steering.verify:again"),
)
