"""Ranks are not recomputed; this says why."""

from mechdiff.audit.distributions import NotRecomputed, Row
from mechdiff.audit.rerun import Rerun


def again(run: Rerun, row: Row) -> float:
    raise NotRecomputed("ranks are chosen by cross-validation, and maps of each rank are not kept")
