"""Behaviour asks what the two models answer, and what they find likely."""

from mechdiff.comparison.between_runs import BetweenRuns
from mechdiff.measures.measure import Later, Measure
from mechdiff.report.parts import Chapter

BEHAVIOUR = Measure(
    name="behaviour",
    question="What do they do?",
    # what the study reads
    experiment=None,
    # what statistics read
    numbers=None,
    # what the page says
    chapter=Chapter(
        sections=Later("mechdiff.measures.behaviour.page:sections"),
        lead=Later("mechdiff.measures.behaviour.words:lead"),
        clause=Later("mechdiff.measures.behaviour.words:clause"),
        clause_of=1,
        place=2,
        tile="what",
    ),
    # what several runs are compared in
    between_runs=BetweenRuns(
        place=8,
        quantities=Later("mechdiff.measures.behaviour.compare:changes"),
        axis=Later("mechdiff.measures.behaviour.compare:axis"),
        without_effect=True,
    ),
    # a second way
    again=Later("mechdiff.measures.behaviour.verify:again"),
    answers=Later("mechdiff.measures.behaviour.verify:answers"),
)
