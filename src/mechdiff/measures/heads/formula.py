"""Which attention heads carry the change?

A head's unit is its *contribution* c_h = z_h W_O^h, what it adds to the output projection (`attn_proj`). One model runs, and for the heads of a
set S its contributions are replaced by the other model's:

    attn_proj + sum_{h in S} D_h,      D_h = z_h^other W_O^{other,h} - z_h^own W_O^{own,h}

so a change of what the head attends to or reads counts, and a change of what it writes, and biases and norms behind stay the running model's. The
D_h of all heads add up to the difference of the two models' `attn_proj`, biases apart. Swapping z alone, as is often done, misses every edit of W_O
and invents effects where only the head's own basis differs (METHOD A24, P10).

Conditions:

    contribution   D_h, the default
    routing        (z_h^other - z_h^own) W_O^{own,h}         what the head reads and mixes
    write          z_h^other (W_O^{other,h} - W_O^{own,h})   what it makes of that; routing and write add up to D_h
    z_swap         z_h^own + s (z_h^other - z_h^own) patched at `z`: what others report, on request
    a map's name   z_h^other is what a map of `z` makes of the base's z (on the tuned model's side): mapped heads

A set of heads is a coalition and its effect a game v (games.py), in nats of each prompt, 0 for no head:

    tuned<-base    v(S) = KL(p_tuned || run)               KL increase, a share of D
    base<-tuned    v(S) = D - KL(p_tuned || run)           recovery, a share of D

Where the vocabularies differ all distributions of a game, as D, are of the tokens that both models have (shares.py).

Sufficiency of S is v(S)/v(all), its necessity 1 - v(all without S)/v(all). KL grows as the square of a small edit, so shares of single heads need
not add up to 1. To first order this adds up, and has a sign:

    Fisher-projected coverage   <d_S, d_all> / <d_all, d_all>,    d = change of the logits, <x, y> = Cov_{p own}(x, y)

`fisher_nats` is <d_S, d_all>/2: that of `all` is KL(p own || run) for a small edit, which is v(all) where the tuned model runs (on the same
tokens).

**Across the network** the players are all heads (and whole MLPs beside them), and a set of several blocks writes the other model's own
contributions in each: the running model's, as it is there by then, is taken out.

When it misleads: routing and write are a split in the head's own coordinates, which are free: another basis of them moves effect from one to the
other, and only their sum does not hang on it. Read them where the two models share a basis, as fine-tunes do. A head can be worthless alone and
needed with another (see interactions); a set's coverage can pass 1 where the rest works against it; with v(all) at the floor there is no effect to
explain, and no ratio is given. One position is studied: heads that carry a change to the last prompt token from earlier ones count there, those
that act at earlier positions do not.

Contributions: Elhage 2021 (a mathematical framework); coverage and Shapley values of heads: METHOD B14.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechdiff.architectures.sites import Site
from mechdiff.engine.distributions import ROUNDING_NATS
from mechdiff.engine.replay import Variant, Write
from mechdiff.errors import SelfCheckError
from mechdiff.labels import Player

TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 0.2}
"""Largest distance of v(all) from the effect of the whole site, as a share; half precision rounds each of the sums."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """One block's attention by head: what the running model (`own`) and the other have there, on some prompts."""

    layer: int
    own: Float[Tensor, "prompt *pos head d_head"]
    """z, the input of the output projection: at the decision position, or at several."""
    other: Float[Tensor, "prompt *pos head d_head"]
    w_own: Float[Tensor, "head d_head d"]
    w_other: Float[Tensor, "head d_head d"]

    @property
    def n_heads(self) -> int:
        return self.own.shape[-2]

    def change(self, arm: str = "contribution") -> Float[Tensor, "prompt *pos head d"]:
        """What an arm adds for each head at `attn_proj`."""
        if arm == "routing":
            return written(self.other - self.own, self.w_own)
        if arm == "write":
            return written(self.other, self.w_other - self.w_own)
        return written(self.other, self.w_other) - written(self.own, self.w_own)


def written(z: Float[Tensor, "prompt *pos head d_head"], output: Float[Tensor, "head d_head d"]) -> Float[Tensor, "prompt *pos head d"]:
    """Each head's contribution z_h W_O^h."""
    return torch.einsum("...hk,hkd->...hd", z, output)


def swap(layer: int, change: Float[Tensor, "prompt *pos head d"], heads: Iterable[int]) -> Variant:
    """The run in which these heads of one block contribute what `change` says, at the decision position or at several."""
    given = change[..., sorted(heads), :].sum(-2)
    return {Site(layer, "attn_proj"): Write(value=given if given.ndim == 3 else given[:, None], add=True)}


def swap_z(block: Block, heads: Iterable[int], strength: float = 1.0) -> Variant:
    """The run in which these heads' z is moved towards the other model's, and the output projection stays."""
    moved = torch.zeros_like(block.own)
    chosen = sorted(heads)
    moved[:, chosen] = strength * (block.other - block.own)[:, chosen]
    return {Site(block.layer, "z"): Write(value=moved.flatten(1)[:, None], add=True)}


def same_by_site(layer: int, own: Float[Tensor, "prompt d"], other: Float[Tensor, "prompt d"], bias_change: Float[Tensor, " d"]) -> Variant:
    """The run that all heads' swap must equal: the other model's `attn_proj` written whole, with the running model's bias."""
    return {Site(layer, "attn_proj"): Write(value=(own + (other - own - bias_change))[:, None])}


def noise_like(block: Block, seed: int) -> Float[Tensor, "prompt head d"]:
    """A change of the size of the real one (mean square over prompts, all heads together) by random output projections: spread over all heads.

    What a fine-tune would do here that had put nothing but noise into this block's output projection.
    """
    random = torch.Generator().manual_seed(seed)
    noise = written(block.other, torch.randn(block.w_own.shape, generator=random).to(block.other))
    size = block.change().sum(1).square().sum(-1).mean() / noise.sum(1).square().sum(-1).mean()
    return noise * size.sqrt()


# ---- the whole network -------------------------------------------------------------------------------------------------------------


def swap_across(players: Iterable[Player], blocks: Mapping[int, Block], mlps: Mapping[int, Float[Tensor, "prompt d"]]) -> Variant:
    """The run in which these heads and MLPs, of any blocks, give what the other model's give: `mlps` are its MLP outputs by block."""
    variant: dict[Site, Write] = {}
    by_layer: dict[int, list[int]] = {}
    for layer, head in players:
        if head is None:
            variant[Site(layer, "mlp_out")] = Write(value=mlps[layer][:, None])
        else:
            by_layer.setdefault(layer, []).append(head)
    for layer, heads in by_layer.items():
        block = blocks[layer]
        taken_out = torch.zeros(block.own.shape[1:], dtype=torch.bool)
        taken_out[heads] = True
        variant[Site(layer, "z")] = Write(value=torch.zeros_like(block.own).flatten(1)[:, None], where=taken_out.flatten())
        given = written(block.other[:, sorted(heads)], block.w_other[sorted(heads)])
        variant[Site(layer, "attn_proj")] = Write(value=given.sum(1, keepdim=True), add=True)
    return variant


# ---- numbers -----------------------------------------------------------------------------------------------------------------------


def fisher_weights(
    moved: Float[Tensor, "prompt vocab"], own_logits: Float[Tensor, "prompt vocab"], n_shared: int | None = None
) -> Float[Tensor, "prompt vocab"]:
    """Weights whose product with a run's change of logits is Cov_p(change, moved)/2: p is the running model's clean law, cut to `n_shared` tokens."""
    law = torch.zeros_like(own_logits, dtype=torch.float32)
    law[..., :n_shared] = own_logits[..., :n_shared].float().softmax(-1)
    return law * (moved - (law * moved).sum(-1, keepdim=True)) / 2


def refuse_start(ref: str, nothing: Tensor, total: Tensor, dtype: torch.dtype) -> None:
    """Raises SelfCheckError where v(no head) is not 0 on any prompt; both `[prompt]` in nats, `total` is D."""
    if not (nothing.abs() <= TOLERANCE[dtype] * total + ROUNDING_NATS[dtype]).all():
        worst = int(nothing.abs().argmax())
        raise SelfCheckError(
            f"{ref}: with no head swapped v is {float(nothing[worst]):.3g} nats on prompt {worst} (D is {float(total[worst]):.3g}); it must be 0. "
            "The model's runs are not what was captured of it: is a module of it random or stateful?"
        )


def refuse_mismatch(ref: str, layer: int, everyone: Tensor, whole: Tensor, floor: float, dtype: torch.dtype) -> None:
    """Raises SelfCheckError where v(all heads) is not what writing the whole site does, on any prompt; both `[prompt]` in nats."""
    limit = TOLERANCE[dtype] * whole.abs() + max(3 * floor, ROUNDING_NATS[dtype])
    if not ((everyone - whole).abs() <= limit).all():
        worst = int(((everyone - whole).abs() - limit).argmax())
        raise SelfCheckError(
            f"{ref}: swapping all heads of block {layer} has an effect of {float(everyone[worst]):.6g} nats on prompt {worst}, writing the other "
            f"model's attn_proj {float(whole[worst]):.6g}; they must be equal. Does the row of the family table name the output projection, and "
            "do the files hold the weights that were loaded? Please report this model; leave the measure heads out meanwhile."
        )
