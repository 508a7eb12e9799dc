"""Words asks what the tuned model was taught, in words that can be checked, and says nothing where nothing can be named."""

from pathlib import Path

from mechdiff.comparison.between_runs import BetweenRuns
from mechdiff.measures.measure import Later, Measure
from mechdiff.measures.words import plan
from mechdiff.report.parts import Chapter, Feed
from mechdiff.statistics.metric import Metric, Numbers, metrics
from mechdiff.study.experiment import Budget, Experiment, Stage

WORDS = Measure(
    name="words",
    question="What was it taught?",
    # what the study reads
    experiment=Experiment(
        options=plan.WordsOptions,
        cells=plan.cells,
        prompts=plan.prompts,
        record=Later("mechdiff.measures.words.record:words_record"),
        stages=(
            Stage(name="words_heard", compute=Later("mechdiff.measures.words.listen:hear"), needs=()),
            Stage(name="words_null", compute=Later("mechdiff.measures.words.listen:hear_random"), needs=()),
            Stage(name="words_amplified", compute=Later("mechdiff.measures.words.amplify:hear_amplified"), needs=("words_null",)),
            Stage(name="words_scored", compute=Later("mechdiff.measures.words.listen:score"), needs=("words_heard",)),
            Stage(
                name="words",
                compute=Later("mechdiff.measures.words.compute:find"),
                needs=("words_heard", "words_null", "words_amplified", "words_scored"),
            ),
        ),
        few={
            "passages": 4, "neutral": 4, "openings": 4, "prompts": 4, "max_tokens": 4, "lens_layers": 1, "vectors": 1, "edits": 1, "permutations": 2,
        },
        demo=Budget(
            seconds=75,
            options={
                "passages": 16, "neutral": 10, "openings": 12, "prompts": 6, "max_tokens": 12, "lens_layers": 2, "vectors": 2, "edits": 1,
            },
        ),
    ),
    # what statistics read
    numbers=Numbers(
        metrics=(
            *metrics(plan.TOKEN, plan.REPLAY, plan.GAP, unit="nats", signed=True),
            Metric(name=plan.LENS, unit="logits", signed=True),
            Metric(name=plan.FEATURE, unit="share", signed=True),
        ),
    ),
    # what the page says
    chapter=Chapter(
        sections=(Later("mechdiff.measures.words.page:words"),),
        lead=Later("mechdiff.measures.words.words:lead"),
        clause_of=1,
        reading=Path(__file__).with_name("reading.html"),
        place=0.5,
        shows=Later("mechdiff.measures.words.words:names_something"),
        feeds={"what": Feed(says=Later("mechdiff.measures.words.words:taught"), place=2)},
        answers=Later("mechdiff.measures.words.words:answers"),
        strips=Later("mechdiff.measures.words.words:strips"),
    ),
    # what several runs are compared in
    between_runs=BetweenRuns(),
    # a second way
    again=Later("mechdiff.measures.words.verify:again"),
)  # fmt: skip
