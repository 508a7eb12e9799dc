"""Self-repair asks whether later blocks undo what one output writes."""

from pathlib import Path

from mechdiff.comparison.between_runs import BetweenRuns
from mechdiff.measures.measure import Later, Measure
from mechdiff.measures.patching.selection import CLOSER
from mechdiff.measures.self_repair import plan
from mechdiff.report.parts import Chapter
from mechdiff.statistics.metric import Metric, Numbers, of_edited_runs
from mechdiff.study.experiment import Budget, Experiment, Stage

SELF_REPAIR = Measure(
    name="self_repair",
    question="Do later blocks undo what an output writes?",
    # what the study reads
    experiment=Experiment(
        options=plan.SelfRepairOptions,
        cells=plan.cells,
        needs=plan.needs,
        stages=(Stage(name="self_repair", compute=Later("mechdiff.measures.self_repair.compute:hold"), needs=CLOSER),),
        total_effect=True,
        demo=Budget(seconds=10),
    ),
    # what statistics read
    numbers=Numbers(
        metrics=(*of_edited_runs(), Metric(name="repaired_nats", unit="nats", signed=True, tested=True, terms=2)),
        edited=True,
    ),
    # what the page says
    chapter=Chapter(
        sections=(Later("mechdiff.measures.self_repair.page:self_repair"),),
        lead=Later("mechdiff.measures.self_repair.words:lead"),
        needs="shares",
        clause_of=3,
        reading=Path(__file__).with_name("reading.html"),
        place=6.5,
    ),
    # what several runs are compared in
    between_runs=BetweenRuns(),
    # a second way
    again=Later("mechdiff.measures.self_repair.verify:again"),
)
