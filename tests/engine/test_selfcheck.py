"""The self-check passes on every family, and names the site of what is planted: wrong rows, shared modules, state that copies share."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mechdiff.engine import parallel_attention, replay
from mechdiff.engine.choice import engine_for
from mechdiff.engine.replay import full
from mechdiff.engine.selfcheck import self_check
from mechdiff.errors import SelfCheckError
from mechdiff.models.pair import Model, open_pair
from pico import CONFIGS, RELAYED, each, pico, prompts

STORIES = Path(__file__).parents[3] / "shared" / "models" / "stories260k"
SHORT = prompts(2, shortest=4, longest=6)
LONG = prompts(1, shortest=20, longest=20)
BOTH = [*SHORT, *LONG]
"""Sorted by nothing, and on both sides of the pico models' sliding window of 8."""


@pytest.mark.parametrize("name", each())
def test_it_passes_on_every_family(name):
    model = pico(name)
    found = self_check(model, BOTH, engine=replay.ENGINES[engine_for(model.config)[0]])
    assert found.sites == 4 * len(model.kinds())
    assert found.replay_nats < 1e-10
    assert found.replay_nats > 0 or name in RELAYED, "above zero: foreign states were really run (relay may give the same bits)"
    assert 0 <= found.floor_nats < 1e-10
    assert found.worst_site.split(".")[1] in model.kinds()
    assert set(found.record()) == {"sites", "worst_site", "replay_nats", "floor_nats", "rounding_nats"}


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "neox_parallel"])
def test_it_passes_in_half_precision(name):
    found = self_check(pico(name, dtype=torch.bfloat16), BOTH)
    assert 0 <= found.replay_nats < 1e-2
    assert 0 <= found.floor_nats < 1e-2


@pytest.mark.skipif(not STORIES.is_dir(), reason="the shared folder with stories260k is not beside the repository")
@pytest.mark.parametrize(("dtype", "floor"), [("float32", 1e-10), ("bfloat16", 1e-2)])
def test_it_passes_on_trained_weights(dtype, floor):
    pair = open_pair(str(STORIES), str(STORIES), dtype=dtype, device="cpu")
    ids = [
        pair.tokenizer("base")(text)["input_ids"] for text in ("Once upon a time", "Lily and Ben went to the park. They saw a big dog and")
    ]
    with pair.use("base") as model:
        found = self_check(model, ids)
    assert found.sites == 5 * 7
    assert 0 <= found.replay_nats < floor
    assert 0 <= found.floor_nats < floor


def test_one_prompt_of_one_token_is_enough():
    assert self_check(pico("llama"), [[7]]).sites == 28


def test_only_the_kinds_of_the_study_are_checked_when_asked():
    found = self_check(pico("gemma3"), BOTH, kinds=["mlp_out"])
    assert found.sites == 4
    assert found.worst_site.endswith("mlp_out")


def test_the_slow_twin_agrees_with_itself():
    assert self_check(pico("llama"), SHORT, kinds=["z"], engine=full).replay_nats < 1e-12


# ---- a row of the family table that is wrong ---------------------------------------------------------------------------------------


def with_row(model: Model, **fields: str | None) -> Model:
    return dataclasses.replace(model, family=dataclasses.replace(model.family, **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "row", "site"),
    [
        ("llama", {"mid": "input_layernorm"}, "L0.resid_mid"),
        ("llama", {"mid": "mlp.down_proj"}, "L0.resid_mid"),
        ("llama", {"projection": "self_attn.q_proj"}, "L0.resid_mid"),
        ("llama", {"mlp": "post_attention_layernorm"}, "L0.resid_post"),
        ("llama", {"mlp": "mlp.up_proj"}, "L0.mlp_out"),
        ("qwen3", {"projection": "self_attn.q_proj"}, "L0.z"),
        ("gemma2", {"attn_norm": None}, "L0.resid_mid"),
        ("gemma2", {"mlp_norm": None}, "L0.resid_post"),
        ("gemma3", {"attn_norm": "input_layernorm"}, "L0.attn_out"),
        ("gemma3", {"mid": "post_attention_layernorm"}, "L0.resid_mid"),
        ("gpt2", {"mid": "ln_1"}, "L0.resid_mid"),
        ("neox_parallel", {"parallel_flag": None}, "L0.resid_mid"),
    ],
)
def test_a_wrong_row_is_caught_and_the_site_named(name, row, site):
    with pytest.raises(SelfCheckError, match=rf"what is read at {site} is .*families\.py does not fit"):
        self_check(with_row(pico(name), **row), BOTH)


def test_a_block_that_adds_something_of_its_own_is_caught():
    class Scaled(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block = block

        def forward(self, hidden_states: Tensor, **kwargs: object) -> Tensor:
            return 1.1 * self.block(hidden_states, **kwargs)

    model = pico("llama")
    model.blocks[2].forward = Scaled(copy_of(model.blocks[2])).forward
    with pytest.raises(SelfCheckError, match=r"what is read at L2\.resid_post is not resid_pre \+ attn_out \+ mlp_out"):
        self_check(model, BOTH)


def copy_of(block: nn.Module) -> nn.Module:
    """The same block, whose `forward` can be taken while the block's own is replaced."""
    twin = object.__new__(type(block))
    twin.__dict__.update(block.__dict__)
    return twin


# ---- places that are not places, state that copies share ---------------------------------------------------------------------------


def test_a_module_that_a_block_uses_twice_is_caught():
    """It is read at its last use and written at both."""
    model = pico("llama")
    block = model.blocks[1]
    block.input_layernorm = nn.Sequential(block.input_layernorm, block.mlp)
    with pytest.raises(SelfCheckError, match=r"writing a state that was just read at L1\.mlp_out changes the model's output"):
        self_check(model, BOTH)


class Echo(nn.Module):
    """An MLP that also keeps what it gave, and gives a little of it the next time."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp, self.given = mlp, torch.zeros(())

    def forward(self, states: Tensor) -> Tensor:
        self.given = self.mlp(states) + (0.1 * self.given if self.given.shape == states.shape else 0)
        return self.given


def test_a_network_that_remembers_earlier_passes_is_caught():
    model = pico("llama")
    model.blocks[1].mlp = Echo(model.blocks[1].mlp)
    with pytest.raises(SelfCheckError, match="two forward passes of the same tokens give different logits"):
        self_check(model, BOTH)


class Blurred(nn.Module):
    """An MLP whose output holds a little of all earlier positions, as a state-space layer's does, and keeps nothing in the cache."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, states: Tensor) -> Tensor:
        return self.mlp(states) + 0.1 * states.cumsum(1)


@pytest.mark.parametrize("layer", [0, 3])
def test_state_that_parallel_tokens_share_is_caught(layer):
    model = pico("llama")
    model.blocks[layer].mlp = Blurred(model.blocks[layer].mlp)
    with pytest.raises(SelfCheckError, match=r'replay and a whole forward pass disagree at L\d\.\w+ by .* nats.*engine="full"'):
        self_check(model, BOTH)
    assert self_check(model, BOTH, kinds=["resid_post"], engine=full).replay_nats < 1e-10


def test_a_sliding_window_is_checked_on_the_longest_prompt(monkeypatch):
    monkeypatch.setattr(parallel_attention, "sliding_window", lambda config, layer: None)
    self_check(pico("mistral"), SHORT)
    with pytest.raises(SelfCheckError, match="disagree at"):
        self_check(pico("mistral"), BOTH)


def test_logits_that_are_no_numbers_are_caught():
    model = pico("llama")

    def poisoned(model: Model, cleans: object, variants: object) -> Tensor:
        return full(model, cleans, variants) * torch.nan  # type: ignore[arg-type]

    with pytest.raises(SelfCheckError, match=r"disagree at L0\.\w+ by inf nats"):
        self_check(model, SHORT, engine=poisoned)


# ---- models that parallel tokens do not suit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason"), [("falcon_alibi", "ALiBi"), ("bloom", "ALiBi"), ("qwen3_next", "running state"), ("lfm2", "running state")]
)
def test_the_engine_is_chosen_by_the_config_with_its_reason(name, reason):
    chosen, why = engine_for(CONFIGS[name]())
    assert chosen == "relay"
    assert reason in why


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in RELAYED])
def test_all_others_go_by_replay(name):
    assert engine_for(CONFIGS[name]())[0] == "replay"
