"""Properties 12 and 13 of METHOD: divergences of next-token laws, and what a small step costs."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from drawn import clean_of, examples, kl, noise, pair, seeds, token_ids
from mechdiff.architectures.sites import Site
from mechdiff.engine.choice import engine_for
from mechdiff.engine.distributions import js_nats, kl_nats
from mechdiff.engine.gradients import gradients
from mechdiff.engine.replay import ENGINES, Write
from mechdiff.measures.divergence.formula import divergences, next_byte_nats
from mechdiff.prompts.matching import Vocabulary
from mechdiff.prompts.vocabularies import shared_tokens
from oracles import laws

FAMILIES = st.sampled_from(["gemma2", "gpt2", "granite", "llama", "neox_parallel", "qwen2_moe", "bloom"])


@st.composite
def two_laws(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Float32 logits of a small vocabulary: drawn apart, near each other, or with tokens that are far below the others."""
    vocab = draw(st.integers(2, 12))
    values = st.floats(-30, 30, width=32)
    a = torch.tensor(draw(st.lists(values, min_size=vocab, max_size=vocab)))
    apart = torch.tensor(draw(st.lists(values, min_size=vocab, max_size=vocab)))
    return a, apart if draw(st.booleans()) else a + draw(st.sampled_from([1e-4, 1e-2, 1.0])) * apart / 30


# ---- 12: KL and JS -----------------------------------------------------------------------------------------------------------------


@examples(150)
@given(two_laws())
def test_property_12_bounds_symmetry_and_pinsker(both: tuple[Tensor, Tensor]) -> None:
    p, q = both
    nats, js = float(kl_nats(p, q)), float(js_nats(p, q))
    assert nats >= -1e-9
    assert -1e-9 <= js <= math.log(2)
    assert laws.total_variation(p.numpy(), q.numpy()) ** 2 <= nats / 2 + 1e-6
    assert float(js_nats(q, p)) == pytest.approx(js, rel=1e-4, abs=1e-9)
    assert nats == pytest.approx(laws.kl_nats_by_logs(p.numpy(), q.numpy()), rel=1e-4, abs=1e-6)
    assert js == pytest.approx(laws.js_nats(p.numpy(), q.numpy()), rel=1e-4, abs=1e-6)


@examples(80)
@given(two_laws(), st.floats(0.01, 50), seeds, st.sampled_from([0.0, 1e-3, 1.0, 30.0]))
def test_property_12_zero_exactly_where_the_laws_are_equal(both: tuple[Tensor, Tensor], shift: float, seed: int, scale: float) -> None:
    many = scale * noise(3, 1000, seed=seed)
    assert not kl_nats(many, many.clone()).any()
    assert not js_nats(many, many.clone()).any()
    p, q = both[0], both[1].double()
    assert float(kl_nats(p, p.clone())) == float(js_nats(p, p.clone())) == 0
    assert float(kl_nats(q, q + shift)) == pytest.approx(0, abs=1e-12)
    assume(laws.total_variation(p.double().numpy(), q.numpy()) > 1e-6)
    assert float(kl_nats(p.double(), q)) > 0
    assert float(js_nats(p.double(), q)) > 0


@examples(80)
@given(two_laws(), st.floats(-50, 50), st.data())
def test_property_12_a_shift_of_the_logits_and_a_joint_order_of_the_vocabulary_are_not_seen(
    both: tuple[Tensor, Tensor], shift: float, data: st.DataObject
) -> None:
    p, q = (one.double() for one in both)
    order = list(data.draw(st.permutations(range(len(p)))))
    for divergence in (kl_nats, js_nats):
        value = divergence(p, q)
        torch.testing.assert_close(divergence(p + shift, q - 2 * shift), value, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(divergence(p[order], q[order]), value, rtol=1e-8, atol=1e-12)


@examples(60)
@given(seeds, st.integers(2, 80), st.integers(1, 20), st.floats(0.01, 5))
def test_property_12_grouping_tokens_by_their_first_byte_never_adds_kl(seed: int, vocab: int, n_bytes: int, size: float) -> None:
    """Data processing: what the laws of the next byte differ by, the laws of the next token do."""
    pieces = tuple(bytes([i % n_bytes, i]) for i in range(vocab))
    tokens = shared_tokens(*(Vocabulary(pieces=pieces, kind="plain", byte_tokens=frozenset()) for _ in range(2)))
    base = 2 * noise(3, vocab, seed=seed)
    tuned = base + size * noise(3, vocab, seed=seed + 1)
    whole, grouped = divergences(base, tuned)["kl_tuned_base_nats"], next_byte_nats(base, tuned, tokens.first_bytes)
    assert (grouped <= whole * (1 + 1e-5) + 1e-9).all()
    assert (grouped >= -1e-12).all()
    if n_bytes == 1:
        assert grouped.abs().max() < 1e-12
    if n_bytes >= vocab:
        torch.testing.assert_close(grouped, whole, rtol=1e-4, atol=1e-8)


# ---- 13: a small step costs half its Fisher length -----------------------------------------------------------------------------------


@examples(40)
@given(seeds, st.integers(2, 2000), st.sampled_from([1e-4, 1e-3, 1e-2]), st.sampled_from([0.1, 3.0]))
def test_property_13_kl_of_a_small_change_of_the_logits_is_half_its_fisher_norm(seed: int, vocab: int, size: float, scale: float) -> None:
    reference, edit = scale * noise(vocab, seed=seed).double(), noise(vocab, seed=seed + 1).double()
    p = torch.softmax(reference, -1)
    fisher = float(p @ edit.square() - (p @ edit) ** 2)
    found = float(kl_nats(reference, reference + size * edit))
    assert found / size**2 == pytest.approx(fisher / 2, rel=20 * size, abs=1e-10 / size)


@examples(10)
@given(FAMILIES, token_ids, st.integers(0, 3), st.sampled_from(["resid_pre", "attn_proj", "mlp_out", "resid_post"]), seeds)
def test_property_13_kl_of_a_small_step_of_a_state_is_half_its_fisher_norm(
    name: str, ids: list[int], layer: int, kind: str, seed: int
) -> None:
    """F = E g g' over every token of the model's own law, g by `gradients`: nothing is sampled."""
    model, site = pair(name)[0], Site(layer, kind)
    engine, clean = ENGINES[engine_for(model.config)[0]], clean_of(model, ids)
    law = clean.logits.double().softmax(-1)
    every = torch.arange(len(law))
    step = noise(model.shape.d_model, seed=seed)
    step = 0.02 * step / step.norm()
    at_rest = {site: torch.zeros(1, model.shape.d_model)}
    found = gradients(model, engine, [clean], [at_rest] * len(law), lambda logits: logits.log_softmax(-1)[:, every, every])
    moves = torch.cat([one[site] for one in found]).double() @ step.double()
    expected = float(law @ moves.square()) / 2
    run = engine(model, [clean], [{site: Write(value=step[None, None], add=True)}, {site: Write(value=2 * step[None, None], add=True)}])[0]
    one, two = (float(kl(run[0], moved)) for moved in run[1:])
    assert one == pytest.approx(expected, rel=0.15, abs=2e-11)
    assert two == pytest.approx(4 * expected, rel=0.3, abs=2e-11)
