"""Several prompts are read side by side, unedited: their states, their caches, what the model says next.

They are padded on the right; attention is causal, so no prompt sees the padding. A pass of a few hundred tokens streams the weights once for all of
them, where a prompt by itself streams them for a few dozen. For models that `replay` suits (others may choose what they do by the longest of a pass),
and where the rounding of one shape or another does not show: in bfloat16 D of a prompt is a thousandth off beside others.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mechdiff.architectures.sites import Site
from mechdiff.engine.activations import Clean, Edit, capture, edited, forward
from mechdiff.engine.grafts import batches, logits_at
from mechdiff.engine.prefix import KeysValues, Prefix
from mechdiff.engine.replay import Engine, parallel, replay
from mechdiff.engine.steered import opening
from mechdiff.models.pair import Model, is_quantized


def is_exact(model: Model) -> bool:
    """Whether what a prompt gives beside others is what it gives by itself, but for rounding that no published number shows: float32 throughout."""
    return model.dtype == torch.float32 and not is_quantized(model.config)


def side_by_side(model: Model, engine: Engine) -> bool:
    """Whether prompts of this model are read side by side: `replay` suits it, and a prompt gives there what it gives by itself."""
    return engine is replay and is_exact(model)


def seen(
    model: Model,
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    sites: Sequence[Site],
    positions: Sequence[Sequence[int]],
    *,
    every: bool = False,
) -> list[Clean]:
    """`activations.capture` of each prompt, without caches: side by side where that is the same, else one prompt a pass."""
    if side_by_side(model, engine):
        return captures(model, prompts, sites, positions, every=every)
    return [capture(model, ids, sites, places, every=every) for ids, places in zip(prompts, positions, strict=True)]


def cleans(model: Model, engine: Engine, prompts: Sequence[Sequence[int]]) -> list[Clean]:
    """Clean runs of each prompt, with the caches that `replay` goes on from: side by side where that is the same, else one prompt a pass."""
    if side_by_side(model, engine):
        return read(model, prompts)
    return [capture(model, ids, [], [0], keep_cache=engine is replay) for ids in prompts]


def captures(
    model: Model, prompts: Sequence[Sequence[int]], sites: Sequence[Site], positions: Sequence[Sequence[int]], *, every: bool = False
) -> list[Clean]:
    """As `activations.capture` of each prompt, without caches; `positions` are token indices, of each prompt its own."""
    found: dict[int, Clean] = {}
    for batch in batches(model, prompts, n_places=[len(places) for places in positions] if every else None):
        where = [torch.tensor(positions[row], device=model.device) for row in batch.rows]
        states: list[dict[Site, Tensor]] = [{} for _ in batch.rows]

        def reader(site: Site, states: list[dict[Site, Tensor]] = states, where: list[Tensor] = where) -> Edit:
            def read_states(tensor: Tensor) -> None:
                for kept, row, places in zip(states, tensor, where, strict=True):
                    kept[site] = row[places.to(row.device)].clone()

            return read_states

        with edited(model, {site: reader(site) for site in sites}):
            logits = logits_at(model, batch)
        of_row = logits.split(torch.bincount(batch.places[:, 0]).tolist()) if every else logits
        for place, (row, last) in enumerate(zip(batch.rows, batch.last.tolist(), strict=True)):
            found[row] = Clean(logits=of_row[place].clone(), states=states[place], cache=None, ids=batch.ids[place, : last + 1])
    return [found[row] for row in range(len(prompts))]


PADDING = 128
"""Tokens of padding in a pass of prompts that are read apart: short ones do not wait for long ones."""


def read_apart(model: Model, prompts: Sequence[Sequence[int]], sites: Sequence[Site] = ()) -> list[Clean]:
    """As `read`, those of about one length together."""
    found: dict[int, Clean] = {}
    for batch in batches(model, prompts, padding=PADDING):
        found |= dict(zip(batch.rows, read(model, [prompts[row] for row in batch.rows], sites), strict=True))
    return [found[row] for row in range(len(prompts))]


def read(model: Model, prompts: Sequence[Sequence[int]], sites: Sequence[Site] = ()) -> list[Clean]:
    """Clean runs of several prompts side by side, their caches kept; what all of them open with is read once. For `replay` alone.

    Of `sites` the states at each prompt's last token are kept.
    """
    from transformers import DynamicCache

    (batch,) = batches(model, prompts, sum(map(len, prompts)) * len(prompts))
    n_shared, cache = opening(model.config, [torch.tensor(ids) for ids in prompts]), DynamicCache()
    if n_shared:
        forward(model, batch.ids[:1, :n_shared], past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(prompts))
    behind = batch.places - torch.tensor([0, n_shared], device=model.device)
    states: dict[Site, Tensor] = {}

    def reader(site: Site) -> Edit:
        def read_states(tensor: Tensor) -> None:
            row, position = behind.T
            states[site] = tensor[row.to(tensor.device), position.to(tensor.device)][:, None].clone()

        return read_states

    with edited(model, {site: reader(site) for site in sites}):
        logits = logits_at(model, replace(batch, ids=batch.ids[:, n_shared:], places=behind), cache=cache)
    found: dict[int, Clean] = {}
    for place, (row, last) in enumerate(zip(batch.rows, batch.last.tolist(), strict=True)):
        kept = [(layer.keys[place : place + 1, :, : last + 1], layer.values[place : place + 1, :, : last + 1]) for layer in cache.layers]
        here = {site: states[site][place] for site in sites}
        found[row] = Clean(logits=logits[place], states=here, cache=kept, ids=batch.ids[place, : last + 1])
    return [found[row] for row in range(len(prompts))]


def read_on(model: Model, engine: Engine, cleans: Sequence[Clean], behind: Sequence[Sequence[int]]) -> list[Clean]:
    """Clean runs of each prompt with these tokens behind it: `replay` goes on from the prompt's cache, and no prompt is read again."""
    ids = [
        torch.cat([clean.ids, torch.tensor(one, dtype=clean.ids.dtype, device=model.device)])
        for clean, one in zip(cleans, behind, strict=True)
    ]
    if engine is not replay:
        return [Clean(logits=torch.empty(0), states={}, cache=None, ids=one) for one in ids]
    suffix = pad_sequence([one[len(clean.ids) - 1 :] for one, clean in zip(ids, cleans, strict=True)], True)
    last = torch.tensor([len(one) for one in behind], device=model.device)
    own: list[KeysValues] = []
    prefix = Prefix.of(cleans, 1, suffix)
    logits = parallel(model, prefix, [], torch.arange(suffix.shape[1], device=model.device) == last[:, None], own)[:, 0]
    read_before = zip(prefix.keys, prefix.values, strict=True)
    blocks = [tuple(zip(before, here, strict=True)) for before, here in zip(read_before, own, strict=True)]

    def joined(row: int, before: Tensor, here: Tensor) -> Tensor:
        return torch.cat([before[row : row + 1, :, : len(cleans[row].ids) - 1], here[row : row + 1, :, : len(behind[row]) + 1]], 2)

    found = []
    for row, one in enumerate(ids):
        cache = [(joined(row, *keys), joined(row, *values)) for keys, values in blocks]
        found.append(Clean(logits=logits[row], states={}, cache=cache, ids=one))
    return found
