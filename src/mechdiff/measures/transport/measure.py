"""Transport asks whether a linear map from one model's activations to the other's carries the change."""

from pathlib import Path

from mechdiff.comparison.between_runs import BetweenRuns
from mechdiff.measures.measure import Later, Measure
from mechdiff.measures.patching.selection import CLOSER
from mechdiff.measures.transport import plan
from mechdiff.report.parts import Chapter, Feed
from mechdiff.statistics.metric import Numbers, metrics, of_edited_runs
from mechdiff.study.experiment import Budget, Experiment, Stage

TRANSPORT = Measure(
    name="transport",
    question="Can a linear map carry the change?",
    # what the study reads
    experiment=Experiment(
        options=plan.TransportOptions,
        cells=plan.transport_cells,
        needs=plan.needs,
        record=Later("mechdiff.measures.transport.record:maps_record"),
        stages=(
            Stage(name="fits", compute=Later("mechdiff.measures.transport.compute:fits")),
            Stage(
                name="transport", compute=Later("mechdiff.measures.transport.compute:patched"), needs=("capture", "fits", "patching@same")
            ),
            Stage(name="closer", compute=Later("mechdiff.measures.transport.closer:closer"), needs=CLOSER),
            Stage(name="cuts", compute=Later("mechdiff.measures.transport.cuts:cuts"), needs=CLOSER),
            Stage(name="mapped_positions", compute=Later("mechdiff.measures.transport.at_positions:mapped"), needs=CLOSER),
            Stage(
                name="mapped_answers",
                compute=Later("mechdiff.measures.transport.over_answers:mapped"),
                needs=(*CLOSER, "answer_states"),
            ),
        ),
        total_effect=True,
        few={"permutations": 20},
        demo=Budget(seconds=40, options={"strengths": [0.5], "permutations": 40}, few_sites=True),
    ),
    # what statistics read
    numbers=Numbers(
        metrics=(
            *of_edited_runs(drops=True, answers=True),
            *metrics("r2_change", unit="ratio", nearer="higher"),
            *metrics("r2", "cka_mapped", "cosine", "cosine_centred", "cosine_of_mean", "norm_ratio", "cycle_error", unit="ratio"),
        ),
        edited=True,
    ),
    # what the page says
    chapter=Chapter(
        sections=(Later("mechdiff.measures.transport.page:transport"),),
        lead=Later("mechdiff.measures.transport.words:lead"),
        over_answers=Later("mechdiff.measures.transport.answers_page:lead"),
        needs="shares",
        clause=Later("mechdiff.measures.transport.words:clause"),
        clause_of=4,
        reading=Path(__file__).with_name("reading.html"),
        place=8,
        feeds={"how_complicated": Feed(says=Later("mechdiff.measures.transport.tiles:how_complicated"), place=1)},
    ),
    # what several runs are compared in
    between_runs=BetweenRuns(
        place=5,
        quantities=Later("mechdiff.measures.transport.compare:quantities"),
        axis=Later("mechdiff.measures.transport.compare:axis"),
        arms=True,
    ),
    # a second way
    again=Later("mechdiff.measures.transport.verify:again"),
)
