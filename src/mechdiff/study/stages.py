"""The stages of a run: those before every measure, and those of the measures."""

from collections.abc import Mapping

from mechdiff.study.capture import capture_states, check_itself
from mechdiff.study.experiment import Experiment, Stage

CHECK = Stage(name="selfcheck", compute=check_itself, needs=(), rate=0.6)
CAPTURE = Stage(name="capture", compute=capture_states, needs=("selfcheck@same",), rate=0.6)


def stages_of(experiments: Mapping[str, Experiment]) -> dict[str, Stage]:
    """Every stage by its name."""
    return {stage.name: stage for stage in (CHECK, CAPTURE, *(stage for one in experiments.values() for stage in one.stages))}
