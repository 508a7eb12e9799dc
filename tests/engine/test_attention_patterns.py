"""Attention patterns at the decision position: against whole passes of a model that was built eager, for every family."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import pico
from mechdiff.architectures.families import sliding_window
from mechdiff.engine.activations import Clean, capture, forward
from mechdiff.engine.attention_patterns import attention_at_decision, attention_at_end, pattern_js_nats
from mechdiff.errors import ModelError
from mechdiff.models.pair import Model

WRONG_WHEN_EAGER = ("falcon_alibi",)
FAMILIES = pico.each(name for name in pico.CONFIGS if name not in (*pico.HYBRID, *WRONG_WHEN_EAGER))
LAYERS = range(4)
[IDS] = pico.prompts(1, shortest=20, longest=20)


def clean_of(model: Model, ids: list[int] = IDS, *, keep_cache: bool = True) -> Clean:
    return capture(model, ids, [], [0], keep_cache=keep_cache)


def whole(model: Model, ids: list[int] = IDS) -> Tensor:
    """Logits `[pos, vocab]` of a plain pass."""
    return forward(model, torch.tensor([ids]), use_cache=False, logits_to_keep=0).logits[0]


def by_a_whole_pass(name: str, ids: list[int] = IDS) -> list[Tensor]:
    """`[head, key]` of the last token, by block: a model that has never attended but eagerly, and sees the whole prompt at once."""
    eager = pico.pico(name, attention="eager")
    assert eager.config._attn_implementation == "eager"
    given = forward(eager, torch.tensor([ids]), use_cache=False, output_attentions=True).attentions
    return [pattern[0, :, -1] for pattern in given]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("keep_cache", [True, False])
def test_patterns_are_those_of_a_whole_eager_pass(name: str, keep_cache: bool) -> None:
    model = pico.pico(name)
    found = attention_at_decision(model, clean_of(model, keep_cache=keep_cache), LAYERS)
    assert list(found) == list(LAYERS)
    for layer, expected in enumerate(by_a_whole_pass(name)):
        assert found[layer].dtype == torch.float32
        assert found[layer].shape == (model.shape.n_heads, len(IDS)), "one weight for each token up to its own"
        torch.testing.assert_close(found[layer], expected, atol=2e-6, rtol=2e-5)
        assert (found[layer].std(0) > 0).any(), "heads differ, so that a mix-up of heads would show"


@pytest.mark.parametrize("keep_cache", [True, False])
@pytest.mark.parametrize("n_last", [7, 99])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
def test_patterns_of_the_last_tokens_are_the_rows_of_a_whole_pass(name: str, n_last: int, keep_cache: bool) -> None:
    model, eager = pico.pico(name), pico.pico(name, attention="eager")
    found = attention_at_end(model, clean_of(model, keep_cache=keep_cache), LAYERS, n_last)
    whole_pass = forward(eager, torch.tensor([IDS]), use_cache=False, output_attentions=True).attentions
    for layer in LAYERS:
        rows = min(n_last, len(IDS))
        assert found[layer].shape == (model.shape.n_heads, rows, len(IDS))
        torch.testing.assert_close(found[layer], whole_pass[layer][0, :, -rows:], atol=2e-6, rtol=2e-5)
        assert (found[layer].triu(len(IDS) - rows + 1) == 0).all(), "no token sees one behind it"


@pytest.mark.parametrize("name", FAMILIES)
def test_patterns_sum_to_one_but_for_sinks_and_stay_in_the_window(name: str) -> None:
    model = pico.pico(name)
    for layer, pattern in attention_at_decision(model, clean_of(model), LAYERS).items():
        total = pattern.sum(-1)
        if name == "gpt_oss":
            assert ((total > 0.1) & (total < 0.99)).all()
        else:
            torch.testing.assert_close(total, torch.ones(model.shape.n_heads), atol=1e-6, rtol=0)
        outside = len(IDS) - (sliding_window(model.config, layer) or len(IDS))
        assert (pattern[:, :outside] == 0).all()
        assert (pattern[:, outside:] > 0).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_model_is_as_it_was(name: str) -> None:
    model = pico.pico(name)
    own, before, clean = model.config._attn_implementation, whole(model), clean_of(model)
    kept = [(keys.clone(), values.clone()) for keys, values in clean.cache or []]
    attention_at_decision(model, clean, [1])
    assert model.config._attn_implementation == own
    assert torch.equal(whole(model), before)
    assert len(kept) == 4
    for (keys, values), (keys_before, values_before) in zip(clean.cache or [], kept, strict=True):
        assert torch.equal(keys, keys_before)
        assert torch.equal(values, values_before)


def test_most_families_do_not_run_eagerly_by_themselves() -> None:
    """Otherwise nothing above would have been switched."""
    own = [pico.pico(name).config._attn_implementation for name in ("llama", "gpt2", "falcon", "opt", "gemma3", "deepseek_v3")]
    assert own == ["sdpa"] * 6


@pytest.mark.parametrize("name", ["llama", "falcon", "gpt_oss"])
def test_the_implementation_comes_back_after_an_error(name: str) -> None:
    model = pico.pico(name)
    own, clean, seen = model.config._attn_implementation, clean_of(model), []

    def fail(*_: Any) -> None:
        seen.append(model.config._attn_implementation)
        raise RuntimeError("out of memory")

    handle = model.blocks[2].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        attention_at_decision(model, clean, LAYERS)
    handle.remove()
    assert seen == ["eager"]
    assert model.config._attn_implementation == own


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("n", [1, 2])
def test_a_prompt_of_one_or_two_tokens(name: str, n: int) -> None:
    model, ids = pico.pico(name), IDS[:n]
    for keep_cache in (True, False):
        found = attention_at_decision(model, clean_of(model, ids, keep_cache=keep_cache), LAYERS)
        for layer, expected in enumerate(by_a_whole_pass(name, ids)):
            torch.testing.assert_close(found[layer], expected, atol=2e-6, rtol=2e-5)


def test_the_sides_of_an_adapter_look_elsewhere() -> None:
    """One network, its adapter switched off and on: each side's patterns are those of its own merged weights."""
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    model = pico.with_adapter(target_modules=["q_proj", "v_proj"])
    layers = [module for module in model.net.modules() if isinstance(module, LoraLayer)]
    assert len(layers) == 8
    assert not isinstance(model.net, PeftModel)
    off = attention_at_decision(model, clean_of(model), LAYERS)
    for layer in layers:
        layer.enable_adapters(True)
    on = attention_at_decision(model, clean_of(model), LAYERS)
    for layer in layers:
        layer.merge()
    merged = attention_at_decision(model, clean_of(model), LAYERS)
    for layer, expected in enumerate(by_a_whole_pass("llama")):
        torch.testing.assert_close(off[layer], expected, atol=2e-6, rtol=2e-5)
        torch.testing.assert_close(on[layer], merged[layer], atol=2e-6, rtol=2e-5)
        assert pattern_js_nats(off[layer], on[layer]).max() > 1e-4


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_oss", "bloom"])
def test_bfloat16_patterns_are_close_and_sum_to_one(name: str) -> None:
    half = pico.pico(name, dtype=torch.bfloat16)
    found = attention_at_decision(half, clean_of(half), LAYERS)
    for layer, expected in enumerate(by_a_whole_pass(name)):
        assert found[layer].dtype == torch.float32
        torch.testing.assert_close(found[layer], expected, atol=0.05, rtol=0.05)
        if name != "gpt_oss":
            torch.testing.assert_close(found[layer].sum(-1), torch.ones(half.shape.n_heads), atol=1e-6, rtol=0)


# ---- what cannot be read -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", pico.HYBRID)
def test_hybrids_have_no_pattern_in_every_block(name: str) -> None:
    model = pico.pico(name)
    with pytest.raises(ModelError, match="something else than attention"):
        attention_at_decision(model, clean_of(model, keep_cache=False), [1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_falcon_with_alibi_is_another_model_when_eager(dtype: torch.dtype) -> None:
    model = pico.pico("falcon_alibi", dtype=dtype)
    with pytest.raises(ModelError, match="twice"):
        attention_at_decision(model, clean_of(model, keep_cache=False), [1])
    if dtype == torch.float32:
        apart = (whole(model) - whole(pico.pico("falcon_alibi", attention="eager"))).abs().max()
        assert apart > 0.05, "transformers has mended it: take the refusal out of looks.py"


def hooked(model: Model, change: Callable[[Tensor], Tensor | None]) -> None:
    """From now on block 2's attention reports `change(weights)` instead of its weights."""

    def after(module: Any, args: tuple, output: tuple) -> tuple:
        return (output[0], None if output[1] is None else change(output[1]), *output[2:])

    model.blocks[2].get_submodule("self_attn").register_forward_hook(after)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weights: None, r"from 3 of 4 blocks"),
        (lambda weights: weights[..., 1:], r"\(1, 4, 1, 19\)"),
        (lambda weights: weights[:, :2], r"\(1, 2, 1, 20\)"),
        (lambda weights: weights / 2, r"block 2 sums to 0\.500"),
        (lambda weights: weights * torch.nan, r"block 2 sums to nan"),
    ],
)
def test_weights_that_are_none_are_refused(change: Callable[[Tensor], Tensor | None], words: str) -> None:
    model = pico.pico("llama")
    clean = clean_of(model)
    hooked(model, change)
    with pytest.raises(ModelError, match=words):
        attention_at_decision(model, clean, LAYERS)
    assert model.config._attn_implementation == "sdpa"


def test_another_models_clean_run_is_found_out() -> None:
    model = pico.pico("llama")
    with pytest.raises(ModelError, match="says something else than in its clean run"):
        attention_at_decision(model, clean_of(pico.twin(model, pico.moved)), LAYERS)


# ---- Jensen-Shannon ------------------------------------------------------------------------------------------------------------------


def law(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(2).softmax(-1)


def test_js_is_the_mean_divergence_from_the_middle() -> None:
    from scipy.spatial.distance import jensenshannon

    a, b = law(5, 30), law(5, 30, seed=1)
    expected = jensenshannon(a.numpy(), b.numpy(), axis=-1) ** 2
    torch.testing.assert_close(pattern_js_nats(a, b), torch.tensor(expected), atol=1e-12, rtol=0)
    torch.testing.assert_close(pattern_js_nats(a, b), pattern_js_nats(b, a), atol=1e-15, rtol=0)
    assert pattern_js_nats(a[0], b[0]).shape == ()


def test_js_is_zero_between_equals_and_ln_two_between_strangers() -> None:
    a = law(4, 3, 20)
    assert (pattern_js_nats(a, a) == 0).all()
    left, right = torch.cat([a, 0 * a], -1), torch.cat([0 * a, a], -1)
    torch.testing.assert_close(pattern_js_nats(left, right), torch.full((4, 3), 2.0, dtype=torch.float64).log(), atol=1e-12, rtol=0)


def test_js_takes_a_sink_for_an_outcome() -> None:
    """Two heads that share the same pattern, one of which gives half of its attention to a sink."""
    whole_of_it = law(20)
    halved = pattern_js_nats(whole_of_it, whole_of_it / 2)
    expected = pattern_js_nats(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(halved, expected, atol=1e-12, rtol=0)
    everything, nothing = torch.ones(3) / 3, torch.zeros(3)
    assert float(pattern_js_nats(everything, nothing)) == pytest.approx(0.693147, abs=1e-6)
    assert float(pattern_js_nats(nothing, nothing)) == 0


def test_js_of_a_small_change_is_an_eighth_of_its_squared_fisher_length() -> None:
    p = law(50)
    step = torch.randn(50, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    step = 1e-3 * p * (step - (p * step).sum())
    expected = float((step**2 / p).sum()) / 8
    assert float(pattern_js_nats(p, p + step)) == pytest.approx(expected, rel=0.01)


def test_js_wants_the_same_keys() -> None:
    with pytest.raises((AssertionError, TypeError)):
        pattern_js_nats(law(3, 20), law(3, 1))
