"""Ranks are not recomputed; this says why."""

from mechdiff.audit.distributions import Not, Row
from mechdiff.audit.rerun import Rerun


def again(run: Rerun, row: Row) -> float:
    raise Not("ranks are chosen by cross-validation, and maps of each rank are not kept")
