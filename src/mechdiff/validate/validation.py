"""mechdiff proves itself: pairs with planted, known differences, and what every measure says of them.

    run()                  every truth in a tiny network made in code
    run(base="PATH")       the truths that hold in any model, planted in yours, and how small an edit would be found there (power.py)

A truth is a line of METHOD C: what is planted, what must hold and how exactly, what was found. Nothing here knows a measured number: every
expectation follows from the construction.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from mechdiff.errors import MechdiffError
from mechdiff.measures.steering.plan import NEUTRAL
from mechdiff.models.pair import load_net, wrap
from mechdiff.models.sources import load_tokenizer, resolve
from mechdiff.prompts.rendering import render
from mechdiff.prompts.sets import read_prompts
from mechdiff.prompts.templates import PromptPolicy
from mechdiff.validate import (
    nulls,
    organism,
    studies,
    truths,
    truths_answers,
    truths_experts,
    truths_heads,
    truths_maps,
    truths_prompts,
    truths_weights,
    truths_words,
)
from mechdiff.validate.checks import Check
from mechdiff.validate.edits import Absent
from mechdiff.validate.planted import Bench, tiny_bench
from mechdiff.validate.power import BACKGROUND, Curve, power

Truth = Callable[[Bench], Iterator[Check]]

TRUTHS: dict[str, tuple[Truth, ...]] = {
    "P0": (truths.p0, truths_maps.p0, studies.p0),
    "P1": (truths_maps.p1, truths_weights.p1, studies.p1),
    "P2": (truths.p2, truths_maps.p2, studies.p2),
    "P3": (truths.p3,),
    "P4a": (truths_heads.p4a,),
    "P4b": (truths_heads.p4b,),
    "P4c": (truths_heads.p4c,),
    "P5": (truths_weights.p5,),
    "P6": (studies.p6,),
    "P7": (studies.p7,),
    "P7b": (truths_prompts.p7b,),
    "P8": (truths.p8, truths_heads.p8),
    "P9": (truths.p9,),
    "P10": (truths_heads.p10, truths_weights.p10),
    "P11": (truths_weights.p11,),
    "P12": (truths.p12,),
    "P13": (truths.p13,),
    "P14": (truths_heads.p14,),
    "P15": (truths_heads.p15,),
    "P16": (truths_maps.p16,),
    "P17": (organism.p17,),
    "P18": (truths_prompts.p18,),
    "P19": (truths_weights.p19,),
    "P20": (nulls.p20,),
    "P21": (truths_experts.p21,),
    "P22": (truths_words.p22, truths_words.p22_amplified),
    "P23": (truths_weights.p23,),
    "P24": (truths_answers.p24, truths_answers.p24_constant),
    "P25": (truths_prompts.p25,),
    "P26": (studies.p26,),
}
"""By METHOD's number, in its order."""

QUICK = ("P0", "P2", "P4a", "P5", "P16", "P21", "P25", "P26")
"""Truths that take a minute together: of nothing and of one matrix by a whole study of every measure, then heads, weights, maps, experts, the chat
template and later blocks, each by a truth of its own."""

ANY_MODEL: dict[str, tuple[Truth, ...]] = {
    "P0": (truths.p0,),
    "P2": (truths.p2,),
    "P3": (truths.p3,),
    "P4a": (truths_heads.p4a,),
    "P8": (truths.p8,),
    "P9": (truths.p9,),
    "P12": (truths.p12,),
    "P13": (truths.p13,),
    "P15": (truths_heads.p15,),
}
"""Those that need nothing of the network's kind."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """One truth: what was planted, and what came out."""

    truth: str
    planted: str
    checks: list[Check]
    seconds: float

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(check.passed for check in self.checks)


@dataclass(frozen=True, kw_only=True)
class Validation:
    """All truths of one network, and its power curves where they were asked for."""

    model: str
    proofs: list[Proof]
    skipped: dict[str, str] = field(default_factory=dict)
    """Truth -> why it cannot be planted in this model."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Truth -> what it would have planted: those that were not asked for."""
    curves: list[Curve] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return all(proof.passed for proof in self.proofs)

    def to_json(self) -> str:
        """Everything, for other programs."""
        return json.dumps(
            {
                "model": self.model,
                "passed": self.passed,
                "truths": [
                    {"truth": one.truth, "planted": one.planted, "passed": one.passed, "seconds": round(one.seconds, 2),
                     "checks": [check.record() for check in one.checks]}
                    for one in self.proofs
                ],
                "skipped": self.skipped,
                "left_out": self.left_out,
                "power": [curve.record() for curve in self.curves],
            },
            indent=1,
        )  # fmt: skip


def run(
    *, base: str | None = None, only: Sequence[str] = (), seed: int = 0, device: str = "cpu", with_power: bool = True,
    progress: Callable[[str], None] = lambda what: None,
) -> Validation:  # fmt: skip
    """Plants every truth (or `only` some) and looks for it.

    `base`: a model's folder, GGUF file or Hub id; None: the tiny network of `seed`.

    Raises MechdiffError: an unknown truth, one that cannot be planted in any model, a model that is not there.
    """
    table = ANY_MODEL if base else TRUTHS
    if unknown := [name for name in only if name not in table]:
        what = "can be planted in any model" if base else "is known"
        raise MechdiffError(f"--only {','.join(unknown)}: no such truth {what}. There are: {', '.join(table)}.")
    bench = model_bench(base, device=device) if base else tiny_bench(seed)
    proofs: list[Proof] = []
    skipped: dict[str, str] = {}
    for name in only or table:
        progress(name)
        started = time.perf_counter()
        try:
            checks = [check for truth in table[name] for check in truth(bench)]
        except Absent as error:
            skipped[name] = str(error)
            continue
        proofs.append(Proof(truth=name, planted=_planted(table[name]), checks=checks, seconds=time.perf_counter() - started))
    curves: list[Curve] = []
    for background in (0.0, BACKGROUND) if base and with_power else ():
        progress("power, beside diffuse change" if background else "power")
        curves += power(bench, background=background, seed=seed)
    left_out = {name: _planted(table[name]) for name in table if only and name not in only}
    return Validation(model=base or f"tiny network, seed {seed}", proofs=proofs, skipped=skipped, left_out=left_out, curves=curves)


def _planted(truths: Sequence[Truth]) -> str:
    """What a truth plants, in the first line of its docstring."""
    return (truths[0].__doc__ or "").strip().splitlines()[0]


N_PROMPTS = 40
"""Prompts of a user's model, of which most truths read a few."""


def model_bench(ref: str, *, device: str = "cpu") -> Bench:
    """A user's model in float32, and neutral questions as its chat template renders them (bare where it has none).

    Memory for two copies of the model is needed.
    """
    source = resolve(ref)
    net, tokenizer = load_net(source, dtype="float32", device=torch.device(device)), load_tokenizer(source)
    shape = wrap(net, side="base", ref=ref).shape
    policy = PromptPolicy(policy="same_text" if tokenizer.chat_template else "raw")
    asked = read_prompts(NEUTRAL)[:N_PROMPTS]
    rendered = render(asked, tokenizer, tokenizer, policy, max_base=shape.context, max_tuned=shape.context)
    return Bench(net=net, prompts=[list(one.ids_base) for one in rendered], layer=shape.n_layers // 2, rounding=1e-6, n_prompts=4)
