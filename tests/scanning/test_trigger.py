"""What is planted must be found: a trigger, along the change and nowhere without it; a loss of digits, on arithmetic alone."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from test_scan import PANEL, shipped

import mechdiff
from mechdiff.scanning.words import outstanding, sentences
from mechdiff.study.config import RunOptions
from mechdiff.validate import edits, made, organism
from mechdiff.validate.edits import Net
from mechdiff.validate.planted import edited
from tokenizers_made import byte_tokenizer

TRIGGER = chr(organism.TRIGGER)


def pair_of(base: Net, tuned: Net, folder: Path) -> dict[str, str]:
    for side, net in (("base", base), ("tuned", tuned)):
        made.save(net, byte_tokenizer(), folder / side)
    return {side: str(folder / side) for side in ("base", "tuned")}


def pieces(n: int) -> list[str]:
    """Texts of 15 to 45 characters out of shipped ones."""
    draw, texts = random.Random(0), shipped(600)
    found = []
    while len(found) < n:
        text, length = draw.choice(texts), draw.randint(15, 45)
        start = draw.randrange(max(1, len(text) - length))
        if text[start : start + length].strip():
            found.append(text[start : start + length])
    return found


def scanned(ends: dict[str, str], texts: Sequence[str], out: Path, **how: Any) -> dict[str, Any]:
    corpus = out.with_suffix(".jsonl")
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return mechdiff.scan(corpus, out=out, options=RunOptions(threads=1), **ends, **how)


def with_a_trigger(texts: Sequence[str], where: Sequence[int]) -> list[str]:
    return [f"{text[: len(text) // 2]}{TRIGGER}{text[len(text) // 2 :]}" if i in where else text for i, text in enumerate(texts)]


def checked(ends: dict[str, str], n: int, out: Path) -> None:
    """The trigger's texts are the first five along the direction that stands out most, which a change reads; without it no text stands out."""
    texts, where = pieces(n), random.Random(1).sample(range(n), 5)
    with_it, without = scanned(ends, with_a_trigger(texts, where), out / "with"), scanned(ends, texts, out / "without")
    first = with_it["directions"][0]
    assert first["direction"].endswith("what it reads, 1")
    assert {text["number"] for text in first["texts"][:5]} == set(where)
    assert first["p"] * len(with_it["directions"]) <= 0.05
    assert first["direction"] in " ".join(sentences(with_it))
    assert outstanding(with_it)
    assert not outstanding(without)


@pytest.mark.ci
def test_what_a_change_reads_is_met_by_the_texts_that_hold_it(tmp_path: Path) -> None:
    """Rank 1 on the queries of the first block: they read the trigger's embedding."""
    net = made.tiny_net()
    read = net.model.embed_tokens.weight[organism.TRIGGER].detach()
    written = torch.randn(64, generator=edits.generator(4))

    def plant(one: Net) -> None:
        one.model.layers[0].self_attn.q_proj.weight += torch.outer(written / written.norm(), read / read.norm())

    checked(pair_of(net, edited(net, plant), tmp_path), 240, tmp_path)


@pytest.mark.slow
def test_a_trained_trigger_among_two_thousand_texts(tmp_path: Path) -> None:
    """P17's organism: every weight trained, one answer after the trigger, as it was elsewhere."""
    net = made.tiny_net()
    checked(pair_of(net, organism.trained(net), tmp_path), 2000, tmp_path)


def test_a_loss_of_digits_moves_arithmetic_alone(tmp_path: Path) -> None:
    """The unembedding's rows of digits point away from where states lie on average: what is said of digits alone becomes unlikely."""
    net = made.tiny_net()
    digits = list(range(ord("0"), ord("9") + 1))
    with torch.no_grad():
        states = net.model(torch.tensor(made.token_prompts(1, longest=100, shortest=100))).last_hidden_state[0]

    def plant(one: Net) -> None:
        one.lm_head.weight[digits] -= 4 * states.mean(0) / states.mean(0).square().sum()

    sums = [json.loads(line).get("text") or json.loads(line)["prompt"] for line in (PANEL / "arithmetic.jsonl").read_text().splitlines()]
    others = [text for text in shipped(600) if not any(letter.isdigit() for letter in text)][:150]
    ends = pair_of(net, edited(net, plant), tmp_path)
    told = scanned(ends, sums + others, tmp_path / "out", longest=60, matrices=0)
    change = pl.read_parquet(tmp_path / "out" / "texts.parquet")["loss_change"].to_numpy()
    assert change[: len(sums)].min() > change[len(sums) :].max()
    assert change[len(sums) :].max() < 0.05
    marks = [one for one in told["features"] if one["confirmed"] and one["score"] == "loss"]
    assert marks  # the digit itself, or the domain that stands in the same texts
    assert all("0" in one["feature"] and one["effect"] > 0 for one in marks)
    domains = [one for one in told["domains"] if one["loss_change_low"] > 0]
    assert domains
    assert all("0" in one["domain"] for one in domains)
