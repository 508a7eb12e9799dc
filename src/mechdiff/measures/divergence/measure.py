"""The divergence asks how far apart the two models' predictions lie, and at which token."""

from mechdiff.comparison.between_runs import BetweenRuns
from mechdiff.measures.measure import Later, Measure
from mechdiff.report.parts import Chapter

DIVERGENCE = Measure(
    name="divergence",
    question="How differently do they predict, and at which token?",
    # what the study reads
    experiment=None,
    # what statistics read
    numbers=None,
    # what the page says
    chapter=Chapter(
        sections=Later("mechdiff.measures.divergence.page:sections"),
        lead=Later("mechdiff.measures.divergence.words:lead"),
        clause=Later("mechdiff.measures.divergence.words:clause"),
        clause_of=1,
        place=1,
        tile="how_much",
    ),
    # what several runs are compared in
    between_runs=BetweenRuns(
        place=1,
        quantities=Later("mechdiff.measures.divergence.compare:quantities"),
        axis=Later("mechdiff.measures.divergence.compare:axis"),
        without_effect=True,
    ),
    # a second way
    again=Later("mechdiff.measures.divergence.verify:again"),
)
