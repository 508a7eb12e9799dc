"""Steering asks whether one vector, or a few directions, switch the change on or off."""

from pathlib import Path

from mechdiff.comparison.between_runs import BetweenRuns
from mechdiff.measures.measure import Later, Measure
from mechdiff.measures.patching.selection import CLOSER
from mechdiff.measures.steering import plan
from mechdiff.report.parts import Chapter
from mechdiff.statistics.metric import Numbers, metrics, of_edited_runs
from mechdiff.study.experiment import Budget, Experiment, Stage

STEERING = Measure(
    name="steering",
    question="Can one vector switch it on or off?",
    # what the study reads
    experiment=Experiment(
        options=plan.SteeringOptions,
        cells=plan.steering_cells,
        needs=plan.needs,
        prompts=plan.prompts,
        record=Later("mechdiff.measures.steering.compute:steering_record"),
        stages=(
            Stage(name="steering", compute=Later("mechdiff.measures.steering.compute:steer"), needs=CLOSER),
            Stage(name="steered", compute=Later("mechdiff.measures.steering.compute:steered_prompts"), needs=CLOSER),
            Stage(name="side_effects", compute=Later("mechdiff.measures.steering.compute:side_effects"), needs=CLOSER),
            Stage(
                name="steered_controls",
                compute=Later("mechdiff.measures.steering.compute:steered_controls"),
                needs=("capture", "side_effects@same"),
            ),
            Stage(
                name="steered_answers",
                compute=Later("mechdiff.measures.steering.over_answers:steer"),
                needs=(*CLOSER, "answer_states"),
            ),
            Stage(
                name="steered_texts",
                compute=Later("mechdiff.measures.steering.compute:steered_texts"),
                needs=CLOSER,
                loads=("tuned", "base"),
            ),
        ),
        total_effect=True,
        few={"side_prompts": 3, "draws": 1, "texts": 0, "continuation": 4},
        demo=Budget(seconds=35, options={"draws": 1, "strengths": [0.5], "side_prompts": 8, "texts": 0, "continuation": 16}),
    ),
    # what statistics read
    numbers=Numbers(
        metrics=(
            *of_edited_runs(answers=True),
            *metrics("side_kl_nats", "side_log_perplexity_ratio_nats", unit="nats"),
            *metrics("side_top1_same", unit="share"),
        ),
        edited=True,
    ),
    # what the page says
    chapter=Chapter(
        sections=(Later("mechdiff.measures.steering.page:steering"),),
        lead=Later("mechdiff.measures.steering.words:lead"),
        over_answers=Later("mechdiff.measures.steering.answers_page:lead"),
        needs="shares",
        clause=Later("mechdiff.measures.steering.words:clause"),
        clause_of=4,
        reading=Path(__file__).with_name("reading.html"),
        place=10,
    ),
    # what several runs are compared in
    between_runs=BetweenRuns(),
    # a second way
    again=Later("mechdiff.measures.steering.verify:again"),
)
