"""Patching asks where the difference between two models' activations matters for what they predict."""

from pathlib import Path

from mechdiff.comparison.between_runs import BetweenRuns
from mechdiff.measures.measure import Later, Measure
from mechdiff.report.parts import Chapter
from mechdiff.statistics.metric import Numbers, of_edited_runs

PATCHING = Measure(
    name="patching",
    question="Where does the difference matter?",
    # what the study reads
    experiment=None,
    # what statistics read
    numbers=Numbers(
        metrics=of_edited_runs(drops=True),
        edited=True,
    ),
    # what the page says
    chapter=Chapter(
        sections=(
            Later("mechdiff.measures.patching.page:patching"),
            Later("mechdiff.measures.patching.page:agreement"),
        ),
        lead=Later("mechdiff.measures.patching.words:lead"),
        needs="shares",
        clause=Later("mechdiff.measures.patching.words:clause"),
        clause_of=3,
        reading=Path(__file__).with_name("reading.html"),
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
