"""Both models read whole texts, and the record keeps those where they part most, token by token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Int
from torch import Tensor

from mechdiff.engine.activations import forward
from mechdiff.engine.generation import Speech, speak, stop_ids
from mechdiff.measures.divergence import formula
from mechdiff.models.pair import Model
from mechdiff.prompts.matching import Vocabulary
from mechdiff.prompts.rendering import Rendered
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution
from mechdiff.study.experiment import Result

TEXTS = 6
"""Most divergent prompts whose texts the record keeps."""
FIRST = "first token"
"""The kind of an answer's first token, whatever it is."""
MOVED = 12
"""Tokens whose probability rose (fell) most that the record keeps."""


def texts(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of every divergence at every place of a shard's prompts and continuations that both models cut; tensors: the tokens, and what each
    model would say."""
    split, names, tokens = cell.key["split"], cell.key["ids"], run.prepared.tokens
    read: list[dict[str, _Said]] = []
    laws: list[dict[str, Tensor]] = [{} for _ in names]
    for side in ("tuned", "base"):
        with run.prepared.pair.use(side) as model:
            if side == "tuned":
                ones = [run.prompt(split, name) for name in names]
                answers = [_said(run, side, ids) for ids in greedy(run, model, [one.ids_tuned for one in ones], cell.key["continuation"])]
                read = [{"tuned": answer, "base": _as_base_writes(run, one, answer)} for one, answer in zip(ones, answers, strict=True)]
            for i, name in enumerate(names):
                prompt = torch.tensor(getattr(run.prompt(split, name), f"ids_{side}"), device=model.device)
                laws[i][side] = tokens.place(_laws(model, prompt, read[i][side].ids.to(model.device)), side).cpu()
    found = []
    kept: dict[str, list[Tensor]] = {"ids": [], "place": [], "kl": [], "top_base": [], "top_tuned": []}
    for name, said, law in zip(names, read, laws, strict=True):
        one = run.prompt(split, name)
        places = _places(run, one, said)
        base, tuned = law["base"][places[:, 0]], law["tuned"][places[:, 1]]
        bits = {
            side: formula.bits(law[side][len(getattr(one, f"ids_{side}")) - 1 :], tokens.listed(side, written.ids)) / written.ends[-1]
            for side, written in said.items()
            if written.ends and written.ends[-1]
        }
        columns = {"prompt": name, "split": split}
        rows = formula.over_text(base, tuned, decision=len(one.positions) - 1, bits_per_byte=bits, columns=columns, tokens=tokens)
        found.append(rows)
        d = pl.col("metric") == ("kl_tuned_base_nats" if tokens.all_shared else "kl_shared_nats")
        kept["ids"].append(torch.cat([torch.tensor(one.ids_tuned), said["tuned"].ids])[: int(places[-1, 1]) + 1])
        kept["place"].append(places[:, 1])
        kept["kl"].append(rows.filter(d, pl.col("unit").is_not_null())["value"].to_torch())
        kept["top_base"].append(base.argmax(-1))
        kept["top_tuned"].append(tuned.argmax(-1))
    tensors = {key: torch.cat(parts).numpy() for key, parts in kept.items()}
    tensors["n_ids"] = np.array([len(part) for part in kept["ids"]])
    tensors["n_places"] = np.array([len(part) for part in kept["place"]])
    tensors["n_prompt_tokens"] = np.array([len(run.prompt(split, name).positions) for name in names])
    tensors["unread"] = np.array([bool(len(said["tuned"].ids)) and not len(said["base"].ids) for said in read])
    return pl.concat(found), tensors


@dataclass(frozen=True)
class _Said:
    """An answer in one model's tokens."""

    ids: Int[Tensor, " said"]
    ends: list[int]
    """Bytes of the answer up to the end of each token."""


def _said(run: Execution, side: str, ids: Tensor, in_front: int = 0) -> _Said:
    """`in_front`: bytes that this tokenizer puts in front of a text (a space)."""
    spelled = run.prepared.vocabularies[side].spelled(ids.tolist())
    return _Said(ids, list(accumulate(map(len, spelled), initial=-in_front))[1:])


def _as_base_writes(run: Execution, one: Rendered, answer: _Said) -> _Said:
    """What the tuned model said, in the base's tokens: the same where both models cut this prompt alike, else its text cut by the base's tokenizer.

    An answer that ends inside a character ends before it. One that the base's tokenizer would not write byte for byte is left out (see the record).
    """
    tokens = run.prepared.tokens
    if tokens.all_shared and torch.equal(
        tokens.listed("base", torch.tensor(one.ids_base)), tokens.listed("tuned", torch.tensor(one.ids_tuned))
    ):
        return replace(answer, ids=torch.from_numpy(tokens.ids["base"])[tokens.listed("tuned", answer.ids)])
    written = b"".join(run.prepared.vocabularies["tuned"].spelled(answer.ids.tolist()))
    text = written.decode(errors="ignore")
    ids = run.prepared.pair.tokenizer("base")(text, add_special_tokens=False)["input_ids"] if text else []
    again = b"".join(run.prepared.vocabularies["base"].spelled(ids))
    if not written.startswith(text.encode()) or again not in (text.encode(), f" {text}".encode()):
        ids = []
    return _said(run, "base", torch.tensor(ids, dtype=torch.long), in_front=len(again) - len(text.encode()) if ids else 0)


def _places(run: Execution, one: Rendered, said: Mapping[str, _Said]) -> Int[Tensor, "place side"]:
    """Where both models have read the same bytes of a prompt and its continuation: (index in the base's tokens, in the tuned model's)."""
    starts = {"base": len(one.ids_base), "tuned": len(one.ids_tuned)}
    if said["base"].ends is said["tuned"].ends:
        shared = [(starts["base"] + i, starts["tuned"] + i) for i in range(len(said["base"].ids) - 1)]
    else:
        ends = {side: {end: starts[side] + i for i, end in enumerate(answer.ends[:-1])} for side, answer in said.items()}
        shared = [(ends["base"][end], ends["tuned"][end]) for end in sorted(ends["base"].keys() & ends["tuned"].keys())]
    return torch.tensor([*one.positions, *shared])


def greedy(run: Execution, model: Model, prompts: Sequence[Sequence[int]], n_tokens: int) -> list[Int[Tensor, " said"]]:
    """The model's own most likely continuation of each prompt: at most `n_tokens` tokens, the one that ends it left out."""
    stop = stop_ids(model, run.prepared.pair.tokenizer(model.side), run.prepared.tokenizers())
    return speak(model, run.engine(model, "decision"), prompts, Speech(max_tokens=n_tokens, stop=stop))


def _laws(model: Model, prompt: Tensor, said: Tensor) -> Tensor:
    """Logits `[pos, vocab]` of the token after each position; what would follow the whole continuation is nobody's question."""
    ids = torch.cat([prompt, said[:-1]])
    return forward(model, ids[None], use_cache=False, logits_to_keep=0).logits[0].float()


def texts_record(run: Execution) -> dict[str, Any]:
    """For the record: `texts` (the most divergent prompts with their tokens, KL after each, and what each model would say next),
    `n_prompt_tokens` (of every prompt: the last of them is the decision position), `kl_by_kind` (of every answer, by kind of token) and
    `moved_tokens` (the tokens whose mean probability at the decision position rose and fell most)."""
    cells = [cell for cell in run.cells if cell.stage == "texts"]
    if not cells:
        return {}
    tokens, vocabulary = run.prepared.tokens, run.prepared.vocabularies["tuned"]
    every = [one for cell in cells for one in _read(run.folder.load(cell.key).tensors, cell.key["ids"])]
    chosen = sorted(every, key=lambda one: float(one["kl"].mean()), reverse=True)[:TEXTS]
    said = [
        {
            "prompt": one["prompt"],
            "n_prompt_tokens": one["n_prompt_tokens"],
            "tokens": [
                {"text": vocabulary.text(*piece), "kl": round(float(kl), 6), "top_base": tokens.text(b), "top_tuned": tokens.text(t)}
                for piece, kl, b, t in zip(_pieces(one), one["kl"], one["top_base"].tolist(), one["top_tuned"].tolist(), strict=True)
            ],
        }
        for one in chosen
    ]
    lengths = {one["prompt"]: one["n_prompt_tokens"] for one in every}
    unread = [one["prompt"] for one in every if one["unread"]]
    named = ", ".join(unread[:5]) + ", ..." * (len(unread) > 5)
    warned = f"{len(unread)} of {len(every)} answers are not read by the base, whose tokenizer would not write them byte for byte: {named}"
    return {
        "warnings": [warned] if unread else [],
        "texts": said,
        "n_prompt_tokens": lengths,
        "moved_tokens": _moved(run, cells[0].key["split"]),
        "kl_by_kind": [kept for one in every for kept in _by_kind(one, vocabulary)],
    }


def _by_kind(one: dict[str, Any], vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """KL before the tokens of a prompt's answer by their kind, mean over the tokens: a place's divergence is that of the token that follows."""
    pieces, last = _pieces(one), one["n_prompt_tokens"] - 1
    found: dict[str, list[float]] = {}
    for place in range(last, len(pieces) - 1):
        kind = FIRST if place == last else formula.kind_of(vocabulary.text(*pieces[place + 1]))
        found.setdefault(kind, []).append(float(one["kl"][place]))
    return [{"prompt": one["prompt"], "kind": kind, "n": len(kl), "kl": round(float(np.mean(kl)), 6)} for kind, kl in found.items()]


def _read(tensors: dict[str, np.ndarray], names: Sequence[str]) -> list[dict[str, Any]]:
    """One entry a prompt of a cell."""
    parts = {key: np.split(tensors[key], np.cumsum(tensors["n_places"])[:-1]) for key in ("place", "kl", "top_base", "top_tuned")}
    parts["ids"] = np.split(tensors["ids"], np.cumsum(tensors["n_ids"])[:-1])
    return [
        {
            "prompt": name,
            "n_prompt_tokens": int(tensors["n_prompt_tokens"][i]),
            "unread": bool(tensors["unread"][i]),
            **{key: part[i] for key, part in parts.items()},
        }
        for i, name in enumerate(names)
    ]


def _pieces(one: dict[str, Any]) -> list[list[int]]:
    """The tuned model's tokens since the place before, of each place."""
    starts = [0, *(one["place"][:-1] + 1).tolist()]
    return [one["ids"][start : place + 1].tolist() for start, place in zip(starts, one["place"].tolist(), strict=True)]


def _moved(run: Execution, split: str) -> dict[str, list[dict[str, Any]]]:
    base, tuned = (run.states(side, split, "decision").logits.double().softmax(-1).mean(0) for side in ("base", "tuned"))

    def listed(order: Tensor) -> list[dict[str, Any]]:
        return [{"token": run.prepared.tokens.text(i), "base": float(base[i]), "tuned": float(tuned[i])} for i in order.tolist()]

    return {"up": listed((tuned - base).topk(MOVED).indices), "down": listed((base - tuned).topk(MOVED).indices)}


def diverge(run: Execution, cell: Cell, model: Model | None) -> Result:
    split = cell.key["split"]
    base, tuned = (run.states(side, split, "decision").logits for side in ("base", "tuned"))
    found = formula.measure(base, tuned, cell.key["ids"], split, run.prepared.tokens)
    texts = [run.prompt(split, name).prompt.text for name in cell.key["ids"]]
    cut = {side: run.prepared.pair.tokenizer(side)(texts, add_special_tokens=False)["input_ids"] for side in ("base", "tuned")}
    counts = {side: [len(ids) for ids in of_side] for side, of_side in cut.items()}
    return pl.concat([found, formula.fragmentation(texts, counts, cell.key["ids"], split)]), {}


def over_answers(run: Execution, cell: Cell, model: Model | None) -> Result:
    """D and its relatives over the positions of the answers, which both models have read."""
    clean = run.clean(cell)
    return formula.over_answers(clean.base, clean.tuned, run.lengths(cell), cell.key["ids"], cell.key["split"], clean.n_shared), {}
