"""Several residual streams side by side are one state: read, written and differentiated as plain hooks on the network say."""

from pathlib import Path

import pytest
import torch

import decoders
from mechdiff.architectures.lookup import family_of
from mechdiff.architectures.sites import Site
from mechdiff.audit import whole
from mechdiff.engine.activations import capture
from mechdiff.engine.gradients import gradients
from mechdiff.engine.grafts import grafted
from mechdiff.engine.replay import ENGINES, Write
from mechdiff.engine.rounding import nats_between
from mechdiff.measures.grafting.formula import Prompts, lattice
from mechdiff.models.modules import changes_between, parts, tensors_of
from mechdiff.models.pair import SIDES, Model, wrap
from mechdiff.validate.made import token_prompts

IDS = token_prompts(1, shortest=9, longest=9)[0]
STREAMS = 4


def _model(kind: str) -> Model:
    return wrap(decoders.tiny_decoder(kind), side="base", ref=kind)


@pytest.mark.parametrize(
    ("kind", "first"), [("gemma3n_text", True), ("deepseek_v4", False), pytest.param("hy_v4", False, marks=pytest.mark.slow)]
)
def test_a_state_is_all_streams_side_by_side(kind: str, first: bool) -> None:
    model = _model(kind)
    assert (model.family.streams, model.family.streams_first, model.shape.width("resid_post")) == (STREAMS, first, STREAMS * 32)
    assert model.shape.width("attn_out") == 32
    seen = []

    def see(module: object, args: tuple, output: object) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output).clone())

    handle = model.blocks[2].register_forward_hook(see)
    site = Site(2, "resid_post")
    state = capture(model, IDS, [site], range(len(IDS))).states[site]
    handle.remove()
    one_by_one = [seen[0][stream, 0] if first else seen[0][0, :, stream] for stream in range(STREAMS)]
    assert torch.equal(state, torch.cat(one_by_one, -1))
    assert torch.equal(whole.states(model, IDS, [site])[site], state)


@pytest.mark.parametrize("kind", ["gemma3n_text", "deepseek_v4", "gemma4_text"])
def test_what_is_written_is_what_plain_hooks_write(kind: str) -> None:
    """And gradients of it, where the heads of a block are narrower than others' too."""
    model, random = _model(kind), torch.Generator().manual_seed(0)
    engine = ENGINES["full" if kind == "deepseek_v4" else "relay"]
    sites = [Site(layer, of) for layer in (0, 3) for of in ("resid_pre", "resid_post", "attn_out", "z") if of in model.kinds()]
    clean = capture(model, IDS, sites, [len(IDS) - 1])
    values = {site: clean.states[site] + 0.1 * torch.randn(1, model.shape.width(site.kind), generator=random) for site in sites}
    found = engine(model, [clean], [{site: Write(value=value[None])} for site, value in values.items()])[0, 1:]
    expected = torch.stack([whole.logits(model, IDS, {site: whole.Put(value=value)}) for site, value in values.items()])
    assert nats_between(expected.float(), found).max() < 1e-9
    assert nats_between(clean.logits, found).min() > 1e-9
    weights = torch.randn(len(clean.logits), generator=random)
    push = [{site: torch.zeros(1, model.shape.width(site.kind))} for site in sites]
    by_engine = gradients(model, engine, [clean], push, lambda logits: logits @ weights)
    by_hooks = {site: whole.gradients(model, IDS, [site], weights)[site] for site in sites}
    for one in by_engine:
        for site, gradient in one.items():
            torch.testing.assert_close(gradient[0], by_hooks[site].float(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["gemma3n_text", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("deepseek_v4", "hy_v4"))])
def test_types_with_several_streams_are_studied(kind: str, tmp_path: Path) -> None:
    found = decoders.walk(kind, tmp_path)
    assert found.whole, found.reason
    assert ("heads" in found.done) == (kind != "deepseek_v4")
    assert {"resid_pre", "attn_out", "mlp_out", "resid_post"} <= set(found.sites)


def test_each_weight_is_in_its_half() -> None:
    """What mixes the streams for a half belongs to it; what makes one of them behind the last block stands with the final norm."""
    of = {name: str(unit) for name, unit in parts(_model("deepseek_v4")).items()}
    assert of["model.layers.1.attn_hc.fn"] == of["model.layers.1.self_attn.o_b_proj.weight"] == "L1.attn"
    assert of["model.layers.1.ffn_hc.fn"] == of["model.layers.1.mlp.experts.down_proj"] == "L1.mlp"
    assert of["model.hc_head.hc_fn"] == of["model.norm.weight"] == "final_norm"
    assert of["model.layers.2.self_attn.compressor.gate_proj.weight"] == "L2.attn"


def test_grafts_where_no_pass_can_begin_in_the_middle_run_whole() -> None:
    """Every set of units gives what a whole pass with these units gives, whatever was grafted below or above."""
    nets = [decoders.tiny_decoder("gemma4_text", num_kv_shared_layers=2) for _ in SIDES]
    with torch.no_grad():
        for layer in nets[1].model.layers:
            layer.mlp.down_proj.weight.mul_(1.5)
            layer.self_attn.o_proj.weight.mul_(0.5)
    base, tuned = (wrap(net, side=side, ref=side) for net, side in zip(nets, SIDES, strict=True))
    ids = token_prompts(3)
    base_logits, tuned_logits = (torch.stack([capture(model, one, [], [0]).logits for one in ids]) for model in (base, tuned))
    changes = changes_between(base, tensors_of(tuned))
    prompts = Prompts(split="report", names=["a", "b", "c"], ids=ids, base_logits=base_logits, tuned_logits=tuned_logits)
    bench = lattice(base, changes, prompts)
    assert len(changes.units) == 8
    for units in (changes.units[:1], changes.units[1:], changes.units[3:5]):
        with grafted(base, changes, units):
            expected = torch.stack([capture(base, one, [], [0]).logits for one in ids])
        torch.testing.assert_close(bench.value(units), nats_between(tuned_logits, expected), rtol=1e-3, atol=1e-8)


def test_a_table_that_a_module_around_all_others_holds_takes_nothing_with_it() -> None:
    """Zaya's own scale of the last state lies in the module that holds all blocks."""
    config = decoders.tiny_config("zaya")
    assert "model" in family_of(config).embed_parts
    units = {str(unit) for unit in parts(_model("zaya")).values()}
    assert {"embed", "L0.attn", "L0.mlp", "final_norm"} <= units
