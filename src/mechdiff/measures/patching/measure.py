"""Patching asks where the difference between two models' activations matters for what they predict."""

from mechdiff.comparison.between_runs import BetweenRuns
from mechdiff.measures.measure import Later, Measure
from mechdiff.report.parts import Chapter

PATCHING = Measure(
    name="patching",
    question="Where does the difference matter?",
    # what the study reads
    experiment=None,
    # what statistics read
    numbers=None,
    # what the page says
    chapter=Chapter(
        sections=Later("mechdiff.measures.patching.page:sections"),
        lead=Later("mechdiff.measures.patching.words:lead"),
        needs="shares",
        clause=Later("mechdiff.measures.patching.words:clause"),
        clause_of=3,
        place=6,
        tile="where",
    ),
    # what several runs are compared in
    between_runs=BetweenRuns(
        place=2,
        quantities=Later("mechdiff.measures.patching.compare:quantities"),
        profiles=Later("mechdiff.measures.patching.compare:profiles"),
        axis=Later("mechdiff.measures.patching.compare:axis"),
        locates=True,
        across_bases=True,
    ),
    # a second way
    again=Later("mechdiff.measures.patching.verify:again"),
)
