"""What models say: many answers at once are each the answer alone, whatever is edited, drawn, or beside them."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from mechdiff.architectures.sites import Site
from mechdiff.engine import generation
from mechdiff.engine.activations import capture, edited, forward
from mechdiff.engine.choice import engine_for
from mechdiff.engine.continued import Continuation, Continued, likelihoods
from mechdiff.engine.generation import Sampling, Speech, speak, speak_edited, speak_on, stop_ids
from mechdiff.engine.reading import read_apart
from mechdiff.engine.replay import ENGINES, Engine, Variant, Write, full, replay
from mechdiff.engine.steered import steering
from mechdiff.errors import RunError
from mechdiff.models.pair import Model
from pico import each, pico
from pico import prompts as random_prompts
from tokenizers_made import byte_tokenizer

OPENING = [256, 7, 8, 9, 10]
PROMPTS = [[*OPENING, *ids[1:]] for ids in random_prompts(5, shortest=2, longest=16)]
TOKENS = 8
STOP = frozenset({257, 11, 42, 97, 130, 200, 213})


@cache
def loaded(name: str) -> Model:
    return pico(name)


def own(model: Model) -> Engine:
    return ENGINES[engine_for(model.config)[0]]


def alone(model: Model, ids: Sequence[int], variant: dict[Site, Tensor] | None = None, stop: frozenset[int] = STOP) -> list[int]:
    """Greedy, a whole pass for each token, the edit at the prompt's last token in each of them."""
    at, said = len(ids) - 1, []

    def edit(value: Tensor):  # type: ignore[no-untyped-def]
        def change(tensor: Tensor) -> None:
            tensor[0, at] = value

        return change

    for _ in range(TOKENS):
        with edited(model, {site: edit(value) for site, value in (variant or {}).items()}):
            token = int(forward(model, torch.tensor([[*ids, *said]]), use_cache=False).logits[0, -1].argmax())
        if token in stop:
            break
        said.append(token)
    return said


def as_lists(found: Sequence[Tensor]) -> list[list[int]]:
    return [one.tolist() for one in found]


@pytest.mark.parametrize("name", each(usual=("llama", "gpt_oss", "bloom", "lfm2", "deepseek_v3")))
def test_answers_at_once_are_the_answers_alone(name: str) -> None:
    model, other, prompts = loaded(name), pico(name, seed=1), PROMPTS[:3]
    sites = [Site(layer, "resid_post") for layer in (2, 0, 3)]
    cleans = [capture(other, ids, sites, [len(ids) - 1]) for ids in prompts]
    variants: list[Variant] = [{site: Write(value=torch.stack([clean.states[site] for clean in cleans]))} for site in sites]
    found = speak_edited(model, own(model), prompts, variants, Speech(max_tokens=TOKENS, stop=STOP))
    for i, (ids, runs) in enumerate(zip(prompts, found, strict=True)):
        assert as_lists(runs) == [alone(model, ids), *(alone(model, ids, {site: cleans[i].states[site][0]}) for site in sites)]


@pytest.mark.parametrize("name", each(["llama", "qwen2_sliding", "gemma3"], usual=("llama", "gemma3")))
def test_batches_and_ends_change_nothing(name: str) -> None:
    model = loaded(name)
    together = as_lists(speak(model, replay, PROMPTS, Speech(max_tokens=TOKENS, stop=STOP)))
    for most in (1, 2, 64):
        assert as_lists(speak(model, replay, PROMPTS[::-1], Speech(max_tokens=TOKENS, stop=STOP), most=most))[::-1] == together
    assert as_lists(speak(model, full, PROMPTS, Speech(max_tokens=TOKENS, stop=STOP))) == together
    many, how = random_prompts(12), Speech(max_tokens=TOKENS, stop=frozenset(range(0, 259, 9)), sampling=Sampling(temperature=3))
    staggered = as_lists(speak(model, replay, many, how))
    assert len({len(said) for said in staggered}) > 3, "answers leave the batch at different times"
    assert staggered == as_lists(speak(model, full, many, how))
    longer = as_lists(speak(model, replay, PROMPTS, Speech(max_tokens=TOKENS, stop=())))
    assert all(len(said) == TOKENS for said in longer)
    assert [said[: len(cut)] for said, cut in zip(longer, together, strict=True)] == together


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_what_is_said_is_most_likely_word_by_word(name: str) -> None:
    model = loaded(name)
    said = speak(model, own(model), PROMPTS, Speech(max_tokens=3, stop=()))
    first = [Continuation(prompt=i, ids=one[:1].tolist()) for i, one in enumerate(said)]
    best = likelihoods(model, own(model), Continued(prompts=PROMPTS, continuations=first), max_rows=64)
    for ids, found in zip(PROMPTS, best.logps[:, 0], strict=True):
        law = forward(model, torch.tensor([ids]), use_cache=False).logits[0, -1].double().log_softmax(-1)
        assert found.item() == pytest.approx(law.max().item(), abs=1e-4)


def test_a_sample_depends_on_seed_and_prompt_alone() -> None:
    model = loaded("llama")
    how = Speech(max_tokens=TOKENS, stop=STOP, sampling=Sampling(temperature=1.5, top_p=0.9, seed=3))
    together = as_lists(speak(model, replay, PROMPTS, how))
    assert [as_lists(speak(model, replay, [ids], how))[0] for ids in PROMPTS] == together
    assert as_lists(speak(model, full, PROMPTS, how)) == together
    assert as_lists(speak(model, replay, PROMPTS, replace(how, sampling=Sampling(temperature=1.5, top_p=0.9, seed=4)))) != together
    greedy = as_lists(speak(model, replay, PROMPTS, Speech(max_tokens=TOKENS, stop=STOP)))
    assert greedy != together
    assert as_lists(speak(model, replay, PROMPTS, replace(how, sampling=Sampling(top_p=1e-9)))) == greedy


def test_draws_follow_the_law() -> None:
    law = torch.tensor([0.5, 0.3, 0.15, 0.05])
    whole, cut = generation._Pick(Sampling(), [1]), generation._Pick(Sampling(top_p=0.79), [1])
    drawn = torch.tensor([whole(law.log()) for _ in range(4000)]).bincount(minlength=4) / 4000
    torch.testing.assert_close(drawn, law, rtol=0, atol=0.03)
    drawn = torch.tensor([cut(law.log()) for _ in range(4000)]).bincount(minlength=4) / 4000
    torch.testing.assert_close(drawn, torch.tensor([0.625, 0.375, 0, 0]), rtol=0, atol=0.03)
    sharp = generation._Pick(Sampling(temperature=0.25), [1])
    drawn = torch.tensor([sharp(law.log()) for _ in range(4000)]).bincount(minlength=4) / 4000
    torch.testing.assert_close(drawn, law**4 / (law**4).sum(), rtol=0, atol=0.03)


@pytest.mark.parametrize("name", ["llama", "gpt2", "lfm2"])
def test_an_edit_that_is_open_around_the_call_holds_while_it_speaks(name: str) -> None:
    model = loaded(name)
    vector = torch.randn(32, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    clean = as_lists(speak(model, own(model), PROMPTS, Speech(max_tokens=TOKENS, stop=STOP)))
    with steering(model, {Site(1, "resid_post"): lambda states: vector - (states @ vector)[:, None] * vector / 32}):
        found = as_lists(speak(model, own(model), PROMPTS, Speech(max_tokens=TOKENS, stop=STOP)))
        assert found == [alone(model, ids) for ids in PROMPTS]
    assert found != clean


def test_nobody_speaks_beyond_the_context() -> None:
    model = loaded("gpt2")
    long = [[5] * 120, [6] * 125, [7] * 128, [8] * 20]
    for engine in (replay, full):
        assert [len(said) for said in speak(model, engine, long, Speech(max_tokens=20, stop=()))] == [8, 3, 0, 20]
        assert [len(said) for said in speak(model, engine, long, Speech(max_tokens=0, stop=()))] == [0, 0, 0, 0]


def test_little_memory_halves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded("llama")
    expected, sizes = as_lists(speak(model, replay, PROMPTS, Speech(max_tokens=TOKENS, stop=STOP))), []
    read = generation.read_apart

    def at_most_two(model: Model, prompts: Sequence[Sequence[int]]) -> object:
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("too much")
        return read(model, prompts)

    monkeypatch.setattr(generation, "read_apart", at_most_two)
    assert as_lists(speak(model, replay, PROMPTS, Speech(max_tokens=TOKENS, stop=STOP))) == expected
    assert sizes == [5, 2, 3, 1, 2]

    def never(model: Model, prompts: Sequence[Sequence[int]]) -> object:
        raise torch.OutOfMemoryError("too much")

    monkeypatch.setattr(generation, "read_apart", never)
    with pytest.raises(RunError, match="--max-rows"):
        speak(model, replay, PROMPTS, Speech(max_tokens=TOKENS, stop=STOP))


def test_prompts_that_were_read_before_are_answered_as_any_others() -> None:
    model = loaded("llama")
    cleans = read_apart(model, PROMPTS)
    assert as_lists(speak_on(model, cleans, Speech(max_tokens=TOKENS, stop=STOP))) == as_lists(
        speak(model, replay, PROMPTS, Speech(max_tokens=TOKENS, stop=STOP))
    )


def test_stops_are_the_models_the_tokenizers_and_the_templates() -> None:
    model = loaded("llama")
    plain = byte_tokenizer()
    assert stop_ids(model, plain) == {257}
    template = byte_tokenizer("{% for message in messages %}{{ message.content }}<|pad|>\n{% endfor %}")
    assert stop_ids(model, template) == {257, 258}
    refuses = SimpleNamespace(chat_template="x", eos_token_id=None, added_tokens_decoder={}, apply_chat_template=_refuse, get_vocab=dict)
    assert stop_ids(model, refuses) == {257}
    assert stop_ids(model, plain, [template]) == {257, 258}, "a prompt rendered with the other model's template ends as that says"


def _refuse(*args: object, **kwargs: object) -> str:
    raise ValueError("several templates")


@pytest.mark.parametrize("top_p", [0.3, 0.95, 1.0])
def test_a_draw_leaves_unlikely_tokens_unsorted_and_is_the_same(top_p: float) -> None:
    """Against the whole vocabulary sorted, with the same numbers drawn."""
    sampling = Sampling(temperature=0.7, top_p=top_p, seed=3)
    pick, draw = generation._Pick(sampling, [1, 2]), generation._Pick(sampling, [1, 2]).draw
    for seed in range(50):
        logits = torch.randn(500, generator=torch.Generator().manual_seed(seed)) * 4
        mass, order = (logits.double() / 0.7).softmax(-1).sort(descending=True, stable=True)
        reach = mass.cumsum(-1)
        reach = reach[: int((reach < top_p).sum()) + 1]
        place = int(torch.searchsorted(reach, draw() * reach[-1].item()))
        assert pick(logits) == int(order[min(place, len(reach) - 1)])
