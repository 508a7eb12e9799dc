"""What one model says after a prompt is read by both, token by token: their activations there, and what either would say next.

The first token of an answer is where a fine-tune often differs most and says least (how an answer opens). So some report prompts are followed by
the greedy answer of one model, and both models read the same tokens. The positions of an answer are those after which a token of it
comes: the decision position, then every token of the answer but its last. An answer that ends early has one position more, behind which it ends.

Where the two tokenizers write the answer in different tokens, or one lacks a token, the answer is cut there.
"""

from collections.abc import Mapping, Sequence
from itertools import takewhile

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechdiff.architectures.sites import Site
from mechdiff.engine.activations import Clean
from mechdiff.engine.generation import Speech, speak, stop_ids
from mechdiff.engine.reading import seen
from mechdiff.models.pair import SIDES, Model, Side
from mechdiff.rows import empty
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution, answered
from mechdiff.study.experiment import Result


def answer(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Tensors: `base` and `tuned`, each prompt's answer in that model's tokens `[prompt, place]`, -1 behind its end. The last position's token is the
    one that would come there (any, where the answer has ended): nobody reads it."""
    assert model
    prompts, n_tokens = [run.ids(cell, name) for name in cell.key["ids"]], cell.key["answer"]["tokens"]
    stop = stop_ids(model, run.prepared.pair.tokenizer(model.side), run.prepared.tokenizers())
    said = speak(model, run.engine(model, "decision"), prompts, Speech(max_tokens=n_tokens, stop=stop))
    tables: dict[str, np.ndarray] = {side: np.full((len(prompts), n_tokens), -1, dtype=np.int64) for side in SIDES}
    for row, ids in enumerate(said):
        told = [*ids.tolist(), min(stop, default=0)] if len(ids) < n_tokens else ids.tolist()
        theirs = as_other_writes(run, model.side, told[:-1])
        for side, kept in ((model.side, told[: len(theirs) + 1]), (_other(model.side), [*theirs, 0])):
            tables[side][row, : len(kept)] = kept
    return empty(), tables


def as_other_writes(run: Execution, side: Side, ids: Sequence[int]) -> list[int]:
    """What one model said, in the other's tokens, as far as the other's tokenizer writes the same text in the same pieces."""
    tokens, other = run.prepared.tokens, _other(side)
    table = torch.from_numpy(tokens.ids[other])[tokens.listed(side, torch.tensor(ids, dtype=torch.long))].tolist() if ids else []
    if tokens.all_shared:
        return table
    theirs = list(takewhile(lambda one: one >= 0, table))
    text = b"".join(run.prepared.vocabularies[side].spelled(ids[: len(theirs)])).decode(errors="ignore")
    written = run.prepared.pair.tokenizer(other)(text, add_special_tokens=False)["input_ids"] if text else []
    return [mine for mine, _ in takewhile(lambda pair: pair[0] == pair[1], zip(theirs, written, strict=False))]


def _other(side: Side) -> Side:
    return "base" if side == "tuned" else "tuned"


FOLDS = 4
"""Parts of the answered prompts: what is fitted on answers is used on the prompts of the part that it has not seen."""


def others(clusters: Mapping[str, str], prompt: str) -> list[str]:
    """The answered prompts that a direction or map is made of which is used on this one; `clusters`: the cluster of each answered prompt, by name.

    Clusters are dealt in turn to FOLDS parts (of fewer clusters, as many parts); these are the prompts of the other parts.
    """
    parts = {cluster: i % FOLDS for i, cluster in enumerate(dict.fromkeys(clusters.values()))}
    return [name for name, cluster in clusters.items() if parts[cluster] != parts[clusters[prompt]]]


def unseen(run: Execution, prompt: str) -> tuple[str, ...]:
    """`others` of this prompt in a run."""
    cell = next(one for one in run.cells if one.stage == "answer")  # where both models answer, they answer the same prompts
    names = cell.key["ids"]
    return tuple(others(dict(zip(names, run.clusters(cell.key["split"], names), strict=True)), prompt))


def along(run: Execution, cell: Cell, side: str, layer: int, names: Sequence[str]) -> list[Float[Tensor, "place d"]]:
    """One model's activations at a cell's kind of site in one block, at every position of the answers to these prompts that the cell is about."""
    kind, of = cell.key["kind"], answered(cell)
    found = run.states(side, cell.key["split"], cell.key["position"], names, of)
    lengths = [len(said) for said in run.answers("tuned", names, of)]
    return [state[:n] for state, n in zip(found.kinds[kind][found.layers.index(layer)], lengths, strict=True)]


def answer_states(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Tensors: activations by kind `[layer, prompt, place, d]`, and `logits` `[prompt, place, vocab]`; 0 behind an answer's end."""
    assert model
    kinds, layers, n_places = cell.key["kinds"], cell.key["layers"], cell.key["answer"]["tokens"]
    sites = [Site(layer, kind) for layer in layers for kind in kinds]
    prompts, answers = [run.ids(cell, name) for name in cell.key["ids"]], run.answers(model.side, cell.key["ids"], answered(cell))
    read = [(*ids, *said[:-1]) for ids, said in zip(prompts, answers, strict=True)]
    where = [range(len(ids) - 1, len(whole)) for ids, whole in zip(prompts, read, strict=True)]
    cleans = seen(model, run.engine(model, "decision"), read, sites, where, every=True)

    def padded(clean: Clean, site: Site) -> Float[Tensor, "place d"]:
        state = clean.states[site].float().cpu()
        return torch.nn.functional.pad(state, (0, 0, 0, n_places - len(state)))

    tensors = {
        kind: torch.stack([torch.stack([padded(clean, Site(layer, kind)) for clean in cleans]) for layer in layers]).numpy()
        for kind in kinds
    }  # fmt: skip
    laws = [run.prepared.tokens.place(clean.logits, model.side).cpu() for clean in cleans]
    tensors["logits"] = torch.stack([torch.nn.functional.pad(law, (0, 0, 0, n_places - len(law))) for law in laws]).numpy()
    return empty(), tensors
