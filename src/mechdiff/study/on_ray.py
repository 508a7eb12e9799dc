"""The same run goes on a Ray cluster: workers hold the pair, cells are the work, and the loss of a worker is no loss. The only file that imports Ray.

The driver owns the run's folder and plans; a worker prepares the same study, joins the folder (or the URL under which its cells lie), and puts the
cells that it is given there. Nothing but names travels: a cell's inputs are cells, its result is a cell. So a worker that dies takes nothing with it
but what it was computing, which another one is given; and a cell is the same bits wherever it was computed, with the same threads, dtype and packing.

Before a worker is given anything it says which code, versions, files and plan it has; what is not the driver's is refused by name.
"""

import hashlib
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from mechdiff.errors import MachineError, MechdiffError, RunError
from mechdiff.models.pair import open_pair
from mechdiff.store.record import code_hash, versions
from mechdiff.store.run_folder import RunFolder, cell_hash
from mechdiff.study.cells import Cell
from mechdiff.study.config import RunOptions, StudyConfig
from mechdiff.study.corpus import Corpus, compute_sums, open_corpus
from mechdiff.study.execution import Execution
from mechdiff.study.prepare import Prepared, prepare
from mechdiff.study.run import compute_cell

IN_FLIGHT = 2
"""Cells that a worker has been given at most: the one that it computes, and the next."""
DEATHS = 3
"""Workers that may die of one cell before the run gives up on it; and that may die while they start, where none is left."""
PATIENCE = 300.0
"""Seconds without any worker, while one is being started, before the run gives up."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every process of a run does: which cells there are, and how one is computed."""

    opened_by: Callable[[dict[str, Any]], "Task"]
    """A function of a module, by which a worker makes the same task of `given`."""
    given: dict[str, Any]
    cells: Sequence[Cell]
    compute: Callable[[RunFolder, Cell], None]
    same: dict[str, str]
    """What must be the same in every process, besides versions."""

    def fingerprint(self) -> dict[str, str]:
        plan = hashlib.sha256("".join(cell_hash(cell.key) for cell in self.cells).encode()).hexdigest()
        return {**versions(), "code": code_hash(), **self.same, "plan": plan}


def run_task(prepared: Prepared, sent: dict[str, Any]) -> Task:
    """The cells of a study; `sent` are the options of its workers."""
    opened: list[Execution] = []  # one, that keeps what cells share

    def compute(folder: RunFolder, cell: Cell) -> None:
        opened[:] = opened or [Execution(prepared, folder)]
        compute_cell(opened[0], cell)

    study = prepared.study
    broken = [list(one) for one in prepared.broken]
    given = {"study": study.model_dump_json(), "experiments": prepared.experiments, "options": sent, "broken": broken}
    same = {"study and its files": prepared.config_hash, "models": prepared.identity}
    return Task(opened_by=_open_run, given=given, cells=prepared.plan.cells, compute=compute, same=same)


def _open_run(given: dict[str, Any]) -> Task:
    options = RunOptions(**given["options"])
    experiments = given["experiments"]
    study = StudyConfig.model_validate_json(given["study"], context={name: one.options for name, one in experiments.items()})
    prepared = prepare(study, options, experiments, broken=[tuple(one) for one in given["broken"]])
    return run_task(prepared, given["options"])


def corpus_task(corpus: Corpus, given: dict[str, Any]) -> Task:
    """The shards of a corpus; `given` are the arguments of `open_pair` (pair) and of `open_corpus` (texts)."""
    return Task(
        opened_by=_open_moments, given=given, cells=corpus.cells, compute=lambda folder, cell: compute_sums(corpus, folder, cell), same={},
    )  # fmt: skip


def _open_moments(given: dict[str, Any]) -> Task:
    return corpus_task(open_corpus(open_pair(**given["pair"]), **given["texts"]), given)


class Worker:
    """One process of a run: its task, and the run's cells. What a user can put right comes back as text."""

    def __init__(
        self, opened_by: Callable[..., Task], given: dict[str, Any], folder: str, cells: str | None, at: str, threads: int
    ) -> None:
        self.opened_by, self.given, self.place, self.cells, self.at, self.threads = opened_by, given, folder, cells, at, threads

    def ready(self) -> dict[str, Any]:
        """Opens the task; what this process is."""
        if os.path.isdir(self.at):
            os.chdir(self.at)  # paths count from where the run was started
        torch.set_num_threads(self.threads)
        try:
            self.task = self.opened_by(self.given)
        except MechdiffError as error:
            return {"error": str(error)}
        self.folder = RunFolder.joined(self.place, self.cells)
        self.name = f"{hashlib.sha256(platform.node().encode()).hexdigest()[:6]}:{os.getpid()}"
        return {"fingerprint": self.task.fingerprint(), "worker": self.name, "pid": os.getpid(), "threads": torch.get_num_threads()}

    def compute(self, place: int) -> dict[str, Any]:
        """Computes one cell, unless it is there by now; the lines of the log."""
        cell = self.task.cells[place]
        try:
            if not self.folder.has(cell.key):
                self.task.compute(self.folder, cell)
        except MechdiffError as error:
            return {"error": str(error), "told": self.folder.told()}
        warnings, self.folder.warnings[:] = list(self.folder.warnings), []
        return {"told": [f"{line} worker={self.name}" for line in self.folder.told()], "warnings": warnings}


@dataclass(eq=False)
class _Hand:
    """One worker as the driver sees it."""

    actor: Any
    starting: Any
    """What it will say of itself; None once it has."""
    given: dict[Any, Cell] = field(default_factory=dict)
    """By the reference of the result, in the order in which they were given."""
    last: Any = None
    """The prompts of the cell that it was given last: the next one may read the same."""


class RayCrew:
    """Workers on a cluster, as a run's crew."""

    def __init__(self, ray: Any, task: Task, folder: RunFolder, options: RunOptions, *, workers: int) -> None:
        self.ray, self.folder, self.n_workers = ray, folder, workers
        self.cells, self.gpus, self.threads = options.cells, options.gpus_per_worker, options.threads or 1
        self.deaths: dict[str, int] = {}
        self.lost = self.unstarted = 0
        self.hands: list[_Hand] = []
        self._open(task)

    def _open(self, task: Task) -> None:
        self.task, self.expected = task, task.fingerprint()
        self.places = {cell_hash(cell.key): place for place, cell in enumerate(task.cells)}
        self.hands = [self._hire() for _ in range(self.n_workers)]

    def anew(self, execution: Execution) -> "RayCrew":
        """Workers that know the other plan, for those that do not."""
        self.close()
        self._open(run_task(execution.prepared, self.task.given["options"]))
        return self

    def _hire(self) -> _Hand:
        of_actor = self.ray.remote(Worker).options(
            num_cpus=self.threads, num_gpus=self.gpus, max_restarts=0, scheduling_strategy="SPREAD"
        )  # fmt: skip
        place, here = str(self.folder.path.absolute()), os.getcwd()
        actor = of_actor.remote(self.task.opened_by, self.task.given, place, self.cells, here, self.threads)
        return _Hand(actor=actor, starting=actor.ready.remote())

    def compute(self, cells: Sequence[Cell], started: Callable[[Cell], None]) -> Iterator[Cell]:
        waiting, left, alone_since = list(cells), {cell_hash(cell.key) for cell in cells}, time.monotonic()
        while left:
            self._give(waiting, started)
            references = [hand.starting for hand in self.hands if hand.starting] + [one for hand in self.hands for one in hand.given]
            ready, _ = self.ray.wait(references, num_returns=1, timeout=1.0)
            if any(not hand.starting for hand in self.hands):
                alone_since = time.monotonic()
            elif time.monotonic() - alone_since > PATIENCE:
                raise MachineError(f"no worker in {PATIENCE:.0f} seconds. Are {self.threads} CPUs free for one? `ray status` says what is.")
            for reference in ready:
                hand = next(one for one in self.hands if reference is one.starting or reference in one.given)
                for cell in self._heard(hand, reference, waiting):
                    left.discard(cell_hash(cell.key))
                    yield cell

    def _give(self, waiting: list[Cell], started: Callable[[Cell], None]) -> None:
        """Gives every worker that is ready its next cells: where it can be, on the prompts that it has just read."""
        for depth in range(IN_FLIGHT):
            for hand in self.hands:
                if hand.starting or len(hand.given) > depth or not waiting:
                    continue
                cell = next((one for one in waiting if one.key.get("ids") == hand.last), waiting[0])
                waiting.remove(cell)
                started(cell)
                hand.last = cell.key.get("ids")
                hand.given[hand.actor.compute.remote(self.places[cell_hash(cell.key)])] = cell

    def _heard(self, hand: _Hand, reference: Any, waiting: list[Cell]) -> Iterator[Cell]:
        """What a worker said: that it is ready, that a cell is there, or nothing, because it is dead."""
        try:
            told = self.ray.get(reference)
        except (self.ray.exceptions.RayActorError, self.ray.exceptions.WorkerCrashedError, self.ray.exceptions.OutOfMemoryError) as error:
            yield from self._replace(hand, waiting, cause(error))
            return
        self.folder.write_lines(told.get("told", []))
        if "error" in told:
            raise RunError(f"a worker says: {told['error']}")
        if reference is hand.starting:
            self._same(told)
            hand.starting = None
            self.folder.log("worker", name=told["worker"], pid=told["pid"], threads=told["threads"])
        else:
            self.folder.warnings.extend(told["warnings"])
            yield hand.given.pop(reference)

    def _same(self, told: Mapping[str, Any]) -> None:
        here = self.expected
        differing = [
            f"{name}: {there[:12]} there, {here[name][:12]} here" for name, there in told["fingerprint"].items() if there != here[name]
        ]
        if differing:
            raise MachineError(
                f"the worker {told['worker']} is not what this run is ({'; '.join(differing)}). "
                "Install the same mechdiff and versions on every node, and let all of them see the same files."
            )

    def _replace(self, hand: _Hand, waiting: list[Cell], why: str) -> Iterator[Cell]:
        """Another worker for a dead one; what that was given and did not put there waits again. Yields what it had finished unheard."""
        self.hands.remove(hand)
        self.lost += 1
        self.folder.log("worker_lost", cells=len(hand.given), why=why)
        self.unstarted += hand.starting is not None
        if not self.hands and self.unstarted >= DEATHS:
            raise MachineError(
                f"{self.unstarted} workers died while they were starting, and none is left: {why}. Is the same mechdiff installed on every node?"
            )
        for order, cell in enumerate(hand.given.values()):
            if self.folder.has(cell.key):
                yield cell
                continue
            waiting.insert(0, cell)
            if order == 0:  # the one that it was computing
                name = cell_hash(cell.key)
                self.deaths[name] = self.deaths.get(name, 0) + 1
                if self.deaths[name] == DEATHS:
                    raise MachineError(
                        f"{DEATHS} workers died of the same cell ({cell.title}, {len(cell.items)} prompts): {why} "
                        "If it is memory, lower --max-rows or the number of --workers."
                    )
        if hand.starting is None or not self.hands or self.unstarted < 2 * DEATHS:  # others go on without those that cannot start
            self.hands.append(self._hire())

    def record(self) -> dict[str, Any]:
        said = {"ray": self.ray.__version__, "workers": self.n_workers, "lost": self.lost}
        return {"distributed": said, "threads": self.threads}

    def close(self) -> None:
        for hand in self.hands:
            self.ray.kill(hand.actor)


def cause(error: Exception) -> str:
    """Why a worker died: the error that was raised there, where one was; else the first line of what Ray says."""
    lines = str(error).splitlines() or [type(error).__name__]
    raised = [line.strip() for line in lines if re.match(r"\s*[\w.]*(Error|Exception): ", line)]
    return (raised or lines)[-1 if raised else 0]


def n_workers(options: RunOptions, resources: Mapping[str, float], need: float) -> int:
    """As many as the cluster's GPUs, or its CPUs and memory, hold: on CPUs each takes `need` bytes."""
    if options.workers:
        return options.workers
    if options.gpus_per_worker:
        return int(resources.get("GPU", 0) // options.gpus_per_worker)
    return min(int(resources.get("CPU", 1) // (options.threads or 1)), max(1, int(resources.get("memory", need) // need)))


@contextmanager
def cluster(address: str) -> Iterator[Any]:
    """Ray, connected: to the cluster at `address`; `auto`: to the one of this machine, or else to one that is
    started here and ends with the run; `local`: to one of its own."""
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise MachineError("--ray: Ray is not installed. Run: pip install 'mechdiff[ray]'") from error
    if ray.is_initialized():  # somebody's: it stays
        yield ray
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        if re.search(r"authentication token|InvalidAuthToken|unauthenticated", f"{error}\n{error.__cause__}", re.IGNORECASE):
            raise MachineError(
                f"--ray {address}: the cluster there wants a token and refuses the one given, or that none is ({cause(error)}). Give its own: "
                "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH."
            ) from error
        if not isinstance(error, ConnectionError):
            raise
        if address != "auto":
            raise MachineError(
                f"--ray {address}: no Ray cluster answers there ({error}). Start one with `ray start --head`, or give auto."
            ) from error
        ray.init(include_dashboard=False, **quiet)
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def ray_crew(prepared: Prepared, folder: RunFolder, address: str) -> Iterator[RayCrew]:
    """Workers for one run, gone when it ends. MachineError where there is no Ray, no cluster, or no room for a worker."""
    options, plan = prepared.options, prepared.plan
    sent = {**asdict(options), "threads": options.threads or 1, "out": None, "ray": None, "workers": None, "gpus_per_worker": 0.0}
    if options.gpus_per_worker:
        sent["device"] = "split" if options.gpus_per_worker > 1 else "cuda"
    need = 1.5 * plan.weights_bytes + plan.states_bytes + plan.pass_bytes
    with workers_for(run_task(prepared, sent), folder, address, options, need) as crew:
        yield crew


@contextmanager
def workers_for(task: Task, folder: RunFolder, address: str, options: RunOptions, need: float) -> Iterator[RayCrew]:
    """Workers for a task, of which each needs so many bytes."""
    with cluster(address) as ray:
        resources, threads = ray.cluster_resources(), options.threads or 1
        workers = n_workers(options, resources, need)
        if not workers:
            has = ", ".join(f"{resources.get(name, 0):g} {name}s" for name in ("CPU", "GPU"))
            asked = f"{threads} CPUs and {options.gpus_per_worker:g} GPUs"
            raise MachineError(f"--ray: the cluster has {has}, a worker takes {asked}. Lower --threads or --gpus-per-worker.")
        crew = RayCrew(ray, task, folder, options, workers=workers)
        try:
            yield crew
        finally:
            crew.close()
