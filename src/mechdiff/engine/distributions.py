"""What did one counterfactual run do to the next-token distribution?

A run's logits z give a law q = softmax(z). It is held against a *reference*, the clean law p of a model:

    KL(p || q) = sum_v p_v (log p_v - log q_v)        in nats; 0 only if q = p; infinite where q excludes what p allows
    JS(p, q)   = KL(p || m)/2 + KL(q || m)/2          with m = (p + q)/2; symmetric, at most ln 2

- `kl_own_nats`, `js_own_nats`: against the clean law of the model that runs. 0: the edit did nothing.
- `kl_other_nats`: against the clean law of the other model. 0: the edit made this model behave like the other one.
- `kl_own_shared_nats`, `js_own_shared_nats`, where the vocabularies differ: as the first two, of both laws cut to the tokens that both models have
  and renormalised. Shares of D are shares of a D on those tokens (shares.py), so what is divided by it is taken on them too.
- `top1_same`: 1 if the running model's clean top token still has the highest logit, else 0.
- `logit_diff_divergent`: logit of the tuned model's clean top token less that of the base's, both in this run. Linear in the
  logits, so effects add up where KL saturates. NaN where the two models have the same top token: there is no such pair.

**Why not subtract log-softmaxes.** In float32 the rounding of the log-sum shifts every entry of a log-softmax, which leaves a floor
near 1e-6 nats: more than most single-layer effects. With u = z - z_ref, shifted so that E_p[u] = 0, the constant drops out and

    KL(p || q) = log E_p[exp u] = log1p( E_p[expm1(u) - u] ),

a sum of terms that are never negative: relative error 1e-5 at 5e-7 nats, and exactly 0 for equal logits. JS comes from the same u:
the log-ratio is log(q/p) = u - KL, and with t = q/p - 1, JS = E_p[ (1+t) log(1+t) - (2+t) log(1+t/2) ]/2, which is t^2/8 for small t.
Neither form can see mass where p is 0 or has underflowed, so rows that put some there (u > 60), or without a finite result, are done
again in float64 from the definition. There a token of logit -inf has probability 0: it adds nothing as part of p, and makes KL infinite
if only q excludes it.

When it misleads: KL against a law is dominated by the reference's likely tokens, so a run can put much mass on a new token before KL moves
by a nat; and KL grows as the square of a small edit, so two small effects do not add.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

METRICS = ("kl_own_nats", "kl_other_nats", "js_own_nats", "top1_same", "logit_diff_divergent")
ON_SHARED = ("kl_own_shared_nats", "js_own_shared_nats")
"""Known only where the vocabularies differ: elsewhere they are the same as without the cut."""
EVERY = METRICS + ON_SHARED

ROUNDING_NATS = {torch.float32: 1e-6, torch.float16: 3e-3, torch.bfloat16: 3e-2}
"""Nats up to which two runs that must agree do, by the model's dtype: runs side by side round otherwise than one alone."""

_SMALLEST_PROBABILITY = 1e-37
_LARGEST_LOG_RATIO = 60.0
"""Below it exp(u) times any probability smaller than that is nothing. exp itself overflows at 88."""

_BLOCK_ELEMENTS = {"cpu": 2**18, "cuda": 2**26}
"""Logits handled at a time: on a CPU few enough that the temporaries stay in its cache."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A clean next-token law (or one for each row), and what every comparison against it needs; made once by `reference`."""

    logits: Float[Tensor, "*row vocab"]
    probabilities: Float[Tensor, "*row vocab"]
    top: Int[Tensor, "*row"]
    """The token of the highest logit."""
    masked: bool
    """Some tokens have logit -inf."""
    vanishing: bool
    """Some probabilities are too small for float32, so that a sum weighted by them may miss what a run makes of those tokens."""

    def at(self, prompts: int | slice) -> "Reference":
        """That of one row, `[vocab]`, or of several for tables of their runs, `[row, 1, vocab]`."""
        each = (self.logits[prompts], self.probabilities[prompts], self.top[prompts])
        logits, probabilities, top = each if isinstance(prompts, int) else (one[:, None] for one in each)
        return replace(self, logits=logits, probabilities=probabilities, top=top)


def reference(logits: Float[Tensor, "*row vocab"]) -> Reference:
    """The law of these logits (of each row), in float32, or in float64 if they are."""
    logits = logits.detach()
    if logits.dtype != torch.float64:
        logits = logits.float()
    probabilities = torch.softmax(logits.double(), -1).to(logits.dtype)  # float32's own sum is off by more than small divergences are
    masked, vanishing = bool(logits.amin() == -math.inf), bool(probabilities.amin() < _SMALLEST_PROBABILITY)
    return Reference(logits=logits, probabilities=probabilities, top=logits.argmax(-1), masked=masked, vanishing=vanishing)


@torch.no_grad()
def kl_nats(reference_logits: Float[Tensor, "... vocab"], logits: Float[Tensor, "... vocab"]) -> Float64[Tensor, "..."]:
    """KL(softmax(reference_logits) || softmax(logits)), on the CPU; the reference's leading axes broadcast to those of `logits`."""
    return _over_rows(reference_logits, logits, with_js=False)[0]


@torch.no_grad()
def kl_and_js_nats(
    reference_logits: Float[Tensor, "... vocab"], logits: Float[Tensor, "... vocab"]
) -> tuple[Float64[Tensor, "..."], Float64[Tensor, "..."]]:
    """Both in one go: `kl_nats` and `js_nats` of the same arguments."""
    return _over_rows(reference_logits, logits, with_js=True)


@torch.no_grad()
def js_nats(a: Float[Tensor, "... vocab"], b: Float[Tensor, "... vocab"]) -> Float64[Tensor, "..."]:
    """The Jensen-Shannon divergence of the two laws, on the CPU; the leading axes of `a` broadcast to those of `b`."""
    return _over_rows(a, b, with_js=True)[1]


def top1_same(a: Float[Tensor, "... vocab"], b: Float[Tensor, "... vocab"]) -> Bool[Tensor, "..."]:
    """Whether the top token of `a` (the first, if tied) has the highest logit of `b`; the leading axes of `a` broadcast to those of `b`."""
    top = a.argmax(-1).expand(b.shape[:-1])
    return b.gather(-1, top[..., None])[..., 0] == b.amax(-1)


def logit_diff_divergent(
    logits: Float[Tensor, "... vocab"], tuned_clean: Float[Tensor, "... vocab"], base_clean: Float[Tensor, "... vocab"]
) -> Float64[Tensor, "..."]:
    """logits[argmax tuned_clean] - logits[argmax base_clean]; NaN where the two are one token. Leading axes broadcast."""
    tuned_top = tuned_clean.argmax(-1).expand(logits.shape[:-1])[..., None]
    base_top = base_clean.argmax(-1).expand(logits.shape[:-1])[..., None]
    difference = (logits.gather(-1, tuned_top).double() - logits.gather(-1, base_top).double())[..., 0]
    return difference.masked_fill((tuned_top == base_top)[..., 0], math.nan)


_FAR = 0.1, 0.05
"""What KL(other || run) must at least be, of the terms that it is the difference of, and of their root, to be taken as their difference: rounding is
of the size of u, and divergences of its square."""


def _kl_and_js(
    law: Reference, logits: Float[Tensor, "row vocab"], *, with_js: bool
) -> tuple[Float64[Tensor, " row"], Float64[Tensor, " row"]]:
    """KL(law || row), and JS(law, row) or NaN if not asked for: by the centred form, and by the definition where that cannot be trusted."""
    table = Sweep.of(logits.shape[:1], logits.device)
    table.put((slice(None),), law, logits, with_js)
    kl, js, trusted = (values.cpu() for values in table.divergences())
    if not trusted.all():
        redo = (~trusted).nonzero()[:, 0]
        kl[redo], js[redo] = _from_definition(law.logits if law.logits.ndim == 1 else law.logits[redo], logits[redo])
    return kl, js


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What sweeps over the vocabulary leave of each run, float64; u = logits - those of a clean distribution p, centred."""

    excess: Float64[Tensor, "*run"]
    """E_p[expm1(u) - u]"""
    js: Float64[Tensor, "*run"]
    """NaN where it was not asked for."""
    widest: Float64[Tensor, "*run"]
    """The largest u, where p may not see what it does."""
    rest: Float64[Tensor, "*run"]
    """E_p[u]: what rounding left of it."""
    led: Float64[Tensor, "*run"]
    """E[u] under the other clean distribution, less that under p: twice the overlap."""

    @classmethod
    def of(cls, shape: Sequence[int], device: torch.device) -> "Sweep":
        tables = torch.zeros(5, *shape, dtype=torch.float64, device=device).unbind()
        tables[1].fill_(math.nan)
        return cls(**dict(zip(("excess", "js", "widest", "rest", "led"), tables, strict=True)))

    def put(self, at: Any, law: Reference, logits: Float[Tensor, "*prompt row vocab"], with_js: bool, toward: Tensor | None = None) -> None:
        """Sweeps over some runs, whose place in the tables is `at`."""
        p = law.probabilities
        u = logits.to(p.dtype) - law.logits
        if law.masked:
            u.masked_fill_((logits == -math.inf) & (law.logits == -math.inf), 0.0)
        u -= _expected(u, p)[..., None]
        if law.vanishing:
            self.widest[at] = u.amax(-1).double()
        growth = torch.expm1(u)
        excess = _expected(torch.sub(growth, u), p)
        self.excess[at] = excess.double()
        if toward is not None:
            self.rest[at], self.led[at] = _expected(u, p).double(), _expected(u, toward).double()
        if with_js:
            self.js[at] = _js_centred(p, u.sub_(torch.log1p(excess)[..., None]), growth, excess).double()

    def divergences(self) -> tuple[Tensor, Tensor, Tensor]:
        """KL(p || run), JS(p, run), and whether both can be trusted."""
        trusted = self.excess.isfinite() & ~self.js.isinf() & (self.widest <= _LARGEST_LOG_RATIO)
        return torch.log1p(self.excess), self.js.clamp(max=math.log(2)), trusted

    def towards(self, apart: Float64[Tensor, " prompt"]) -> tuple[Tensor, Tensor, Tensor]:
        """KL(other || run), the overlap, and whether the first can be trusted; `apart`: KL(other || p)."""
        kl, _, trusted = self.divergences()
        other_kl = apart[:, None] + torch.log1p(self.excess + self.rest) - self.rest - self.led
        terms = apart[:, None] + kl + self.led.abs()
        far = other_kl > torch.maximum(_FAR[0] * terms, _FAR[1] * terms.sqrt())
        return other_kl, self.led / 2, trusted & far


def _expected(values: Float[Tensor, "row vocab"], p: Float[Tensor, "*row vocab"]) -> Float[Tensor, " row"]:
    """The mean of each row of values under one law, under that of its prompt (`[prompt, 1, vocab]`), or under the row's own."""
    if p.ndim == 3:
        return torch.bmm(values, p.mT)[..., 0]
    return values @ p if p.ndim == 1 else (values * p).sum(-1)


def _js_centred(
    p: Float[Tensor, "*row vocab"], log_ratio: Float[Tensor, "row vocab"], growth: Float[Tensor, "row vocab"], excess: Float[Tensor, " row"]
) -> Float[Tensor, " row"]:
    """E_p[(1+t) log(1+t) - (2+t) log(1+t/2)]/2 with log(1+t) = `log_ratio` and 1+t = (1+growth)/(1+excess); overwrites both tables."""
    half = growth.sub_(excess[..., None]).mul_(0.5 / (1 + excess[..., None]))  # t/2
    log_mean = torch.log1p(half)
    rest = log_ratio.sub_(log_mean)
    term = torch.sub(rest, log_mean, out=log_mean).addcmul_(half, rest, value=2)
    return _expected(term, p) / 2


def _from_definition(
    reference_logits: Float[Tensor, "*row vocab"], logits: Float[Tensor, "row vocab"]
) -> tuple[Float64[Tensor, " row"], Float64[Tensor, " row"]]:
    """KL and JS in float64 from log-softmaxes: for rows that differ so much that their rounding does not matter."""
    log_p = torch.log_softmax(reference_logits.cpu().double(), -1)
    log_q = torch.log_softmax(logits.cpu().double(), -1)
    log_mean = torch.logaddexp(log_p, log_q) - math.log(2)
    p, q = log_p.exp(), log_q.exp()
    never_p, never_q = log_p == -math.inf, log_q == -math.inf
    kl = (p * (log_p - log_q)).masked_fill(never_p, 0).sum(-1)
    kl[(never_q & ~never_p).any(-1)] = math.inf
    js = (p * (log_p - log_mean)).masked_fill(never_p, 0) + (q * (log_q - log_mean)).masked_fill(never_q, 0)
    return kl, (js.sum(-1) / 2).clamp(max=math.log(2))


def _over_rows(
    reference_logits: Float[Tensor, "... vocab"], logits: Float[Tensor, "... vocab"], *, with_js: bool
) -> tuple[Float64[Tensor, "..."], Float64[Tensor, "..."]]:
    """KL and JS over any leading axes; rows that share a reference, if adjacent, are handled together, as are rows with one each."""
    lead, laws = logits.shape[:-1], reference_logits.reshape(-1, reference_logits.shape[-1])
    which = torch.arange(len(laws)).reshape(reference_logits.shape[:-1]).expand(lead).reshape(-1)
    table = logits.reshape(-1, logits.shape[-1])
    kl, js = torch.empty(len(table), dtype=torch.float64), torch.empty(len(table), dtype=torch.float64)
    if len(laws) == len(table) > 1:
        for at in blocks(table):
            kl[at], js[at] = _kl_and_js(reference(laws[at]), table[at], with_js=with_js)
        return kl.reshape(lead), js.reshape(lead)
    ids, counts = torch.unique_consecutive(which, return_counts=True)
    start = 0
    for i, count in zip(ids.tolist(), counts.tolist(), strict=True):
        law, run = reference(laws[i]), slice(start, start + count)
        for at in blocks(table[run]):
            kl[run][at], js[run][at] = _kl_and_js(law, table[run][at], with_js=with_js)
        start += count
    return kl.reshape(lead), js.reshape(lead)


def blocks(logits: Float[Tensor, "row vocab"]) -> Iterator[slice]:
    """Slices of rows, each small enough to be handled at once."""
    step = rows_at_once(logits)
    return (slice(start, min(start + step, len(logits))) for start in range(0, len(logits), step))


def rows_at_once(logits: Float[Tensor, "*row vocab"]) -> int:
    return max(1, _BLOCK_ELEMENTS.get(logits.device.type, _BLOCK_ELEMENTS["cuda"]) // logits.shape[-1])
