"""What two models say next is held against one another at each token, and reduced as it comes: no table of tokens by vocabulary ever exists.

Of a scored token with the base's distribution p and the tuned model's q, and the token v that follows in the text:

    kl_tuned_base     KL(q || p) in nats                  kl_base_tuned     KL(p || q), which llama.cpp calls KLD
    loss_base         -log p(v)                           loss_tuned        -log q(v)
    same              both have the same top-1 token (which llama.cpp calls same top p)
    mass_own_...      a model's probability on tokens that the other vocabulary has not (0 of one vocabulary)

Both unembeddings are swept in tiles of the vocabulary, base and tuned of the same rows together: a tile's logits are added to running sums
S = sum exp(z - m), A = sum exp(z - m) (z_tuned - z_base), m the largest logit so far, and forgotten. Then log-sums are Z = m + log S, and

    KL(p || q) = (Z_q - Z_p) - A_p / S_p,     KL(q || p) = A_q / S_q - (Z_q - Z_p)

Sums over tiles are in float64, so of equal logits both are exactly 0, and else within 1e-6 nats of the definition in float64 (a test). A model
whose logits are more than one product of its last state (capped or scaled ones), or two vocabularies, take the slow way: a text's whole
logits by `engine/distributions.py`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor
from torch.nn.functional import linear

from mechdiff.engine.activations import forward
from mechdiff.engine.distributions import kl_nats, top1_same
from mechdiff.engine.grafts import Batch, batches, logits_at
from mechdiff.models.pair import Model

TILE = {"cpu": 512, "cuda": 4096}
"""Tokens of the vocabulary that are swept at a time: on a CPU few enough that a pass's tile stays in its cache."""
_CLOSE = 1e-5
"""Of the largest logit, and one rounding of the logit itself: further apart a product of the last state is not what the model says."""


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """One number a scored token."""

    kl_tuned_base: Float64[Tensor, " token"]
    kl_base_tuned: Float64[Tensor, " token"]
    loss_base: Float64[Tensor, " token"]
    loss_tuned: Float64[Tensor, " token"]
    same: Bool[Tensor, " token"]
    mass_own_base: Float64[Tensor, " token"]
    """Probability of the tokens that the other vocabulary has not, of which divergences say nothing."""
    mass_own_tuned: Float64[Tensor, " token"]

    @property
    def finite(self) -> bool:
        return all(bool(getattr(self, one.name).isfinite().all()) for one in fields(self))

    @classmethod
    def of(cls, parts: Iterable["Numbers"]) -> "Numbers":
        """Those of several passes, one behind the other."""
        parts = list(parts)
        return cls(**{one.name: torch.cat([getattr(part, one.name) for part in parts]) for one in fields(cls)})

    def at(self, where: slice) -> "Numbers":
        return Numbers(**{one.name: getattr(self, one.name)[where] for one in fields(self)})

    @property
    def loss_change(self) -> Float64[Tensor, " token"]:
        return self.loss_tuned - self.loss_base

    @property
    def dp(self) -> Float64[Tensor, " token"]:
        """The following token's probability, tuned less base: llama.cpp's Δp, there in per cent."""
        return (-self.loss_tuned).exp() - (-self.loss_base).exp()


@dataclass(frozen=True, kw_only=True)
class Head:
    """An unembedding that is all there is between a model's last state and its logits."""

    weight: Float[Tensor, "vocab d"]
    bias: Float[Tensor, " vocab"] | None

    def logits(self, states: Float[Tensor, "token d"], at: slice) -> Float[Tensor, "token tile"]:
        return linear(states.to(self.weight.device), self.weight[at], None if self.bias is None else self.bias[at]).float()

    def into(self, z: Float[Tensor, "token tile"], states: Float[Tensor, "token d"], at: slice) -> None:
        """Puts those logits into `z`, in float32."""
        if self.bias is None and states.dtype == self.weight.dtype == z.dtype and states.device == self.weight.device == z.device:
            torch.mm(states, self.weight[at].mT, out=z)
        else:
            z.copy_(self.logits(states, at))

    def chosen(self, states: Float[Tensor, "token d"], said: Int[Tensor, " token"]) -> Float64[Tensor, " token"]:
        """The logit of one token each."""
        place = self.weight.device
        found = (states.to(place).float() * self.weight[said.to(place)].float()).sum(-1)
        return (found if self.bias is None else found + self.bias[said.to(place)]).double().to(states.device)


@torch.inference_mode()
def head_of(model: Model) -> Head | None:
    """The model's unembedding; None where its logits are not that of its last state alone, or where it lies on the disk.

    Only a bare linear layer is one: what an adapter wraps has the base's matrix under the same name. The numbers are those of now, also when an
    adapter puts others into the same parameter, or when the model is gone.
    """
    if type(model.head) is not torch.nn.Linear or model.head.weight.is_meta or not model.head.weight.is_floating_point():
        return None
    (batch,) = batches(model, [[1, 2, 3, 4]], n_places=[4])
    weight, bias = model.head.weight.detach(), model.head.bias
    states, logits = last_states(model, batch), logits_at(model, batch)
    head = Head(weight=weight, bias=None if bias is None else bias.detach())
    if logits.shape[-1] != len(weight):
        return None
    off, size = (head.logits(states, slice(None)).to(logits) - logits).abs(), logits.abs()
    rounding = torch.finfo(weight.dtype).eps * size
    return head if bool((off <= _CLOSE * size.amax() + rounding).all()) else None


def last_states(model: Model, batch: Batch) -> Float[Tensor, "place d"]:
    """What enters the unembedding at the batch's places; a bare one makes no product."""
    row, position = batch.places.T
    kept: list[Tensor] = []
    moved = "forward" in vars(model.head)  # of a network that is split
    weight = model.head.weight if type(model.head) is torch.nn.Linear and not moved else None

    def keep(head: torch.nn.Module, args: tuple) -> tuple[Tensor]:
        kept.append(args[0][row.to(args[0].device), position.to(args[0].device)].clone())
        return (args[0][:1, :1],)

    handle = model.head.register_forward_pre_hook(keep)
    try:
        if weight is not None:
            model.head.forward = lambda states: states.new_zeros(1, 1, len(weight))
        forward(model, batch.ids, logits_to_keep=0, use_cache=False)
    finally:
        handle.remove()
        if weight is not None:
            del model.head.forward
    return kept[0]


@torch.inference_mode()
def apart(
    base: Float[Tensor, "token d"], tuned: Float[Tensor, "token d"], heads: tuple[Head, Head], said: Int[Tensor, " token"]
) -> Numbers:
    """The numbers at tokens whose last states are these, `said` the token that follows each."""
    n, device = len(base), base.device
    largest = torch.full((2, n), -torch.inf, device=device)
    sums, weighted = torch.zeros(2, 2, n, dtype=torch.float64, device=device).unbind()
    top = torch.zeros(2, n, dtype=torch.int64, device=device)
    for start, z, u in _tiles(base, tuned, heads):
        high = z.amax(-1)
        which = (high > largest).nonzero(as_tuple=True)  # a tile seldom has a token's largest logit: only there it is looked up
        top[which] = z[which].argmax(-1) + start
        now = torch.maximum(largest, high)
        shrunk = (largest - now).exp().double()
        z.sub_(now[..., None]).exp_()
        sums = sums * shrunk + z.sum(-1)
        weighted = weighted * shrunk + z.mul_(u).sum(-1)
        largest = now
    total, expected = largest.double() + sums.log(), weighted / sums
    more = total[1] - total[0]
    return Numbers(
        kl_tuned_base=(expected[1] - more).clamp_min(0).cpu(),
        kl_base_tuned=(more - expected[0]).clamp_min(0).cpu(),
        loss_base=(total[0] - heads[0].chosen(base, said)).cpu(),
        loss_tuned=(total[1] - heads[1].chosen(tuned, said)).cpu(),
        same=(top[0] == top[1]).cpu(),
        mass_own_base=torch.zeros(n, dtype=torch.float64),
        mass_own_tuned=torch.zeros(n, dtype=torch.float64),
    )


def _tiles(
    base: Float[Tensor, "token d"], tuned: Float[Tensor, "token d"], heads: tuple[Head, Head]
) -> Iterator[tuple[int, Float[Tensor, "2 token tile"], Float[Tensor, "token tile"]]]:
    """Where a tile starts, both models' logits there, and tuned less base; in the same memory each time."""
    step = TILE.get(base.device.type, TILE["cuda"])
    vocab = min(len(head.weight) for head in heads)
    room = torch.empty(3, len(base) * step, device=base.device)
    for start in range(0, vocab, step):
        at = slice(start, min(start + step, vocab))
        z_and_u = room[:, : len(base) * (at.stop - start)].unflatten(1, (len(base), -1))
        for head, states, z in zip(heads, (base, tuned), z_and_u, strict=False):
            head.into(z, states, at)
        yield start, z_and_u[:2], torch.sub(z_and_u[1], z_and_u[0], out=z_and_u[2])


def of_whole_logits(
    base: Float[Tensor, "token vocab"], tuned: Float[Tensor, "token vocab"], losses: tuple[Tensor, Tensor], n_shared: int
) -> Numbers:
    """The same from both models' logits on one list of tokens, of which both have the first `n_shared`; `losses` are known.

    Divergences are of the distributions over shared tokens, made to add up to 1.
    """
    b, t = base[:, :n_shared], tuned[:, :n_shared]
    return Numbers(
        kl_tuned_base=kl_nats(t, b).cpu(), kl_base_tuned=kl_nats(b, t).cpu(),
        loss_base=losses[0].double().cpu(), loss_tuned=losses[1].double().cpu(), same=top1_same(base, tuned).cpu(),
        mass_own_base=_mass_behind(base, n_shared), mass_own_tuned=_mass_behind(tuned, n_shared),
    )  # fmt: skip


def _mass_behind(logits: Float[Tensor, "token vocab"], n_shared: int) -> Float64[Tensor, " token"]:
    """The probability of all tokens behind the first `n_shared`."""
    behind = logits[:, n_shared:]
    if not behind.shape[-1]:
        return torch.zeros(len(logits), dtype=torch.float64)
    return (behind.logsumexp(-1).double() - logits.logsumexp(-1).double()).exp().cpu()


def placed(batch: Batch, places: list[tuple[int, int]]) -> Batch:
    """The batch, asked at other places: (its row, the position)."""
    return replace(batch, places=torch.tensor(places, dtype=torch.long, device=batch.ids.device).reshape(-1, 2))
