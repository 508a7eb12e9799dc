"""Each voice reads the same texts and goes on with the same seeds: its distributions, its activations, and what it says, as numbers and tokens.

A voice is a model that the others are compared with: the base, the tuned model, the base once more with other draws, the base with a random edit
of the fine-tune's size. What a token's rise needs is a mean of log p over a text's positions, so that alone is kept of a text.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from mechdiff.architectures.sites import Site
from mechdiff.engine.activations import Clean, capture, edited, forward
from mechdiff.engine.continued import Continuation, Continued, in_halves, likelihoods
from mechdiff.engine.generation import SEQUENCES, Sampling, Speech, speak, speak_on, stop_ids
from mechdiff.engine.grafts import Batch, batches
from mechdiff.engine.reading import read_apart, side_by_side
from mechdiff.engine.replay import replay
from mechdiff.measures.words.depth import by_depth
from mechdiff.measures.words.plan import AGAIN, BASE, PASSAGE_TOKENS, SEEDS, TUNED, openings, read_passages
from mechdiff.measures.words.random_edits import deltas, randomly_edited, scaled_to
from mechdiff.models.modules import changes_of
from mechdiff.models.pair import SIDES, Model, Side
from mechdiff.rows import empty
from mechdiff.spacing import evenly_spaced
from mechdiff.store.disk import as_bytes
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution
from mechdiff.study.experiment import Result

FIRST = (1, 2)
"""Positions of a passage whose activations are kept, each by itself; at 0 every text has the same."""
PASS_TOKENS = 512
"""Tokens whose distributions are in memory together."""
SCALED_ON = 6
"""Prompts on which a random edit is scaled."""
DEPTH_ON = 8
"""Prompts of each place on which every block is read."""
ROOM = 4
"""Tokens that must fit behind a seed."""
Said = dict[str, dict[str, Any]]
"""Seed -> `ids`, and whether it `ended` by itself."""


@dataclass(frozen=True, kw_only=True)
class Seed:
    """What a voice goes on with."""

    name: str
    where: str
    """raw, chat, naming, or testing."""
    text: str
    ids: tuple[int, ...]


def seeds_of(run: Execution, cell: Cell, side: Side) -> list[Seed]:
    """Openings as they are, everyday questions and the study's own prompts as the template has them; those that leave no room are left out."""
    tokenizer = run.prepared.pair.tokenizer(side)
    found = [
        Seed(name=name, where="raw", text=text, ids=tuple(tokenizer(text, verbose=False)["input_ids"]))
        for name, text in openings(cell.key["settings"]["openings"])
    ]
    asked = [("chat", SEEDS, name) for name in cell.key["neutral"]]
    asked += [("naming", split, name) for split, name in cell.key["naming"]] + [("testing", "report", name) for name in cell.key["testing"]]
    room = min(_context(run, one) for one in SIDES) - ROOM
    for where, split, name in asked:
        one = run.prompt(split, name)
        if max(len(one.ids_base), len(one.ids_tuned)) <= room:
            ids = one.ids_base if side == "base" else one.ids_tuned
            found.append(Seed(name=f"{split}/{name}" if where == "naming" else name, where=where, text=one.prompt.text, ids=ids))
    return [one for one in found if one.ids]


def _context(run: Execution, side: Side) -> int:
    from mechdiff.architectures.lookup import shape_of

    return shape_of(run.prepared.pair.config(side)).context


# ---- a voice -----------------------------------------------------------------------------------------------------------------------


def hear(run: Execution, cell: Cell, model: Model | None) -> Result:
    """What one of the two models finds likely, holds inside, and says; of the base's second turn only what it says."""
    assert model
    return empty(), heard_of(run, cell, model, seed=cell.key["seed"] + (cell.key["voice"] == AGAIN))


def hear_random(run: Execution, cell: Cell, model: Model | None) -> Result:
    """The same of the base with a random edit that diverges from it as far as the tuned model does; nothing where the two do not diverge."""
    assert model
    prompts = scaled_on(run, cell)
    own = laws_of(run, model, prompts)
    with run.prepared.pair.use("tuned") as tuned:
        wanted = kl_nats(laws_of(run, tuned, prompts), own)
    if not wanted > 0:
        return empty(), {}
    with run.prepared.pair.use("base") as base:
        changed = deltas(base, changes_of(run.prepared.pair, base))
        if not changed:
            return empty(), {}
        draw = cell.key["draw"]

        def reached(scale: float) -> float:
            with randomly_edited(base, changed, scale=scale, seed=draw):
                return kl_nats(laws_of(run, base, prompts), own)

        scale, found = scaled_to(wanted, reached)
        with randomly_edited(base, changed, scale=scale, seed=draw):
            heard = heard_of(run, cell, base, seed=cell.key["seed"])
    return empty(), {**heard, "scale": np.array([scale, found, wanted])}


def scaled_on(run: Execution, cell: Cell) -> list[tuple[int, ...]]:
    """Prompts on which random edits are scaled."""
    asked = [one for one in seeds_of(run, cell, "base") if one.where in ("chat", "testing")]
    return [one.ids for one in evenly_spaced(SCALED_ON, asked)]


def heard_of(run: Execution, cell: Cell, model: Model, *, seed: int) -> dict[str, np.ndarray]:
    """What a voice says; of all but the base's second turn also what it finds likely and holds inside."""
    seeds = seeds_of(run, cell, model.side)
    settings, speech = cell.key["settings"], speech_of(run, cell, model, seed)
    reads = cell.key["tokens"] and cell.key.get("voice") != AGAIN
    sites = [Site(layer, "resid_post") for layer in range(model.shape.n_layers if cell.key["layers"] else 0)] if reads else None
    said, cleans = _spoken(run, model, [one.ids for one in seeds], speech, sites)
    told = {
        one.name: {"ids": ids, "ended": len(ids) < min(settings["max_tokens"], model.shape.context - len(one.ids))}
        for one, ids in zip(seeds, said, strict=True)
    }
    found = {"said": as_bytes(told)}
    if sites is not None:
        found |= _read(run, cell, model, {one.name: (one.where, clean) for one, clean in zip(seeds, cleans, strict=True)})
    return found


def speech_of(run: Execution, cell: Cell, model: Model, seed: int) -> Speech:
    """How a voice goes on: the same draws for every voice of one seed."""
    settings = cell.key["settings"]
    sampling = Sampling(temperature=settings["temperature"], top_p=settings["top_p"], seed=seed)
    stop = stop_ids(model, run.prepared.pair.tokenizer(model.side), run.prepared.tokenizers())
    return Speech(max_tokens=settings["max_tokens"], stop=stop, sampling=sampling)


def _spoken(
    run: Execution, model: Model, prompts: Sequence[Sequence[int]], speech: Speech, sites: Sequence[Site] | None
) -> tuple[list[list[int]], list[Clean]]:
    """What is said behind each prompt, and what it gave when it was read, without its cache: a prompt is read once for both where that is exact."""
    if not side_by_side(model, run.engine(model, "decision")):
        said = [ids.tolist() for ids in speak(model, run.engine(model, "decision"), prompts, speech)]
        return said, [] if sites is None else _captured(run, model, prompts, sites)
    found: dict[int, tuple[list[int], Clean]] = {}

    def some(rows: Sequence[int]) -> None:
        cleans = read_apart(model, [prompts[row] for row in rows], sites or ())
        for row, ids, clean in zip(rows, speak_on(model, cleans, speech), cleans, strict=True):
            found[row] = ids.tolist(), replace(clean, cache=None, beside=None)

    by_length = sorted(range(len(prompts)), key=lambda row: (len(prompts[row]), row))
    for start in range(0, len(prompts), SEQUENCES):
        in_halves(some, by_length[start : start + SEQUENCES])
    return [found[row][0] for row in range(len(prompts))], [found[row][1] for row in range(len(prompts))]


def _read(run: Execution, cell: Cell, model: Model, prompts: Mapping[str, tuple[str, Clean]]) -> dict[str, np.ndarray]:
    """Mean log p of every token over each passage's positions and at each prompt's last; what is expected of each token in all; activations."""
    tokenizer = run.prepared.pair.tokenizer(model.side)
    texts = [tokenizer(text, verbose=False)["input_ids"][:PASSAGE_TOKENS] for _, text in read_passages(cell.key["settings"]["passages"])]
    sites = [Site(layer, "resid_post") for layer in cell.key["layers"]]
    over, mass, states = _passages(run, model, texts, sites)
    found = {"passages": over}
    if sites:
        found["first"] = states
    for where in ("chat", "naming", "testing"):
        cleans = [clean for of, clean in prompts.values() if of == where]
        if not cleans:
            continue
        laws = _log_softmax(run, torch.stack([clean.logits for clean in cleans]), model.side)
        mass += laws.exp().double().sum(0).numpy()
        found[where] = laws.numpy()
        if sites:
            found[f"{where}.states"] = (
                torch.stack([torch.stack([clean.states[site][-1] for clean in cleans]) for site in sites]).float().cpu().numpy()
            )
        if sites and where != "naming" and cell.key.get("voice") in (BASE, TUNED):
            found |= _by_depth(run, model, where, cleans, laws)
    return {**found, "mass": mass}


def _by_depth(run: Execution, model: Model, where: str, cleans: Sequence[Clean], laws: Tensor) -> dict[str, np.ndarray]:
    """Of every block, on the first of these prompts: how far what it hands on is from what comes out, and the token that is read from it."""
    tokens, every = run.prepared.tokens, [Site(layer, "resid_post") for layer in range(model.shape.n_layers)]
    states = torch.stack([torch.stack([clean.states[site][-1] for clean in cleans[:DEPTH_ON]]) for site in every])
    kl, top = by_depth(model, states, laws[:DEPTH_ON], lambda logits: tokens.place(logits, model.side)[..., : tokens.n_shared])
    return {f"{where}.depth": kl, f"{where}.tops": top}


def _passages(
    run: Execution, model: Model, texts: Sequence[Sequence[int]], sites: Sequence[Site]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`[text, vocab]` mean log p behind every token but the first; `[vocab]` what is expected there; `[layer, text, first, d]` activations."""
    one_by_one = run.engine(model, "decision") is not replay
    n_vocab = run.prepared.tokens.n_shared
    over, mass = np.zeros((len(texts), n_vocab), np.float32), np.zeros(n_vocab)
    kept: dict[Site, dict[int, Tensor]] = {site: {} for site in sites}
    for batch in batches(model, texts, 1 if one_by_one else PASS_TOKENS):
        with edited(model, {site: _keeper(kept[site], batch) for site in sites}):
            logits = forward(model, batch.ids, logits_to_keep=0, use_cache=False).logits
        for place, row in enumerate(batch.rows):
            laws = _log_softmax(run, logits[place, 1 : len(texts[row])].float(), model.side)
            over[row] = laws.mean(0, dtype=torch.float64).numpy()
            mass += laws.exp().double().sum(0).numpy()
    states = [torch.stack([kept[site][row] for row in range(len(texts))]).float().cpu().numpy() for site in sites]
    return over, mass, np.stack(states) if states else np.zeros(0)


def _keeper(kept: dict[int, Tensor], batch: Batch) -> Any:
    def keep(tensor: Tensor) -> None:
        for place, row in enumerate(batch.rows):
            kept[row] = tensor[place, [min(at, int(batch.last[place])) for at in FIRST]].clone()

    return keep


def _captured(run: Execution, model: Model, prompts: Sequence[Sequence[int]], sites: Sequence[Site]) -> list[Clean]:
    if side_by_side(model, run.engine(model, "decision")):
        return read_apart(model, prompts, sites)
    return [capture(model, ids, sites, [len(ids) - 1]) for ids in prompts]


def laws_of(run: Execution, model: Model, prompts: Sequence[Sequence[int]]) -> Tensor:
    return _log_softmax(run, torch.stack([clean.logits for clean in _captured(run, model, prompts, [])]), model.side)


def _log_softmax(run: Execution, logits: Tensor, side: str) -> Tensor:
    tokens = run.prepared.tokens
    return tokens.place(logits, side)[..., : tokens.n_shared].log_softmax(-1).cpu()


def kl_nats(one: Tensor, reference: Tensor) -> float:
    """Mean KL(one || reference) in nats."""
    return float((one.double().exp() * (one.double() - reference.double())).nan_to_num().sum(-1).mean())


# ---- what both think of it -----------------------------------------------------------------------------------------------------------


def score(run: Execution, cell: Cell, model: Model | None) -> Result:
    """log p that one model gives to what each model said, by seed; NaN where nothing was said, and for prompts that only name."""
    assert model
    seeds = {one.name: one for one in seeds_of(run, cell, model.side)}
    names = [name for name, one in seeds.items() if one.where != "naming"]
    asked: list[Continuation] = []
    places: list[tuple[str, int]] = []
    for writer in (BASE, TUNED):
        texts = tokens_of(run, said_by(run, cell, writer), writer, model.side)
        for number, name in enumerate(names):
            if ids := texts[name][: model.shape.context + 1 - len(seeds[name].ids)]:
                asked.append(Continuation(prompt=number, ids=ids))
                places.append((writer, number))
    prompts = [seeds[name].ids for name in names]
    found = {writer: np.full(len(names), np.nan) for writer in (BASE, TUNED)}
    if asked:
        scored = likelihoods(model, run.engine(model, "decision"), Continued(prompts=prompts, continuations=asked), max_rows=run.max_rows)
        for (writer, number), value in zip(places, scored.logps[:, 0].tolist(), strict=True):
            found[writer][number] = value
    return empty(), found


def tokens_of(run: Execution, said: Said, writer: str, reader: Side) -> dict[str, list[int]]:
    """What was said, in the reader's tokens."""
    if run.prepared.tokens.equal or writer == reader:
        return {name: one["ids"] for name, one in said.items()}
    tokenizer = run.prepared.pair.tokenizer(reader)
    return {
        name: tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        for name, text in texts_of(run, said, cast(Side, writer)).items()
    }


def texts_of(run: Execution, said: Said, side: Side) -> dict[str, str]:
    tokenizer = run.prepared.pair.tokenizer(side)
    return {name: str(tokenizer.decode(one["ids"], skip_special_tokens=True)) for name, one in said.items()}


def cell_of(run: Execution, like: Cell, voice: str, draw: int = 0) -> Cell:
    """The cell in which a voice was heard."""
    stages = ("words_heard", "words_null")
    return next(one for one in run.cells if one.stage in stages and (one.key["voice"], one.key["draw"]) == (voice, draw))


def heard(run: Execution, like: Cell, voice: str, draw: int = 0) -> Mapping[str, np.ndarray]:
    cell = cell_of(run, like, voice, draw)
    return run.once(("words", voice, draw), lambda: run.folder.load(cell.key).tensors)


def said_by(run: Execution, like: Cell, voice: str, draw: int = 0) -> Said:
    said: Said = json.loads(bytes(heard(run, like, voice, draw)["said"]).decode())
    return said
