"""Properties 18, 19 and 22 of METHOD: what must not depend on which model is called tuned, on who shares a pass, on the kernel, or on the device."""

from collections.abc import Sequence
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from drawn import (
    CLOSE,
    EXPERTS,
    FLOOR_NATS,
    N_LAYERS,
    clean_of,
    dtypes,
    engines_of,
    examples,
    families,
    kl,
    loaded,
    noise,
    pair,
    seeds,
    sites_of,
    token_ids,
)
from mechdiff.architectures.sites import Site
from mechdiff.engine import distributions
from mechdiff.engine.activations import Clean, capture
from mechdiff.engine.choice import engine_for
from mechdiff.engine.counterfactuals import Scores, Subject, scores
from mechdiff.engine.distributions import METRICS
from mechdiff.engine.outcome import CleanLogits, outcomes
from mechdiff.engine.replay import ENGINES, Variant, Write
from mechdiff.measures.divergence.formula import divergences
from mechdiff.measures.grafting.formula import Prompts, lattice
from mechdiff.measures.patching.formula import Both, variants, written_state
from mechdiff.models.modules import changes_between, factors, tensors_of
from mechdiff.models.pair import Model, wrap
from mechdiff.statistics.intervals import asymmetry_intervals
from pico import CONFIGS, moved, prompts, same_tokens, twin

prompt_sets = st.builds(lambda seed, n: prompts(n, seed=seed, shortest=3), seeds, st.integers(2, 4))

# ---- 18: which model is called base --------------------------------------------------------------------------------------------------


def patched(base: Model, tuned: Model, ids: Sequence[Sequence[int]], kind: str, direction: str, *, max_rows: int = 1000) -> Scores:
    """The arm identity at every block, in one direction."""
    sites = [Site(layer, kind) for layer in range(N_LAYERS)]
    cleans = {model.side: [clean_of(model, one, sites) for one in ids] for model in (base, tuned)}
    states = {side: torch.stack([torch.stack([clean.states[site] for clean in found]) for site in sites]) for side, found in cleans.items()}
    laws = {side: torch.stack([clean.logits for clean in found]) for side, found in cleans.items()}
    runs = tuned if direction == "tuned<-base" else base
    written = written_state("identity", direction, Both(**states))
    engine, tokens = ENGINES[engine_for(runs.config)[0]], same_tokens(runs.shape.vocab)
    subject = Subject(model=runs, engine=engine, cleans=cleans[runs.side], tokens=tokens)
    return scores(subject, variants(kind, range(N_LAYERS), written), CleanLogits(**laws), max_rows=max_rows)


@examples(15)
@given(families, prompt_sets, st.sampled_from(["resid_pre", "attn_out", "mlp_out", "resid_post"]))
def test_property_18_swapping_the_models_exchanges_breakage_and_recovery(name: str, ids: list[list[int]], kind: str) -> None:
    base, tuned = pair(name)
    other_base, other_tuned = (wrap(model.net, side=side, ref=model.ref) for model, side in ((tuned, "base"), (base, "tuned")))
    for direction, opposite in (("tuned<-base", "base<-tuned"), ("base<-tuned", "tuned<-base")):
        here, there = patched(base, tuned, ids, kind, direction), patched(other_base, other_tuned, ids, kind, opposite)
        assert here["kl_own_nats"].max() > 1e-7
        for metric in METRICS:
            sign = -1 if metric == "logit_diff_divergent" else 1
            torch.testing.assert_close(there[metric], sign * here[metric], rtol=0, atol=0, equal_nan=True, msg=f"{direction} {metric}")


@examples(30)
@given(seeds, st.integers(1, 5), st.integers(2, 300), st.floats(0.01, 10))
def test_property_18_swapping_the_models_exchanges_the_directions_of_d(seed: int, n: int, vocab: int, size: float) -> None:
    base = 3 * noise(n, vocab, seed=seed)
    tuned = base + size * noise(n, vocab, seed=seed + 1)
    here, there = divergences(base, tuned), divergences(tuned, base)
    assert torch.equal(here["kl_tuned_base_nats"], there["kl_base_tuned_nats"])
    assert torch.equal(here["kl_base_tuned_nats"], there["kl_tuned_base_nats"])
    torch.testing.assert_close(here["js_nats"], there["js_nats"], rtol=1e-4, atol=1e-9)
    expected = [float(one) for one in kl(tuned, base)]
    assert here["kl_tuned_base_nats"].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-9), "D is that of the tuned model's law"


@examples(15)
@given(families, seeds)
def test_property_18_the_change_of_the_weights_changes_its_sign(name: str, seed: int) -> None:
    base = loaded(name)

    def change(net: torch.nn.Module) -> None:
        for i, parameter in enumerate(net.parameters()):
            parameter.add_(noise(*parameter.shape, seed=seed + i) * 0.05)

    tuned = twin(base, change)
    there, back = changes_between(base, tensors_of(tuned)), changes_between(tuned, tensors_of(base))
    assert there.units == back.units
    named = dict(base.net.named_parameters(remove_duplicate=False))
    other = dict(tuned.net.named_parameters(remove_duplicate=False))
    for unit in there.units[:: max(1, len(there.units) // 4)]:
        forwards, backwards = factors(base, there, unit), factors(tuned, back, unit)
        assert forwards.keys() == backwards.keys()
        for tensor, one in forwards.items():
            torch.testing.assert_close(one.cut(one.full), -backwards[tensor].cut(one.full), rtol=0, atol=1e-5)
            torch.testing.assert_close(one.cut(one.full), (other[tensor] - named[tensor]).detach(), rtol=0, atol=1e-5)


@examples(20)
@given(seeds, st.integers(2, 40))
def test_property_18_the_asymmetry_changes_its_sign_and_its_ends(seed: int, n: int) -> None:
    one, other = np.random.default_rng(seed).gamma(1.0, 1.0, (2, n, 3))
    point, low, high = asymmetry_intervals(one, other)
    swapped, swapped_low, swapped_high = asymmetry_intervals(other, one)
    np.testing.assert_allclose(swapped, -point, rtol=0, atol=1e-12)
    np.testing.assert_allclose(swapped_low, -high, rtol=0, atol=1e-9)
    np.testing.assert_allclose(swapped_high, -low, rtol=0, atol=1e-9)
    np.testing.assert_allclose(point, (one.mean(0) - other.mean(0)) / (one.mean(0) + other.mean(0)), rtol=1e-12, atol=1e-12)


# ---- 19: company, order and chunks -------------------------------------------------------------------------------------------------


def sorts_of_variants(states: dict[Site, Tensor]) -> list[Variant]:
    """A state at each site, sums of one, two blocks at once: `[prompt, pos, d]` each."""
    single: list[Variant] = [{site: Write(value=value)} for site, value in states.items()]
    added: list[Variant] = [{site: Write(value=value, add=True)} for site, value in states.items() if site.layer == 1]
    two: Variant = {Site(layer, "mlp_out"): Write(value=states[Site(layer, "mlp_out")]) for layer in (2, 0)}
    return [*reversed(single), two, *added]


@examples(25)
@given(families, prompt_sets, st.data())
def test_property_19_who_shares_a_pass_and_in_which_order_is_not_seen(name: str, ids: list[list[int]], data: st.DataObject) -> None:
    model, foreign = pair(name)
    n_pos = data.draw(st.integers(1, 3))
    cleans = [clean_of(model, one) for one in ids]
    theirs = [clean_of(foreign, one, sites_of(foreign), n_pos).states for one in ids]
    every = sorts_of_variants({site: torch.stack([one[site] for one in theirs]) for site in sites_of(model)})
    run = ENGINES[data.draw(st.sampled_from([engine for engine in engines_of(name) if engine != "full"]))]
    rows = data.draw(st.lists(st.integers(0, len(every) - 1), min_size=1, max_size=6, unique=True))
    some = data.draw(st.lists(st.integers(0, len(ids) - 1), min_size=1, unique=True))
    together = run(model, cleans, every)
    chosen: list[Variant] = [{site: replace(write, value=write.value[some]) for site, write in every[row].items()} for row in rows]
    apart = run(model, [cleans[i] for i in some], chosen)
    torch.testing.assert_close(apart, together[some][:, [0, *(1 + row for row in rows)]], **CLOSE)
    assert torch.equal(run(model, cleans, every), together), "a pass does not change the caches it stands on"


@examples(15)
@given(families, prompt_sets, st.integers(1, 30), st.data())
def test_property_19_the_rows_of_a_pass_are_not_seen_in_the_scores(
    name: str, ids: list[list[int]], max_rows: int, data: st.DataObject
) -> None:
    base, tuned = pair(name)
    order = data.draw(st.permutations(range(len(ids))))
    tuned = wrap(tuned.net, side="tuned", ref="tuned")
    whole = patched(base, tuned, ids, "resid_post", "tuned<-base")
    cut = patched(base, tuned, [ids[i] for i in order], "resid_post", "tuned<-base", max_rows=max_rows)
    for metric in ("kl_own_nats", "kl_other_nats", "js_own_nats"):
        assert whole[metric].max() > 1e-5
        torch.testing.assert_close(cut[metric], whole[metric][list(order)], rtol=1e-3, atol=1e-7, msg=metric)


@examples(30)
@given(seeds, st.integers(1, 4), st.integers(1, 9), st.integers(2, 600), st.integers(1, 3000), st.data())
def test_property_19_blocks_and_the_order_of_prompts_change_no_outcome(
    seed: int, n: int, n_runs: int, vocab: int, block: int, data: st.DataObject
) -> None:
    own, other = (3 * noise(n, vocab, seed=seed + i) for i in range(2))
    runs = own[:, None] + noise(n, n_runs, vocab, seed=seed + 2)
    order = list(data.draw(st.permutations(range(n))))
    whole = outcomes(runs, CleanLogits(base=other, tuned=own), "tuned")
    with patch.dict(distributions._BLOCK_ELEMENTS, cpu=block):
        cut = outcomes(runs[order], CleanLogits(base=other[order], tuned=own[order]), "tuned")
    for metric in METRICS:
        torch.testing.assert_close(cut[metric], whole[metric][order], rtol=1e-5, atol=1e-9, equal_nan=True, msg=metric)


@examples(12)
@given(families, prompt_sets, st.integers(1, 60), st.data())
def test_property_19_the_size_of_batches_is_not_seen_in_grafts(
    name: str, ids: list[list[int]], max_tokens: int, data: st.DataObject
) -> None:
    base = loaded(name)
    tuned = twin(base, moved)
    laws = {model.side: torch.stack([capture(model, one, [], [0]).logits for one in ids]) for model in (base, tuned)}
    names = [f"p{i}" for i in range(len(ids))]
    said = Prompts(split="report", names=names, ids=ids, base_logits=laws["base"], tuned_logits=laws["tuned"])
    changes = changes_between(base, tensors_of(tuned))
    whole, cut = (lattice(base, changes, said, max_tokens=most) for most in (10_000, max_tokens))
    units = data.draw(st.sets(st.sampled_from(changes.units), max_size=5))
    assert cut.value(units).tolist() == pytest.approx(whole.value(units).tolist(), rel=1e-4, abs=1e-8)


# ---- 22: kernels and devices -------------------------------------------------------------------------------------------------------

EAGER_ONLY = ("bloom", "gemma2", "gpt_oss")
KERNELS = [name for name in CONFIGS if name not in (*EAGER_ONLY, "falcon_alibi")]
"""Families whose attention is written both ways. Falcon's eager attention adds ALiBi twice (in transformers 5.23: to the scores and in the mask)."""


def laws_under_patches(model: Model, foreign: dict[Site, Tensor], ids: list[int], engine: str) -> Tensor:
    """`[1 + site, vocab]`: the clean law, and that under the foreign state of each site."""
    clean: Clean = clean_of(model, ids)
    written: list[Variant] = [{site: Write(value=state[None].to(model.device))} for site, state in foreign.items()]
    return ENGINES[engine](model, [clean], written)[0].cpu()


@examples(20)
@given(st.sampled_from(KERNELS), dtypes, token_ids, st.data())
def test_property_22_eager_and_fused_attention_agree_within_the_floor(
    name: str, dtype: torch.dtype, ids: list[int], data: st.DataObject
) -> None:
    assume(dtype == torch.float32 or name not in EXPERTS)  # near a tie a router picks another expert
    eager, fused = (loaded(name, dtype, attention) for attention in ("eager", "sdpa"))
    assert (eager.config._attn_implementation, fused.config._attn_implementation) == ("eager", "sdpa")
    foreign = {
        site: noise(1, eager.shape.width(site.kind), seed=site.layer).to(dtype) for site in sites_of(eager)[:: data.draw(st.integers(1, 5))]
    }
    engine = data.draw(st.sampled_from(engines_of(name)))
    one, two = (laws_under_patches(model, foreign, ids, engine) for model in (eager, fused))
    assert kl(one[0], one[1:]).max() > 1e-5
    assert kl(one, two).max() < FLOOR_NATS[dtype]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@examples(40)
@given(families, token_ids, st.data())
def test_property_22_a_gpu_and_the_cpu_agree_within_the_floor(name: str, ids: list[int], data: st.DataObject) -> None:
    here = loaded(name)
    there = wrap(twin(here).net.cuda(), side="base", ref=name)
    foreign = {site: noise(1, here.shape.width(site.kind), seed=site.layer) for site in sites_of(here)[:: data.draw(st.integers(1, 5))]}
    engine = data.draw(st.sampled_from(engines_of(name)))
    one, two = (laws_under_patches(model, foreign, ids, engine) for model in (here, there))
    assert kl(one, two).max() < distributions.ROUNDING_NATS[torch.float32]
