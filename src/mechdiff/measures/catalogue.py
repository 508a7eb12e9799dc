"""The catalogue names every measure there is, in the order in which measures run. No torch here."""

from pathlib import Path

from mechdiff.measures.attribution.measure import ATTRIBUTION
from mechdiff.measures.behaviour.measure import BEHAVIOUR
from mechdiff.measures.divergence.measure import DIVERGENCE
from mechdiff.measures.factorial.measure import FACTORIAL
from mechdiff.measures.grafting.measure import GRAFTING
from mechdiff.measures.heads.measure import HEADS
from mechdiff.measures.measure import Measure
from mechdiff.measures.patching.measure import PATCHING
from mechdiff.measures.rank.measure import RANK
from mechdiff.measures.similarity.measure import SIMILARITY
from mechdiff.measures.steering.measure import STEERING
from mechdiff.measures.transport.measure import TRANSPORT
from mechdiff.measures.weights.measure import WEIGHTS
from mechdiff.study import config
from mechdiff.study.config import StudyConfig

MEASURES: tuple[Measure, ...] = (
    DIVERGENCE, WEIGHTS, GRAFTING, SIMILARITY, PATCHING, FACTORIAL, TRANSPORT, RANK, STEERING, HEADS, ATTRIBUTION, BEHAVIOUR,
)  # fmt: skip
"""The questions, in the order in which measures may build on one another."""

EXPERIMENTS = {one.name: one.experiment for one in MEASURES}
"""What a study reads of each."""
NUMBERS = {one.name: one.numbers for one in MEASURES}
"""What statistics read of each."""
CHAPTERS = {one.name: one.chapter for one in MEASURES}
"""What a page says of each."""
BETWEEN_RUNS = {one.name: one.between_runs for one in MEASURES}
"""What several runs are compared in."""
AGAIN = {one.name: one.again for one in MEASURES}
"""The second way of each."""
ANSWERS = {one.name: one.answers for one in MEASURES if one.answers}
"""The second way of recorded answers."""

OPTIONS = {name: one.options for name, one in EXPERIMENTS.items()}
"""What each measure can be told."""


def load_study(path: str | Path) -> tuple[StudyConfig, str]:
    """The study in the file `path`, which may ask for any of the measures, and the file's text: see `config.load_study`."""
    return config.load_study(path, OPTIONS)


def make_study(data: object, *, name: str = "study", folder: Path | None = None) -> StudyConfig:
    """The study that `data` describes, which may ask for any of the measures: see `config.make_study`."""
    return config.make_study(data, OPTIONS, name=name, folder=folder)
