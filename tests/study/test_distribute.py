"""Jobs side by side: results by name, progress heard, the first exception raised."""

import os

import pytest

from mechdiff.errors import StudyError
from mechdiff.study.distribute import side_by_side


def double(job: int, threads: int, told) -> tuple[int, int, int]:
    told("doubling", 0.5)
    if job < 0:
        raise StudyError("given a negative number, expected a positive one.")
    return 2 * job, threads, os.getpid()


def test_results_come_back_by_name_from_processes_of_their_own() -> None:
    heard: list[tuple[str, str, float]] = []
    found = side_by_side(double, {"a": 1, "b": 2}, lambda *told: heard.append(told))
    assert {name: value for name, (value, _, _) in found.items()} == {"a": 2, "b": 4}
    assert {threads for _, threads, _ in found.values()} == {max(1, (os.cpu_count() or 1) // 2)}
    assert os.getpid() not in {process for _, _, process in found.values()}
    assert sorted(heard) == [("a", "doubling", 0.5), ("b", "doubling", 0.5)]
    with pytest.raises(StudyError, match="negative"):
        side_by_side(double, {"a": 1, "b": -2}, lambda *told: None)
