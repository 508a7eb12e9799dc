"""The divergence asks how far apart the two models' predictions lie, and at which token."""

from pathlib import Path

from mechdiff import shares
from mechdiff.comparison.between_runs import BetweenRuns
from mechdiff.measures.divergence import plan
from mechdiff.measures.measure import Later, Measure
from mechdiff.report.parts import Chapter, Feed
from mechdiff.rows import TOTAL
from mechdiff.statistics.metric import Metric, Numbers, metrics
from mechdiff.study.experiment import Budget, Experiment, Stage


def _over_answers(what: str) -> tuple[Metric, ...]:
    own = tuple(
        Metric(name=shares.over(f"log_ratio_{side}_nats", what), unit="nats", signed=True, undefined="same_top_token")
        for side in ("base", "tuned")
    )
    totals = (Metric(name=shares.total(side, shared=False, what=what), unit="nats", floor="either") for side in shares.BETWEEN)
    return (*totals, Metric(name=shares.over(TOTAL, what), unit="nats"), *own)


DIVERGENCE = Measure(
    name="divergence",
    question="How differently do they predict, and at which token?",
    # what the study reads
    experiment=Experiment(
        options=plan.DivergenceOptions,
        cells=plan.cells,
        needs=plan.needs,
        record=Later("mechdiff.measures.divergence.compute:texts_record"),
        stages=(
            Stage(name="divergence", compute=Later("mechdiff.measures.divergence.compute:diverge"), soon=True),
            Stage(name="answer_divergence", compute=Later("mechdiff.measures.divergence.compute:over_answers"), needs=("answer_states",)),
            Stage(
                name="texts",
                compute=Later("mechdiff.measures.divergence.compute:texts"),
                loads=("tuned", "base"),
                rate=0.6,
                soon=True,
                laws=plan.laws_over_text,
            ),
        ),
        total_effect=True,
        demo=Budget(seconds=15, options={"continuation": 6}),
    ),
    # what statistics read
    numbers=Numbers(
        metrics=(
            *(Metric(name=name, unit="nats", floor="either") for name in (*sum(shares.BETWEEN.values(), ()), "js_nats")),
            Metric(name="kl_byte_nats", unit="nats", floor="zero"),
            Metric(name="top1_same", unit="share", binary=True),
            *metrics("mass_outside", "mass_outside_base", unit="share"),
            Metric(name=TOTAL, unit="nats"),
            *metrics("bits_per_byte_base", "bits_per_byte_tuned", unit="bits"),
            Metric(name="first_divergence", unit="count"),
            *(one for what in shares.OVER for one in _over_answers(what)),
            *metrics("top1_same_answer", unit="share"),
            Metric(name="divergent_place", unit="count"),
            *metrics("tokens_per_word_base", "tokens_per_word_tuned", "tokens_per_byte_base", "tokens_per_byte_tuned", unit="ratio"),
        ),
    ),
    # what the page says
    chapter=Chapter(
        sections=(
            Later("mechdiff.measures.divergence.page:divergence"),
            Later("mechdiff.measures.divergence.texts_page:texts"),
            Later("mechdiff.measures.divergence.tokenizers:tokenizers"),
        ),
        lead=Later("mechdiff.measures.divergence.words:lead"),
        clause=Later("mechdiff.measures.divergence.words:clause"),
        shows=Later("mechdiff.measures.divergence.words:differ"),
        clause_of=1,
        reading=Path(__file__).with_name("reading.html"),
        place=1,
        feeds={"how_much": Feed(says=Later("mechdiff.measures.divergence.tiles:how_much"), place=1)},
    ),
    # what several runs are compared in
    between_runs=BetweenRuns(
        place=1,
        quantities=Later("mechdiff.measures.divergence.compare:quantities"),
        axis=Later("mechdiff.measures.divergence.compare:axis"),
        without_effect=True,
    ),
    # a second way
    again=Later("mechdiff.measures.divergence.verify:again"),
)
