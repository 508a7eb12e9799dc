"""One model runs while its activations are changed at every position, by a function of the activation: so steering reads and generates.

`replay` writes given values at the last positions. Here an edit is a *change*: a function from the states at a site, `[pos, d]`, to what is added to
them, so it can be used at positions whose states nobody has seen yet. The variants of a prompt are sequences side by side, born at the block
that they first edit (the staircase of `replay.py`). Where all prompts open with the same tokens, a template's, these are read once for every
variant, and each prompt goes on from there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mechdiff.architectures.sites import Site
from mechdiff.engine.activations import Edit, edited, forward
from mechdiff.engine.choice import engine_for
from mechdiff.engine.replay import Stairs, growing
from mechdiff.models.pair import Model

Change = Callable[[Tensor], Tensor]
"""From states `[pos, d]` in float64 to what is added to them."""
Changes = Mapping[Site, Change]

LEAST = 2
"""Tokens of each prompt that are read on their own: a token, and the one before it that predicts it."""


def steered(
    model: Model, prompts: Sequence[Tensor], variants: Sequence[Changes], *, whole: bool = True, last_only: bool = False
) -> Iterator[Tensor]:
    """For each prompt (token ids `[pos]`) logits `[1 + variant, pos, vocab]`, float32; row 0 is the unedited run.

    The first `opening(model.config, prompts)` positions are left out of the logits; `whole` False: only the last position's are given.
    `last_only`: edits at the last position alone.
    """
    from transformers import DynamicCache

    n_shared = 0 if last_only else opening(model.config, prompts)
    rows = [0, *Stairs.of(variants, len(model.blocks)).row]
    keep = {} if not whole else {"logits_to_keep": 0}
    with _side_by_side(model, variants, last_only):
        cache = DynamicCache() if n_shared else None
        if n_shared:
            forward(model, prompts[0][None, :n_shared], past_key_values=cache, use_cache=True)
        for ids in prompts:
            logits = forward(model, ids[None, n_shared:], past_key_values=cache, use_cache=bool(n_shared), **keep).logits
            yield (logits if whole else logits[:, -1:])[rows if rows != sorted(rows) else slice(None)].float()
            if cache is not None:
                cache.crop(n_shared - len(ids))


def opening(config: Any, prompts: Sequence[Tensor]) -> int:
    """How many tokens all prompts open with and are read once; 0 where a model keeps more of the past than keys and values."""
    if len(prompts) < 2 or engine_for(config, max(map(len, prompts)))[0] != "replay":
        return 0
    longest = min(len(ids) for ids in prompts) - LEAST
    same = [n for n in range(1, longest + 1) if all(torch.equal(ids[:n], prompts[0][:n]) for ids in prompts)]
    return same[-1] if same else 0


@contextmanager
def _side_by_side(model: Model, variants: Sequence[Changes], last_only: bool) -> Iterator[None]:
    """While open, a pass of one sequence comes out as one for the clean run and one for each variant, in the order of `Stairs`."""
    stairs = Stairs.of(variants, len(model.blocks))

    at: dict[Site, list[tuple[int, Change]]] = {}
    for row, variant in zip(stairs.row, variants, strict=True):
        for site, change in variant.items():
            at.setdefault(site, []).append((row, change))

    def edit_rows(changes: Sequence[tuple[int, Change]]) -> Edit:
        def edit(tensor: Tensor) -> None:
            for row, change in changes:
                apply(tensor[row, -1:] if last_only else tensor[row], change)

        return edit

    with growing(model, stairs.grow_sequences), edited(model, {site: edit_rows(changes) for site, changes in at.items()}):
        yield


def apply(states: Tensor, change: Change) -> None:
    """Adds the change to states `[..., pos, d]` in place; where it is 0 they stay bit for bit. The change sees them as one table."""
    exact = states.double()
    added = change(exact.reshape(-1, exact.shape[-1]))
    states.copy_(exact + added.reshape(exact.shape))


@contextmanager
def steering(model: Model, changes: Changes) -> Iterator[None]:
    """While open, every forward pass of `model` (also those of generation) is changed at every position of every sequence."""

    def edit(change: Change) -> Edit:
        return lambda tensor: apply(tensor, change)

    with edited(model, {site: edit(change) for site, change in changes.items()}):
        yield
