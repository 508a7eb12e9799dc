"""A folder that a trainer wrote is said to be one, with the line that makes a model of it."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from mechdiff.errors import ModelError
from mechdiff.models.pair import Pair, load_net, open_pair
from mechdiff.models.sources import resolve
from pico import CONFIGS, make_net
from tokenizers_made import byte_tokenizer


def trainers_folder(place: Path, steps: tuple[int, ...] = (500, 1000), best: int | None = None) -> Path:
    """What Trainer leaves: a model, its optimizer and its state in each checkpoint."""
    for step in steps:
        folder = place / f"checkpoint-{step}"
        make_net(CONFIGS["llama"](), seed=step).save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        torch.save({"state": {}}, folder / "optimizer.pt")
        torch.save({"last_epoch": 1}, folder / "scheduler.pt")
        torch.save({"cpu": torch.zeros(1)}, folder / "rng_state.pth")
        torch.save({"args": 1}, folder / "training_args.bin")
        state = {"global_step": step, "best_model_checkpoint": f"out/checkpoint-{best}" if best else None}
        (folder / "trainer_state.json").write_text(json.dumps(state))
    return place


def test_a_trainers_checkpoint_is_a_model(tmp_path: Path) -> None:
    folder = trainers_folder(tmp_path) / "checkpoint-500"
    pair = open_pair(str(folder), str(folder.with_name("checkpoint-1000")), device="cpu")
    with pair.use("tuned") as tuned:
        assert torch.equal(tuned.net.lm_head.weight, make_net(CONFIGS["llama"](), seed=1000).lm_head.weight)
    assert not {"optimizer.pt", "training_args.bin"} & resolve(str(folder)).files().keys()


@pytest.mark.parametrize("best", [None, 500])
def test_of_a_trainers_folder_the_checkpoints_are_named(tmp_path: Path, best: int | None) -> None:
    folder = trainers_folder(tmp_path / "run", best=best)
    told = r" \(the trainer calls checkpoint-500 the best\)" if best else ""
    with pytest.raises(ModelError, match=rf"\(checkpoint-500 to checkpoint-1000\).*Give one of them: {folder}/checkpoint-1000{told}\.$"):
        resolve(str(folder))


def bare(folder: Path) -> Path:
    """A model's folder without its weights."""
    make_net(CONFIGS["llama"]()).save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_fsdps_shards_are_named_with_what_merges_them_and_that_does(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    folder = bare(tmp_path / "checkpoint-5")
    net = make_net(CONFIGS["llama"]())
    dcp.save({"model": dict(net.state_dict())}, checkpoint_id=folder / "pytorch_model_fsdp_0", no_dist=True)
    assert list(folder.glob("*/*.distcp"))
    with pytest.raises(ModelError, match=r"FSDP's shards \(pytorch_model_fsdp_0\)\. Merge them once: accelerate merge-weights") as refused:
        resolve(str(folder))
    command = str(refused.value).rpartition(": ")[2].split()
    from accelerate.utils import merge_fsdp_weights

    assert command[:2] == ["accelerate", "merge-weights"]
    merge_fsdp_weights(command[2], command[3])
    loaded = load_net(resolve(str(folder)), dtype="float32", device=torch.device("cpu"))
    for (name, mine), theirs in zip(net.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("global_step500/mp_rank_00_model_states.pt", r"DeepSpeed's shards \(global_step500\).*zero_to_fp32\.py"),
        ("iter_0000500/mp_rank_00/model_optim_rng.pt", "Megatron's shards"),
        ("consolidated.00.pth", r"consolidated\.00\.pth, in the form of an original release"),
        ("last.ckpt", r"last\.ckpt, in the form of Lightning"),
    ],
)
def test_other_forms_are_named_with_their_converter(tmp_path: Path, file: str, said: str) -> None:
    folder = bare(tmp_path / "checkpoint-5")
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(b"")
    with pytest.raises(ModelError, match=said):
        resolve(str(folder))
    make_net(CONFIGS["llama"]()).save_pretrained(folder)
    resolve(str(folder))  # beside weights that load it is no matter


# ---- tokenizers --------------------------------------------------------------------------------------------------------------------


def test_weights_without_a_tokenizer_are_told_the_line_that_copies_the_bases(tmp_path: Path) -> None:
    net = make_net(CONFIGS["llama"]())
    net.save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    net.save_pretrained(tmp_path / "tuned")
    pair: Pair = open_pair(str(tmp_path / "base"), str(tmp_path / "tuned"), device="cpu")
    with pytest.raises(
        ModelError, match=r"no tokenizer lies beside its weights.*it was saved without one.*copy the base's files"
    ) as refused:
        pair.tokenizer("tuned")
    line = str(refused.value).partition('python -c "')[2].rstrip('"')
    exec(line)
    pair = open_pair(str(tmp_path / "base"), str(tmp_path / "tuned"), device="cpu")
    assert pair.tokenizer("tuned")("ab")["input_ids"] == [256, 97, 98]
    shutil.rmtree(tmp_path / "tuned")
