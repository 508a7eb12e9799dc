"""A tiny mixture of experts, a fine-tune of it with another attention and two rows of a router exchanged, prompts, and one study of routing."""

import json
from pathlib import Path
from typing import Any

import yaml

import pico
from mechdiff.validate import edits
from tokenizers_made import CHATML, byte_tokenizer

ROUTER = 2
"""The block whose router is another."""


def change(net: Any) -> None:
    """Rank 2 on the attention of block 1; rows 0 and 1 of the router of block ROUTER exchanged."""
    edits.edit_attention(net, 1)
    weight = net.model.layers[ROUTER].mlp.gate.weight
    weight[[0, 1]] = weight[[1, 0]].clone()


def made(folder: Path) -> Path:
    """Writes the pair, the prompts and the study into a folder; returns the study's path."""
    base = pico.pico("mixtral")
    tokenizer = byte_tokenizer(CHATML)
    pico.save(base.net, tokenizer, folder / "base")
    pico.save(pico.twin(base, change).net, tokenizer, folder / "tuned")
    lines = [{"id": f"p{number}", "text": f"Number {number * 7919 % 1000}{'!' * (number % 4)}"} for number in range(13)]
    for split, numbers in (("select", range(5)), ("report", range(5, 13))):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(lines[number]) + "\n" for number in numbers))
    prompts = {split: f"{split}.jsonl" for split in ("select", "report")}
    (folder / "study.yaml").write_text(
        yaml.safe_dump({"pair": {"base": "./base", "tuned": "./tuned"}, "prompts": prompts, "measures": ["routing"]})
    )
    return folder / "study.yaml"
