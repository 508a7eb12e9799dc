"""The difference between two models' activations is read as tokens: by the unembedding (logit lens), and by writing it into the base (replay lens).

The logit lens reads what a block hands on as if it were the last one: `unembed(norm(h))`. At early blocks activations stand in another basis, so
each layer says how well it reads the base's own (`depth.py`). The replay lens asks the network itself:
the mean difference is added to the base's activation at the last prompt token, and whatever the blocks above make of it is the change of log p. A
random vector of the same length does something there too, and is what it is held against.

A patchscope (Ghandeharioun et al. 2024) asks the network to repeat what it is given: in a prompt that repeats words the difference takes the place
of the last token's activation, and the next token is what the network makes of it. How long the difference is written decides much, and a scale that
somebody picks is a free parameter: here it is written at SCALES fixed multiples of the length of the activation that it replaces, and what counts is
at how many of them a token comes first. Random vectors are written likewise.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechdiff.architectures.sites import Site
from mechdiff.engine.activations import Clean
from mechdiff.engine.replay import Engine, Write
from mechdiff.measures.words.depth import read_out
from mechdiff.measures.words.formula import Line, Reading, halves, robust_z
from mechdiff.measures.words.listen import FIRST
from mechdiff.models.pair import Model

LENS, NEUTRAL, PROMPTS = "lens", "neutral", "prompts"
SHOWN = 5
"""Tokens that a table shows for each layer."""
REPEATS = "cat -> cat\n1135 -> 1135\nhello -> hello\n?"
"""A prompt that repeats words; the next token says what stands at the last."""
SCALES = tuple(2.0 ** (number / 2 - 2.5) for number in range(12))
"""Lengths at which a difference is written, in lengths of the activation that it replaces: 0.18 to 8."""
ROWS = 256
"""Activations that are read together: the unembedding is streamed once for all of them."""


def first(at: int) -> str:
    """Where a passage's position `at` was read."""
    return f"passages, position {at}"


def _read_ranked(model: Model, states: Float[Tensor, "row d"], ranked: Sequence[int]) -> Float[Tensor, "row ranked"]:
    """The same of the ranked tokens alone, the unembedding streamed once for many rows."""
    return torch.cat([read_out(model, some)[:, ranked] for some in states.split(ROWS)])


@dataclass(frozen=True, kw_only=True)
class Differences:
    """Activations of both voices at one layer and place, the base's first, in the half that names and in that which tests."""

    where: str
    layer: int
    naming: tuple[Float[Tensor, "unit d"], Float[Tensor, "unit d"]]
    testing: tuple[Float[Tensor, "other d"], Float[Tensor, "other d"]]
    units: Sequence[str]

    def vector(self) -> Float[Tensor, " d"]:
        """The mean difference on the half that names."""
        return (self.naming[1] - self.naming[0]).mean(0)


def differences(
    base: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], layers: Sequence[int], names: Mapping[str, Sequence[str]]
) -> list[Differences]:
    """At the first positions of passages, at the last token of everyday questions, and at that of the study's own prompts."""
    found = []
    for place, layer in enumerate(layers):
        for number, at in enumerate(FIRST):
            ours, theirs = (torch.from_numpy(one["first"][place][:, number]) for one in (base, other))
            found.append(_halved(first(at), layer, ours, theirs, names["passages"]))
        if "chat.states" in base:
            ours, theirs = (torch.from_numpy(one["chat.states"][place]) for one in (base, other))
            found.append(_halved(NEUTRAL, layer, ours, theirs, names["chat"]))
        if "naming.states" in base and "testing.states" in base:
            of = {half: [torch.from_numpy(one[f"{half}.states"][place]) for one in (base, other)] for half in ("naming", "testing")}
            pairs = {half: (ours, theirs) for half, (ours, theirs) in of.items()}
            found.append(Differences(where=PROMPTS, layer=layer, units=names["testing"], **pairs))
    return found


def _halved(where: str, layer: int, ours: Tensor, theirs: Tensor, names: Sequence[str]) -> Differences:
    a, b = halves(len(names))
    return Differences(where=where, layer=layer, naming=(ours[a], theirs[a]), testing=(ours[b], theirs[b]), units=[names[i] for i in b])


def readings(model: Model, found: Sequence[Differences], ranked: Sequence[int]) -> list[Reading]:
    """What the model's unembedding reads of the ranked tokens from both voices' activations, other - base; of prompts, less that of neutral ones."""
    neutral: dict[int, np.ndarray] = {}
    made = []
    parts = [states for one in found for half in (one.naming, one.testing) for states in half]
    read = iter(_read_ranked(model, torch.cat(parts), ranked).split([len(states) for states in parts])) if parts else iter(())
    for one in found:
        naming, testing = ((-next(read) + next(read)).numpy() for _ in range(2))
        if one.where == NEUTRAL:
            neutral[one.layer] = np.concatenate([naming, testing]).mean(0)
        if one.where == PROMPTS and one.layer in neutral:
            naming, testing = naming - neutral[one.layer], testing - neutral[one.layer]
        made.append(Reading(reader=LENS, where=one.where, layer=one.layer, naming=naming, testing=testing, units=one.units))
    return made


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """What a vector written into the base does to log p of the ranked tokens."""

    nats: Float[np.ndarray, " vocab"]
    z: Float[np.ndarray, " vocab"]
    null: float
    """The largest z, either way, under random vectors of the same length."""


def replayed(
    model: Model, engine: Engine, cleans: Sequence[Clean], found: Sequence[Differences], ranked: Sequence[int], *, draws: int, seed: int
) -> dict[tuple[str, int], Replayed]:
    """Each mean difference, and `draws` random vectors of its length, added to the base's activation at the last token of these prompts."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for one in found:
        vector = one.vector()
        random = torch.randn(draws, len(vector), generator=generator)
        vectors = torch.cat([vector[None], random / random.norm(dim=1, keepdim=True) * vector.norm()])
        site = Site(one.layer, "resid_post")
        runs = [{site: Write(value=v.to(model.device).expand(len(cleans), 1, -1), add=True)} for v in vectors]
        logits = engine(model, cleans, runs).log_softmax(-1)[..., ranked].double().cpu()
        moved = (logits[:, 1:] - logits[:, :1]).mean(0).numpy()
        z = np.stack([robust_z(row) for row in moved])
        made[one.where, one.layer] = Replayed(nats=moved[0], z=z[0], null=float(np.abs(z[1:]).max()) if draws else 0.0)
    return made


def patchscopes(
    model: Model, engine: Engine, clean: Clean, found: Sequence[Differences], *, draws: int, seed: int
) -> list[tuple[Differences, Counter[int], Counter[int]]]:
    """Of each mean difference that is any: at how many of the scales a token comes first, and the same of `draws` random vectors.

    `clean`: a run of a prompt that repeats words, with its last token's states.
    """
    generator = torch.Generator().manual_seed(seed)
    made = []
    for one in found:
        vector, site = one.vector(), Site(one.layer, "resid_post")
        random = torch.randn(draws, len(vector), generator=generator)
        if not vector.norm() > 0:
            continue
        vectors = torch.nn.functional.normalize(torch.cat([vector[None], random]), dim=1) * clean.states[site][-1].float().norm().cpu()
        runs = [{site: Write(value=(scale * v).to(clean.states[site])[None, None])} for v in vectors for scale in SCALES]
        first = engine(model, [clean], runs)[0, 1:].argmax(-1).tolist()
        made.append((one, Counter(first[: len(SCALES)]), Counter(first[len(SCALES) :])))
    return made


def with_replay(line: Line, made: Mapping[tuple[str, int], Replayed], column: Mapping[int, int]) -> Line:
    """The line with what its vector does in the base."""
    assert line.layer is not None
    assert line.token is not None
    one, at = made[line.where, line.layer], column[line.token]
    return replace(line, replay_nats=float(one.nats[at]), replay_z=float(one.z[at] if line.gained else -one.z[at]), replay_null=one.null)
