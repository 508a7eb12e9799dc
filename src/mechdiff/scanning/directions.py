"""Which texts hold what a change of weights looks for? States are held against directions of the change, and these against random directions.

Of the matrices that changed most (by the norm of W_tuned - W_base), the change's first singular vectors: those of its inputs are read where the
matrix reads, those of its outputs where it writes, in the tuned model. Steering vectors are read at their site. Of a text and a direction v it is

    cos = max over tokens of  x . v / (|x| |v|)          x: the state at that token; the first token, an attention sink in most models, is left out

and the same of -v, since a singular vector has no sign. How far the first text stands out, z = (its cos - mean) / spread over all texts, is held
against that of RANDOM directions drawn from the base's own states there, both signs (each the sum of eight states' deviations from the mean, with
random weights: of one, its own text would stand out; of very many, no text would, for such sums have no tails):

    p = (1 + how many random ones stand out as far) / (1 + how many there are)

A text that nothing else in a corpus resembles stands out along random directions too: hence states, not noise, make these.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor, nn

from mechdiff.architectures.sites import Site
from mechdiff.engine.activations import edited
from mechdiff.engine.grafts import Batch
from mechdiff.errors import StudyError
from mechdiff.maps.vectors import load_control_vector, load_vector
from mechdiff.measures.weights.spectra import left_directions
from mechdiff.models.adapters import Factors
from mechdiff.models.changes import Change, open_changes
from mechdiff.models.pair import Model, Pair

RANDOM, FOR_A_LINE, STATES, OF_STATES = 512, 12, 2048, 8
"""Random directions at a place, at least, and for each direction and sign that is tested (so that one of them can be surprising among all), states of
the base that they are drawn from at most, and states that one is the sum of."""
OF_A_MATRIX = 2
"""Singular vectors of each end of a matrix."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where states are read, and what they are held against."""

    what: str
    """A module's name, or a site's."""
    end: str
    """input or output of a module; site."""
    names: tuple[str, ...]
    """Of the directions."""
    vectors: Float[Tensor, "direction d"]
    """Of norm 1."""

    def told(self) -> dict[str, Any]:
        return {"what": self.what, "end": self.end, "names": list(self.names)}


def places(pair: Pair, *, matrices: int, vectors: Sequence[str]) -> tuple[list[Place], list[str]]:
    """Of a pair's largest changes and of steering vectors, and what is to be said of what was left out."""
    changes = open_changes(pair.base, pair.tuned)
    sizes: dict[str, float] = {}
    for change in changes if matrices else ():
        if change.layer is not None and not change.untouched and change.base.ndim == 2 and change.name.endswith(".weight"):
            sizes[change.name] = change.squared_change()
    largest = sorted((name for name in sizes if sizes[name] > 0), key=lambda name: (-sizes[name], name))[:matrices]
    found = [place for name in largest for place in _of_change(changes.change(name))]
    return found + [place for path in vectors for place in _of_file(Path(path))], list(changes.statements)


def _of_change(change: Change) -> Iterator[Place]:
    delta = change.factors or change.delta()
    flipped = Factors(left=change.factors.right.T, right=change.factors.left.T) if change.factors else change.delta().T
    written, values = left_directions(delta, OF_A_MATRIX)
    kept = int((values > 1e-6 * values[0]).sum())
    read, _ = left_directions(flipped, OF_A_MATRIX)
    module = change.name.removesuffix(".weight")
    short = f"block {change.layer} {module.rpartition('.')[2]}"
    for end, ends, found in (("input", "what it reads", read), ("output", "what it writes", written)):
        names = tuple(f"{short}, {ends}, {nth}" for nth in range(1, kept + 1))
        yield Place(what=module, end=end, names=names, vectors=_unit(found[:, :kept].T))


def _of_file(path: Path) -> Iterator[Place]:
    try:
        vectors = load_control_vector(path) if path.suffix == ".gguf" else dict([load_vector(path)[:2]])
    except (OSError, ValueError, KeyError) as error:
        raise StudyError(f"--vectors {path}: no steering vector ({error}). Give a file of RUN/steering: .safetensors or .gguf.") from error
    for site, vector in vectors.items():
        yield Place(what=str(site), end="site", names=(f"{path.name}, {site}",), vectors=_unit(vector[None]))


def _unit(vectors: Float[Tensor, "direction d"]) -> Float[Tensor, "direction d"]:
    vectors = vectors.float()
    return vectors / vectors.norm(dim=-1, keepdim=True)


@contextmanager
def reading(model: Model, at: Sequence[Place], batch: Batch) -> Iterator[dict[int, Float[Tensor, "token d"]]]:
    """While open, a pass of the batch leaves the states at its places (a row, a position), by the number of the place that was read.

    A module that the network has not, that does not see every token once (an expert), or that gives more than one tensor (a router), leaves none.
    """
    found: dict[int, Tensor] = {}
    modules = dict(model.net.named_modules())
    rows, positions = batch.places.T

    def keep(number: int, tensor: object) -> None:
        if isinstance(tensor, Tensor) and tensor.numel() == batch.ids.numel() * tensor.shape[-1]:
            states = tensor.view(*batch.ids.shape, -1)
            found[number] = states[rows.to(states.device), positions.to(states.device)].float()

    sites: dict[Site, list[int]] = {}
    with ExitStack() as stack:
        for number, place in enumerate(at):
            if place.end == "site":
                sites.setdefault(Site.parse(place.what), []).append(number)
            elif place.what in modules:
                stack.callback(_hooked(modules[place.what], place.end, partial(keep, number)).remove)
        stack.enter_context(edited(model, {site: partial(_each, keep, numbers) for site, numbers in sites.items()}))
        yield found


def _each(keep: Callable[[int, object], None], numbers: Sequence[int], state: Tensor) -> None:
    for number in numbers:
        keep(number, state)


def _hooked(module: nn.Module, end: str, keep: Callable[[object], None]) -> Any:
    if end == "input":
        return module.register_forward_pre_hook(lambda module, args: keep(args[0]) if args else None)
    return module.register_forward_hook(lambda module, args, output: keep(output))


def how_many(at: Sequence[Place]) -> int:
    """Random directions of each of these places."""
    return max(RANDOM, FOR_A_LINE * 2 * sum(len(one.names) for one in at))


def random_directions(states: Float[Tensor, "token d"], n: int, *, seed: int) -> Float[Tensor, "draw d"]:
    """Directions of norm 1: each the sum of a few states' deviations from their mean, with random weights."""
    random = torch.Generator().manual_seed(seed)
    which = torch.randint(len(states), (n, OF_STATES), generator=random)
    weights = torch.zeros(n, len(states)).scatter_add_(1, which, torch.randn(n, OF_STATES, generator=random))
    return _unit(weights @ (states - states.mean(0)))


def cosines(states: Float[Tensor, "token d"], vectors: Float[Tensor, "direction d"]) -> Float[Tensor, "token direction"]:
    """Of every state with every direction (of norm 1); 0 for a state of 0."""
    return states @ vectors.to(states).T / states.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(states.dtype).tiny)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Over texts: of the largest cosine along each direction and its opposite, `[2, direction]`. They add."""

    n: int
    total: Float[ndarray, "2 direction"]
    squares: Float[ndarray, "2 direction"]
    top: Float[ndarray, "2 direction"]

    @classmethod
    def of(cls, cos: Float[ndarray, "text 2 direction"]) -> "Spread":
        wide = cos.astype(np.float64)
        top = wide.max(0, initial=-np.inf)
        return cls(n=len(cos), total=wide.sum(0), squares=np.square(wide).sum(0), top=top)

    def __add__(self, other: "Spread") -> "Spread":
        top = np.maximum(self.top, other.top)
        return Spread(n=self.n + other.n, total=self.total + other.total, squares=self.squares + other.squares, top=top)

    def standing_out(self) -> Float[ndarray, "2 direction"]:
        """z of the first text: how many spreads it lies above the mean; 0 where nothing varies, NaN of what is not finite."""
        mean = self.total / self.n
        spread = np.sqrt(np.maximum(self.squares / self.n - mean**2, 0))
        return np.divide(self.top - mean, spread, out=np.zeros_like(mean), where=~(spread <= 1e-9))


def empirical_p(z: Float[ndarray, "2 direction"], at_random: Float[ndarray, "2 draw"]) -> Float[ndarray, "2 direction"]:
    """Which share of random directions, both signs, have a first text that stands out as far; NaN where that of one is not known."""
    if np.isnan(at_random).any():
        return np.full(z.shape, np.nan)
    beyond = (at_random.reshape(-1) >= z[..., None]).sum(-1)
    return (1 + beyond) / (1 + at_random.size)
