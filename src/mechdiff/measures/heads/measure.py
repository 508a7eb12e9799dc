"""This measure asks which attention heads carry the change."""

from pathlib import Path

from mechdiff.comparison.between_runs import BetweenRuns
from mechdiff.measures.measure import Later, Measure
from mechdiff.report.parts import Chapter
from mechdiff.statistics.metric import Numbers, metrics, of_edited_runs

HEADS = Measure(
    name="heads",
    question="Which heads carry it?",
    # what the study reads
    experiment=None,
    # what statistics read
    numbers=Numbers(
        metrics=(
            *of_edited_runs(),
            *metrics("shapley_nats", "fisher_nats", "attention_js_nats", unit="nats"),
        ),
        edited=True,
    ),
    # what the page says
    chapter=Chapter(
        sections=(Later("mechdiff.measures.heads.page:heads"),),
        lead=Later("mechdiff.measures.heads.words:lead"),
        needs="shares",
        clause=Later("mechdiff.measures.heads.words:clause"),
        clause_of=5,
        reading=Path(__file__).with_name("reading.html"),
        place=11,
        tile="where",
    ),
    # what several runs are compared in
    between_runs=BetweenRuns(
        place=7,
        quantities=Later("mechdiff.measures.heads.compare:quantities"),
        axis=Later("mechdiff.measures.heads.compare:axis"),
        locates=True,
    ),
    # a second way
    again=Later("mechdiff.measures.heads.verify:again"),
)
