"""Routing asks whether the two models send their tokens to other experts."""

from pathlib import Path

from mechdiff.comparison.between_runs import BetweenRuns
from mechdiff.measures.measure import Later, Measure
from mechdiff.measures.routing import plan
from mechdiff.report.parts import Chapter
from mechdiff.statistics.metric import Metric, Numbers, metrics
from mechdiff.study.experiment import Budget, Experiment, Stage

ROUTING = Measure(
    name="routing",
    question="Do tokens go to other experts?",
    # what the study reads
    experiment=Experiment(
        options=plan.RoutingOptions,
        cells=plan.cells,
        record=Later("mechdiff.measures.routing.compute:routers_record"),
        stages=(Stage(name="routing", compute=Later("mechdiff.measures.routing.compute:route"), loads=("tuned", "base", "tuned")),),
        routers=True,
        demo=Budget(seconds=1),
    ),
    # what statistics read
    numbers=Numbers(
        metrics=(
            *metrics(plan.TOP, plan.SET, plan.REPLACED, unit="share"),
            Metric(name=plan.JS, unit="nats", floor="zero"),
        ),
        refine=Later("mechdiff.measures.routing.findings:of_one_token"),
    ),
    # what the page says
    chapter=Chapter(
        sections=(Later("mechdiff.measures.routing.page:routing"),),
        lead=Later("mechdiff.measures.routing.words:lead"),
        clause=Later("mechdiff.measures.routing.words:clause"),
        clause_of=3,
        reading=Path(__file__).with_name("reading.html"),
        place=5.5,
    ),
    # what several runs are compared in
    between_runs=BetweenRuns(),
    # a second way
    again=Later("mechdiff.measures.routing.verify:again"),
)
