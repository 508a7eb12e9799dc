"""This measure asks which attention heads carry the change."""

from mechdiff.measures.measure import Later, Measure
from mechdiff.report.parts import Chapter

HEADS = Measure(
    name="heads",
    question="Which heads carry it?",
    # what the study reads
    experiment=None,
    # what statistics read
    numbers=None,
    # what the page says
    chapter=Chapter(
        sections=Later("mechdiff.measures.heads.page:sections"),
        lead=Later("mechdiff.measures.heads.words:lead"),
        needs="shares",
        clause=Later("mechdiff.measures.heads.words:clause"),
        clause_of=5,
        place=11,
        tile="where",
    ),
    # what several runs are compared in
    between_runs=None,
    # a second way
    again=Later("mechdiff.measures.heads.verify:again"),
)
