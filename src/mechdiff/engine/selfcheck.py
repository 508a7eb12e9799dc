"""The engine proves itself on the very model that a run is about to study, before any number is computed.

1. *A site holds what its name says*: in one forward pass, `resid_pre` and `attn_out` add up to `resid_mid`, `resid_mid` and `mlp_out` to
   `resid_post`, one block's `resid_post` is the next one's `resid_pre`, and `attn_proj` goes through the post-norm to `attn_out`. A row of the
   family table that names a wrong module fails here.
2. *What is read is what is written*: the states of a site, read in one forward pass and written back in a second one, change no bit of the
   logits, site by site.
3. *Replay is the forward pass*: the state of another token written at every site, once by replay and once by whole hooked forward passes
   (each sequence of a batch patched at another block), gives the same next-token law: every kind of site at every block on a prompt's first tokens,
   one kind at every fourth block on a whole prompt. Models whose cache is no plain list of keys and values
   run through replay without a complaint and are silently wrong; this is what finds them.

A failure raises SelfCheckError that names the site: no number from this model would be worth anything.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from mechdiff.engine.activations import Clean, Edit, capture, edited, forward
from mechdiff.engine.models import Model
from mechdiff.engine.replay import Engine, Write, replay
from mechdiff.engine.sites import Site
from mechdiff.errors import SelfCheckError

TOLERANCE_NATS = {torch.float32: 1e-6, torch.float16: 1e-2, torch.bfloat16: 0.3}
"""Largest KL(full forward || replay) of a foreign state at any site; half precision rounds differently in other matrix shapes."""

FEW = 5
"""Tokens on which every kind is tried at every block: what is wrong with a place is wrong on any of them."""
APART = 4
"""On a whole prompt, where masks and positions could go wrong: every fourth block, the last among them."""


@dataclass(frozen=True, kw_only=True)
class SelfCheck:
    """What the check found on one model."""

    sites: int
    """Sites whose states were written back, each on its own, without changing a bit."""
    worst_site: str
    replay_nats: float
    """Largest KL(full || replay) of a foreign state at any site."""
    floor_nats: float
    """KL of an unedited replayed row against the model's own forward pass."""

    def record(self) -> dict[str, Any]:
        return asdict(self)


def self_check(model: Model, prompts: Sequence[Sequence[int]], *, kinds: Sequence[str] | None = None, engine: Engine = replay) -> SelfCheck:
    """Check `model` at the site `kinds` (default: all that it has) on the shortest of `prompts`, and on the longest too where some
    blocks attend to a sliding window that it outgrows. Raises SelfCheckError that names the site."""
    ids, longest = min(prompts, key=len), max(prompts, key=len)
    kinds = model.kinds() if kinds is None else kinds
    every = [Site(layer, kind) for layer in range(model.shape.n_layers) for kind in model.kinds()]
    clean = capture(model, ids, every, [len(ids) - 1, len(ids) // 2], keep_cache=engine is replay)
    _adds_up(model, clean.states)
    _writes_back(model, clean.ids[:FEW], kinds)
    foreign = [{site: clean.states[site][1:] for site in every if site.kind == kind} for kind in kinds]
    few = capture(model, ids[:FEW], [], [0], keep_cache=engine is replay)
    sparse = {site: state for site, state in foreign[-1].items() if site.layer % APART == (model.shape.n_layers - 1) % APART}
    found = [*(_replays(model, few, states, engine) for states in foreign), _replays(model, clean, sparse, engine)]
    window = getattr(model.config, "sliding_window", None)
    if window and len(longest) > window:
        found.append(_replays(model, capture(model, longest, [], [0], keep_cache=engine is replay), foreign[-1], engine))
    nats, site, _ = max(found)
    return SelfCheck(
        sites=len(kinds) * model.shape.n_layers, worst_site=str(site), replay_nats=nats, floor_nats=max(floor for _, _, floor in found)
    )


def _adds_up(model: Model, states: dict[Site, Tensor]) -> None:
    """Raises unless the states of every block are the parts and sums that their names say."""
    slack = 8 * torch.finfo(model.dtype).eps
    for site, state in states.items():
        if state.shape[-1] != model.shape.width(site.kind):
            raise SelfCheckError(
                f"{model.ref}: what is read at {site} is {state.shape[-1]} wide, not {model.shape.width(site.kind)}. {_misfit(model)}"
            )
    for site, expected, words in _claims(model, states):
        apart, size = float((states[site] - expected).float().norm()), float(expected.float().norm() + states[site].float().norm())
        if not apart <= slack * size:
            raise SelfCheckError(f"{model.ref}: what is read at {site} is not {words} ({apart:.1e} apart, of {size:.1e}). {_misfit(model)}")


def _claims(model: Model, states: dict[Site, Tensor]) -> Iterator[tuple[Site, Tensor, str]]:
    """A site, what its state must be by the other sites' states, and this in words."""
    norm = model.family.attn_norm
    for layer, block in enumerate(model.blocks):
        at = {kind: states[Site(layer, kind)] for kind in model.kinds()}
        if layer:
            yield Site(layer, "resid_pre"), states[Site(layer - 1, "resid_post")], "resid_post of the block before"
        if norm:
            with torch.inference_mode():
                normed = block.get_submodule(norm)(at["attn_proj"])
            yield Site(layer, "attn_out"), normed * model.scale("attn_out"), "attn_proj after the post-norm"
        attended = at["resid_pre"] + at["attn_out"]
        if "resid_mid" in at:
            yield Site(layer, "resid_mid"), attended, "resid_pre + attn_out"
        yield Site(layer, "resid_post"), attended + at["mlp_out"], "resid_pre + attn_out + mlp_out"


def _misfit(model: Model) -> str:
    return f"The row {model.config.model_type!r} of mechdiff/engine/families.py does not fit this model."


def _writes_back(model: Model, ids: Tensor, kinds: Sequence[str]) -> None:
    """Raises unless writing back what was read at a site, at all positions, leaves the logits as they were, bit for bit.

    A batch of copies of the prompt, one a block, so that each kind takes one pass. One site a copy: a later site that is written too would
    hide what the first one did.
    """
    states: dict[Site, Tensor] = {}

    def reader(site: Site) -> Edit:
        def read(tensor: Tensor) -> None:
            states[site] = tensor[site.layer].clone()

        return read

    def logits(edits: dict[Site, Edit]) -> Tensor:
        with edited(model, edits):
            return forward(model, ids.expand(model.shape.n_layers, -1), use_cache=False).logits[:, -1]

    sites = {kind: [Site(layer, kind) for layer in range(model.shape.n_layers)] for kind in kinds}
    plain = logits({site: reader(site) for kind in kinds for site in sites[kind]})
    for kind in kinds:
        changed = (logits({site: _row_writer(site.layer, states[site]) for site in sites[kind]}) != plain).any(-1)
        if changed.any() and not torch.equal(logits({}), logits({})):
            raise SelfCheckError(
                f"{model.ref}: two forward passes of the same tokens give different logits. Is the model in training mode?"
            )
        if changed.any():
            site = sites[kind][int(changed.int().argmax())]
            raise SelfCheckError(f"{model.ref}: writing a state that was just read at {site} changes the model's output. {_misfit(model)}")


def _row_writer(row: int, value: Tensor) -> Edit:
    """An edit that writes `value` `[pos, d]` over the last positions of one sequence of the batch."""

    def write(tensor: Tensor) -> None:
        tensor[row, -len(value) :] = value

    return write


def _replays(model: Model, clean: Clean, states: dict[Site, Tensor], engine: Engine) -> tuple[float, Site, float]:
    """Largest KL(full || engine) in nats over foreign `states` (one a block, all of one kind), its site, and the floor of the clean row."""
    found = engine(model, [clean], [{site: Write(value=state[None])} for site, state in states.items()])[0]
    with edited(model, {site: _row_writer(row, state) for row, (site, state) in enumerate(states.items())}):
        expected = forward(model, clean.ids.expand(len(states), -1), use_cache=False).logits[:, -1].float()
    apart = _kl(expected, found[1:]).nan_to_num(torch.inf)
    worst = int(apart.argmax())
    nats, site = float(apart[worst]), list(states)[worst]
    if nats > TOLERANCE_NATS[model.dtype]:
        raise SelfCheckError(
            f"{model.ref}: replay and a whole forward pass disagree at {site} by {nats:.1e} nats. This model keeps state that parallel tokens "
            'share; run it with engine="full" (--engine full).'
        )
    return nats, site, float(_kl(clean.logits, found[0]))


def _kl(reference: Tensor, logits: Tensor) -> Tensor:
    """KL(reference || logits) in float64."""
    log_p, log_q = reference.double().log_softmax(-1), logits.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0)
