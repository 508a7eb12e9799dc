"""Attribution asks what gradients say of each head, and holds it against true patches."""

from pathlib import Path

from mechdiff.comparison.between_runs import BetweenRuns
from mechdiff.measures.attribution import plan
from mechdiff.measures.measure import Later, Measure
from mechdiff.report.parts import Chapter
from mechdiff.statistics.metric import Metric, Numbers
from mechdiff.study.experiment import Budget, Experiment, Stage

ATTRIBUTION = Measure(
    name="attribution",
    question="What do gradients say of the heads?",
    # what the study reads
    experiment=Experiment(
        options=plan.AttributionOptions,
        cells=plan.attribution_cells,
        needs=plan.needs,
        record=Later("mechdiff.measures.attribution.compute:attribution_record"),
        stages=(
            Stage(
                name="attribution",
                compute=Later("mechdiff.measures.attribution.compute:attribute"),
                needs=("capture", "attribution/select@same"),
            ),
            Stage(
                name="attribution_over_answers",
                compute=Later("mechdiff.measures.attribution.along_answers:attribute"),
                needs=("answer_states", "attribution/select@same"),
            ),
        ),
        total_effect=True,
        few={"steps": 1},
        demo=Budget(seconds=20, options={"select_prompts": 4, "validated": 6, "steps": 1}),
    ),
    # what statistics read
    numbers=Numbers(
        metrics=(
            Metric(name="attributed_logits", unit="logits", terms=4),
            Metric(name="effect_logits", unit="logits", terms=4),
            Metric(name="attributed_answer_logits", unit="logits", terms=4),
            Metric(name="effect_answer_logits", unit="logits", terms=4),
        ),
    ),
    # what the page says
    chapter=Chapter(
        sections=(Later("mechdiff.measures.attribution.page:attribution"),),
        lead=Later("mechdiff.measures.attribution.words:lead"),
        over_answers=Later("mechdiff.measures.attribution.words:over_answers"),
        needs="shares",
        clause_of=5,
        reading=Path(__file__).with_name("reading.html"),
        place=12,
    ),
    # what several runs are compared in
    between_runs=BetweenRuns(),
    # a second way
    again=Later("mechdiff.measures.attribution.verify:again"),
)
