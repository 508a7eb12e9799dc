"""On a processor with AVX2 and no AVX-512 the same weights gave other last bits, by where a file's header happened to end.

Run by `make test-avx2` too, on processors that have more. The offsets are those of a header that grows by eight bytes at a time.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mechdiff import rows
from mechdiff.engine.activations import capture
from mechdiff.engine.distributions import kl_nats
from mechdiff.engine.grafts import grafted
from mechdiff.maps.maps import Map, load_map
from mechdiff.models.modules import changes_between, tensors_in
from mechdiff.models.pair import Model, open_pair
from mechdiff.store.run_folder import RunFolder
from pico import moved, pico, prompts, save, twin
from tokenizers_made import byte_tokenizer

pytestmark = pytest.mark.bits

OFFSETS = range(0, 64, 8)
IDS = prompts(1, seed=2)[0]


def shift_file(path: Path, offset: int) -> None:
    """Writes a safetensors file anew with a header so long that its first tensor begins `offset` bytes behind a multiple of 64."""
    tensors = load_file(path)
    for padding in range(512):
        save_file(tensors, path, metadata={"format": "pt", "padding": "x" * padding})
        if (8 + int.from_bytes(path.read_bytes()[:8], "little")) % 64 == offset:
            return
    raise AssertionError("no such header")


def loaded(folder: Path) -> Model:
    with open_pair(str(folder), str(folder), device="cpu").use("base") as model:
        return model


@pytest.mark.parametrize(
    "name", ["llama", "mixtral", "gpt2", *(pytest.param(name, marks=pytest.mark.ci) for name in ("gemma2", "neox_parallel"))]
)
def test_identical_models_gave_other_bits_by_where_a_file_puts_its_tensors(name: str, tmp_path: Path) -> None:
    model = pico(name)
    save(model.net, byte_tokenizer(), tmp_path)
    one_row, whole = capture(model, IDS[:1], [], [0]).logits, capture(model, IDS, [], [0]).logits
    for offset in OFFSETS:
        shift_file(tmp_path / "model.safetensors", offset)
        again = loaded(tmp_path)
        assert torch.equal(capture(again, IDS[:1], [], [0]).logits, one_row), f"one token alone, at {offset}"
        assert torch.equal(capture(again, IDS, [], [0]).logits, whole), f"a whole prompt, at {offset}"
        assert float(kl_nats(whole[None], capture(again, IDS, [], [0]).logits[None]).max()) == 0


def adapter(folder: Path) -> Path:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(pico("gemma2").net, LoraConfig(r=2, target_modules=["o_proj"], init_lora_weights=False))
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return folder


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("offset", OFFSETS)
def test_an_adapter_switched_off_was_not_the_base(offset: int, tmp_path: Path) -> None:
    model = pico("gemma2")
    save(model.net, byte_tokenizer(), tmp_path / "base")
    shift_file(tmp_path / "base" / "model.safetensors", offset)
    shift_file(adapter(tmp_path / "adapter") / "adapter_model.safetensors", (offset + 24) % 64)
    with open_pair(str(tmp_path / "base"), str(tmp_path / "adapter"), device="cpu").use("base") as base:
        for ids in (IDS[:1], IDS):
            assert torch.equal(capture(base, ids, [], [0]).logits, capture(model, ids, [], [0]).logits)


@pytest.mark.parametrize("offset", OFFSETS)
def test_a_graft_read_from_files_was_not_the_tuned_model(offset: int, tmp_path: Path) -> None:
    """One model in memory: tuned tensors come from the files, and the base's are read again afterwards."""
    base = pico("gemma2")
    tuned = twin(base, moved)
    for side, model in (("base", base), ("tuned", tuned)):
        save(model.net, byte_tokenizer(), tmp_path / side)
        shift_file(tmp_path / side / "model.safetensors", offset)
    expected = {model.side: capture(model, IDS[:1], [], [0]).logits for model in (base, tuned)}
    again = tensors_in(tmp_path / "base", base)
    changes = changes_between(base, tensors_in(tmp_path / "tuned", base), again=again)
    with grafted(base, changes, changes.units):
        assert torch.equal(capture(base, IDS[:1], [], [0]).logits, expected["tuned"])
    assert torch.equal(capture(base, IDS[:1], [], [0]).logits, expected["base"])


@pytest.mark.parametrize("family", ["anchored_ridge", "anchored_procrustes", "whitened_procrustes", "rrr"])
def test_a_saved_map_mapped_to_other_bits(family: str, tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    source, change = torch.randn(30, 24, generator=random), torch.randn(24, 24, generator=random) / 10
    one = Map(family).fit(source, source + source @ change)
    for i in range(8):
        one.save(tmp_path / f"{i}.safetensors", note="x" * 9 * i)
        again = load_map(tmp_path / f"{i}.safetensors")
        for states in (source[:1], source):
            assert torch.equal(again.transform(states), one.transform(states))


def test_arrays_of_a_cell_lie_where_they_lay_when_they_were_written(tmp_path: Path) -> None:
    """A run that goes on sums over what it reads back: products of one row had other last bits than those of the run that was not killed."""
    values = {f"{'x' * n}": np.random.default_rng(n).standard_normal((17, 17)).astype(np.float32) for n in range(1, 20)}
    row = torch.randn(1, 17, generator=torch.Generator().manual_seed(1))
    with RunFolder.open(tmp_path / "run", config_hash="0", study_text="") as folder:
        for n, (name, array) in enumerate(values.items()):
            folder.store({"cell": n}, rows.empty(), {name: array})
            found = folder.load({"cell": n}).tensors[name]
            assert found.ctypes.data % 64 == 0
            assert torch.equal(row @ torch.from_numpy(found), row @ torch.from_numpy(array.copy()))
            assert torch.equal(
                torch.nn.functional.linear(row, torch.from_numpy(found)), torch.nn.functional.linear(row, torch.tensor(array))
            )


@pytest.mark.parametrize("family", ["anchored_ridge", "rrr", "rank_truncated", "diag_affine"])
@pytest.mark.parametrize("lam", [0.0, None])
def test_a_constant_change_had_a_rank_of_rounding(family: str, lam: float | None) -> None:
    """The mean of equal numbers is not always that number, and what was left over counted as one learned dimension."""
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        x = torch.randn(13, 1 + seed % 6, generator=random, dtype=torch.float64)
        one = Map(family, **({} if lam is None else {"lam": lam})).fit(
            x, x + torch.randn(1, x.shape[1], generator=random, dtype=torch.float64)
        )
        assert one.rank_ == 0
