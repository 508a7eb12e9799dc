"""The factorial asks whether a behaviour is made below a block, above it, or only by both together."""

from pathlib import Path

from mechdiff.comparison.between_runs import BetweenRuns
from mechdiff.measures.factorial import plan
from mechdiff.measures.measure import Later, Measure
from mechdiff.report.parts import Chapter
from mechdiff.statistics.metric import Metric, Numbers
from mechdiff.study.experiment import Budget, Experiment, Stage

EFFECTS = ("upstream_effect", "downstream_effect", "interaction")
RUNS = 4
"""An effect is a sum over so many."""
MEANS = 2
"""`linear_nats` is so many means of what the logits moved by: under the tuned model's law, less under the base's."""

FACTORIAL = Measure(
    name="factorial",
    question="Is it made below or above a block, or only by both?",
    # what the study reads
    experiment=Experiment(
        options=plan.FactorialOptions,
        cells=plan.factorial_cells,
        needs=plan.needs,
        stages=(
            Stage(name="crossing", compute=Later("mechdiff.measures.factorial.compute:crossing")),
            Stage(name="factorial", compute=Later("mechdiff.measures.factorial.compute:cross"), needs=("capture", "crossing")),
        ),
        demo=Budget(seconds=15, options={"all_positions_layers": 2}),
    ),
    # what statistics read
    numbers=Numbers(
        metrics=(
            Metric(name="kl_tuned_nats", unit="nats"),
            Metric(name="linear_nats", unit="nats", terms=MEANS),
            Metric(name="logit_diff_divergent", unit="logits", signed=True, undefined="same_top_token"),
            *(Metric(name=f"{one}_nats", unit="nats", floor="size", signed=True, tested=True, terms=RUNS) for one in EFFECTS),
            *(Metric(name=f"{one}_linear_nats", unit="nats", signed=True, tested=True, terms=RUNS) for one in EFFECTS),
            *(
                Metric(name=f"{one}_logits", unit="logits", signed=True, tested=True, terms=RUNS, undefined="same_top_token")
                for one in EFFECTS
            ),
        ),
        refine=Later("mechdiff.measures.factorial.findings:with_crossing_floors"),
    ),
    # what the page says
    chapter=Chapter(
        sections=(Later("mechdiff.measures.factorial.page:factorial"),),
        lead=Later("mechdiff.measures.factorial.words:lead"),
        needs="shares",
        clause_of=3,
        reading=Path(__file__).with_name("reading.html"),
        place=7,
        tile="where",
    ),
    # what several runs are compared in
    between_runs=BetweenRuns(),
    # a second way
    again=Later("mechdiff.measures.factorial.verify:again"),
)
