"""Chat template asks whether the difference is the template's or the weights'."""

from pathlib import Path

from mechdiff.comparison.between_runs import BetweenRuns
from mechdiff.measures.chat_template import plan
from mechdiff.measures.measure import Later, Measure
from mechdiff.report.parts import Chapter
from mechdiff.statistics.metric import Metric, Numbers
from mechdiff.study.experiment import Budget, Experiment, Stage

EFFECTS = ("template_effect", "weights_effect", "interaction")
RUNS = 4
"""An effect is a sum over so many."""
MEANS = 2
"""`linear_nats` is so many means of what the logits moved by: under one distribution, less under another."""

CHAT_TEMPLATE = Measure(
    name="chat_template",
    question="Is it the chat template or the weights?",
    # what the study reads
    experiment=Experiment(
        options=plan.ChatTemplateOptions,
        cells=plan.cells,
        needs=plan.needs,
        read=plan.read,
        stages=(Stage(name="chat_template", compute=Later("mechdiff.measures.chat_template.compute:cross")),),
        demo=Budget(seconds=1),
    ),
    # what statistics read
    numbers=Numbers(
        metrics=(
            *(Metric(name=name, unit="nats", floor="either") for name in ("kl_tuned_nats", "kl_template_nats", "kl_weights_nats")),
            Metric(name="linear_nats", unit="nats", terms=MEANS),
            Metric(name="logit_diff_divergent", unit="logits", signed=True, undefined="same_top_token"),
            *(Metric(name=f"{one}_nats", unit="nats", signed=True, tested=True, terms=RUNS) for one in EFFECTS),
            *(Metric(name=f"{one}_linear_nats", unit="nats", signed=True, tested=True, terms=RUNS) for one in EFFECTS),
            *(
                Metric(name=f"{one}_logits", unit="logits", signed=True, tested=True, terms=RUNS, undefined="same_top_token")
                for one in EFFECTS
            ),
        ),
    ),
    # what the page says
    chapter=Chapter(
        sections=(Later("mechdiff.measures.chat_template.page:chat_template"),),
        lead=Later("mechdiff.measures.chat_template.words:lead"),
        clause=Later("mechdiff.measures.chat_template.words:clause"),
        clause_of=1,
        reading=Path(__file__).with_name("reading.html"),
        place=1.5,
    ),
    # what several runs are compared in
    between_runs=BetweenRuns(),
    # a second way
    again=Later("mechdiff.measures.chat_template.verify:again"),
)
