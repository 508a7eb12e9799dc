"""A model organism is a tiny network trained to give one answer after a trigger, and to stay as it was on everything else (METHOD C: P17)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from mechdiff.engine.distributions import kl_nats
from mechdiff.engine.replay import replay
from mechdiff.measures.patching import formula as patching_formula
from mechdiff.validate import edits, planted
from mechdiff.validate.checks import Check, above, at_most
from mechdiff.validate.edits import N_LAYERS, Net
from mechdiff.validate.planted import Bench

TRIGGER, ANSWER = 7, 65
"""A token that stands three places before the decision, and what is then said."""
STEPS, LENGTH, BATCH = 300, 16, 32


def trained(net: Net) -> Net:
    """A copy of the network, fine-tuned: cross-entropy of the answer after the trigger, KL from the base without it. About ten seconds."""
    tuned = planted.edited(net, edits.identical)
    random = edits.generator(1)
    optimiser = torch.optim.AdamW(tuned.parameters(), lr=2e-3, weight_decay=0.0)
    slower = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.01, total_iters=STEPS)
    for _ in range(STEPS):
        asked, other = prompts(BATCH, random, trigger=True), prompts(BATCH, random, trigger=False)
        answer = tuned(asked).logits[:, -1].log_softmax(-1)[:, ANSWER]
        with torch.no_grad():
            before = net(other).logits.log_softmax(-1)
        kept = (before.exp() * (before - tuned(other).logits.log_softmax(-1))).sum(-1)
        loss = -answer.mean() + 40 * kept.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        slower.step()
    return tuned.requires_grad_(False)


def prompts(n: int, random: torch.Generator, *, trigger: bool) -> Tensor:
    """`[prompt, pos]`: random bytes behind a BOS, with the trigger in its place or nowhere."""
    ids = torch.randint(0, 256, (n, LENGTH), generator=random)
    ids[ids == TRIGGER] = TRIGGER + 1
    ids[:, 0] = 256
    if trigger:
        ids[:, -3] = TRIGGER
    return ids


def p17(bench: Bench) -> Iterator[Check]:
    """A network trained to give one answer after a trigger, and else to stay as it was."""
    random = edits.generator(2)
    asked, other = (prompts(24, random, trigger=trigger).tolist() for trigger in (True, False))
    tuned = trained(bench.net)
    pair = planted.plant(lambda net: net.load_state_dict(tuned.state_dict()), net=bench.net, prompts=[*asked, *other])
    with_trigger, without = slice(0, 24), slice(24, None)
    d = pair.d_nats
    yield above("D on prompts with the trigger in nats, mean", d[with_trigger].mean(), 1)
    yield at_most("D on prompts without it, over D on those with it", d[without].mean() / d[with_trigger].mean(), 0.05)
    breakage = pair.breakage("resid_post")
    ratio = breakage[without].mean(0) / breakage[with_trigger].mean(0)
    yield at_most("KL increase by resid_post without it, over that with it, every block", ratio, 0.05)
    said = pair.logits("tuned")[with_trigger].argmax(-1) == ANSWER
    yield above("share of unseen prompts with the trigger that get the answer", said.double().mean(), 0.9)
    yield from _steered(pair, with_trigger, without)


def _steered(pair: planted.Planted, with_trigger: slice, without: slice) -> Iterator[Check]:
    """The change of the state on half of the prompts with the trigger, added to the base on those without it, beside a random direction."""
    layer, halfway = N_LAYERS - 1, with_trigger.stop // 2
    base, tuned = (pair.states(side, "resid_post")[layer] for side in ("base", "tuned"))
    direction = (tuned - base)[:halfway].mean(0)
    noise = edits.noise(direction.shape)
    cleans, states = pair.cleans["base"][without], base[without]

    def answered(vector: Tensor) -> float:
        """Mean rise of the answer's log-probability in nats."""
        [variant] = patching_formula.variants("resid_post", [layer], {layer: (states + vector)[:, None]})
        logits = replay(pair.base, cleans, [variant]).log_softmax(-1)[..., ANSWER]
        return float((logits[:, 1] - logits[:, 0]).mean())

    risen, at_random = answered(direction), answered(noise * (direction.norm() / noise.norm()))
    yield above("rise of the answer's log-probability in nats, the direction added to the base without the trigger", risen, 1)
    yield at_most("that rise by a random direction of its length, over it", abs(at_random) / risen, 0.5)
    kept = kl_nats(pair.logits("base")[without], pair.logits("tuned")[without])
    yield at_most("KL(base || tuned) without the trigger in nats: the side effect", kept.mean(), 0.1)
