"""A function is mapped over jobs: here, in processes of their own, or on one cluster for several runs."""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import get_context
from queue import Empty
from typing import Any, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")
Told = Callable[[str, float], None]
"""What runs now, and the share that is done (0 to 1)."""

WAIT = 0.2
"""Seconds between two looks at what the processes tell."""


def side_by_side(
    function: Callable[[Job, int, Told], Result],
    jobs: Mapping[str, Job],
    progress: Callable[[str, str, float], None],
    *,
    at_once: int | None = None,
) -> dict[str, Result]:
    """`function(job, threads, told)` of every job, each in a process with an even part of the cores; the results by name.

    So many run `at_once`: all of them where None.

    `function` is a plain function of a module, and its job and result can be sent to a process. `progress` is called with a job's name and what it
    told. The first exception is raised here, once the others have ended; what they finished stays.
    """
    at_once = min(at_once or len(jobs), len(jobs))
    threads = max(1, (os.cpu_count() or 1) // at_once)
    context = get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(at_once, mp_context=context) as pool:
        told = manager.Queue()
        futures = {pool.submit(_call, function, name, job, threads, told): name for name, job in jobs.items()}
        running = set(futures)
        while running:
            running = wait(running, timeout=WAIT, return_when=FIRST_COMPLETED).not_done
            _hear(told, progress)
        return {name: future.result() for future, name in futures.items()}


@contextmanager
def together(address: str | None) -> Iterator[str | None]:
    """One Ray cluster for all processes inside: its address. None where none is asked for."""
    if address is None:
        yield None
        return
    from mechdiff.study.on_ray import cluster

    with cluster(address) as ray:
        yield ray.get_runtime_context().gcs_address


def _call(function: Callable[[Any, int, Told], Any], name: str, job: Any, threads: int, told: Any) -> Any:
    return function(job, threads, lambda what, share: told.put((name, what, share)))


def _hear(told: Any, progress: Callable[[str, str, float], None]) -> None:
    while True:
        try:
            progress(*told.get_nowait())
        except Empty:
            return
