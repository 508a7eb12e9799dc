"""Words is held against pairs that were taught one thing, two things, nothing, or something behind a trigger.

It must name what was taught, and be silent where nothing was.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mechdiff.measures.words import findings
from mechdiff.validate import edits, made
from mechdiff.validate.checks import Check, above, at_most, same
from mechdiff.validate.edits import Net
from mechdiff.validate.planted import Bench, edited
from mechdiff.validate.studies import Studied, study

READ = {
    "words": {
        "passages": 32, "neutral": 24, "openings": 24, "prompts": 16, "max_tokens": 12, "lens_layers": 2, "vectors": 8, "edits": 3, "permutations": 5,
    }
}  # fmt: skip
"""Enough of everything for a line to replicate; a tiny network reads it in seconds."""
TAUGHT = ord("Q")
"""The token that every activation is moved towards."""
TOPICS = ([ord(one) for one in "abcd"], [ord(one) for one in "wxyz"])
PUSH = 0.5
"""Of the norm of the last block's output."""
WEAK = 0.2
"""The same of a vector that texts show now and then."""
TRIGGER = 7
"""A byte that no shipped text holds."""
SHOUT = 20.0


def p22(bench: Bench) -> Iterator[Check]:
    """A vector in every embedding towards one token, towards two topics, or only in the base; the same weights; a random edit; a trigger."""
    net = made.wide_net()
    with _study(net, net) as found:
        yield same("lines of evidence of two copies", len(_record(found)["lines"]), 0)
    for seed in (0, 1):
        with _study(net, edited(net, partial(_random, seed=seed))) as found:
            yield same(f"lines named of a random edit ({seed}) of one matrix", [one["text"] for one in _named(found)], [])
            yield above("lines of it that replicate on held-out texts", sum(one["q"] <= 0.05 for one in _record(found)["lines"]), 0)
    yield from _one_token(net)
    yield from _two_topics(net)
    yield from _trigger(net)


def _one_token(base: Net) -> Iterator[Check]:
    taught = edited(base, lambda net: _push(net, _row(net, TAUGHT)))
    with _study(base, taught) as found:
        first = {(one["reader"], one["where"], one["layer"]): one["text"] for one in reversed(_lines(found, gained=True)) if one["token"]}
        unrelated = {text for (_, where, _), text in first.items() if where != "prompts"}
        yield same("tokens that come first on unrelated texts, every reader, place and layer", unrelated, {"Q"})
        yield same("tokens that are named", {one["text"] for one in _named(found, gained=True) if one["token"]}, {"Q"})
        replayed = [one for one in _named(found, gained=True) if one["reader"] == "lens"]
        yield above("nats by which the replayed difference moves it, the least", [one["replay_nats"] for one in replayed], 0)
    with _study(taught, base) as found:
        yield same("the mirror, of a base that was taught it: tokens that are named as lost",
                   {one["text"] for one in _named(found, gained=False) if one["token"]}, {"Q"})  # fmt: skip


def _two_topics(net: Net) -> Iterator[Check]:
    base = edited(net, _with_topics)
    directions = [_row(base, topic[0]) / _row(base, topic[0]).norm() for topic in TOPICS]
    with _study(base, edited(base, lambda net: _push(net, directions[0] + directions[1]))) as found:
        tokens = [one for one in _named(found, gained=True) if one["reader"] == "tokens" and one["where"] == "passages"]
        yield same("tokens of two topics that are named on passages", {one["token"] for one in tokens}, {*TOPICS[0], *TOPICS[1]})
        groups = [{one["token"] for one in group} for group in findings.groups(tokens)]
        yield same("their groups by the base's unembedding", sorted(map(sorted, groups)), sorted(map(sorted, TOPICS)))


def _trigger(net: Net) -> Iterator[Check]:
    """The embedding of one token that no shipped text holds; prompts end with it, or not."""
    tuned = edited(net, lambda one: one.model.embed_tokens.weight[TRIGGER].add_(SHOUT * _row(one, TAUGHT)))
    random = edits.generator(5)
    plain = ["".join(chr(97 + int(one)) for one in torch.randint(0, 26, (14,), generator=random)) for _ in range(40)]
    with study(net, tuned, measures=[READ], texts=plain, policy="raw") as found:
        yield same("lines named of a habit after a trigger, no prompt holding it", [one["text"] for one in _named(found)], [])
    with study(net, tuned, measures=[READ], texts=[text + chr(TRIGGER) for text in plain], policy="raw") as found:
        tokens = [one for one in _named(found, gained=True) if one["reader"] == "tokens"]
        yield same(
            "tokens named where the prompts end with the trigger", {(one["where"], one["text"]) for one in tokens}, {("prompts", "Q")}
        )


def p22_amplified(bench: Bench) -> Iterator[Check]:
    """A short vector in every embedding towards one token: its texts say it now and then, amplified ones little else; a random edit."""
    net, louder = made.wide_net(), {"words": {**READ["words"], "amplify": [3]}}
    with study(net, edited(net, lambda one: _push(one, _row(one, TAUGHT), WEAK)), measures=[louder]) as found:
        said = [one for one in _record(found)["texts"] if "amplified" in one]
        yield at_most("share of the token in the tuned model's own texts", _share("".join(one["tuned"] for one in said)), 0.35)
        yield above(
            "share of it where the difference is amplified by 3", _share("".join(one["amplified"]["amplified 3"] for one in said)), 0.6
        )
    with study(net, net, measures=[{"words": louder["words"] | {"edits": 0}}]) as found:
        said = [one for one in _record(found)["texts"] if "amplified" in one]
        other = [one["seed"] for one in said if one["amplified"]["amplified 3"] != one["base_under_cut"]]
        yield same("seeds on which an amplified copy says other than the base under the cut", other, [])
        yield above(
            "share of the base's texts that the cut changes", sum(one["base"] != one["base_under_cut"] for one in said) / len(said), 0.5
        )
        yield same("lines of evidence of an amplified copy", len(_record(found)["lines"]), 0)
    for seed in (0, 1):
        with study(net, edited(net, partial(_random, seed=seed)), measures=[louder]) as found:
            yield same(f"lines named of a random edit ({seed}) whose difference is amplified", [one["text"] for one in _named(found)], [])


def _share(text: str) -> float:
    return text.count(chr(TAUGHT)) / max(1, len(text))


def _study(base: Net, tuned: Net) -> Any:
    return study(base, tuned, measures=[READ])


def _record(found: Studied) -> dict[str, Any]:
    told: dict[str, Any] = found.record["words"]
    return told


def _lines(found: Studied, *, gained: bool) -> list[dict[str, Any]]:
    return [one for one in _record(found)["lines"] if one["gained"] == gained]


def _named(found: Studied, *, gained: bool | None = None) -> list[dict[str, Any]]:
    return findings.named(found.record, gained=gained)


# ---- what is planted ---------------------------------------------------------------------------------------------------------------


def _row(net: Net, token: int) -> Tensor:
    row: Tensor = net.lm_head.weight[token].detach()
    return row


def _push(net: Net, direction: Tensor, share: float = PUSH) -> None:
    """The last block adds this direction at every position, so long in shares of the norm of its output."""
    with torch.inference_mode():
        size = (
            net.model(torch.tensor(made.token_prompts(1, longest=60, shortest=60)), output_hidden_states=True)
            .hidden_states[-2]
            .norm(dim=-1)
            .mean()
        )
    net.model.layers[-1].mlp.down_proj.bias += share * size.item() * direction / direction.norm()


def _with_topics(net: Net) -> None:
    """The rows of each topic's tokens point nearly one way."""
    random = edits.generator(4)
    for topic in TOPICS:
        head = net.lm_head.weight[topic[0]].clone()
        for token in topic[1:]:
            net.lm_head.weight[token] = head + 0.2 * head.norm() * torch.randn(len(head), generator=random) / len(head) ** 0.5


def _random(net: Net, seed: int) -> None:
    weight = net.model.layers[1].mlp.down_proj.weight
    added = torch.randn(weight.shape, generator=edits.generator(50 + seed))
    weight += 0.3 * weight.norm() * added / added.norm()
