"""Interpolation asks what lies between the two models, and beyond the tuned one."""

from pathlib import Path

from mechdiff import shares
from mechdiff.comparison.between_runs import BetweenRuns
from mechdiff.measures.interpolation import plan
from mechdiff.measures.measure import Later, Measure
from mechdiff.measures.patching.selection import CLOSER
from mechdiff.report.parts import Chapter
from mechdiff.statistics.metric import Metric, Numbers
from mechdiff.study.experiment import Budget, Experiment, Stage

INTERPOLATION = Measure(
    name="interpolation",
    question="What lies between the two models, and beyond?",
    # what the study reads
    experiment=Experiment(
        options=plan.InterpolationOptions,
        cells=plan.cells,
        needs=plan.needs,
        prompts=plan.prompts,
        record=Later("mechdiff.measures.interpolation.compute:record"),
        stages=(
            Stage(name="interpolation", compute=Later("mechdiff.measures.interpolation.compute:interpolate"), needs=CLOSER),
            Stage(name="interpolated_answers", compute=Later("mechdiff.measures.interpolation.compute:answer")),
        ),
        total_effect=True,
        parts_changed=True,
        few={"side_prompts": 3, "report_prompts": 5, "strengths": [0.5, 2], "answers": 1, "answer_strengths": [1], "continuation": 8},
        demo=Budget(
            seconds=20,
            options={
                "report_prompts": 5,
                "side_prompts": 6,
                "strengths": [0.25, 0.5, 2],
                "answers": 2,
                "answer_strengths": [1, 2],
                "continuation": 16,
            },
        ),
    ),
    # what statistics read
    numbers=Numbers(
        metrics=(
            Metric(name=shares.OTHER, unit="nats", floor="other", share="recovery"),
            Metric(name=shares.OWN[0], unit="nats", floor="own"),
            Metric(name="top1_same", unit="share", binary=True),
            Metric(name=plan.OF_TUNED, unit="share", binary=True),
            Metric(name=plan.REPEATED, unit="share"),
        ),
    ),
    # what the page says
    chapter=Chapter(
        sections=(Later("mechdiff.measures.interpolation.page:interpolation"),),
        lead=Later("mechdiff.measures.interpolation.words:lead"),
        needs="shares",
        clause_of=4,
        reading=Path(__file__).with_name("reading.html"),
        place=10.5,
    ),
    # what several runs are compared in
    between_runs=BetweenRuns(place=9, axis=Later("mechdiff.measures.interpolation.compare:axis")),
    # a second way
    again=Later("mechdiff.measures.interpolation.verify:again"),
)
