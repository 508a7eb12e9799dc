"""An adapter in private copies of the matrices that it changes is its own pass within rounding; what cannot be merged exactly is switched."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from adapters_made import KINDS, LORA, make_pair
from mechdiff.engine.activations import forward
from mechdiff.models import pair as pairs
from mechdiff.models.merged import merged, switches_in
from mechdiff.models.pair import Pair, open_pair
from mechdiff.models.switches import SAME_NATS, Rewritten, apart, attach_adapter
from pico import pico

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

IDS = torch.tensor([[256, 5, 90, 17, 33, 108, 7]])


def logits(pair: Pair, side: Any) -> torch.Tensor:
    with pair.use(side) as model:
        return forward(model, IDS, logits_to_keep=0).logits


def opened(folder: Path, **how: Any) -> Pair:
    return open_pair(str(folder / "base"), str(folder / "adapter"), device="cpu", **how)


FEW = ("lora", "dora", "adalora", "ia3", "oft", "randlora", "lora with saved modules", "lora on a parameter")
TAKEN = [kind for kind in KINDS if kind != "shadow"]  # that one is refused: it does not run without peft's own model


@pytest.mark.parametrize("kind", [kind if kind in FEW else pytest.param(kind, marks=pytest.mark.slow) for kind in TAKEN])
def test_every_kind_is_the_same_model_merged_or_switched(kind: str, tmp_path: Path) -> None:
    make_pair(tmp_path, KINDS[kind]())
    pair, switched = opened(tmp_path), opened(tmp_path, memory="one")
    assert pair.merges
    assert not switched.merges
    expected, plain = logits(switched, "tuned"), logits(switched, "base")
    for _ in range(2):  # switching the base's layers does nothing to the copies
        assert apart(expected[0], logits(pair, "tuned")[0]) <= SAME_NATS[torch.float32]
        assert torch.equal(logits(pair, "base"), plain)
    with pair.use("tuned") as tuned, pair.use("base") as base:
        if tuned.net is not base.net:
            assert not [layer for layer in switches_in(tuned.net) if not isinstance(layer, Rewritten)]
            assert not [name for name, _ in tuned.net.named_modules() if "lora" in name or name.endswith("_of_adapter")]


def test_a_plain_lora_is_merged_and_shares_all_that_it_leaves_alone(tmp_path: Path) -> None:
    make_pair(tmp_path, peft.LoraConfig(**LORA))
    pair = opened(tmp_path)
    with pair.use("tuned") as tuned, pair.use("base") as base:
        own = {id(parameter) for parameter in base.net.parameters()}
        private = {name for name, parameter in tuned.net.named_parameters() if id(parameter) not in own}
    assert {name.split(".")[-2] for name in private} == set(LORA["target_modules"])


UNMERGED: dict[str, Callable[[], Any]] = {
    "an embedding": lambda: peft.LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"]),
    "a saved module": lambda: peft.LoraConfig(**LORA, modules_to_save=["lm_head"]),
    "rows of tokens": lambda: peft.LoraConfig(**LORA, trainable_token_indices=[5, 9]),
}


@pytest.mark.parametrize("kind", UNMERGED)
def test_what_a_short_pass_would_not_show_is_switched(kind: str, tmp_path: Path) -> None:
    make_pair(tmp_path, UNMERGED[kind]())
    assert merged(attach_adapter(pico("llama").net, tmp_path / "adapter")) is None


def test_a_merge_that_is_another_model_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_pair(tmp_path, peft.LoraConfig(**LORA))
    adapted = attach_adapter(pico("llama").net, tmp_path / "adapter")
    assert merged(adapted) is not None
    monkeypatch.setattr(peft.tuners.lora.Linear, "merge", lambda self, *args, **more: None)  # as if the kind's merge left something out
    assert merged(adapted) is None


def test_without_memory_for_the_copies_an_adapter_is_switched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(layer: object) -> None:
        raise torch.OutOfMemoryError("no memory")

    make_pair(tmp_path, peft.LoraConfig(**LORA))
    monkeypatch.setattr("mechdiff.models.merged._own", full)
    pair = opened(tmp_path)
    assert logits(pair, "tuned").isfinite().all()
    assert pair.switched


def test_in_sixteen_bits_and_without_room_an_adapter_is_switched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_pair(tmp_path, peft.LoraConfig(**LORA))
    assert not opened(tmp_path, dtype="bfloat16").merges
    monkeypatch.setattr(pairs, "free_memory", lambda device: 1 << 10)
    assert not opened(tmp_path).merges
    monkeypatch.setattr(pairs, "all_memory", lambda device: 1 << 10)
    assert not opened(tmp_path, memory="both").merges
