"""What a voice says where its difference from the base is amplified: z + a (z - z_base), token by token, brings up what it seldom says by itself.

Of the tokens alone that it gives at least a tenth of its likeliest one's probability: else amplifying would say what both find absurd, one more
than the other (Li et al. 2023; Liu et al. 2021). The draws are those of its own texts. The base speaks beside it under the same cut, and so does its
second turn: its difference from itself is none, but the cut is not, and a text that is cut differs from one that is not. What is said so often falls
into loops: seeds behind which either text does are counted, and left out of both halves. Lines of evidence are made of these texts by the same steps
as of its own, and are held against the same null pairs: a random edit's difference is amplified just as much.

It takes both models side by side at every token, and one vocabulary.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from mechdiff.engine.continued import in_halves
from mechdiff.engine.generation import SEQUENCES, Speech, Voices
from mechdiff.engine.reading import read_apart, side_by_side
from mechdiff.measures.words import texts
from mechdiff.measures.words.listen import Said, heard, seeds_of, speech_of, texts_of
from mechdiff.measures.words.plan import AGAIN, BASE, CUT, EDIT, TUNED
from mechdiff.measures.words.random_edits import deltas, holding, random_edit
from mechdiff.models.modules import changes_of
from mechdiff.models.pair import Model
from mechdiff.rows import empty
from mechdiff.store.disk import as_bytes
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution
from mechdiff.study.experiment import Result

Opened = Callable[[], AbstractContextManager[Model]]
"""Opens a model, ready to run."""
PLACES = ("raw", "naming", "testing")
"""Seeds that are gone on with: openings, and the study's own prompts."""


def hear_amplified(run: Execution, cell: Cell, model: Model | None) -> Result:
    """By strength what the tuned model, or the base with a random edit, says behind each seed; what the base and its second turn say under the cut.

    Nothing where a model of this dtype and engine, which every key names, is not read side by side; of a random edit nothing where there is none.
    """
    assert model
    pair = run.prepared.pair
    if not side_by_side(model, run.engine(model, "decision")):
        return empty(), {}
    if cell.key["voice"] in (BASE, AGAIN):
        return empty(), _said(run, cell, model, None)
    if cell.key["voice"] == TUNED:
        return empty(), _said(run, cell, model, lambda: pair.use("tuned"))
    null = heard(run, cell, EDIT, cell.key["draw"])
    if "scale" not in null:
        return empty(), {}
    with pair.use("base") as base:
        tensors = random_edit(base, deltas(base, changes_of(pair, base)), scale=float(null["scale"][0]), seed=cell.key["draw"])

    @contextmanager
    def edited() -> Iterator[Model]:
        with pair.use("base") as base, holding(base, tensors) as model:
            yield model

    return empty(), _said(run, cell, model, edited)


def _said(run: Execution, cell: Cell, model: Model, tuned: Opened | None) -> dict[str, Any]:
    """Strength -> seed -> what is said, as bytes; without `tuned` what the base says under the cut, at every strength the same."""
    seeds, found = [one for one in seeds_of(run, cell, "base") if one.where in PLACES], {}
    speech, cut = speech_of(run, cell, model, cell.key["seed"] + (cell.key["voice"] == AGAIN)), cell.key["cut"]
    prompts, names = [one.ids for one in seeds], [called(strength) for strength in cell.key["amplify"]]

    def base() -> AbstractContextManager[Model]:
        return run.prepared.pair.use("base")

    def told(said: Sequence[Tensor]) -> Said:
        return {
            one.name: {"ids": ids.tolist(), "ended": len(ids) < min(speech.max_tokens, model.shape.context - len(one.ids))}
            for one, ids in zip(seeds, said, strict=True)
        }

    if tuned is None:
        found = dict.fromkeys(names, told(speak_amplified(base, None, prompts, speech, strength=0, cut=cut)))
    else:
        for name, strength in zip(names, cell.key["amplify"], strict=True):
            found[name] = told(speak_amplified(tuned, base, prompts, speech, strength=strength, cut=cut))
    return {"amplified": as_bytes(found)}


def called(strength: float) -> str:
    """A strength as units and records have it: "amplified 3"."""
    return f"amplified {strength:g}"


def amplified_of(run: Execution, voice: str, draw: int = 0) -> dict[str, Said]:
    """By strength what a voice said so; of the base and its second turn what they say under the cut.

    Empty for every voice where it was not asked, or where any voice that was planned has none: texts are not judged without their null pairs.
    """
    return run.once("words amplified", lambda: _every(run)).get((voice, draw), {})


def _every(run: Execution) -> dict[tuple[str, int], dict[str, Said]]:
    found = {}
    for one in run.cells:
        if one.stage == "words_amplified":
            tensors = run.folder.load(one.key).tensors
            if "amplified" not in tensors:
                return {}
            found[one.key["voice"], one.key["draw"]] = json.loads(bytes(tensors["amplified"]).decode())
    return found


def loops(run: Execution) -> dict[str, int]:
    """By strength behind how many seeds the tuned model's text, or the base's beside it, repeats itself: they are left out."""
    found = {}
    for name, said in amplified_of(run, TUNED).items():
        both = texts_of(run, said, "tuned"), texts_of(run, amplified_of(run, BASE)[name], "base")
        found[name] = sum(any(texts.loops(one[seed]) for one in both) for seed in said)
    return found


# ---- both models side by side ---------------------------------------------------------------------------------------------------------


def amplified(
    tuned: Float[Tensor, "*row vocab"], base: Float[Tensor, "*row vocab"], *, strength: float, cut: float = CUT
) -> Float[Tensor, "*row vocab"]:
    """Logits z_t + strength (z_t - z_b) of the tokens that the tuned model itself gives at least `cut` times its likeliest one's probability.

    Of all others -inf: where both models find a token absurd, one more than the other, amplifying would say it.
    """
    least = tuned.max(-1, keepdim=True).values + math.log(cut)
    return (tuned + strength * (tuned - base)).masked_fill(tuned < least, -math.inf)


def speak_amplified(
    tuned: Opened, base: Opened | None, prompts: Sequence[Sequence[int]], speech: Speech, *, strength: float, cut: float = CUT
) -> list[Int[Tensor, " token"]]:
    """What is said behind each prompt where the tuned model's difference from the base is amplified at every token; strength 0 is its own text
    but for the cut, and so it is without a base.

    Both models have one vocabulary and speak side by side (`replay`); at every token each is opened in turn.
    """
    found: dict[int, Tensor] = {}
    both = (tuned,) if base is None else (tuned, base)

    def some(numbers: Sequence[int]) -> None:
        asked, voices = [prompts[i] for i in numbers], []
        for opened in both:
            with opened() as model:
                voices.append(Voices(model, read_apart(model, asked), (), speech))
        ours, theirs = voices[0], voices[-1]
        while True:
            n = min(ours.logits.shape[-1], theirs.logits.shape[-1])
            ours.logits = amplified(ours.logits[:, :n], theirs.logits[:, :n], strength=strength, cut=cut)
            if (tokens := ours.take(leaving=False)) is None:
                break
            for opened, one in zip(both, voices, strict=True):
                with opened():
                    one.step(tokens)
        found.update(zip(numbers, ours.spoken(), strict=True))

    by_length = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    for start in range(0, len(prompts), SEQUENCES // 2):
        in_halves(some, by_length[start : start + SEQUENCES // 2])
    return [found[i] for i in range(len(prompts))]
