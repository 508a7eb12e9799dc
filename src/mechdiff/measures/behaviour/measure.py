"""Behaviour asks what the two models answer, and what they find likely."""

from pathlib import Path

from mechdiff.comparison.between_runs import BetweenRuns
from mechdiff.measures.behaviour import plan
from mechdiff.measures.behaviour.answers import BINARY
from mechdiff.measures.measure import Later, Measure
from mechdiff.measures.patching.selection import CLOSER
from mechdiff.report.parts import Chapter, Feed
from mechdiff.statistics.metric import Numbers, metrics
from mechdiff.study.experiment import Budget, Experiment, Stage

BEHAVIOUR = Measure(
    name="behaviour",
    question="What do they do?",
    # what the study reads
    experiment=Experiment(
        options=plan.BehaviourOptions,
        cells=plan.behaviour_cells,
        needs=plan.needs,
        prompts=plan.prompts,
        read=Later("mechdiff.measures.behaviour.probes:read"),
        record=Later("mechdiff.measures.behaviour.compute:behaviour_record"),
        stages=(
            Stage(name="behaviour", compute=Later("mechdiff.measures.behaviour.compute:behave"), soon=True),
            Stage(name="behaviour_edits", compute=Later("mechdiff.measures.behaviour.edited:sway"), needs=CLOSER),
        ),
        few={"max_tokens": 3, "probes": False, "openings": 1, "scored_layers": 1, "scored_prompts": 2, "spoken_prompts": 1},
        demo=Budget(
            seconds=90,
            options={
                "n_probes": 4,
                "max_tokens": 96,
                "edited_tokens": 10,
                "openings": 2,
                "scored_layers": 1,
                "scored_prompts": 2,
                "spoken_prompts": 1,
            },
        ),
    ),
    # what statistics read
    numbers=Numbers(
        metrics=(
            *metrics(*BINARY, unit="share", binary=True),
            *metrics("refusal_soft_nats", "refusal_soft_per_byte_nats", "mc_margin_per_byte_nats", unit="nats", signed=True),
            *metrics("mc_logp_sum_nats", "mc_logp_per_token_nats", "mc_logp_per_byte_nats", unit="nats"),
            *metrics("style_per_100_words", "style_per_100_tokens", unit="ratio"),
            *metrics("mask_coverage", unit="share"),
        ),
    ),
    # what the page says
    chapter=Chapter(
        sections=(Later("mechdiff.measures.behaviour.page:answers"),),
        lead=Later("mechdiff.measures.behaviour.words:lead"),
        clause=Later("mechdiff.measures.behaviour.words:clause"),
        clause_of=1,
        reading=Path(__file__).with_name("reading.html"),
        place=2,
        shows=Later("mechdiff.measures.behaviour.words:shows"),
        feeds={
            "what": Feed(says=Later("mechdiff.measures.behaviour.tiles:what"), place=1),
            "how_sure": Feed(says=Later("mechdiff.measures.behaviour.tiles:how_sure"), place=1),
        },
        answers=Later("mechdiff.measures.behaviour.tiles:answers"),
    ),
    # what several runs are compared in
    between_runs=BetweenRuns(
        place=8,
        quantities=Later("mechdiff.measures.behaviour.compare:changes"),
        axis=Later("mechdiff.measures.behaviour.compare:axis"),
        without_effect=True,
    ),
    # a second way
    again=Later("mechdiff.measures.behaviour.verify:again"),
    answers=Later("mechdiff.measures.behaviour.verify:answers"),
)
