"""The catalogue names every measure there is, in the order in which measures run. No torch here."""

from pathlib import Path

from mechdiff.measures.measure import Measure, page
from mechdiff.study import config
from mechdiff.study.config import StudyConfig

PAGES = (
    "mechdiff.measures.divergence.measure:DIVERGENCE",
    "mechdiff.measures.weights.measure:WEIGHTS",
    "mechdiff.measures.grafting.measure:GRAFTING",
    "mechdiff.measures.similarity.measure:SIMILARITY",
    "mechdiff.measures.routing.measure:ROUTING",
    "mechdiff.measures.patching.measure:PATCHING",
    "mechdiff.measures.self_repair.measure:SELF_REPAIR",
    "mechdiff.measures.factorial.measure:FACTORIAL",
    "mechdiff.measures.chat_template.measure:CHAT_TEMPLATE",
    "mechdiff.measures.transport.measure:TRANSPORT",
    "mechdiff.measures.rank.measure:RANK",
    "mechdiff.measures.steering.measure:STEERING",
    "mechdiff.measures.interpolation.measure:INTERPOLATION",
    "mechdiff.measures.heads.measure:HEADS",
    "mechdiff.measures.off_manifold.measure:OFF_MANIFOLD",
    "mechdiff.measures.attribution.measure:ATTRIBUTION",
    "mechdiff.measures.behaviour.measure:BEHAVIOUR",
    "mechdiff.measures.panel.measure:PANEL",
    "mechdiff.measures.words.measure:WORDS",
)
"""The page of each measure, in the order in which measures may build on one another: whoever adds a measure adds its folder and a line here."""

MEASURES: tuple[Measure, ...] = tuple(page(place) for place in PAGES)
"""The questions, in that order."""

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
