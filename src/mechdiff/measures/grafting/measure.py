"""Grafting asks which modules' tuned weights, put into the base, make it behave like the tuned model."""

from pathlib import Path

from mechdiff import shares
from mechdiff.comparison.between_runs import BetweenRuns
from mechdiff.measures.grafting import plan
from mechdiff.measures.measure import Later, Measure
from mechdiff.report.parts import Chapter, Feed
from mechdiff.rows import OVERLAP
from mechdiff.statistics.metric import Metric, Numbers
from mechdiff.study.experiment import Budget, Experiment, Stage

GRAFTING = Measure(
    name="grafting",
    question="Which module's change matters?",
    # what the study reads
    experiment=Experiment(
        options=plan.GraftingOptions,
        cells=plan.grafting_cells,
        needs=plan.needs,
        stages=(Stage(name="grafting", compute=Later("mechdiff.measures.grafting.compute:graft"), needs=("capture", "answer_states")),),
        proof=Later("mechdiff.measures.grafting.compute:proof"),
        parts_changed=True,
        demo=Budget(
            seconds=60, options={"report_prompts": 5, "points": 3, "candidates": 4, "picks": 2, "select_prompts": 2, "truncate": False}
        ),
    ),
    # what statistics read
    numbers=Numbers(
        metrics=(
            Metric(name=shares.OTHER, unit="nats", floor="other", share="recovery"),
            Metric(name=OVERLAP, unit="nats", floor="size"),
            *(Metric(name=shares.over(shares.OTHER, what), unit="nats", floor="other", share="recovery") for what in shares.OVER),
            *(Metric(name=shares.over(OVERLAP, what), unit="nats", floor="size") for what in shares.OVER),
        ),
    ),
    # what the page says
    chapter=Chapter(
        sections=(Later("mechdiff.measures.grafting.page:grafting"),),
        lead=Later("mechdiff.measures.grafting.words:lead"),
        needs="shares",
        clause=Later("mechdiff.measures.grafting.words:clause"),
        clause_of=2,
        reading=Path(__file__).with_name("reading.html"),
        place=4,
        feeds={"where": Feed(says=Later("mechdiff.measures.grafting.tiles:where"), place=2)},
        strips=Later("mechdiff.measures.grafting.tiles:strips"),
    ),
    # what several runs are compared in
    between_runs=BetweenRuns(
        place=4,
        quantities=Later("mechdiff.measures.grafting.compare:quantities"),
        axis=Later("mechdiff.measures.grafting.compare:axis"),
        locates=True,
    ),
    # a second way
    again=Later("mechdiff.measures.grafting.verify:again"),
)
