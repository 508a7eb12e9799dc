"""Panel asks what else changed: on texts and prompts that no study chose, in groups."""

from pathlib import Path

from mechdiff import shares
from mechdiff.comparison.between_runs import BetweenRuns
from mechdiff.measures.measure import Later, Measure
from mechdiff.measures.panel import plan
from mechdiff.report.parts import Chapter, Feed
from mechdiff.statistics.metric import Metric, Numbers, metrics
from mechdiff.study.experiment import Budget, Experiment, Stage

PANEL = Measure(
    name="panel",
    question="What else changed?",
    # what the study reads
    experiment=Experiment(
        options=plan.PanelOptions,
        cells=plan.cells,
        read=plan.read,
        record=Later("mechdiff.measures.panel.compute:record"),
        stages=(Stage(name="panel", compute=Later("mechdiff.measures.panel.compute:compare"), needs=(), loads=("base", "tuned")),),
        few={"per_group": 1},
        demo=Budget(seconds=60, options={"per_group": 4}),
    ),
    # what statistics read
    numbers=Numbers(
        metrics=(
            *(Metric(name=name, unit="nats", floor="either") for name in sum(shares.BETWEEN.values(), ())),
            *metrics("top1_same", "mass_outside", unit="share"),
            *metrics("loss_base_nats", "loss_tuned_nats", unit="nats"),
            Metric(name="loss_change_nats", unit="nats", signed=True, tested=True),
            *metrics("right_base", "right_tuned", "refusal_base", "refusal_tuned", unit="share", binary=True),
            *metrics("right_change", "refusal_change", unit="share", signed=True),
            *metrics("margin_change_nats", "refusal_soft_change_nats", unit="nats", signed=True),
        ),
    ),
    # what the page says
    chapter=Chapter(
        sections=(Later("mechdiff.measures.panel.page:panel"),),
        lead=Later("mechdiff.measures.panel.words:lead"),
        clause=Later("mechdiff.measures.panel.words:clause"),
        clause_of=1,
        reading=Path(__file__).with_name("reading.html"),
        place=2.7,
        feeds={"what_else": Feed(says=Later("mechdiff.measures.panel.tiles:what_else"), place=1)},
    ),
    # what several runs are compared in
    between_runs=BetweenRuns(place=10, axis=Later("mechdiff.measures.panel.compare:axis"), without_effect=True),
    # a second way
    again=Later("mechdiff.measures.panel.verify:again"),
)
