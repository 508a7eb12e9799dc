"""What a voice says where its difference from the base is amplified: z + a (z - z_base), token by token, brings up what it seldom says by itself.

Of each token that it gives at least a tenth of its likeliest one's probability: else amplifying would say what both find absurd, one more than the
other (Li et al. 2023; Liu et al. 2021). The draws are those of its own texts. What is said so often falls into loops: such texts are counted, and
their seeds are left out of both halves. Lines of evidence are made of these texts by the same steps as of its own, beside the base's own text, and
are held against the same null pairs: a random edit's difference is amplified just as much, and the base's difference from itself is none.

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
from mechdiff.measures.words.listen import Said, heard, said_by, seeds_of, speech_of, texts_of
from mechdiff.measures.words.plan import AGAIN, EDIT, TUNED
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
CUT = 0.1
"""Share of the likeliest token's probability from which a token may be said where a difference is amplified."""
PLACES = ("raw", "naming", "testing")
"""Seeds that are gone on with: openings, and the study's own prompts."""


def hear_amplified(run: Execution, cell: Cell, model: Model | None) -> Result:
    """By strength what the tuned model, or the base with a random edit, says behind each seed; nothing where both models cannot be held at once."""
    assert model
    pair = run.prepared.pair
    if pair.one_at_a_time or not side_by_side(model, run.engine(model, "decision")):
        return empty(), {}
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


def _said(run: Execution, cell: Cell, model: Model, tuned: Opened) -> dict[str, Any]:
    """Strength -> seed -> what is said, as bytes."""
    seeds = [one for one in seeds_of(run, cell, "base") if one.where in PLACES]
    speech, found = speech_of(run, cell, model, cell.key["seed"]), {}
    for strength in cell.key["amplify"]:
        said = speak_amplified(tuned, lambda: run.prepared.pair.use("base"), [one.ids for one in seeds], speech, strength=strength)
        found[called(strength)] = {
            one.name: {"ids": ids.tolist(), "ended": len(ids) < min(speech.max_tokens, model.shape.context - len(one.ids))}
            for one, ids in zip(seeds, said, strict=True)
        }
    return {"amplified": as_bytes(found)}


def called(strength: float) -> str:
    """A strength as units and records have it: "amplified 3"."""
    return f"amplified {strength:g}"


def amplified_of(run: Execution, cell: Cell, voice: str, draw: int) -> dict[str, Said]:
    """By strength what a voice said so. The base's difference from itself is none: amplified it is its second turn. Empty where it was not asked."""
    strengths = cell.key.get("amplify", ())
    if voice == AGAIN:
        names = [one.name for one in seeds_of(run, cell, "base") if one.where in PLACES]
        said = said_by(run, cell, AGAIN)
        return {called(strength): {name: said[name] for name in names} for strength in strengths}
    told = next((one for one in run.cells if one.stage == "words_amplified" and (one.key["voice"], one.key["draw"]) == (voice, draw)), None)
    tensors = run.folder.load(told.key).tensors if told else {}
    return json.loads(bytes(tensors["amplified"]).decode()) if "amplified" in tensors else {}


def loops(run: Execution, cell: Cell) -> dict[str, int]:
    """By strength how many of the tuned model's texts repeat themselves, and are left out."""
    return {name: sum(map(texts.loops, texts_of(run, said, "tuned").values())) for name, said in amplified_of(run, cell, TUNED, 0).items()}


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
    tuned: Opened, base: Opened, prompts: Sequence[Sequence[int]], speech: Speech, *, strength: float, cut: float = CUT
) -> list[Int[Tensor, " token"]]:
    """What is said behind each prompt where the tuned model's difference from the base is amplified at every token; strength 0 is its own text
    but for the cut.

    Both models have one vocabulary and speak side by side (`replay`); at every token each is opened in turn.
    """
    found: dict[int, Tensor] = {}

    def some(numbers: Sequence[int]) -> None:
        asked, voices = [prompts[i] for i in numbers], []
        for opened in (tuned, base):
            with opened() as model:
                voices.append(Voices(model, read_apart(model, asked), (), speech))
        ours, theirs = voices
        while True:
            n = min(ours.logits.shape[-1], theirs.logits.shape[-1])
            ours.logits = amplified(ours.logits[:, :n], theirs.logits[:, :n], strength=strength, cut=cut)
            if (tokens := ours.take(leaving=False)) is None:
                break
            for opened, one in ((tuned, ours), (base, theirs)):
                with opened():
                    one.step(tokens)
        found.update(zip(numbers, ours.spoken(), strict=True))

    by_length = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    for start in range(0, len(prompts), SEQUENCES // 2):
        in_halves(some, by_length[start : start + SEQUENCES // 2])
    return [found[i] for i in range(len(prompts))]
