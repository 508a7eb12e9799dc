"""Properties 1 to 7 of METHOD: what a patch must do whatever the family, the site, the position and the dtype."""

from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from drawn import (
    CLOSE,
    EXPERTS,
    FLOOR_NATS,
    N_LAYERS,
    at,
    clean_of,
    dtypes,
    engines_of,
    examples,
    families,
    hybrid,
    kl,
    loaded,
    logits,
    noise,
    pair,
    seeds,
    sites_of,
    token_ids,
)
from mechdiff.architectures.sites import KINDS, Site
from mechdiff.engine.activations import capture, edited, full_forward, writer
from mechdiff.engine.replay import ENGINES, Variant, Write
from mechdiff.measures.heads.formula import Block, same_by_site, swap
from mechdiff.models.pair import Model, wrap
from mechdiff.models.projections import layout_of
from pico import CONFIGS, WITHOUT_HEADS, each, twin

layers = st.integers(0, N_LAYERS - 1)


def positions_of(data: st.DataObject, ids: list[int]) -> list[int]:
    """One position, some, or all."""
    return sorted(data.draw(st.sets(st.integers(0, len(ids) - 1), min_size=1)))


# ---- 1: a model's own states change nothing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", each())
@examples(2)
@given(token_ids, st.data())
def test_property_01_writing_back_what_was_read_changes_no_bit(name: str, ids: list[int], data: st.DataObject) -> None:
    positions, start = positions_of(data, ids), data.draw(st.integers(0, 3))
    for dtype in FLOOR_NATS:
        model = loaded(name, dtype)
        states = capture(model, ids, sites_of(model)[start::4], positions).states
        plain = logits(model, ids)
        for site, state in states.items():
            assert torch.equal(logits(model, ids, {site: at(positions, state)}), plain), site
        assert torch.equal(logits(model, ids, {site: at(positions, state) for site, state in states.items()}), plain)


@examples(30)
@given(families, dtypes, token_ids, st.data())
def test_property_01_own_states_change_nothing_in_any_engine(name: str, dtype: torch.dtype, ids: list[int], data: st.DataObject) -> None:
    model, engine = loaded(name, dtype), data.draw(st.sampled_from(engines_of(name)))
    clean = clean_of(model, ids, sites_of(model), data.draw(st.integers(1, min(3, len(ids)))))
    writes = {site: Write(value=state[None]) for site, state in clean.states.items()}
    zeros = {site: Write(value=torch.zeros_like(state)[None], add=True) for site, state in clean.states.items()}
    found = ENGINES[engine](model, [clean], [*({site: write} for site, write in writes.items()), writes, zeros])[0]
    if engine == "full":
        assert torch.equal(found, clean.logits.expand_as(found))
    assert kl(clean.logits, found).max() < FLOOR_NATS[dtype]


# ---- 2, 3: residual streams are all that passes from block to block ----------------------------------------------------------------


@pytest.mark.parametrize("name", each())
@examples(2)
@given(dtypes, token_ids, st.booleans(), st.data())
def test_property_02_the_last_blocks_output_is_the_other_models_answer(
    name: str, dtype: torch.dtype, ids: list[int], swapped: bool, data: st.DataObject
) -> None:
    """At the position that is written, and nowhere else."""
    runs, other = pair(name, dtype)[:: -1 if swapped else 1]
    last, position = Site(N_LAYERS - 1, "resid_post"), data.draw(st.integers(0, len(ids) - 1))
    own, theirs = logits(runs, ids), logits(other, ids)
    found = logits(runs, ids, {last: at([position], capture(other, ids, [last], [position]).states[last])})
    assert not torch.equal(own[position], theirs[position])
    assert torch.equal(found[position], theirs[position])
    own[position] = theirs[position]
    assert torch.equal(found, own)
    engine = data.draw(st.sampled_from(engines_of(name)))
    written: Variant = {last: Write(value=clean_of(other, ids, [last]).states[last][None])}
    assert kl(theirs[-1], ENGINES[engine](runs, [clean_of(runs, ids)], [written])[0, 1]) < FLOOR_NATS[dtype]


@pytest.mark.parametrize("name", each())
@examples(2)
@given(dtypes, token_ids, layers, st.booleans(), st.data())
def test_property_03_a_patch_at_all_positions_is_the_hybrid_network(
    name: str, dtype: torch.dtype, ids: list[int], layer: int, swapped: bool, data: st.DataObject
) -> None:
    runs, other = pair(name, dtype)[:: -1 if swapped else 1]
    site, every = Site(layer, "resid_post"), range(len(ids))
    state = capture(other, ids, [site], every).states[site]
    expected = logits(hybrid(other, runs, layer), ids)
    assert torch.equal(logits(runs, ids, {site: at(every, state)}), expected)
    if dtype == torch.float32:
        engine = data.draw(st.sampled_from(engines_of(name)))
        found = ENGINES[engine](runs, [clean_of(runs, ids)], [{site: Write(value=state[None])}])
        torch.testing.assert_close(found[0, 1], expected[-1], **CLOSE)


# ---- 4: heads' contributions are the whole of attention's output but for the bias --------------------------------------------------


def heads_of(model: Model, layer: int) -> tuple[Tensor, Tensor]:
    """W_O by head `[head, d_head, d]`, and its bias."""

    def read(name: str) -> Tensor | None:
        tensor = model.net.state_dict().get(name)
        module = model.net.get_submodule(name.rpartition(".")[0])
        return tensor.T if tensor is not None and isinstance(module, Conv1D) and tensor.ndim == 2 else tensor

    found = layout_of(model.family, model.config).output(layer, read)
    assert not isinstance(found, str), found
    return found


@examples(45)
@given(st.sampled_from([name for name in sorted(CONFIGS) if name not in WITHOUT_HEADS]), token_ids, layers, st.booleans(), st.data())
def test_property_04_all_contributions_are_the_attention_patch_without_the_bias(
    name: str, ids: list[int], layer: int, swapped: bool, data: st.DataObject
) -> None:
    own, other = pair(name)[:: -1 if swapped else 1]
    z, out = Site(layer, "z"), Site(layer, "attn_proj")
    here, there = clean_of(own, ids, [z, out]), clean_of(other, ids, [z, out])
    (w_own, b_own), (w_other, b_other) = heads_of(own, layer), heads_of(other, layer)
    n_heads = own.shape.n_heads
    z_own, z_other = (clean.states[z].unflatten(1, (n_heads, -1)) for clean in (here, there))
    block = Block(layer=layer, own=z_own, other=z_other, w_own=w_own, w_other=w_other)
    change, bias_change = block.change(), b_other - b_own
    torch.testing.assert_close(change.sum(1), there.states[out] - here.states[out] - bias_change, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(block.change("routing") + block.change("write"), change, rtol=1e-4, atol=2e-5)
    order = data.draw(st.permutations(range(n_heads)))
    whole = same_by_site(layer, here.states[out], there.states[out], bias_change)
    one, two = ENGINES[data.draw(st.sampled_from(engines_of(name)))](own, [here], [swap(layer, change, order), whole])[0, 1:]
    assert kl(here.logits, two) > 1e-7, "swapping does something, so that agreement says something"
    assert kl(two, one) < FLOOR_NATS[torch.float32]


# ---- 5, 6: causality over depth and over positions ---------------------------------------------------------------------------------


def changed_at(layer: int, kind: str) -> Callable[[nn.Module], None]:
    """Moves the weights that make `kind` at one block, and nothing else."""

    def change(net: nn.Module) -> None:
        model = wrap(net, side="base", ref="")
        module = model.place(Site(layer, "attn_proj"))[0] if kind == "attn_proj" else model.blocks[layer].get_submodule(model.family.mlp)
        torch.manual_seed(6)
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)

    return change


@examples(45)
@given(families, dtypes, token_ids, layers, st.sampled_from(["attn_proj", "mlp_out"]), st.booleans(), st.data())
def test_property_05_patches_before_the_first_change_are_exactly_nothing(
    name: str, dtype: torch.dtype, ids: list[int], layer: int, kind: str, swapped: bool, data: st.DataObject
) -> None:
    changed, positions = Site(layer, kind), positions_of(data, ids)
    base = loaded(name, dtype)
    runs, other = (base, twin(base, changed_at(layer, kind)))[:: -1 if swapped else 1]
    states = capture(other, ids, sites_of(base), positions).states
    own, theirs = logits(runs, ids), logits(other, ids)
    assert not torch.equal(own, theirs)
    before = [site for site in states if site < changed]
    for site in before[data.draw(st.integers(0, 2)) :: 3]:
        assert torch.equal(logits(runs, ids, {site: at(positions, states[site])}), own), site
    assert torch.equal(logits(runs, ids, {site: at(positions, states[site]) for site in before}), own)
    everywhere = capture(other, ids, [Site(layer, "resid_post")], range(len(ids))).states
    moved = logits(runs, ids, {site: at(range(len(ids)), state) for site, state in everywhere.items()})
    assert kl(own, moved).max() > 1e-7, "behind the change a patch does something"


@examples(50)
@given(families, dtypes, token_ids, layers, st.sampled_from(KINDS), seeds, st.data())
def test_property_06_a_patch_at_a_position_leaves_earlier_ones_alone(
    name: str, dtype: torch.dtype, ids: list[int], layer: int, kind: str, seed: int, data: st.DataObject
) -> None:
    model, position = loaded(name, dtype), data.draw(st.integers(0, len(ids) - 1))
    assume(kind in model.kinds())
    value = noise(1, model.shape.width(kind), seed=seed).to(dtype)
    before, after = logits(model, ids), logits(model, ids, {Site(layer, kind): at([position], value)})
    slack = 0 if name not in EXPERTS else 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(after[:position], before[:position], rtol=0, atol=slack)
    assert not torch.equal(after[position], before[position])


# ---- 7: patches compose ------------------------------------------------------------------------------------------------------------


def one_tensor(model: Model, first: Site, second: Site) -> bool:
    """Sites that are two names of one tensor: a block's input is the output of the one below; without a post-norm, attn_out is attn_proj."""
    kinds = (first.kind, second.kind)
    if kinds == ("resid_post", "resid_pre"):
        return second.layer == first.layer + 1
    plain = model.family.attn_norm is None and model.scale(Site(0, "attn_out")) == 1
    return kinds == ("attn_proj", "attn_out") and first.layer == second.layer and plain


@examples(40)
@given(families, dtypes, token_ids, seeds, st.data())
def test_property_07_twice_is_once_and_the_order_of_disjoint_sites_is_not_seen(
    name: str, dtype: torch.dtype, ids: list[int], seed: int, data: st.DataObject
) -> None:
    model = loaded(name, dtype)
    chosen = data.draw(st.lists(st.sampled_from(sites_of(model)), min_size=2, max_size=5, unique=True))
    shuffled = data.draw(st.permutations(chosen))
    edits = {site: writer(noise(2, model.shape.width(site.kind), seed=seed + i).to(dtype)) for i, site in enumerate(chosen)}
    tokens = torch.tensor(ids)
    once = full_forward(model, tokens, edits)
    assert torch.equal(full_forward(model, tokens, {site: edits[site] for site in shuffled}), once)
    with edited(model, edits):
        assert torch.equal(full_forward(model, tokens, edits), once)
    if not any(one_tensor(model, first, second) for first, second in combinations(sorted(chosen), 2)):
        one, *others = shuffled
        with edited(model, {one: edits[one]}):
            assert torch.equal(full_forward(model, tokens, {site: edits[site] for site in others}), once)


@examples(30)
@given(families, token_ids, st.data())
def test_property_07_patches_compose_in_every_engine(name: str, ids: list[int], data: st.DataObject) -> None:
    """Disjoint sites in any order; one write twice is once; a sum in two parts is the sum; a block's resid_post is the next's resid_pre."""
    model, foreign = pair(name)
    n_pos = data.draw(st.integers(1, min(3, len(ids))))
    clean, states = clean_of(model, ids), clean_of(foreign, ids, sites_of(foreign), n_pos).states
    chosen = data.draw(st.lists(st.sampled_from(sites_of(model)), min_size=1, max_size=5, unique=True))
    shuffled = data.draw(st.permutations(chosen))
    layer = data.draw(st.integers(0, N_LAYERS - 2))
    below, above = Site(layer, "resid_post"), Site(layer + 1, "resid_pre")
    value = states[below][None]
    variants: list[Variant] = [
        {site: Write(value=states[site][None]) for site in chosen},
        {site: Write(value=states[site][None]) for site in shuffled},
        {below: Write(value=value)},
        {above: Write(value=value)},
        {below: Write(value=value), above: Write(value=value)},
        {below: Write(value=value, add=True)},
        {below: Write(value=value / 4, add=True), above: Write(value=value * 3 / 4, add=True)},
    ]
    found = ENGINES[data.draw(st.sampled_from(engines_of(name)))](model, [clean], variants)[0, 1:]
    assert kl(clean.logits, found[2]) > 1e-7
    for one, same in ((1, 0), (3, 2), (4, 2), (6, 5)):
        torch.testing.assert_close(found[one], found[same], **CLOSE)
