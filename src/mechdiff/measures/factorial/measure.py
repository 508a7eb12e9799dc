"""The factorial asks whether a behaviour is made below a block, above it, or only by both together."""

from pathlib import Path
from typing import Any, Literal

from mechdiff.comparison.between_runs import BetweenRuns
from mechdiff.measures.factorial import plan
from mechdiff.measures.measure import Later, Measure
from mechdiff.report.parts import Chapter
from mechdiff.shares import DIVERGENT, OVER, over
from mechdiff.statistics.metric import Metric, Numbers
from mechdiff.study.experiment import Budget, Experiment, Stage

EFFECTS = ("upstream_effect", "downstream_effect", "interaction")
RUNS = 4
"""An effect is a sum over so many."""
MEANS = 2
"""`linear_nats` is so many means of what the logits moved by: under the tuned model's law, less under the base's."""


def _over_answers(what: str) -> tuple[Metric, ...]:
    """The scores that add over an answer, at all of its positions (`answer`) or where the models part (`divergent`)."""
    undefined: Literal["undefined", "same_top_token"] = "same_top_token" if what == DIVERGENT else "undefined"
    tested: dict[str, Any] = {"unit": "nats", "signed": True, "tested": True, "terms": RUNS, "undefined": undefined}
    return (
        Metric(name=over("kl_tuned_nats", what), unit="nats", undefined=undefined),
        Metric(name=over("linear_nats", what), unit="nats", terms=MEANS, undefined=undefined),
        *(Metric(name=over(f"{one}_nats", what), floor="size", **tested) for one in EFFECTS),
        *(Metric(name=over(f"{one}_linear_nats", what), **tested) for one in EFFECTS),
    )


FACTORIAL = Measure(
    name="factorial",
    question="Is it made below or above a block, or only by both?",
    # what the study reads
    experiment=Experiment(
        options=plan.FactorialOptions,
        cells=plan.factorial_cells,
        needs=plan.needs,
        stages=(
            Stage(name="crossing", compute=Later("mechdiff.measures.factorial.compute:crossing"), needs=("capture", "answer_states")),
            Stage(
                name="factorial", compute=Later("mechdiff.measures.factorial.compute:cross"), needs=("capture", "answer_states", "crossing")
            ),
        ),
        demo=Budget(seconds=25, options={"all_positions_layers": 2}),
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
            *(one for what in OVER for one in _over_answers(what)),
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
    ),
    # what several runs are compared in
    between_runs=BetweenRuns(),
    # a second way
    again=Later("mechdiff.measures.factorial.verify:again"),
)
