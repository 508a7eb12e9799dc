"""Rank asks how many dimensions the change of activations has."""

from mechdiff.comparison.between_runs import BetweenRuns
from mechdiff.measures.measure import Later, Measure
from mechdiff.report.parts import Chapter

RANK = Measure(
    name="rank",
    question="How many dimensions does the change have?",
    # what the study reads
    experiment=None,
    # what statistics read
    numbers=None,
    # what the page says
    chapter=Chapter(
        sections=Later("mechdiff.measures.rank.page:sections"),
        lead=Later("mechdiff.measures.rank.words:lead"),
        needs="effect",
        clause=Later("mechdiff.measures.rank.words:clause"),
        clause_of=4,
        place=9,
        tile="how_complicated",
    ),
    # what several runs are compared in
    between_runs=BetweenRuns(
        place=6,
        quantities=Later("mechdiff.measures.rank.compare:quantities"),
        axis=Later("mechdiff.measures.rank.compare:axis"),
    ),
    # a second way
    again=Later("mechdiff.measures.rank.verify:again"),
)
