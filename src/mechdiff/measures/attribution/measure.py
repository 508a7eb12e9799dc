"""Attribution asks what gradients say of each head, and holds it against true patches."""

from mechdiff.comparison.between_runs import BetweenRuns
from mechdiff.measures.measure import Later, Measure
from mechdiff.report.parts import Chapter

ATTRIBUTION = Measure(
    name="attribution",
    question="What do gradients say of the heads?",
    # what the study reads
    experiment=None,
    # what statistics read
    numbers=None,
    # what the page says
    chapter=Chapter(
        sections=Later("mechdiff.measures.attribution.page:sections"),
        lead=Later("mechdiff.measures.attribution.words:lead"),
        needs="shares",
        clause_of=5,
        place=12,
    ),
    # what several runs are compared in
    between_runs=BetweenRuns(),
    # a second way
    again=Later("mechdiff.measures.attribution.verify:again"),
)
