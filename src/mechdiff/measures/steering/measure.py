"""Steering asks whether one vector, or a few directions, switch the change on or off."""

from pathlib import Path

from mechdiff.comparison.between_runs import BetweenRuns
from mechdiff.measures.measure import Later, Measure
from mechdiff.report.parts import Chapter
from mechdiff.statistics.metric import Numbers, metrics, of_edited_runs

STEERING = Measure(
    name="steering",
    question="Can one vector switch it on or off?",
    # what the study reads
    experiment=None,
    # what statistics read
    numbers=Numbers(
        metrics=(
            *of_edited_runs(),
            *metrics("side_kl_nats", "side_log_perplexity_ratio_nats", unit="nats"),
            *metrics("side_top1_same", unit="share"),
        ),
        edited=True,
    ),
    # what the page says
    chapter=Chapter(
        sections=(Later("mechdiff.measures.steering.page:steering"),),
        lead=Later("mechdiff.measures.steering.words:lead"),
        needs="shares",
        clause=Later("mechdiff.measures.steering.words:clause"),
        clause_of=4,
        reading=Path(__file__).with_name("reading.html"),
        place=10,
        tile="how_complicated",
    ),
    # what several runs are compared in
    between_runs=BetweenRuns(),
    # a second way
    again=Later("mechdiff.measures.steering.verify:again"),
)
