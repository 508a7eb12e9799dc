"""Rows proposed from a network without weights: of listed families they are the listed ones, wrong ones are refused, all decoders are walked."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

import decoders
from mechdiff.architectures.families import Family
from mechdiff.architectures.lookup import family_of
from mechdiff.architectures.network import network_of
from mechdiff.architectures.proposal import norm_kind, propose
from mechdiff.architectures.sites import Site
from mechdiff.engine.activations import capture
from mechdiff.engine.choice import engine_for
from mechdiff.engine.replay import ENGINES
from mechdiff.engine.selfcheck import self_check
from mechdiff.errors import ModelError, SelfCheckError
from mechdiff.models.modules import parts
from mechdiff.models.pair import Model
from mechdiff.validate.made import token_prompts
from pico import CONFIGS, HYBRID, each, pico

IDS = token_prompts(1, shortest=9, longest=9)[0]
FALCONS = ("falcon", "falcon_sequential", "falcon_alibi")


@cache
def _proposed(name: str) -> Family:
    config = CONFIGS[name]()
    return propose(network_of(config), config)


@pytest.mark.parametrize("name", each())
def test_a_listed_family_is_proposed_as_it_is_listed(name: str) -> None:
    """At every site both rows read the same numbers, and put every matrix in the same unit."""
    listed = pico(name)
    proposed = replace(listed, family=_proposed(name))
    assert set(proposed.kinds()) >= set(listed.kinds())
    sites = [Site(layer, kind) for layer in range(listed.shape.n_layers) for kind in listed.kinds()]
    ours, theirs = (capture(model, IDS, sites, range(len(IDS))).states for model in (proposed, listed))
    for site in sites:
        assert torch.equal(ours[site], theirs[site]), site
    assert parts(proposed) == parts(listed)


@pytest.mark.parametrize("name", each())
def test_its_sizes_norms_and_numbers_are_those_of_the_listed_row(name: str) -> None:
    listed, config = pico(name), CONFIGS[name]()
    row = _proposed(name)
    assert row.shape
    sizes = (
        ("n_layers", "d_model", "vocab", "context")
        if name in HYBRID
        else ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_head", "vocab")
    )
    for size in sizes if name not in FALCONS else ("n_layers", "d_model", "n_heads", "d_head", "vocab"):
        assert getattr(row.shape, size) == getattr(listed.shape, size), size
    assert (row.norm, row.embed, row.final_norm, row.head) == (
        listed.family.norm,
        listed.family.embed,
        listed.family.final_norm,
        listed.family.head,
    )
    for layer in range(listed.shape.n_layers):
        assert row.norm_behind(layer) == listed.family.norm_behind(layer)
        assert row.scale_of(config, layer) == pytest.approx(listed.family.scale_of(config, layer))
        assert row.norms(layer)[0] == listed.family.norms(layer)[0]


@pytest.mark.parametrize(
    "kind",
    ["apertus", "mamba", "gemma4_text", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("falcon_h1", "deepseek_v2", "gemma3"))],
)
def test_types_without_a_row_are_studied(kind: str, tmp_path: Path) -> None:
    found = decoders.walk(kind, tmp_path)
    assert found.whole, found.reason
    assert found.row == "proposed"
    assert ("heads" in found.done) == (kind != "mamba")


@pytest.mark.parametrize("kind", ["gemma4_text", pytest.param("gemma3n_text", marks=pytest.mark.slow)])
def test_blocks_that_share_keys_and_values_are_studied(kind: str, tmp_path: Path) -> None:
    """As in Gemma 3n and the small Gemma 4: what earlier blocks made is read by later ones, so no pass can begin in the middle, and in a batch it
    grows with it. Where a number says how many logits are wanted, Gemma 4 gives its upper blocks so many positions alone."""
    found = decoders.walk(kind, tmp_path, num_kv_shared_layers=2)
    assert found.whole, found.reason
    assert found.engine == "relay"
    assert {"z", "attn_proj", "attn_out", "mlp_out"} < set(found.sites)
    assert "heads" in found.done
    assert decoders.family_of(decoders.tiny_config(kind, num_kv_shared_layers=2)).tangled
    assert not decoders.family_of(decoders.tiny_config(kind, num_kv_shared_layers=0)).tangled


@pytest.mark.slow
@pytest.mark.parametrize("kind", decoders.decoders())
def test_every_decoder_goes_as_far_as_the_table_says(kind: str, tmp_path: Path) -> None:
    """Ten minutes for all. docs/FAMILIES.md has the table; `make families` writes it."""
    page = Path(__file__).parents[2] / "docs" / "FAMILIES.md"
    line = next(line for line in page.read_text().splitlines() if line.startswith(f"| {kind} |"))
    said = [cell.strip() for cell in line.split("|")[4:-2]]
    found = decoders.walk(kind, tmp_path)
    assert ["yes" if step in found.done else "-" for step in decoders.STEPS] == said, found.reason


def _of(kind: str) -> tuple[Model, Family]:
    net = decoders.tiny_decoder(kind)
    model = decoders.wrap(net, side="base", ref=kind)
    assert model.family.by_layer
    return model, model.family


@pytest.mark.parametrize(
    ("kind", "place", "fault"),
    [
        ("attn_out", ("self_attn.v_proj", "output"), "L0.attn_out is 16 wide"),
        ("mlp_out", ("self_attn.o_proj", "output"), r"L0.resid_post is not resid_pre \+ attn_out \+ mlp_out"),
        ("resid_mid", ("attention_layernorm", "input"), r"L0.resid_mid is not resid_pre \+ attn_out"),
    ],
)
def test_a_wrong_proposal_is_refused_by_the_proof_that_it_fails(kind: str, place: tuple[str, str], fault: str) -> None:
    model, family = _of("apertus")
    wrong = tuple(replace(block, places={**block.places, kind: place}) for block in family.by_layer)
    with pytest.raises(SelfCheckError, match=f"{fault}.*row that was proposed.*does not hold"):
        self_check(replace(model, family=replace(family, by_layer=wrong)), token_prompts(3))


def test_heads_that_are_not_the_parts_of_the_projections_input_are_refused() -> None:
    """A head count that does not divide what enters the projection."""
    model = _of("apertus")[0]
    with pytest.raises(SelfCheckError, match="z"):
        self_check(replace(model, shape=replace(model.shape, n_heads=3)), token_prompts(3))


def test_a_model_that_reads_what_comes_later_is_refused() -> None:
    config = decoders.tiny_config("bert")
    net = decoders.auto_class(config).from_config(config).eval()
    model = decoders.wrap(net, side="base", ref="an encoder")
    with pytest.raises(
        SelfCheckError, match=r"an encoder: another last token changes what it says before it .* not causal: it is no decoder"
    ):
        self_check(model, token_prompts(3), engine=ENGINES["full"])


def test_a_model_that_mixes_the_texts_of_a_batch_is_refused() -> None:
    model, _ = _of("apertus")
    handle = model.blocks[1].register_forward_hook(lambda block, given, out: out + 0.1 * (out.mean(0, keepdim=True) - out))
    with pytest.raises(SelfCheckError, match=r"other texts beside one change what it says of it .* mixes the texts of a batch"):
        self_check(model, token_prompts(3))
    handle.remove()


def test_experts_that_are_chosen_across_tokens_are_refused(tmp_path: Path) -> None:
    """Doge cuts the router's scores of all tokens in two halves: a token's experts depend on the tokens behind it."""
    assert "another last token changes what it says before it" in decoders.walk("doge", tmp_path, is_moe=True).reason


def test_a_matrix_in_neither_half_is_refused() -> None:
    model, family = _of("apertus")
    lost = tuple(replace(block, mlp=()) for block in family.by_layer)
    with pytest.raises(ModelError, match="neither in the attention nor in the MLP"):
        parts(replace(model, family=replace(family, by_layer=lost)))


@pytest.mark.parametrize(("kind", "engine"), [("apertus", "replay"), ("mamba", "relay"), ("gpt_bigcode", "full"), ("gpt_neo", "relay")])
def test_the_engine_is_the_fastest_that_the_network_allows(kind: str, engine: str) -> None:
    config = decoders.tiny_config(kind)
    assert engine_for(config)[0] == engine in ENGINES


def test_the_kind_of_a_norm_is_what_it_does() -> None:
    from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    assert [norm_kind(norm, 32) for norm in (LlamaRMSNorm(32), torch.nn.LayerNorm(32), Gemma2RMSNorm(32))] == [
        "rms",
        "layer",
        "rms_plus_one",
    ]


def test_a_row_is_proposed_once_for_a_pair() -> None:
    """The two models' configs name other folders; one that was stored names a class and a dtype too, also of the configs inside it."""
    held, stored = decoders.tiny_config("gemma3"), decoders.tiny_config("gemma3")
    stored.name_or_path, stored.architectures, stored.dtype, stored.text_config.dtype = "tuned", ["X"], torch.float16, torch.float32
    assert stored.to_dict() != held.to_dict()
    assert family_of(held) is family_of(stored)
    other = decoders.tiny_config("gemma3")
    other.text_config.num_hidden_layers += 1
    other.text_config.layer_types = [*other.text_config.layer_types, "full_attention"]
    assert family_of(other) is not family_of(held)
