"""What will a study cost, before anything is loaded? The plan's cells have floating-point operations, and this machine a speed."""

import math
import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from mechdiff.architectures.sites import KINDS
from mechdiff.architectures.sizes import Shape, Weights
from mechdiff.errors import ModelError, PromptError
from mechdiff.models.devices import AUTO
from mechdiff.models.pair import DTYPES
from mechdiff.prompts.sets import Prompt
from mechdiff.study.cells import Item, Plan
from mechdiff.study.config import RunOptions, StudyConfig
from mechdiff.study.experiment import Experiment, runs_of
from mechdiff.study.plan import plan
from mechdiff.study.planner import MAX_ROWS, PairFacts
from mechdiff.study.prepare import prepare, read_splits, told
from mechdiff.study.stages import stages_of

SHARED = 1.3
"""Times the processor's time, by the clock: a product that takes longer has its machine not to itself."""
_CHARACTERS_A_TOKEN = 3.0
_TEMPLATE_TOKENS = 30


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What decides how long a plan takes."""

    name: str
    flops: float
    """Floating-point operations a second that passes reach."""
    seconds_a_logit: float
    """Softmax and divergences, for each row and vocabulary entry."""
    bytes_a_second: float
    """Of weights, read for every step in which each of some sequences says one token."""
    fixed: float
    """Seconds for start, loading of small models, tables and figures."""
    stray: float = 1.0
    """How many times as long a product takes now as where nothing else runs; the rates above are of a quiet machine."""


@cache
def this_machine(dtype: str) -> Machine:
    """Its rate is measured once in a process: 60 % of a matrix product's, for attention, norms, and rows that are few in the lower blocks."""
    seconds, stray = _quiet(torch.randn(512, 1536, dtype=DTYPES[dtype]), torch.randn(1536, 1536, dtype=DTYPES[dtype]))
    rate = 2 * 512 * 1536 * 1536 / seconds  # a product of a block's size
    name = f"this machine's measured {rate / 1e9:.0f} GFLOP/s ({dtype})"
    return Machine(name=name, flops=0.6 * rate, seconds_a_logit=1.2e-8, bytes_a_second=_read_rate(), fixed=20, stray=stray)


_PROGRAM_BYTES = 900 << 20
"""Libraries, tables, and what the allocator keeps."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What `mechdiff plan` prints."""

    stages: dict[str, tuple[int, int, float, float]]
    """Stage -> cells, counterfactual runs, floating-point operations, seconds."""
    prompts: dict[str, int]
    tokens_from: str
    sizes_from: str
    weights: str
    """Parameters of the base, in words."""
    rate_from: str
    memory: float
    memory_one: float
    gpu: float
    """Of all GPUs together, with both models; captured states lie in the machine's own memory."""
    gpu_one: float
    disk: float
    seconds: float
    """On a quiet machine."""
    stray: float
    """How many times as long the machine takes now: over `SHARED`, others have it too."""
    skipped: tuple[dict[str, str], ...]

    def gpus(self, each: float) -> tuple[int, int]:
        """How many GPUs of `each` bytes hold both models, and one at a time: a tenth of each is left free."""
        both, one = (math.ceil(need / (0.9 * each)) for need in (self.gpu, self.gpu_one))
        return both, one


def estimate(
    study: StudyConfig, experiments: Mapping[str, Experiment], max_rows: int | None = None, machine: Machine | None = None
) -> Estimate:
    """Plans for `machine` (this one where None), with the models' own configs and tokenizers where they are here, else with `pair.shape`.

    Raises ModelError where the sizes are nowhere to be found.
    """
    study, planned, splits, tokens_from, sizes_from, vocab, weights = _planned(study, experiments, max_rows or MAX_ROWS)
    machine = machine or this_machine(study.dtype)
    stages: dict[str, tuple[int, int, float, float]] = {}
    known = stages_of(experiments)
    one_model = planned.weights_bytes if planned.shared_weights else planned.weights_bytes / 2
    for cell in planned.cells:
        runs = runs_of(cell)
        stage = known[cell.stage]
        seconds = cell.flops / machine.flops / stage.rate + stage.laws(cell) * vocab * machine.seconds_a_logit
        seconds += cell.steps * one_model / machine.bytes_a_second
        before = stages.get(cell.stage, (0, 0, 0.0, 0.0))
        stages[cell.stage] = (before[0] + 1, before[1] + runs, before[2] + cell.flops, before[3] + seconds)
    working = planned.pass_bytes + planned.states_bytes + one_model + _PROGRAM_BYTES  # while a model is loaded its file is mapped too
    return Estimate(
        stages=stages,
        prompts=splits,
        tokens_from=tokens_from,
        sizes_from=sizes_from,
        weights=weights.said(study.dtype),
        rate_from=f"at {machine.name}",
        memory=planned.weights_bytes + working,
        memory_one=one_model + working,
        gpu=planned.weights_bytes + planned.pass_bytes,
        gpu_one=one_model + planned.pass_bytes,
        disk=planned.states_bytes,
        seconds=machine.fixed + sum(entry[3] for entry in stages.values()),
        stray=machine.stray,
        skipped=planned.skipped,
    )


def _planned(
    study: StudyConfig, experiments: Mapping[str, Experiment], max_rows: int
) -> tuple[StudyConfig, Plan, dict[str, int], str, str, int, Weights]:
    """The study in its dtype (`auto` of models that are not here: float32), and its plan."""
    shape = study.pair.shape
    try:
        prepared = prepare(study, RunOptions(max_rows=max_rows, device="cpu"), experiments)
    except (ModelError, PromptError):
        if shape is None:
            raise
    else:
        counts = {split: len(prompts) for split, prompts in prepared.rendered.items()}
        counted = prepared.pair.weights("base")
        return prepared.study, prepared.plan, counts, "tokens counted", "from the models' own networks", len(prepared.tokens), counted
    common = {"n_layers": shape.n_layers, "d_model": shape.d_model, "n_heads": shape.n_heads, "n_kv_heads": shape.n_kv_heads,
              "d_head": shape.d_model // shape.n_heads, "d_mlp": shape.d_mlp, "context": 1 << 20}  # fmt: skip
    shapes = {"base": Shape(**common, vocab=shape.vocab), "tuned": Shape(**common, vocab=shape.vocab_tuned or shape.vocab)}
    study = study if study.dtype != AUTO else study.model_copy(update={"dtype": "float32"})
    splits = read_splits(study, experiments)
    items = {split: [_guessed(p) for p in prompts] for split, prompts in splits.items()}
    weights = {side: one.guessed(shape.experts, shape.experts_used) for side, one in shapes.items()}
    routers = dict.fromkeys(shapes, tuple(range(shape.n_layers)) if shape.experts > 1 else ())
    planned = plan(study, experiments, PairFacts(shapes=shapes, kinds=KINDS, weights=weights, routers=routers), items, max_rows=max_rows)
    counts = {split: len(prompts) for split, prompts in splits.items()}
    return (
        study,
        planned,
        counts,
        "tokens guessed from the texts' lengths",
        "from the study's `shape`: the models are not on this machine",
        shape.vocab,
        weights["base"],
    )


def _guessed(prompt: Prompt) -> Item:
    n = int(len(prompt.text.encode()) / _CHARACTERS_A_TOKEN) + _TEMPLATE_TOKENS
    return Item(id=prompt.id, sha256="", tokens=n, pairs=n, tail=n, **told(prompt))


def _read_rate() -> float:
    """Bytes a second of a matrix that is too large for the cache, as one vector goes through it."""
    matrix = torch.randn(8192, 4096)
    return matrix.nbytes / _quiet(matrix, torch.randn(4096, 1))[0]


_TRYING_S = 1.0
"""Seconds that the tries of a product may take: without its own instructions for bfloat16 a processor takes two for a single one."""


def _quiet(left: Tensor, right: Tensor) -> tuple[float, float]:
    """Seconds of a product where nothing else runs, and how many times as long it takes now: of 40 tries, or of those that are begun within a second.

    A thread that waits for its turn uses no processor time. Where the clock says far more than that time over the threads, others have the machine
    too, and the processor's time counts: of the quarter of the tries that the others' work in the caches slowed least.
    """
    threads = min(torch.get_num_threads(), os.cpu_count() or 1)
    walls: list[float] = []
    used: list[float] = []
    while len(walls) < 40 and sum(walls) < _TRYING_S:
        clock, processor = time.perf_counter(), time.process_time()
        left @ right
        walls.append(time.perf_counter() - clock)
        used.append((time.process_time() - processor) / threads)
    wall, alone = statistics.median(walls), sorted(used)[len(used) // 4]
    return (alone, wall / alone) if wall > SHARED * alone else (wall, 1.0)
