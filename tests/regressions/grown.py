"""Tiny pairs whose vocabularies differ, and whole studies of them: a tuned model with tokens of its own, or one of each."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from torch import nn

import pico
from mechdiff.api import Run
from mechdiff.measures.catalogue import make_study
from mechdiff.study.config import RunOptions
from runs import run
from tokenizers_made import CHATML, byte_tokenizer

N, NEW, LAST = 259, 32, 3
TEXTS = [f"Say something about the number {number * 7919 % 1000}{'!' * (number % 5)}" for number in range(30)]
OTHER: list[Any] = [
    "weights",
    {"similarity": {"permutations": 5}},
    {"factorial": {"positions": ["decision"]}},
    {"transport": {"sites": ["resid_post", "mlp_out"], "maps": ["anchored_ridge"], "closer": [LAST], "permutations": 1}},
    {"rank": {"sites": ["resid_post"], "closer": [LAST], "draws": 1, "fisher_samples": 0}},
    {"steering": {"closer": [LAST], "side_prompts": 3, "draws": 1, "texts": 0, "continuation": 2}},
    {"attribution": {"steps": 1, "validated": 2}},
]
HEADS = {"heads": {"closer": [1, LAST], "draws": 2, "network_draws": 1, "permutations": 2, "null_edits": 1}}
CAUSAL: list[Any] = [{"divergence": {"over_text": False}}, {"patching": {"sites": ["resid_post", "attn_out", "mlp_out"]}}]


def with_new_rows(net: nn.Module, rows: torch.Tensor, seed: int) -> None:
    """Embedding and unembedding with more rows; `rows` are those of the unembedding."""
    for layer, new in ((net.get_input_embeddings(), _noise(len(rows), rows.shape[1], seed)), (net.get_output_embeddings(), rows)):  # type: ignore[operator]
        layer.weight = nn.Parameter(torch.cat([layer.weight.detach(), new]))
    net.config.vocab_size = N + len(rows)  # type: ignore[union-attr]


def a_pair(place: Path, *, read: float, written: float, attention: float = 0.0, base_has: int = 0, mass: float = 1.0) -> Path:
    """A base, and a tuned model with 32 tokens of its own, whose rows read a direction d by `read`; the last MLP writes d by `written`, and the last
    attention is changed by `attention`. `base_has`: so many tokens that the tuned model lacks; `mass`: how much larger the new
    rows are."""
    base = pico.pico("llama")
    tuned = pico.twin(base)
    d = _noise(1, 32, 1)[0] / _noise(1, 32, 1)[0].norm()
    with torch.no_grad():
        block = tuned.net.model.layers[LAST]  # type: ignore[union-attr, index]
        block.mlp.down_proj.weight += written * torch.outer(d, 50 * _noise(1, 48, 2)[0])  # type: ignore[union-attr, operator]
        block.self_attn.o_proj.weight += attention * 50 * _noise(32, 32, 3)  # type: ignore[union-attr, operator]
        with_new_rows(tuned.net, mass * _noise(NEW, 32, 4) + read * d, 5)
        if base_has:
            with_new_rows(base.net, 5 * _noise(base_has, 32, 6), 7)
    cuts = {"base": [f"\u0645{i}" for i in range(base_has)], "tuned": [f"\u0644{i}" for i in range(NEW)]}
    for side, net in (("base", base.net), ("tuned", tuned.net)):
        tokenizer = byte_tokenizer(CHATML)
        tokenizer.add_tokens([AddedToken(text, normalized=False) for text in cuts[side]])
        pico.save(net, tokenizer, place / side)
    (place / "prompts.jsonl").write_text("".join(json.dumps({"id": f"p{i}", "text": text}) + "\n" for i, text in enumerate(TEXTS)))
    return place


def studied(place: Path, measures: list[Any], *, page: bool = True) -> Run:
    """The finished study of a pair."""
    study = {"pair": {"base": str(place / "base"), "tuned": str(place / "tuned")}, "prompts": {"file": str(place / "prompts.jsonl")}}
    return run(make_study({**study, "measures": measures}), out=place / "run", page=page, options=RunOptions(threads=1))


def _noise(n: int, width: int, seed: int) -> torch.Tensor:
    return 0.02 * torch.randn(n, width, generator=torch.Generator().manual_seed(seed))
