"""The weights are compared tensor by tensor: which changed, by how much, in how many directions."""

from pathlib import Path

from mechdiff.comparison.between_runs import BetweenRuns
from mechdiff.measures.measure import Later, Measure
from mechdiff.measures.weights import plan
from mechdiff.report.parts import Chapter, Feed
from mechdiff.statistics.metric import Numbers, metrics
from mechdiff.study.experiment import Budget, Experiment, Stage

WEIGHTS = Measure(
    name="weights",
    question="Which weights changed?",
    # what the study reads
    experiment=Experiment(
        options=plan.WeightsOptions,
        cells=plan.weights_cells,
        record=Later("mechdiff.measures.weights.compute:weights_record"),
        stages=(
            Stage(name="inputs", compute=Later("mechdiff.measures.weights.compute:inputs"), rate=0.6, soon=True),
            Stage(
                name="weights", compute=Later("mechdiff.measures.weights.compute:weigh"), needs=("capture", "inputs"), rate=0.33, soon=True
            ),
        ),
        parts_changed=True,
        demo=Budget(seconds=10, options={"input_prompts": 8, "exact_up_to": 512}),
    ),
    # what statistics read
    numbers=Numbers(
        metrics=(
            *metrics("changed", "share_of_change", unit="share"),
            *metrics("relative_norm", "module_relative_norm", "ov_relative_norm", "qk_relative_norm", "data_weighted_norm", unit="ratio"),
            *metrics("spectral_norm", "spectral_norm_error", "spectral_norm_null", "stable_rank", unit="ratio"),
            *metrics("numerical_rank", "energy_rank_50", "energy_rank_90", "energy_rank_99", "intruder_dimensions", unit="count"),
        ),
    ),
    # what the page says
    chapter=Chapter(
        sections=(Later("mechdiff.measures.weights.page:weights"),),
        lead=Later("mechdiff.measures.weights.words:lead"),
        clause=Later("mechdiff.measures.weights.words:clause"),
        clause_of=2,
        reading=Path(__file__).with_name("reading.html"),
        place=3,
        feeds={
            "where": Feed(says=Later("mechdiff.measures.weights.tiles:where"), place=0),
            "how_complicated": Feed(says=Later("mechdiff.measures.weights.tiles:how_complicated"), place=2),
        },
        strips=Later("mechdiff.measures.weights.tiles:strips"),
    ),
    # what several runs are compared in
    between_runs=BetweenRuns(
        place=3,
        quantities=Later("mechdiff.measures.weights.compare:quantities"),
    ),
    # a second way
    again=Later("mechdiff.measures.weights.verify:again"),
)
