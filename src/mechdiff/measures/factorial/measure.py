"""The factorial asks whether a behaviour is made below a block, above it, or only by both together."""

from mechdiff.comparison.between_runs import BetweenRuns
from mechdiff.measures.measure import Later, Measure
from mechdiff.report.parts import Chapter

FACTORIAL = Measure(
    name="factorial",
    question="Is it made below or above a block, or only by both?",
    # what the study reads
    experiment=None,
    # what statistics read
    numbers=None,
    # what the page says
    chapter=Chapter(
        sections=Later("mechdiff.measures.factorial.page:sections"),
        lead=Later("mechdiff.measures.factorial.words:lead"),
        needs="shares",
        clause_of=3,
        place=7,
        tile="where",
    ),
    # what several runs are compared in
    between_runs=BetweenRuns(),
    # a second way
    again=Later("mechdiff.measures.factorial.verify:again"),
)
