"""Each prompt is rendered as both models see it, tokenised once, and aligned. No torch here.

Two models may cut one text into different tokens, so a place in a text is never a bare token index. It is a pair (index in the
base's tokens, index in the tuned model's tokens) whose two tokens end at the same byte: there both models have read the same
text, and their states can be compared. Tokenizers report the characters of the text that each token covers, so "the same byte"
is "the same character offset" wherever an end lies between two characters. Byte-level tokens may end inside a character: their
spans then repeat it, and such an end is no aligned place. Only where both models cut a text alike, token for token, is every
token one.

The last pair is the decision position, whose next-token distribution is studied; what follows it is cut off. With templates
that differ (`native`) pairs are counted from the start of the user's own text, and the decision position is one by its role.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from mechdiff.errors import PromptError
from mechdiff.prompts.sets import Prompt
from mechdiff.prompts.templates import Pair, PromptPolicy, templates_of

if TYPE_CHECKING:
    from tokenizers import Encoding


_SPACES = " \u0120\u2581"  # how vocabularies write a space


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """One prompt as both models see it, cut after the decision position."""

    prompt: Prompt
    text_base: str
    text_tuned: str
    ids_base: tuple[int, ...]
    ids_tuned: tuple[int, ...]
    positions: tuple[tuple[int, int], ...]
    """Aligned pairs (i_base, i_tuned), ascending in both; the last is the last token of each, the decision position."""
    sha256: str
    """Of both texts and both lists of ids."""


def render(
    prompts: Sequence[Prompt], base_tokenizer: Any, tuned_tokenizer: Any, policy: PromptPolicy, *, max_base: int, max_tuned: int
) -> list[Rendered]:
    """Each prompt as both models see it; `max_*` are the lengths of their contexts in tokens."""
    tokenizers = (base_tokenizer, tuned_tokenizer)
    templates = templates_of(*tokenizers, policy)
    texts = [
        [template.print(prompt.text, policy, prompt) if template else _bare(prompt) + (policy.answer or "") for prompt in prompts]
        for template in templates
    ]
    encodings = [
        _encode(f"the {model} model's tokenizer", tokenizer, prompts, side, raw=policy.policy == "raw")
        for model, tokenizer, side in zip(("base", "tuned"), tokenizers, texts, strict=True)
    ]
    pairs = zip(prompts, zip(*texts, strict=True), zip(*encodings, strict=True), strict=True)
    rendered = [_one(prompt, pair, encoded, templates, policy) for prompt, pair, encoded in pairs]
    for model, lengths, limit in (
        ("base", [len(one.ids_base) for one in rendered], max_base),
        ("tuned", [len(one.ids_tuned) for one in rendered], max_tuned),
    ):
        long = [f"{prompt.id!r} ({n} tokens)" for prompt, n in zip(prompts, lengths, strict=True) if n > limit]
        if long:
            raise PromptError(
                f"{len(long)} of {len(prompts)} prompts are longer than the {model} model's context of {limit} tokens: "
                f"{', '.join(long[:5])}{', ...' if len(long) > 5 else ''}. Shorten them or leave them out."
            )
    return rendered


def tail(one: Rendered) -> int:
    """How many last tokens are the same places for both models, one by one; less than all where one model reads more tokens than the other."""
    most = min(len(one.ids_base), len(one.ids_tuned)) - (len(one.ids_base) != len(one.ids_tuned))
    ends = zip(reversed(one.positions), range(1, len(one.positions) + 1), strict=True)
    same = (pair == (len(one.ids_base) - n, len(one.ids_tuned) - n) for pair, n in ends)
    return min(most, next((n for n, holds in enumerate(same) if not holds), len(one.positions)))


def spans(one: Rendered, side: str) -> list[range]:
    """One model's tokens between neighbouring aligned places: pieces of text that both models cut out, in one token or in several.

    What stands before the first place is left out: a BOS, on which attention rests.
    """
    ends = [pair[0 if side == "base" else 1] for pair in one.positions]
    return [range(before + 1, end + 1) for before, end in pairwise(ends)]


def _encode(owner: str, tokenizer: Any, prompts: Sequence[Prompt], texts: list[str], *, raw: bool) -> "list[Encoding]":
    """The tokens of each text, once, and checked. Special tokens are added to raw text only: templates print their own."""
    if not tokenizer.is_fast:
        raise PromptError(
            f"{owner} ({type(tokenizer).__name__}) is a slow one, which cannot say where in the text a token ends. "
            "Give a model with a fast tokenizer (a tokenizer.json)."
        )
    if not texts:
        return []
    encodings: list[Encoding] = tokenizer(texts, add_special_tokens=raw, verbose=False).encodings
    for prompt, encoding in zip(prompts, encodings, strict=True):
        if not any(stop > start for start, stop in encoding.offsets):
            raise PromptError(f"prompt {prompt.id!r}: {owner} makes no token of its text. Leave the prompt out.")
        if raw and encoding.special_tokens_mask[-1]:
            raise PromptError(
                f"prompt {prompt.id!r}: {owner} puts {encoding.tokens[-1]!r} after the text, so that the last prompt token would come "
                "after its end. Switch that off in its tokenizer_config.json (add_eos_token), or choose policy `same_text`."
            )
        if tokenizer.bos_token_id is not None and encoding.ids[:2] == [tokenizer.bos_token_id] * 2:
            raise PromptError(
                f"prompt {prompt.id!r}: two {tokenizer.bos_token!r} at the start for {owner}. "
                + ("The tokenizer adds one itself: take it out of the text." if raw else "Take one out of the template or the text.")
            )
    return encodings


def _one(prompt: Prompt, texts: Pair[str], encodings: "Pair[Encoding]", templates: Pair[Any], policy: PromptPolicy) -> Rendered:
    """One prompt, aligned and cut after its decision position."""
    spans: Pair[Pair[int]] | None = None
    if policy.position == "last_user" or texts[0] != texts[1]:
        base, tuned = (
            template.user_span(prompt, text, policy) if template else _bare_span(text)
            for template, text in zip(templates, texts, strict=True)
        )
        spans = base, tuned
    positions = _aligned(texts, encodings, spans)
    if spans is not None and policy.position == "last_user":
        base_last, tuned_last = (_last_token(encoding, stop) for encoding, (_, stop) in zip(encodings, spans, strict=True))
        if (base_last, tuned_last) not in positions:
            raise PromptError(
                f"prompt {prompt.id!r}: no token that ends the user's text ends at the same byte in both models (base "
                f"{encodings[0].tokens[base_last]!r}, tuned {encodings[1].tokens[tuned_last]!r}), so there is no position `last_user`. "
                "Choose position `decision`, or a template with a special token after the user's text."
            )
        positions = positions[: positions.index((base_last, tuned_last)) + 1]
        texts = texts[0][: encodings[0].offsets[base_last][1]], texts[1][: encodings[1].offsets[tuned_last][1]]
    ids_base, ids_tuned = (encoding.ids[: last + 1] for encoding, last in zip(encodings, positions[-1], strict=True))
    return Rendered(
        prompt=prompt,
        text_base=texts[0],
        text_tuned=texts[1],
        ids_base=tuple(ids_base),
        ids_tuned=tuple(ids_tuned),
        positions=positions,
        sha256=hashlib.sha256(json.dumps([*texts, ids_base, ids_tuned]).encode()).hexdigest(),
    )


def _aligned(texts: Pair[str], encodings: "Pair[Encoding]", spans: Pair[Pair[int]] | None) -> tuple[Pair[int], ...]:
    """The aligned pairs of two tokenisations, ascending, the pair of their last tokens last."""
    base, tuned = encodings
    last = len(base) - 1, len(tuned) - 1
    if texts[0] == texts[1] and base.tokens == tuned.tokens and base.offsets == tuned.offsets:
        return tuple((i, i) for i in range(len(base)))
    ends_base, ends_tuned = boundaries(texts[0], base), boundaries(texts[1], tuned)
    if texts[0] != texts[1]:
        assert spans is not None
        ends_base, ends_tuned = (
            {offset - start: index for offset, index in ends.items() if start < offset <= stop}
            for ends, (start, stop) in zip((ends_base, ends_tuned), spans, strict=True)
        )
    shared = [(ends_base[offset], ends_tuned[offset]) for offset in sorted(ends_base.keys() & ends_tuned.keys())]
    return (*((i, j) for i, j in shared if i < last[0] and j < last[1]), last)


def boundaries(text: str, encoding: "Encoding") -> dict[int, int]:
    """Where a tokenisation can be cut: for each such character offset the index of the last token in front of it.

    A token's end is one only if no other token reaches over it (tokens that end inside a character do: their spans repeat it).
    Where a gap follows, the end may be hidden: some tokenizers report spans without spaces, so that "a " seems to end after the
    "a", and some join an accent to its letter and leave it out. Only a gap of spaces behind a token without one is harmless.
    """
    starts, stops = zip(*encoding.offsets, strict=True)
    reach = list(accumulate(stops, max))
    ahead = [*list(accumulate(reversed(starts), min))[-2::-1], reach[-1]]  # where the tokens after each one begin
    found = {}
    for index, (piece, stop) in enumerate(zip(encoding.tokens, stops, strict=True)):
        gap = text[stop : ahead[index]]
        hidden = gap and (gap.strip() or piece[-1:] in _SPACES)
        if stop == reach[index] and stop <= ahead[index] and not hidden:
            found[stop] = index
    return found


def _last_token(encoding: "Encoding", stop: int) -> int:
    """The index of the token that holds the character in front of offset `stop`: the last one, where several share it."""
    return max((index for index, (start, end) in enumerate(encoding.offsets) if start < min(stop, end)), default=-1)


def _bare(prompt: Prompt) -> str:
    """A prompt's text without a template, which earlier turns would need."""
    if prompt.system is not None or prompt.before:
        what = "a system message" if prompt.system is not None else "earlier turns"
        raise PromptError(
            f"prompt {prompt.id!r} has {what}, and policy `raw` renders no template that could print it. Choose policy `same_text`, or take it out."
        )
    return prompt.text


def _bare_span(text: str) -> Pair[int]:
    """The span of a text without the white space around it."""
    return len(text) - len(text.lstrip()), len(text.rstrip())
