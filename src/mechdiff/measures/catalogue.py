"""The catalogue names every measure there is, in the order in which measures run. No torch here."""

from pathlib import Path

from mechdiff.study import config
from mechdiff.study.config import StudyConfig
from mechdiff.study.options import (
    AttributionOptions,
    BehaviourOptions,
    DivergenceOptions,
    FactorialOptions,
    GraftingOptions,
    HeadsOptions,
    Options,
    PatchingOptions,
    RankOptions,
    SimilarityOptions,
    SteeringOptions,
    TransportOptions,
    WeightsOptions,
)

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
