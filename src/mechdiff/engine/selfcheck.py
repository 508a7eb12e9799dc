"""The engine proves itself on the very model that a run is about to study, before any number is computed.

1. *What is read is what is written*: the states of every site, read in one forward pass and written back in a second one, change no bit of
   the logits. Where they do, the sites are tried one by one and the first that fails is named.
2. *Replay is the forward pass*: a foreign state written at every site, once by replay and once by whole hooked forward passes (each sequence
   of a batch patched at another block), gives the same next-token law. Models whose cache is no plain list of keys and values run through
   replay without a complaint and are silently wrong; this is what finds them.

A failure raises SelfCheckError: no number from this model would be worth anything.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from mechdiff.engine.activations import Clean, Edit, capture, edited, forward, full_forward, writer
from mechdiff.engine.models import Model
from mechdiff.engine.replay import Engine, Write, replay
from mechdiff.engine.sites import Site
from mechdiff.errors import SelfCheckError

TOLERANCE_NATS = {torch.float32: 1e-6, torch.float16: 1e-2, torch.bfloat16: 0.3}
"""Largest mean KL(full forward || replay) over foreign states at one site kind; half precision rounds differently in other matrix shapes."""


@dataclass(frozen=True, kw_only=True)
class SelfCheck:
    """What the check found on one model."""

    sites: int
    """Sites whose states were written back without changing a bit."""
    worst_site: str
    replay_nats: float
    """Largest KL(full || replay) of a foreign state at any site."""
    floor_nats: float
    """KL of an unedited replayed row against the model's own forward pass."""

    def record(self) -> dict[str, Any]:
        return asdict(self)


def self_check(
    model: Model, prompts: Sequence[Sequence[int]], *, kinds: Sequence[str] | None = None, engine: Engine = replay
) -> SelfCheck:
    """Check `model` at the site `kinds` (default: all that it has) on the shortest of `prompts`, with states of the next shortest as foreign ones (and, where some blocks attend to a
    sliding window, on the longest too). Raises SelfCheckError that names the site."""
    by_length = sorted(prompts, key=len)
    kinds = model.kinds() if kinds is None else kinds
    sites = [Site(layer, kind) for layer in range(model.shape.n_layers) for kind in kinds]
    cleans = [capture(model, ids, sites, [len(ids) - 1], keep_cache=True) for ids in by_length[:2]]
    own, foreign = cleans[0], cleans[-1]
    _writes_back(model, own, sites)
    states = {kind: {site: foreign.states[site] for site in sites if site.kind == kind} for kind in kinds}
    found = [_replays(model, own, states[kind], engine) for kind in kinds]
    longest = capture(model, by_length[-1], [], [len(by_length[-1]) - 1], keep_cache=True)
    if getattr(model.config, "sliding_window", None) and len(longest.ids) > model.config.sliding_window:
        found += [_replays(model, longest, states[kind], engine) for kind in kinds[-1:]]
    worst, site, _ = max(found)
    return SelfCheck(sites=len(sites), worst_site=str(site), replay_nats=worst, floor_nats=max(floor for _, _, floor in found))


def _writes_back(model: Model, clean: Clean, sites: Sequence[Site]) -> None:
    """Raises unless writing every captured state back leaves the logits as they were, bit for bit."""

    def changes(chosen: Sequence[Site]) -> bool:
        edits: dict[Site, Edit] = {site: writer(clean.states[site]) for site in chosen}
        return not torch.equal(full_forward(model, clean.ids, edits), plain)

    plain = full_forward(model, clean.ids, {})
    if changes(sites):
        guilty = next((site for site in sites if changes([site])), None)
        raise SelfCheckError(
            f"{model.ref}: writing a state that was just read at {guilty or 'all sites together'} changes the model's output. The row "
            f"{model.config.model_type!r} of mechdiff/engine/families.py does not fit this model."
        )


def _replays(model: Model, clean: Clean, states: dict[Site, Tensor], engine: Engine) -> tuple[float, Site, float]:
    """Largest KL(full || engine) in nats over foreign `states` (one a block, all of one kind), its site, and the floor of the clean row."""
    found = engine(model, [clean], [{site: Write(value=state[None])} for site, state in states.items()])[0]

    def one_row(row: int, state: Tensor) -> Edit:
        return lambda tensor: tensor[row, -len(state) :].copy_(state)  # type: ignore[func-returns-value]

    edits = {site: one_row(row, state) for row, (site, state) in enumerate(states.items())}
    with edited(model, edits):
        expected = forward(model, clean.ids.expand(len(states), -1), use_cache=False).logits[:, -1].float()
    apart = _kl(expected, found[1:])
    if not torch.isfinite(apart).all() or apart.mean() > TOLERANCE_NATS[model.dtype]:
        site = list(states)[int(apart.nan_to_num(torch.inf).argmax())]
        raise SelfCheckError(
            f"{model.ref}: replay and a whole forward pass disagree at {site} by {float(apart.max()):.1e} nats. This model keeps state that "
            'parallel tokens share; run it with engine="full" (--engine full).'
        )
    worst = int(apart.argmax())
    return float(apart[worst]), list(states)[worst], float(_kl(clean.logits, found[0]))


def _kl(reference: Tensor, logits: Tensor) -> Tensor:
    """KL(reference || logits) in float64."""
    log_p, log_q = reference.double().log_softmax(-1), logits.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0)
