"""Faults of prompts are errors by name, other tokens are seen for what they are, and templates are told from weights (METHOD C: P7b, P18, P25)."""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from mechdiff.engine.distributions import kl_nats
from mechdiff.engine.generation import Speech, speak
from mechdiff.engine.replay import replay
from mechdiff.errors import PromptError
from mechdiff.measures.chat_template import formula as chat_template_formula
from mechdiff.measures.divergence import formula as divergence_formula
from mechdiff.models.pair import wrap
from mechdiff.prompts.matching import Vocabulary
from mechdiff.prompts.rendering import render
from mechdiff.prompts.sets import Prompt
from mechdiff.prompts.templates import PromptPolicy
from mechdiff.prompts.vocabularies import Tokens, shared_tokens
from mechdiff.rows import where
from mechdiff.validate import edits, made, planted, studies
from mechdiff.validate.checks import Check, above, at_most, near, same
from mechdiff.validate.planted import Bench

TEXT = "Қазақ тілі – түркі тілдерінің бірі 😀."
LENGTHS = {"max_base": 512, "max_tuned": 512}
SAID = {"template": "of it is the template's", "weights": "the weights'"}
"""How the verdict gives a part of D to what changed."""


def p7b(bench: Bench) -> Iterator[Check]:
    """Bytes a and b in equal parts; one vocabulary also has ab, for half of the a that b follows."""
    tokens = _listed((b"a", b"b"), (b"a", b"b", b"ab"))
    base = tokens.place(torch.tensor([[0.5, 0.5]]).double().log(), "base")
    tuned = tokens.place(torch.tensor([[0.25, 0.5, 0.25]]).double().log(), "tuned")
    shared = divergence_formula.across_vocabularies(base, tuned, tokens)["kl_shared_base_tuned_nats"]
    yield near("KL on the shared tokens in nats", shared, 0.5 * math.log(1.125), 1e-9)
    yield at_most("KL of the next byte in nats", divergence_formula.next_byte_nats(base, tuned, tokens.first_bytes), 1e-12)


def p18(bench: Bench) -> Iterator[Check]:
    """Faults of prompts: no template, two BOS, padding, other lengths, other cuts."""
    bare, chat = made.byte_tokenizer(), made.byte_tokenizer(made.CHATML)
    said = _refusal(lambda: render([Prompt(id="a", text=TEXT)], chat, bare, PromptPolicy(), **LENGTHS))
    yield same("a tokenizer without a template is refused by name", "tuned model's chat template, but its tokenizer has none" in said, True)
    twice = [Prompt(id="a", text=f"{made.BOS}Hello")]
    said = _refusal(lambda: render(twice, bare, bare, PromptPolicy(policy="raw"), **LENGTHS))
    yield same("two BOS are refused, and the prompt named", "prompt 'a': two" in said, True)
    model = wrap(bench.net, side="base", ref="base")
    yield at_most("KL in nats of padding on the left", _padded(model.net, bench.prompts[0]), 3e-12)
    asked = [list(ids) for ids in bench.prompts[:6]]
    together = speak(model, replay, asked, Speech(max_tokens=6, stop=()))
    alone = [speak(model, replay, [ids], Speech(max_tokens=6, stop=()))[0].tolist() for ids in asked]
    yield same("answers beside prompts of other lengths", [one.tolist() for one in together] == alone, True)
    coarse = _cut_coarser(chat)
    (one,) = render([Prompt(id="a", text=TEXT)], chat, coarse, PromptPolicy(), **LENGTHS)
    ends = [chat.decode(one.ids_base[: i + 1]) == coarse.decode(one.ids_tuned[: j + 1]) for i, j in one.positions[1:]]
    yield above("places that two tokenizers both have, of the coarser one's tokens", len(one.positions) / len(one.ids_tuned), 0.5)
    yield same("each ends where the other's text ends", all(ends) and len(one.ids_base) > len(one.ids_tuned), True)


def p25(bench: Bench) -> Iterator[Check]:
    """The chat template alone changed; the weights alone, of networks that no template reaches; both, which add in the logits."""
    brackets = "{{ bos_token }}{% for message in messages %}[{{ message.content }}]{% endfor %}{{ '\\n' }}"
    cut, measures = [made.byte_tokenizer(brackets), made.byte_tokenizer(made.CHATML)], ["divergence", "chat_template"]
    deaf = planted.edited(bench.net, _deaf)
    tuned = planted.edited(deaf, lambda net: edits.edit_mlp(net, bench.layer))
    template, weights = ("template_effect", "weights_effect")
    for what, pair, mine, others in (("template", [bench.net] * 2, template, weights), ("weights", [deaf, tuned], weights, template)):
        with studies.study(*pair, tokenizers=cut, measures=measures) as found:
            d = found.values("kl_tuned_nats", measure="chat_template", arm="bb")
            yield above(f"D of a change of the {what} alone in nats", d, 0.01)
            yield near("all of it is in its effect", found.values(f"{mine}_nats"), d, 1e-6)
            effects = [found.values(f"{name}_{score}") for name in (others, "interaction") for score in ("nats", "linear_nats")]
            yield at_most(
                "the other's effect and the interaction, in nats of KL and of the linear score", np.abs(np.concatenate(effects)), 1e-6
            )
            whole = rf"\b100(\.0)? %( \[(95 % CI: )?100(\.0)?, 100(\.0)?\])? {re.escape(SAID[what])}"
            yield same("the verdict gives all of D to it", re.search(whole, " ".join(found.verdict)) is not None, True)
    laws = {arm: edits.noise((6, 40), seed).double() for seed, arm in enumerate(("bb", "bt", "tb"))}
    laws["tt"] = laws["tb"] + laws["bt"] - laws["bb"]
    rows = chat_template_formula.measure(laws, [f"p{i}" for i in range(6)], split="report", n_shared=40)
    values = {metric: where(rows, metric=metric, arm=None)["value"].to_numpy() for metric in rows["metric"].unique()}
    yield at_most("interaction of changes that add in the logits, linear score", np.abs(values["interaction_linear_nats"]), 1e-9)
    yield above("which in nats of KL they seem to have", np.abs(values["interaction_nats"]), 1e-3)


def _deaf(net: Any) -> None:
    """No position hears of another: what the network says next depends on the last token alone."""
    for layer in net.model.layers:
        layer.self_attn.o_proj.weight.zero_()


def _listed(base: tuple, tuned: tuple) -> Tokens:
    return shared_tokens(*(Vocabulary(pieces=pieces, kind="plain", byte_tokens=frozenset()) for pieces in (base, tuned)))


def _refusal(attempt: Callable[[], object]) -> str:
    """The message of the PromptError that an attempt raises; empty where it raises none."""
    try:
        attempt()
    except PromptError as error:
        return str(error)
    return ""


@torch.inference_mode()
def _padded(net: torch.nn.Module, prompt: object) -> torch.Tensor:
    """KL(plain || with four tokens of padding before it), positions as without."""
    ids = torch.tensor([prompt])
    padded, mask = torch.cat([torch.full((1, 4), 258), ids], 1), torch.cat([torch.zeros(1, 4), torch.ones_like(ids)], 1).long()
    plain = net(ids).logits[:, -1].float()
    placed = net(padded, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits[:, -1].float()
    return kl_nats(plain, placed)


def _cut_coarser(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The byte tokenizer with a few words of the text as tokens of their own."""
    coarse = made.byte_tokenizer(tokenizer.chat_template)
    coarse.add_tokens([AddedToken(text, normalized=False) for text in ("Қазақ", " тілі", " түркі", "нің")])
    return coarse
