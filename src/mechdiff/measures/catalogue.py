"""The catalogue names every measure there is, in the order in which measures run. No torch here."""

from pathlib import Path

from mechdiff.measures.attribution.plan import AttributionOptions
from mechdiff.measures.behaviour.plan import BehaviourOptions
from mechdiff.measures.divergence.plan import DivergenceOptions
from mechdiff.measures.factorial.plan import FactorialOptions
from mechdiff.measures.grafting.plan import GraftingOptions
from mechdiff.measures.heads.plan import HeadsOptions
from mechdiff.measures.patching.plan import PatchingOptions
from mechdiff.measures.rank.plan import RankOptions
from mechdiff.measures.similarity.plan import SimilarityOptions
from mechdiff.measures.steering.plan import SteeringOptions
from mechdiff.measures.transport.plan import TransportOptions
from mechdiff.measures.weights.plan import WeightsOptions
from mechdiff.study import config
from mechdiff.study.config import StudyConfig
from mechdiff.study.options import Options

OPTIONS: dict[str, type[Options]] = {
    "divergence": DivergenceOptions,
    "weights": WeightsOptions,
    "grafting": GraftingOptions,
    "similarity": SimilarityOptions,
    "patching": PatchingOptions,
    "factorial": FactorialOptions,
    "transport": TransportOptions,
    "rank": RankOptions,
    "steering": SteeringOptions,
    "heads": HeadsOptions,
    "attribution": AttributionOptions,
    "behaviour": BehaviourOptions,
}
"""What each measure can be told."""


def load_study(path: str | Path) -> tuple[StudyConfig, str]:
    """The study in the file `path`, which may ask for any of the measures, and the file's text: see `config.load_study`."""
    return config.load_study(path, OPTIONS)


def make_study(data: object, *, name: str = "study", folder: Path | None = None) -> StudyConfig:
    """The study that `data` describes, which may ask for any of the measures: see `config.make_study`."""
    return config.make_study(data, OPTIONS, name=name, folder=folder)
