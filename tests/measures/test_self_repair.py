"""Direct effects: a later block that undoes half of what is written, the naive way to the logits, and blocks that nothing is behind."""

import math
from collections.abc import Iterator
from typing import Any

import polars as pl
import pytest
import torch

from mechdiff.architectures.sites import Site
from mechdiff.engine.activations import capture
from mechdiff.engine.replay import replay
from mechdiff.labels import CROSSED
from mechdiff.measures.catalogue import CHAPTERS
from mechdiff.measures.self_repair import findings, formula
from mechdiff.measures.self_repair.page import self_repair
from mechdiff.report.difference import BREAKAGE, RECOVERY
from mechdiff.report.parts import Run
from mechdiff.report.sections import lead
from mechdiff.validate import edits, made
from mechdiff.validate.planted import edited
from mechdiff.validate.studies import TEXTS, study
from pico import pico, prompts, twin

LENGTH, WRITTEN = 4.0, 0.8
"""Of the embeddings, and of what block 0 writes in the tuned model; block 1 of both takes half of that away."""


def halving_net() -> Any:
    """Embeddings, then an MLP whose bias the tuned model sets, then one neuron that takes half off, and logits that read its direction alone."""
    net = made.wide_net()
    with torch.no_grad():
        for block in net.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
            for norm in (block.input_layernorm, block.post_attention_layernorm):
                norm.weight.fill_(1)
        net.model.norm.weight.fill_(1)
        embedding = net.model.embed_tokens.weight
        embedding[:, 0] = 0
        embedding.mul_(LENGTH / embedding.norm(dim=1, keepdim=True))
        seen = WRITTEN / rms(WRITTEN)
        mlp = net.model.layers[1].mlp
        for weight, gain in ((mlp.gate_proj.weight, 10.0), (mlp.up_proj.weight, 1.0)):
            weight[0] = 0
            weight[0, 0] = gain
        fired = seen * torch.nn.functional.silu(torch.tensor(10 * seen)).item()
        mlp.down_proj.weight[0, 0] = -WRITTEN / 2 / fired
        net.lm_head.weight[:, 1:] = 0
        net.lm_head.weight[:, 0] = torch.linspace(-0.5, 0.5, len(net.lm_head.weight))
    return net


def rms(written: float, d: int = 256) -> float:
    """Of a state with this much of what is written."""
    return math.sqrt((LENGTH**2 + written**2) / d + 1e-6)


def write(net: Any) -> None:
    net.model.layers[0].mlp.down_proj.bias[0] = WRITTEN


def test_a_block_that_undoes_half_of_what_is_written_is_seen_to() -> None:
    base = halving_net()
    measures = ["divergence", {"self_repair": {"closer": [0, 2]}}]
    with study(base, edited(base, write), measures=measures) as found:
        run = Run(rows=found.rows, summary=found.summary, manifest=found.record)
    lines = {(row["direction"], row["name"]): row for row in findings.sites(run.rows).iter_rows(named=True)}
    into_base, into_tuned = lines[RECOVERY, "L0.mlp_out"], lines[BREAKAGE, "L0.mlp_out"]
    assert into_base["total"] == pytest.approx(1, abs=1e-4)
    assert into_base["direct"] == pytest.approx(2 * rms(WRITTEN / 2) / rms(WRITTEN), rel=1e-4)
    assert into_tuned["total"] == pytest.approx(1, abs=1e-4)
    assert into_tuned["direct"] == pytest.approx(2, abs=1e-4), (
        "what block 1 takes off stays, of a tuned model that has nothing to take it off"
    )
    for direction in CROSSED:
        assert lines[direction, "L0.attn_out"]["repaired"] == 0
        assert lines[direction, "L2.mlp_out"]["repaired"] == 0, "nothing is behind the last output"


@pytest.mark.parametrize("direction", CROSSED)
def test_a_direct_effect_is_what_the_patch_adds_to_the_last_state(direction: str) -> None:
    """Of a network whose residual stream is a plain sum: the difference of the outputs, added to the stream behind the last block."""
    base = pico("llama")
    pair = {"base": base, "tuned": twin(base, edits.add_noise(0.2))}
    runs, source = direction.split("<-")
    n = base.shape.n_layers
    sites = [Site(layer, kind) for layer in range(n) for kind in ("attn_out", "mlp_out", "resid_post")]
    for ids in prompts(3, shortest=6, longest=9):
        cleans = {side: capture(model, ids, sites, [len(ids) - 1], keep_cache=True) for side, model in pair.items()}
        own, other = (
            {kind: torch.stack([cleans[side].states[Site(layer, kind)][None] for layer in range(n)]) for kind in ("attn_out", "mlp_out")}
            for side in (runs, source)
        )
        for layer, kind in ((0, "attn_out"), (1, "mlp_out"), (n - 1, "attn_out"), (n - 1, "mlp_out")):
            both = formula.variants(layer, kind, own, other)
            found = replay(pair[runs], [cleans[runs]], [both["direct"], both["total"]])[0, 1:]
            last = cleans[runs].states[Site(n - 1, "resid_post")][-1] + other[kind][layer, 0, -1] - own[kind][layer, 0, -1]
            with torch.no_grad():
                net = pair[runs].net
                expected = net.lm_head(net.model.norm(last[None]))[0]
            torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-4)
            if (layer, kind) == (n - 1, "mlp_out"):
                torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
            else:
                assert (found[1] - found[0]).abs().max() > 1e-3


@pytest.fixture(scope="module")
def ordinary() -> Iterator[Run]:
    base = made.tiny_net()
    measures = ["divergence", {"self_repair": {"closer": [1]}}]
    with study(base, edited(base, edits.edit_mlp), measures=measures, texts=TEXTS * 2) as found:
        yield Run(rows=found.rows, summary=found.summary, manifest=found.record)


def test_the_page_says_what_later_blocks_do_where_an_interval_carries_it(ordinary: Run) -> None:
    table = findings.sites(ordinary.rows)
    assert set(table["name"]) == {"L1.attn_out", "L1.mlp_out"}
    for row in table.iter_rows(named=True):
        assert row["repaired"] == pytest.approx(row["direct"] - row["total"])
        assert row["repaired_low"] <= row["repaired"] <= row["repaired_high"]
    (said,) = lead(ordinary, CHAPTERS["self_repair"])
    sure = table.filter("sure")
    if sure.is_empty():
        assert "could not be shown" in said
    else:
        most = sure.sort(sure["repaired"].abs(), descending=True).row(0, named=True)
        undo = most["repaired"] * most["direct"] > 0
        assert f"{most['name']} moves the" in said
        assert f"they {'undo' if undo else 'add'} " in said
    flat = ordinary.rows.with_columns(
        value=pl.when(pl.col("measure") == "self_repair", pl.col("arm") == "direct").then(0.0).otherwise("value")
    )
    flat = flat.with_columns(value=pl.when(pl.col("measure") == "self_repair", pl.col("arm") == "total").then(0.0).otherwise("value"))
    (said,) = lead(Run(rows=flat, summary=ordinary.summary, manifest=ordinary.manifest), CHAPTERS["self_repair"])
    assert "could not be shown" in said
    (shown, _how) = self_repair(ordinary).parts
    assert len(shown["rows"]) == 4
