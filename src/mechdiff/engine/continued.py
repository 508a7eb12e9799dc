"""How likely is it that a model goes on with these words? Log-probabilities of given continuations of each prompt, clean and under edits.

The sum of log p(token | what comes before it) over a continuation's tokens needs one pass in which the model reads them. As in `replay.py` the
prompt's prefix is read once. The *block* of a continuation is the decision token and all of its tokens but the last (after which nothing is
asked); a variant is a copy of that block, edited at its first token. Whatever is written there reaches the tokens behind it by attention, as it
would while the model speaks. Blocks are padded on the right to the longest of a pass; attention is causal, so no token sees the padding.

Edits that are open around a call (`steering`, `grafted`) hold for the prefix and for every block: then the clean run is the edited one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mechdiff.engine.activations import Clean, edited, forward
from mechdiff.engine.grafts import batches
from mechdiff.engine.prefix import Prefix
from mechdiff.engine.reading import PADDING, read
from mechdiff.engine.replay import Engine, Stairs, Variant, full, growing, parallel, relay, replay, writing
from mechdiff.errors import MachineError, PromptError
from mechdiff.models.pair import Model

LAWS = 4
"""Tokens whose laws, of every run, are normalised at a time: few enough that they stay in a CPU's cache."""


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """Some tokens that may follow a prompt."""

    prompt: int
    """The prompt's number."""
    ids: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Continued:
    """Some prompts (token ids), and what may follow them."""

    prompts: Sequence[Sequence[int]]
    continuations: Sequence[Continuation]


@dataclass(frozen=True, kw_only=True)
class Likelihoods:
    """How likely continuations are; run 0 is the clean one, the others are the variants."""

    logps: Float64[Tensor, "continuation run"]
    """Sum over tokens of log p, in nats."""
    kept_logps: Float64[Tensor, "continuation run"] | None = None
    """The same where each next-token law is cut to the kept tokens and made to sum to 1; -inf where a token is none of them."""
    coverage: Float64[Tensor, "continuation run"] | None = None
    """Mean over tokens of the mass that the kept tokens have."""


def likelihoods(
    model: Model,
    engine: Engine,
    texts: Continued,
    variants: Sequence[Variant] = (),
    *,
    max_rows: int,
    kept: Tensor | None = None,
) -> Likelihoods:
    """Every continuation of these prompts, in the clean run and under each variant, which writes at a prompt's last token alone.

    `kept`: token ids to which the laws are cut too. A pass has about `max_rows` tokens at most; with too little memory half the prompts.
    """
    prompts, continuations = texts.prompts, texts.continuations
    _refuse_impossible(model, texts)
    found = torch.zeros(3, len(continuations), 1 + len(variants), dtype=torch.float64)

    def score(numbers: Sequence[int]) -> None:
        here = [i for i, one in enumerate(continuations) if one.prompt in set(numbers)]
        cleans = dict(zip(numbers, _cleans(model, engine, [prompts[i] for i in numbers]), strict=True))
        longest = max((len(continuations[i].ids) for i in here), default=1)
        for runs in chunks_of(len(variants), max(1, max_rows // longest - 1)):
            where = [0, *range(1 + runs.start, 1 + runs.stop)]
            for part in _packed(here, continuations, (1 + runs.stop - runs.start) if engine is replay else max_rows, max_rows):
                blocks = [continuations[i] for i in part]
                owners = [one.prompt for one in blocks]
                written = [{site: write.of(owners) for site, write in one.items()} for one in variants[runs]]
                logits = RUNS[engine](model, [cleans[i] for i in owners], [one.ids for one in blocks], written)
                found[:, torch.tensor(part)[:, None], torch.tensor(where)] = _scored(logits, [one.ids for one in blocks], kept)

    for batch in batches(model, prompts, padding=PADDING):
        in_halves(score, batch.rows)
    cut = {} if kept is None else {"kept_logps": found[1], "coverage": found[2]}
    return Likelihoods(logps=found[0], **cut)


def _refuse_impossible(model: Model, texts: Continued) -> None:
    prompts, continuations = texts.prompts, texts.continuations
    assert all(len(one.ids) for one in continuations), "a continuation has no tokens"
    long = [one for one in continuations if len(prompts[one.prompt]) + len(one.ids) > model.shape.context + 1]
    if long:
        raise PromptError(
            f"{model.ref}: a prompt of {len(prompts[long[0].prompt])} tokens and a continuation of {len(long[0].ids)} do not fit into its context "
            f"of {model.shape.context} tokens. Leave the prompt out, or shorten it."
        )


def _packed(which: Sequence[int], continuations: Sequence[Continuation], n_runs: int, max_rows: int) -> list[list[int]]:
    """Continuations of similar length together, so many that their blocks are at most `max_rows` tokens; at least one."""
    found: list[list[int]] = []
    for i in sorted(which, key=lambda i: (len(continuations[i].ids), i)):
        if found and (len(found[-1]) + 1) * len(continuations[i].ids) * n_runs <= max_rows:
            found[-1].append(i)
        else:
            found.append([i])
    return found


def chunks_of(n: int, most: int) -> Iterator[slice]:
    """Slices of `n` things, as equal as can be, none longer than `most`; one empty slice of nothing."""
    count = max(1, -(-n // most))
    return (slice(i * n // count, (i + 1) * n // count) for i in range(count))


def in_halves(compute: Callable[[Sequence[int]], None], numbers: Sequence[int]) -> None:
    """Calls `compute` for all of these, or with too little memory for half of them at a time."""
    try:
        return compute(numbers)
    except torch.OutOfMemoryError as error:
        if len(numbers) == 1:
            raise MachineError("what one prompt needs does not fit into memory. Lower --max-rows, or take a smaller dtype.") from error
    middle = len(numbers) // 2
    in_halves(compute, numbers[:middle])
    in_halves(compute, numbers[middle:])


def _scored(
    logits: Float[Tensor, "token run vocab"], blocks: Sequence[Sequence[int]], kept: Tensor | None
) -> Float64[Tensor, "3 block run"]:
    """The three numbers of `Likelihoods`, from the laws of all tokens of all blocks."""
    said = torch.tensor([token for ids in blocks for token in ids], device=logits.device)
    kept = None if kept is None else kept.to(logits.device)
    parts = zip(*(_of_tokens(laws, tokens, kept) for laws, tokens in zip(logits.split(LAWS), said.split(LAWS), strict=True)), strict=True)
    lengths = [len(ids) for ids in blocks]
    summed = torch.stack([torch.stack([block.sum(0) for block in torch.cat(part).split(lengths)]) for part in parts]).cpu()
    summed[2] /= torch.tensor(lengths)[:, None]
    return summed


def _of_tokens(
    logits: Float[Tensor, "token run vocab"], said: Int[Tensor, " token"], kept: Tensor | None
) -> tuple[Float64[Tensor, "token run"], Float64[Tensor, "token run"], Float64[Tensor, "token run"]]:
    """Of each token: log p, log p among the kept tokens, and their mass (0 and 0 where none are kept)."""
    laws = logits.log_softmax(-1)
    chosen = laws.gather(-1, said[:, None, None].expand(-1, laws.shape[1], 1))[..., 0].double()
    if kept is None:
        return chosen, torch.zeros_like(chosen), torch.zeros_like(chosen)
    mass = laws[..., kept].logsumexp(-1).double()
    return chosen, torch.where(torch.isin(said, kept)[:, None], chosen - mass, -torch.inf), mass.exp()


# ---- the prompts -------------------------------------------------------------------------------------------------------------------


def _cleans(model: Model, engine: Engine, prompts: Sequence[Sequence[int]]) -> list[Clean]:
    if engine is replay:
        return read(model, prompts)
    nothing = torch.empty(0)
    return [Clean(logits=nothing, states={}, cache=None, ids=torch.tensor(ids, device=model.device)) for ids in prompts]


# ---- three ways to run blocks, one answer ------------------------------------------------------------------------------------------

Blocks = Callable[[Model, Sequence[Clean], Sequence[Sequence[int]], Sequence[Variant]], Tensor]
"""From clean runs, a continuation of each, and variants to logits `[token, 1 + variant, vocab]`, float32, the blocks' tokens in a row.

A variant writes at the first tokens of each block, as many as its values have (what a shorter block has no token for is not written).
"""


def _as_parallel_tokens(model: Model, cleans: Sequence[Clean], blocks: Sequence[Sequence[int]], variants: Sequence[Variant]) -> Tensor:
    """All blocks and variants in one pass on the prompts' caches."""
    suffix = pad_sequence([torch.cat([clean.ids[-1:], ids_of(model, ids)[:-1]]) for clean, ids in zip(cleans, blocks, strict=True)], True)
    lengths = torch.tensor([len(ids) for ids in blocks], device=model.device)
    wanted = torch.arange(suffix.shape[1], device=model.device) < lengths[:, None]
    return parallel(model, Prefix.of(cleans, 1, suffix), variants, wanted)


def _as_sequences(model: Model, cleans: Sequence[Clean], blocks: Sequence[Sequence[int]], variants: Sequence[Variant]) -> Tensor:
    """Each block with its prompt in one pass, the variants as sequences born at the block of the network that they first edit."""
    stairs, found = Stairs.of(variants, len(model.blocks)), []
    for i, (clean, ids) in enumerate(zip(cleans, blocks, strict=True)):
        at = len(clean.ids) - 1

        def rows_of(tensor: Tensor, variant: int, n_pos: int, at: int = at) -> Tensor:
            return tensor[stairs.row[variant], at : at + n_pos]

        here = [_cut(variant, len(ids)) for variant in variants]
        with growing(model, stairs.grow_sequences), edited(model, writing(here, rows_of, prompt=i)):
            logits = _whole(model, clean, ids)[[0, *stairs.row]]
        found.append(logits.transpose(0, 1))
    return torch.cat(found)


def _one_by_one(model: Model, cleans: Sequence[Clean], blocks: Sequence[Sequence[int]], variants: Sequence[Variant]) -> Tensor:
    """A whole pass for each block and variant. Slow; what the others are tested against."""
    found = []
    for i, (clean, ids) in enumerate(zip(cleans, blocks, strict=True)):
        at, runs = len(clean.ids) - 1, []

        def rows_of(tensor: Tensor, variant: int, n_pos: int, at: int = at) -> Tensor:
            return tensor[0, at : at + n_pos]

        for variant in ({}, *variants):
            with edited(model, writing([_cut(variant, len(ids))], rows_of, prompt=i)):
                runs.append(_whole(model, clean, ids)[0])
        found.append(torch.stack(runs, 1))
    return torch.cat(found)


def _cut(variant: Variant, n_tokens: int) -> Variant:
    """The same variant where a block has no more tokens."""
    return {site: replace(write, value=write.value[:, :n_tokens]) for site, write in variant.items()}


def _whole(model: Model, clean: Clean, ids: Sequence[int]) -> Tensor:
    """`[row, token, vocab]`: the laws of a continuation's tokens in one pass of prompt and continuation."""
    read_through = torch.cat([clean.ids, ids_of(model, ids)[:-1]])
    return forward(model, read_through[None], use_cache=False, logits_to_keep=len(ids)).logits[:, -len(ids) :].float()


def ids_of(model: Model, ids: Sequence[int]) -> Tensor:
    return torch.tensor(ids, device=model.device)


RUNS: dict[Engine, Blocks] = {replay: _as_parallel_tokens, relay: _as_sequences, full: _one_by_one}
