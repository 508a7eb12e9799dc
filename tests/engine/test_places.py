"""Edits at every place of an answer are whole hooked passes over prompt and answer, for every engine; what they are scored by is the definition."""

from functools import cache

import pytest
import torch
from torch import Tensor

from mechdiff.architectures.sites import Site
from mechdiff.engine.activations import Clean, capture, edited, forward
from mechdiff.engine.choice import engine_for
from mechdiff.engine.continued import RUNS
from mechdiff.engine.counterfactuals import LOCATING, Subject, first_parting, scores
from mechdiff.engine.outcome import CleanLogits
from mechdiff.engine.reading import captures, read
from mechdiff.engine.replay import ENGINES, Variant, Write, full, relay
from mechdiff.models.pair import Model
from mechdiff.prompts.vocabularies import Tokens
from pico import pico
from pico import prompts as random_prompts

PROMPTS = [[256, *ids[1:]] for ids in random_prompts(4, shortest=3, longest=16)]
ANSWERS = [[5, 6, 7, 8], [9, 10], [1], [31, 32, 33]]
FAMILIES = ("llama", "qwen2_sliding", "gemma2", "gpt2", "bloom", "lfm2", "olmoe")
CLOSE = {"rtol": 0, "atol": 1e-4}


@cache
def loaded(name: str, seed: int = 0) -> Model:
    return pico(name, seed=seed)


def cleans_of(model: Model) -> list[Clean]:
    if engine_for(model.config)[0] == "replay":
        return read(model, PROMPTS)
    return [capture(model, ids, [], [0]) for ids in PROMPTS]


def variants_of(name: str) -> list[Variant]:
    """The other model's activations: at every place of the answers, at the decision position alone, and added."""
    other = loaded(name, 1)
    sites = [Site(layer, kind) for layer in (0, 2, 3) for kind in ("resid_post", "attn_out")]
    states = []
    for ids, said in zip(PROMPTS, ANSWERS, strict=True):
        whole = [*ids, *said[:-1]]
        clean = capture(other, whole, sites, range(len(ids) - 1, len(whole)))
        states.append({site: torch.nn.functional.pad(state, (0, 0, 0, 4 - len(state))) for site, state in clean.states.items()})
    at = {site: torch.stack([one[site] for one in states]) for site in sites}
    every: list[Variant] = [{site: Write(value=value)} for site, value in at.items()]
    first: list[Variant] = [{site: Write(value=at[site][:, :1])} for site in sites[:2]]
    return [*every, *first, {sites[0]: Write(value=at[sites[0]], add=True)}]


def slowly(model: Model, variants: list[Variant]) -> Tensor:
    """`[place, run, vocab]` by one hooked pass for each prompt and variant."""
    found = []
    for i, (ids, said) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        whole, first = torch.tensor([[*ids, *said[:-1]]]), len(ids) - 1
        runs = []
        for variant in ({}, *variants):

            def edit(write: Write, i: int = i, first: int = first):  # type: ignore[no-untyped-def]
                def change(tensor: Tensor) -> None:
                    for step in range(min(write.value.shape[1], tensor.shape[1] - first)):
                        tensor[0, first + step] = write.value[i, step] + (tensor[0, first + step] if write.add else 0)

                return change

            with edited(model, {site: edit(write) for site, write in variant.items()}):
                runs.append(forward(model, whole, use_cache=False, logits_to_keep=0).logits[0, first:].float())
        found.append(torch.stack(runs, 1))
    return torch.cat(found)


@pytest.mark.parametrize("name", FAMILIES)
def test_edits_along_an_answer_are_whole_hooked_passes(name: str) -> None:
    model, variants = loaded(name), variants_of(name)
    expected = slowly(model, variants)
    assert (expected[:, 1:] - expected[:, :1]).abs().amax((0, 2)).min() > 0.01, "each variant does something"
    for engine in {ENGINES[engine_for(model.config)[0]], relay, full}:
        torch.testing.assert_close(RUNS[engine](model, cleans_of(model), ANSWERS, variants), expected, **CLOSE)


def test_scores_over_an_answer_are_the_definition() -> None:
    """Means over places, and the value at the first place where the two models' top-1 tokens differ, in float64 from whole passes."""
    models = {"base": loaded("llama"), "tuned": loaded("llama", 1)}
    clean = {side: slowly(model, [])[:, 0].double() for side, model in models.items()}
    variants = variants_of("llama")
    runs = slowly(models["base"], variants).double()
    size = runs.shape[-1]
    tokens = Tokens(relation="equal", pieces=(None,) * size, ids={}, n_shared=size)
    subject = Subject(model=models["base"], engine=ENGINES["replay"], cleans=cleans_of(models["base"]), tokens=tokens, answers=ANSWERS)
    both = CleanLogits(base=clean["base"].float(), tuned=clean["tuned"].float())
    found = scores(subject, variants, both, max_rows=40, metrics=LOCATING)
    lengths = list(map(len, ANSWERS))
    tops = {side: laws.argmax(-1) for side, laws in clean.items()}
    apart = [torch.nonzero(one).flatten().tolist() for one in (tops["base"] != tops["tuned"]).split(lengths)]
    assert first_parting(both, lengths) == [one[0] if one else None for one in apart]
    laws = {side: one[:, None].log_softmax(-1) for side, one in clean.items()}
    logs = runs.log_softmax(-1)
    kl = {side: (law.exp() * (law - logs)).sum(-1) for side, law in laws.items()}
    picked = [logs.gather(-1, tops[side][:, None, None].expand(-1, runs.shape[1], 1))[..., 0] for side in ("tuned", "base")]
    by_place = {"kl_own": kl["base"], "kl_other": kl["tuned"], "log_ratio": picked[0] - picked[1]}
    for name, values in by_place.items():
        parts = values.split(lengths)
        torch.testing.assert_close(found[f"{name}_answer_nats"], torch.stack([one.mean(0) for one in parts]), rtol=1e-4, atol=1e-5)
        at = torch.stack([one[where[0]] if where else torch.full_like(one[0], torch.nan) for one, where in zip(parts, apart, strict=True)])
        torch.testing.assert_close(found[f"{name}_divergent_nats"], at, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert set(found) == {f"{name}_{what}_nats" for name in (*by_place, "fisher_overlap") for what in ("answer", "divergent")}


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_logits_at_every_place_are_those_of_one_prompt_by_itself(name: str) -> None:
    """Side by side, or one by one: activations and logits at the last few positions of each prompt, of which each has its own number."""
    model, sites = loaded(name), [Site(1, "resid_post")]
    where = [range(len(ids) - n, len(ids)) for n, ids in zip((1, 3, 2, 3), PROMPTS, strict=True)]
    for one, ids, places in zip(captures(model, PROMPTS, sites, where, every=True), PROMPTS, where, strict=True):
        alone = capture(model, ids, sites, places, every=True)
        whole = forward(model, torch.tensor([ids]), use_cache=False, logits_to_keep=0).logits[0].float()
        torch.testing.assert_close(one.logits, whole[places.start :], rtol=0, atol=2e-5)
        torch.testing.assert_close(alone.logits, whole[places.start :], rtol=0, atol=2e-5)
        torch.testing.assert_close(one.states[sites[0]], alone.states[sites[0]], rtol=0, atol=2e-5)


def test_what_is_written_may_be_longer_than_every_answer_of_a_pass() -> None:
    model, variants = loaded("llama"), variants_of("llama")
    few = [replace_values(variant, [1, 2]) for variant in variants]
    cleans = [cleans_of(model)[i] for i in (1, 2)]
    found = RUNS[ENGINES["replay"]](model, cleans, [ANSWERS[1], ANSWERS[2]], few)
    torch.testing.assert_close(found, slowly(model, variants)[4:7], **CLOSE)


def replace_values(variant: Variant, prompts: list[int]) -> Variant:
    return {site: write.of(prompts) for site, write in variant.items()}
