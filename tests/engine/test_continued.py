"""Continuations scored in blocks on the prompts' caches are what whole hooked forward passes say, for every family."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from mechdiff.architectures.sites import Site
from mechdiff.engine.activations import Clean, capture, edited, forward
from mechdiff.engine.choice import engine_for
from mechdiff.engine.continued import Continuation, Continued, Likelihoods, in_halves, likelihoods
from mechdiff.engine.reading import read
from mechdiff.engine.replay import ENGINES, Engine, Variant, Write, full, relay, replay
from mechdiff.engine.steered import steering
from mechdiff.errors import PromptError, RunError
from mechdiff.models.pair import Model
from pico import CONFIGS, RELAYED, each, pico
from pico import prompts as random_prompts

OPENING = [256, 7, 8, 9, 10]
PROMPTS = [[*OPENING, *ids[1:]] for ids in random_prompts(4, shortest=3, longest=16)]
SAID = [(0, [5]), (0, [5, 6, 7, 8, 9, 10]), (1, [90, 91]), (2, [30, 31, 32]), (3, [30, 31, 32, 33, 34]), (1, [5, 6, 200])]
CONTINUATIONS = [Continuation(prompt=prompt, ids=ids) for prompt, ids in SAID]
ASKED = Continued(prompts=PROMPTS, continuations=CONTINUATIONS)
CLOSE = {"rtol": 0, "atol": 1e-4}
FEW = ("llama", "qwen2_sliding", "gemma2", "gpt2", "bloom", "lfm2", "olmoe")


@cache
def loaded(name: str) -> Model:
    return pico(name)


def own(model: Model) -> Engine:
    return ENGINES[engine_for(model.config)[0]]


def states(model: Model, sites: Sequence[Site]) -> dict[Site, Tensor]:
    cleans = [capture(model, ids, sites, [len(ids) - 1]) for ids in PROMPTS]
    return {site: torch.stack([clean.states[site] for clean in cleans]) for site in sites}


def variants_of(name: str) -> list[Variant]:
    other = states(pico(name, seed=1), [Site(layer, kind) for layer in range(4) for kind in ("attn_out", "mlp_out", "resid_post")])
    first: list[Variant] = [{Site(layer, "resid_post"): Write(value=other[Site(layer, "resid_post")])} for layer in (3, 0, 2)]
    return [
        *first,
        {Site(1, "mlp_out"): Write(value=other[Site(1, "mlp_out")], add=True)},
        {Site(1, "attn_out"): Write(value=other[Site(1, "attn_out")]), Site(2, "mlp_out"): Write(value=other[Site(2, "mlp_out")])},
    ]


def slowly(model: Model, variants: Sequence[Variant]) -> Tensor:
    """`[continuation, run]` by one hooked pass each, the definition in float64."""
    found = torch.zeros(len(SAID), 1 + len(variants), dtype=torch.float64)
    for i, (prompt, said) in enumerate(SAID):
        at, ids = len(PROMPTS[prompt]) - 1, torch.tensor([[*PROMPTS[prompt], *said]])
        for run, variant in enumerate(({}, *variants)):

            def edit(write: Write, at: int = at, prompt: int = prompt):  # type: ignore[no-untyped-def]
                def change(tensor: Tensor) -> None:
                    tensor[0, at] = write.value[prompt, 0] + (tensor[0, at] if write.add else 0)

                return change

            with edited(model, {site: edit(write) for site, write in variant.items()}):
                laws = forward(model, ids, use_cache=False, logits_to_keep=0).logits[0].double().log_softmax(-1)
            found[i, run] = sum(laws[at + step, token] for step, token in enumerate(said))
    return found


@pytest.mark.parametrize("name", each())
def test_blocks_are_whole_hooked_passes(name: str) -> None:
    model, variants = loaded(name), variants_of(name)
    expected = slowly(model, variants)
    assert (expected[:, 1:] - expected[:, :1]).abs().amax(0).min() > 0.01, "each variant does something"
    for engine in {own(model), relay, full} if name in FEW else {own(model)}:
        found = likelihoods(model, engine, ASKED, variants, max_rows=64)
        torch.testing.assert_close(found.logps, expected, **CLOSE)


@pytest.mark.parametrize("name", each(sorted(set(CONFIGS) - set(RELAYED))))
def test_prompts_that_are_read_side_by_side_are_read_as_alone(name: str) -> None:
    model = loaded(name)
    for ids, found in zip(PROMPTS, read(model, PROMPTS), strict=True):
        alone = capture(model, ids, [], [0], keep_cache=True)
        torch.testing.assert_close(found.logits, alone.logits, rtol=0, atol=1e-5)
        assert alone.cache is not None
        assert found.cache is not None
        assert found.ids.tolist() == ids
        for here, there in zip(found.cache, alone.cache, strict=True):
            torch.testing.assert_close(here, there, rtol=0, atol=1e-5)


@pytest.mark.parametrize("max_rows", [1, 7, 30, 4096])
def test_packing_and_padding_change_nothing(max_rows: int) -> None:
    model, variants = loaded("qwen2_sliding"), variants_of("qwen2_sliding")
    together = likelihoods(model, replay, ASKED, variants, max_rows=512).logps
    torch.testing.assert_close(likelihoods(model, replay, ASKED, variants, max_rows=max_rows).logps, together, **CLOSE)
    for i, one in enumerate(CONTINUATIONS):
        mine: list[Variant] = [{s: replace(w, value=w.value[[one.prompt]]) for s, w in variant.items()} for variant in variants]
        alone = [replace(one, prompt=0)]
        found = likelihoods(model, replay, Continued(prompts=[PROMPTS[one.prompt]], continuations=alone), mine, max_rows=max_rows)
        torch.testing.assert_close(found.logps[0], together[i], **CLOSE)


@pytest.mark.parametrize("name", FEW)
def test_a_models_own_state_changes_nothing(name: str) -> None:
    model, sites = loaded(name), [Site(layer, "resid_post") for layer in range(4)]
    mine: list[Variant] = [{site: Write(value=value)} for site, value in states(model, sites).items()]
    found = likelihoods(model, own(model), ASKED, mine, max_rows=128).logps
    torch.testing.assert_close(found, found[:, :1].expand_as(found), **CLOSE)


def test_what_follows_cannot_reach_back() -> None:
    """A continuation's first tokens are as likely whatever comes after them; its sums only fall."""
    model, variants = loaded("llama"), variants_of("llama")
    whole = [5, 6, 7, 8, 9, 10]
    parts = [Continuation(prompt=2, ids=whole[: n + 1]) for n in range(len(whole))]
    other = [Continuation(prompt=2, ids=[5, 6, 7, 100, 101, 102])]
    sums = likelihoods(model, replay, Continued(prompts=PROMPTS, continuations=parts), variants, max_rows=512).logps
    assert (sums.diff(dim=0) < 0).all()
    theirs = likelihoods(model, replay, Continued(prompts=PROMPTS, continuations=[*other, parts[2]]), variants, max_rows=512).logps
    torch.testing.assert_close(theirs[1], sums[2], **CLOSE)


def test_laws_cut_to_some_tokens() -> None:
    model = loaded("gpt2")
    kept = torch.tensor([5, 6, 7, 8, 9, 10, 30, 31, 32, 90])
    found = likelihoods(model, replay, ASKED, variants_of("gpt2"), max_rows=128, kept=kept)
    assert found.kept_logps is not None
    assert found.coverage is not None
    laws = forward(model, torch.tensor([[*PROMPTS[2], 30, 31, 32]]), use_cache=False, logits_to_keep=0).logits[0, -4:-1].double()
    cut = laws[:, kept].log_softmax(-1)
    assert found.kept_logps[3, 0].item() == pytest.approx(sum(cut[i, kept.tolist().index(t)].item() for i, t in enumerate((30, 31, 32))))
    assert found.coverage[3, 0].item() == pytest.approx(laws.softmax(-1)[:, kept].sum(-1).mean().item())
    assert torch.isinf(found.kept_logps[[2, 4, 5]]).all(), "91, 33 and 200 are not kept"
    everything = likelihoods(model, replay, ASKED, max_rows=128, kept=torch.arange(259))
    torch.testing.assert_close(everything.kept_logps, everything.logps, **CLOSE)
    torch.testing.assert_close(everything.coverage, torch.ones(len(SAID), 1, dtype=torch.float64), **CLOSE)


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom"])
def test_an_edit_that_is_open_around_the_call_holds_everywhere(name: str) -> None:
    model = loaded(name)
    vector = torch.randn(32, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    with steering(model, {Site(1, "resid_post"): lambda state: vector.expand_as(state)}):
        found = likelihoods(model, own(model), ASKED, max_rows=64).logps
        expected = slowly(model, [])
    torch.testing.assert_close(found, expected, **CLOSE)
    assert (found - slowly(model, [])).abs().max() > 0.1


def test_little_memory_halves_the_prompts() -> None:
    seen: list[list[int]] = []

    def compute(numbers: Sequence[int]) -> None:
        seen.append(list(numbers))
        if len(numbers) > 2:
            raise torch.OutOfMemoryError("too much")

    in_halves(compute, list(range(5)))
    assert seen == [[0, 1, 2, 3, 4], [0, 1], [2, 3, 4], [2], [3, 4]]

    def never(numbers: Sequence[int]) -> None:
        raise torch.OutOfMemoryError("too much")

    with pytest.raises(RunError, match="does not fit into memory"):
        in_halves(never, [0, 1])


def test_what_is_longer_than_the_context_is_refused() -> None:
    with pytest.raises(PromptError, match="context of 128 tokens"):
        likelihoods(
            loaded("gpt2"), replay, Continued(prompts=[[5] * 120], continuations=[Continuation(prompt=0, ids=[7] * 10)]), max_rows=64
        )
    edge = [Continuation(prompt=0, ids=[7] * 8), Continuation(prompt=1, ids=[7] * 9)]
    found: Likelihoods = likelihoods(loaded("gpt2"), replay, Continued(prompts=[[5] * 121, [5] * 100], continuations=edge), max_rows=512)
    assert torch.isfinite(found.logps).all()


def test_only_what_is_asked_is_read() -> None:
    assert isinstance(read(loaded("llama"), [PROMPTS[0]])[0], Clean)
    assert likelihoods(loaded("llama"), replay, Continued(prompts=PROMPTS, continuations=[]), max_rows=64).logps.shape == (0, 1)
