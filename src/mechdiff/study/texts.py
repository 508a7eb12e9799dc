"""The stage that lets both models read whole texts, and what the record keeps of it: the texts where they part, token by token."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from mechdiff.engine.activations import forward
from mechdiff.engine.models import Model
from mechdiff.measures import divergence
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution

TEXTS = 6
"""Most divergent prompts whose texts the record keeps."""
MOVED = 12
"""Tokens whose probability rose (fell) most that the record keeps."""


def texts(run: Execution, cell: Cell, model: Model | None) -> tuple[pl.DataFrame, dict[str, np.ndarray]]:
    """Rows of every divergence at every position of a shard's prompts and continuations; tensors: the tokens, and what each model would say."""
    split, names, vocab = cell.key["split"], cell.key["ids"], run.prepared.vocab
    sequences, laws, found = [], [], []
    with run.prepared.pair.use("tuned") as tuned:
        for name in names:
            prompt = torch.tensor(run.prompt(split, name).ids_tuned, device=tuned.device)
            said = greedy(tuned, prompt, cell.key["continuation"])
            sequences.append((prompt, said))
            laws.append(_laws(tuned, prompt, said)[:, :vocab].cpu())
    tokenizer = run.prepared.pair.tokenizer("tuned")
    kept: dict[str, list[Tensor]] = {"ids": [], "kl": [], "top_base": [], "top_tuned": []}
    with run.prepared.pair.use("base") as base:
        for name, (prompt, said), tuned_law in zip(names, sequences, laws, strict=True):
            base_law = _laws(base, prompt.to(base.device), said.to(base.device))[:, :vocab].cpu()
            n_bytes = len(tokenizer.decode(said.tolist()).encode()) if len(said) else 0
            rows = divergence.over_text(base_law, tuned_law, said.cpu(), n_bytes=n_bytes, prompt=name, split=split)
            found.append(rows)
            kl = rows.filter(pl.col("metric") == "kl_tuned_base_nats")["value"].to_torch()
            kept["ids"].append(torch.cat([prompt, said])[: len(kl)].cpu())
            kept["kl"].append(kl)
            kept["top_base"].append(base_law.argmax(-1))
            kept["top_tuned"].append(tuned_law.argmax(-1))
    tensors = {key: torch.cat(parts).numpy() for key, parts in kept.items()}
    tensors["n_tokens"] = np.array([len(part) for part in kept["ids"]])
    tensors["n_prompt_tokens"] = np.array([len(prompt) for prompt, _ in sequences])
    return pl.concat(found), tensors


def greedy(model: Model, prompt: Tensor, n_tokens: int) -> Tensor:
    """The model's own most likely continuation of a prompt `[pos]`: at most `n_tokens` tokens, the one that ends it left out."""
    from transformers import GenerationConfig

    if not n_tokens:
        return prompt[:0]
    net: Any = model.net
    end = net.generation_config.eos_token_id
    plain = GenerationConfig(
        max_new_tokens=n_tokens, do_sample=False, eos_token_id=end, pad_token_id=end[0] if isinstance(end, list) else end
    )
    with torch.inference_mode():
        found = net.generate(prompt[None], attention_mask=torch.ones_like(prompt[None]), generation_config=plain)[0, len(prompt) :]
    ends = torch.tensor(end if isinstance(end, list) else [] if end is None else [end], device=found.device)
    return found[: len(found) - int(torch.isin(found[-1:], ends).sum())]


def _laws(model: Model, prompt: Tensor, said: Tensor) -> Tensor:
    """Logits `[pos, vocab]` of the token after each position; what would follow the whole continuation is nobody's question."""
    ids = torch.cat([prompt, said[:-1]])
    return forward(model, ids[None], use_cache=False, logits_to_keep=0).logits[0].float()


def texts_record(run: Execution) -> dict[str, Any]:
    """For the record: `texts` (the most divergent prompts with their tokens, KL after each, and what each model would say next),
    `n_prompt_tokens` (of every prompt: the last of them is the decision position) and `moved_tokens` (the tokens whose mean probability
    at the decision position rose and fell most)."""
    cells = [cell for cell in run.cells if cell.stage == "texts"]
    if not cells:
        return {}
    tokenizer = run.prepared.pair.tokenizer("tuned")
    every = [one for cell in cells for one in _read(run.folder.load(cell.key).tensors, cell.key["ids"])]
    chosen = sorted(every, key=lambda one: float(one["kl"].mean()), reverse=True)[:TEXTS]
    said = [
        {
            "prompt": one["prompt"],
            "n_prompt_tokens": one["n_prompt_tokens"],
            "tokens": [
                {
                    "text": tokenizer.decode([i]),
                    "kl": round(float(kl), 6),
                    "top_base": tokenizer.decode([b]),
                    "top_tuned": tokenizer.decode([t]),
                }
                for i, kl, b, t in zip(one["ids"].tolist(), one["kl"], one["top_base"].tolist(), one["top_tuned"].tolist(), strict=True)
            ],
        }
        for one in chosen
    ]
    lengths = {one["prompt"]: one["n_prompt_tokens"] for one in every}
    return {"texts": said, "n_prompt_tokens": lengths, "moved_tokens": _moved(run, tokenizer, cells[0].key["split"])}


def _read(tensors: dict[str, np.ndarray], names: Sequence[str]) -> list[dict[str, Any]]:
    """One entry a prompt of a cell."""
    starts = np.cumsum(tensors["n_tokens"])[:-1]
    parts = {key: np.split(tensors[key], starts) for key in ("ids", "kl", "top_base", "top_tuned")}
    return [
        {"prompt": name, "n_prompt_tokens": int(tensors["n_prompt_tokens"][i]), **{key: part[i] for key, part in parts.items()}}
        for i, name in enumerate(names)
    ]


def _moved(run: Execution, tokenizer: Any, split: str) -> dict[str, list[dict[str, Any]]]:
    base, tuned = (run.states(side, split, "decision").logits.double().softmax(-1).mean(0) for side in ("base", "tuned"))

    def listed(order: Tensor) -> list[dict[str, Any]]:
        return [{"token": tokenizer.decode([i]), "base": float(base[i]), "tuned": float(tuned[i])} for i in order.tolist()]

    return {"up": listed((tuned - base).topk(MOVED).indices), "down": listed((base - tuned).topk(MOVED).indices)}
