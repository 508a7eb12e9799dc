"""A model answers many prompts at once, greedily or by sampling, clean and under edits.

Each prompt is read once. Its last token then runs as parallel copies (`replay.py`): one clean, one for each variant, which is edited there alone.
From then on every copy is a sequence of its own on the prompt's keys and values, and the sequences of several prompts take one token each in
every pass. Each has its own positions and sees its own past alone, so an answer does not depend on the company it was given in; a sequence that
has ended leaves the batch.

Edits at every position (`steering`) and grafts (`grafted`) are opened around the call and hold while the model reads and while it speaks.

Models that keep more of the past than keys and values, or whose attention cannot be told positions, speak one sequence at a time.
"""

import hashlib
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechdiff.architectures.families import sliding_window
from mechdiff.engine.activations import Clean, edited, forward
from mechdiff.engine.continued import in_halves
from mechdiff.engine.prefix import KeysValues, Prefix
from mechdiff.engine.reading import read_apart
from mechdiff.engine.replay import Engine, Stairs, Variant, growing, later_born, parallel, replay, writing
from mechdiff.models.pair import Model
from mechdiff.prompts.templates import behind_an_answer

SEQUENCES = 64
"""That speak side by side, at most."""

LEAVING = 0.25
"""Share of a batch that has ended before what goes on is moved together: moving copies every key and value."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn; without it the most likely one is taken."""

    temperature: float = 1.0
    top_p: float = 1.0
    """Drawn among the most likely tokens that together have at least this mass."""
    seed: int = 0
    """With the prompt's tokens it decides the sample: not what else is in the batch, and not the variant."""


@dataclass(frozen=True, kw_only=True)
class Speech:
    """How long an answer may be, what ends it, and how its tokens are drawn."""

    max_tokens: int
    stop: Collection[int]
    """Tokens; the answer ends before the first of them."""
    sampling: Sampling | None = None


def stop_ids(model: Model, tokenizer: Any, templates_of: Collection[Any] = ()) -> frozenset[int]:
    """The tokens that end an answer: those that model and tokenizer name, and the one that the chat template prints behind an answer.

    Also the one that the templates of other tokenizers print there, where this one has it: a prompt may be rendered with the other model's.
    """
    net: Any = model.net
    named = [
        net.generation_config and net.generation_config.eos_token_id,
        model.config.get_text_config().eos_token_id,
        tokenizer.eos_token_id,
    ]
    found = {one for each in named for one in (each if isinstance(each, list) else [each]) if one is not None}
    behind = [token for one in (tokenizer, *templates_of) for token in _behind_an_answer(one)]
    own = tokenizer.get_vocab()
    return frozenset(found | {own[token] for token in behind if token in own})


def _behind_an_answer(tokenizer: Any) -> list[str]:
    """The special token that a chat template prints there, if it prints one."""
    behind = behind_an_answer(tokenizer)
    return [one.content for one in tokenizer.added_tokens_decoder.values() if one.special and behind.startswith(one.content or "\0")]


def speak(
    model: Model, engine: Engine, prompts: Sequence[Sequence[int]], speech: Speech, *, most: int = SEQUENCES
) -> list[Int[Tensor, " token"]]:
    """What the model answers to each prompt (token ids), without the token that ends it, on the CPU."""
    return [runs[0] for runs in speak_edited(model, engine, prompts, (), speech, most=most)]


def speak_on(model: Model, cleans: Sequence[Clean], speech: Speech) -> list[Int[Tensor, " token"]]:
    """The same behind prompts that `read` has read, all side by side."""
    return Voices(model, cleans, (), speech).speak()


def speak_edited(
    model: Model,
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    variants: Sequence[Variant],
    speech: Speech,
    *,
    most: int = SEQUENCES,
) -> list[list[Int[Tensor, " token"]]]:
    """For each prompt the clean answer and, behind it, the answer under each variant, which writes at the prompt's last token alone.

    An answer never leaves the model's context. About `most` sequences speak side by side; with too little memory half of them.
    """
    if not speech.max_tokens:
        return [[torch.empty(0, dtype=torch.long) for _ in (None, *variants)] for _ in prompts]
    found: list[list[Tensor]] = [[] for _ in prompts]
    by_length = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    size = max(1, most // (1 + len(variants)))

    def answer(numbers: Sequence[int]) -> None:
        here = [{site: write.of(numbers) for site, write in variant.items()} for variant in variants]
        asked = [prompts[i] for i in numbers]
        voices = Voices(model, read_apart(model, asked), here, speech) if engine is replay else None
        said = voices.speak() if voices else _one_by_one(model, asked, here, speech)
        for place, i in enumerate(numbers):
            found[i] = said[place * (1 + len(variants)) : (place + 1) * (1 + len(variants))]

    for start in range(0, len(prompts), size):
        in_halves(answer, by_length[start : start + size])
    return found


# ---- side by side ------------------------------------------------------------------------------------------------------------------


class Voices:
    """Sequences that take one token each in every pass: run 0 of the first prompt, its variants, run 0 of the second, ..."""

    def __init__(
        self,
        model: Model,
        cleans: Sequence[Clean],
        variants: Sequence[Variant],
        speech: Speech,
    ) -> None:
        prompts = [clean.ids.tolist() for clean in cleans]
        self.model, self.max_tokens, self.stop = model, speech.max_tokens, frozenset(speech.stop)
        runs, self.sampled = 1 + len(variants), speech.sampling is not None
        self.prefix = Prefix.of(cleans, 1)
        self.logits, self.cache = self._open(variants)
        self.rows = list(range(len(prompts) * runs))
        """Which sequence each row of the batch is."""
        self.lengths = self.prefix.lengths.repeat_interleave(runs)
        """`[row]`: tokens before the decision token."""
        self.pick = [_Pick(speech.sampling, ids) for ids in prompts for _ in range(runs)]
        self.room = [min(self.max_tokens, model.shape.context - len(ids)) for ids in prompts for _ in range(runs)]
        self.said: list[list[int]] = [[] for _ in self.rows]
        self.over = [room <= 0 for room in self.room]

    def _open(self, variants: Sequence[Variant]) -> tuple[Tensor, Any]:
        """The first pass: the laws after the decision token `[row, vocab]`, and a cache for every sequence."""
        from transformers import DynamicCache

        prefix, n_layers = self.prefix, len(self.model.blocks)
        copies: list[KeysValues] = []
        variants = [later_born(variant, n_layers) for variant in variants]
        everywhere = torch.ones_like(prefix.suffix, dtype=torch.bool)
        logits = parallel(self.model, prefix, variants, everywhere, copies).flatten(0, 1)
        stairs, cache = Stairs.of(variants, n_layers), DynamicCache()
        for layer, (keys, values, rows) in enumerate(zip(prefix.keys, prefix.values, stairs.rows, strict=True)):
            own = [row if row < rows else 0 for row in (0, *stairs.row)]  # not born yet: what the clean run has
            cache.update(self._by_sequence(keys, copies[layer][0], own), self._by_sequence(values, copies[layer][1], own), layer)
            make_room(cache.layers[layer], self.max_tokens)
        return logits, cache

    def _by_sequence(self, before: Tensor, copies: Tensor, own: Sequence[int]) -> Tensor:
        """`[sequence, head, pos, d]` from the prompts' `[prompt, head, pos, d]` and that of all copies: to each sequence its own copy."""
        before = before[:, None].expand(-1, len(own), -1, -1, -1)
        return torch.cat([before, copies[:, :, own].transpose(1, 2)[:, :, :, None]], 3).flatten(0, 1)

    def speak(self) -> list[Tensor]:
        """Every sequence to its end."""
        while (tokens := self.take()) is not None:
            self.step(tokens)
        return self.spoken()

    def spoken(self) -> list[Tensor]:
        return [torch.tensor(said, dtype=torch.long) for said in self.said]

    def take(self, *, leaving: bool = True) -> list[int] | None:
        """The next token of every row, noted; None where all sequences have ended. Where many have, they leave the batch."""
        likely = self.logits.argmax(-1).tolist()
        tokens = [self._take(sequence, row, likely[row]) for row, sequence in enumerate(self.rows)]
        ended = sum(self.over[sequence] for sequence in self.rows)
        if ended == len(self.rows):
            return None
        return self._leave(tokens) if leaving and ended > LEAVING * len(self.rows) else tokens

    def step(self, tokens: Sequence[int]) -> None:
        """One pass of one token a row: the laws of the next."""
        self.logits = self._step(torch.tensor(tokens, device=self.model.device))

    def _take(self, sequence: int, row: int, likely: int) -> int:
        """The next token of a sequence, noted where it has not ended."""
        if self.over[sequence]:
            return 0
        token = self.pick[sequence](self.logits[row]) if self.sampled else likely
        if token in self.stop:
            self.over[sequence] = True
            return 0
        self.said[sequence].append(token)
        self.over[sequence] = len(self.said[sequence]) >= self.room[sequence]
        return token

    def _leave(self, tokens: Sequence[int]) -> list[int]:
        """Takes what has ended out of the batch; returns the tokens of the others."""
        staying = [row for row, sequence in enumerate(self.rows) if not self.over[sequence]]
        self.cache.batch_select_indices(torch.tensor(staying, device=self.model.device))
        for layer in self.cache.layers:
            make_room(layer, self.max_tokens - max(len(self.said[self.rows[row]]) for row in staying) + 1)
        self.rows, self.lengths = [self.rows[row] for row in staying], self.lengths[staying]
        return [tokens[row] for row in staying]

    def _step(self, tokens: Int[Tensor, " row"]) -> Float[Tensor, "row vocab"]:
        """One pass of one token a sequence."""
        model, n_after = self.model, self.cache.get_seq_length() - self.prefix.longest
        masks: dict[int | None, Tensor] = {}

        def grow(layer: int, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
            window = sliding_window(model.config, layer)
            if window not in masks:
                masks[window] = self._mask(n_after, window)
            kwargs["attention_mask"] = masks[window]
            return hidden

        with growing(model, grow):
            positions = (self.lengths + n_after).clamp(max=model.shape.context - 1)
            return forward(model, tokens[:, None], attention_mask=self._mask(n_after, None), position_ids=positions[:, None],
                           past_key_values=self.cache, use_cache=True).logits[:, -1].float()  # fmt: skip

    def _mask(self, n_after: int, window: int | None) -> Tensor:
        """`[row, 1, 1, key]` to add to attention scores: a sequence sees its prompt and what it has said."""
        device, longest = self.lengths.device, self.prefix.longest
        key = torch.arange(longest, device=device).expand(len(self.lengths), -1)
        before = key < self.lengths[:, None]
        after = torch.arange(n_after + 1, device=device)
        sees_after = torch.ones(len(self.lengths), n_after + 1, dtype=torch.bool, device=device)
        if window is not None:
            before = before & (self.lengths[:, None] + n_after - key < window)
            sees_after = sees_after & (n_after - after < window)
        sees = torch.cat([before, sees_after], 1)
        mask = torch.zeros(sees.shape, dtype=self.model.dtype, device=device)
        return mask.masked_fill_(~sees, torch.finfo(self.model.dtype).min)[:, None, None]


def make_room(layer: Any, n_tokens: int) -> None:
    """Gives one layer of a cache places for so many tokens more, so that adding one does not copy all that is there."""
    held = {name: getattr(layer, name) for name in ("keys", "values")}
    slabs = {name: torch.cat([tensor, torch.zeros_like(tensor[:, :, :1]).expand(-1, -1, n_tokens, -1)], 2) for name, tensor in held.items()}

    def update(keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start, stop = layer.keys.shape[2], layer.keys.shape[2] + keys.shape[2]
        for name, new in (("keys", keys), ("values", values)):
            slabs[name][:, :, start:stop] = new
            setattr(layer, name, slabs[name][:, :, :stop])
        return layer.keys, layer.values

    layer.update = update


class _Pick:
    """Takes one sequence's next tokens from their laws."""

    def __init__(self, sampling: Sampling | None, prompt: Sequence[int]) -> None:
        self.sampling = sampling
        if sampling:
            name = f"{sampling.seed} {' '.join(map(str, prompt))}"
            self.draw = random.Random(hashlib.sha256(name.encode()).digest()).random

    def __call__(self, logits: Float[Tensor, " vocab"]) -> int:
        if self.sampling is None:
            return int(logits.argmax())
        mass = (logits.cpu().double() / self.sampling.temperature).softmax(-1)
        likely = (mass >= (1 - self.sampling.top_p) / (2 * len(mass))).nonzero()[
            :, 0
        ]  # the others together lie beyond top_p: they are not sorted
        mass, order = mass[likely].sort(descending=True, stable=True)
        order, reach = likely[order], mass.cumsum(-1)
        n_kept = int((reach < self.sampling.top_p).sum()) + 1
        reach = reach[:n_kept]
        return int(order[: len(reach)][min(int(torch.searchsorted(reach, self.draw() * reach[-1].item())), len(reach) - 1)])


# ---- one at a time -----------------------------------------------------------------------------------------------------------------


def _one_by_one(
    model: Model,
    prompts: Sequence[Sequence[int]],
    variants: Sequence[Variant],
    speech: Speech,
) -> list[Tensor]:
    """As `Voices`, each sequence alone on the model's own cache."""

    def rows_of(tensor: Tensor, variant: int, n_pos: int) -> Tensor:
        return tensor[0, -n_pos:]

    found = []
    for i, ids in enumerate(prompts):
        for variant in ({}, *variants):
            with edited(model, writing([variant], rows_of, prompt=i)):
                output = forward(model, torch.tensor([ids], device=model.device), use_cache=True)
            pick, said = _Pick(speech.sampling, ids), []
            for _ in range(min(speech.max_tokens, model.shape.context - len(ids))):
                token = pick(output.logits[0, -1].float())
                if token in speech.stop:
                    break
                said.append(token)
                last = torch.tensor([[token]], device=model.device)
                output = forward(model, last, use_cache=True, past_key_values=output.past_key_values)
            found.append(torch.tensor(said, dtype=torch.long))
    return found
