"""A language model inside a wrapper for images is studied as the text model that it is, also against the same model without the wrapper."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM

import decoders
import pico
from mechdiff.architectures.lookup import family_of
from mechdiff.architectures.network import quiet
from mechdiff.measures.catalogue import make_study
from mechdiff.models.changes import open_changes
from mechdiff.models.sources import Source
from mechdiff.study.config import RunOptions
from runs import run
from tokenizers_made import byte_tokenizer

MEASURES: list[Any] = [
    {"divergence": {"continuation": 2}}, "weights",
    {"grafting": {"candidates": 2, "picks": 1, "points": 2, "select_prompts": 2, "report_prompts": 3}},
    {"patching": {"sites": ["attn_out", "resid_post"], "arms": ["identity", "shift"]}},
]  # fmt: skip


def _text_of(wrapper: Any, kind: str) -> Any:
    """The language model of a wrapper as a model of its own."""
    config = wrapper.config.get_text_config()
    with quiet():
        alone = AutoModelForCausalLM.from_config(config).eval().float()
    row = family_of(wrapper.config)
    held = {row.as_in(family_of(config), name): tensor for name, tensor in wrapper.state_dict().items()}
    alone.load_state_dict({name: held[name] for name in alone.state_dict()})
    assert type(alone) is not type(wrapper), kind
    return alone


def _edited(net: Any) -> Any:
    """One matrix of block 1 moved."""
    with torch.no_grad():
        next(tensor for name, tensor in net.named_parameters() if "layers.1.mlp.down_proj" in name and "vision" not in name).mul_(1.5)
    return net


@pytest.fixture(scope="module", params=["gemma3", pytest.param("mistral3", marks=pytest.mark.ci)])
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A wrapper and its language model alone, as they are and with one matrix moved; and six prompts."""
    folder, tokenizer = tmp_path_factory.mktemp(request.param), byte_tokenizer()
    nets = {}
    for name, change in (("", lambda net: net), ("_moved", _edited)):
        nets["wrapped" + name] = change(decoders.tiny_decoder(request.param))
        nets["text" + name] = change(_text_of(decoders.tiny_decoder(request.param), request.param))
    for name, net in nets.items():
        with quiet():
            pico.save(net, tokenizer, folder / name)
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"id": str(i), "text": f"number {i * 37}"}) + "\n" for i in range(6)))
    return {name: folder / name for name in (*nets, "prompts.jsonl")}


@pytest.fixture(scope="module")
def plain(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """The rows of the language models alone."""
    return _rows(folders, "text", "text_moved", tmp_path_factory.mktemp("plain"))


def _rows(folders: dict[str, Path], base: str, tuned: str, out: Path, *, page: bool = False) -> pl.DataFrame:
    pair = {"base": str(folders[base]), "tuned": str(folders[tuned])}
    prompts = {"file": str(folders["prompts.jsonl"]), "policy": "raw"}
    study = make_study({"pair": pair, "prompts": prompts, "measures": MEASURES})
    return run(study, out=out, options=RunOptions(threads=1), page=page).rows()


@pytest.mark.parametrize(("base", "tuned"), [("wrapped", "text"), ("text", "wrapped")])
def test_a_model_and_the_same_one_in_its_wrapper_are_one_model(folders: dict[str, Path], base: str, tuned: str, tmp_path: Path) -> None:
    changes = open_changes(*(Source(ref=name, load=str(folders[name])) for name in (base, tuned)))
    assert {change.squared_change() for change in changes} == {0.0}
    placed = [change for change in changes if change.layer is not None]
    assert len(placed) == len([name for name in changes.base.names if ".layers." in name and "vision" not in name])


def test_what_text_does_not_reach_is_compared_and_said(folders: dict[str, Path]) -> None:
    changes = open_changes(*(Source(ref=name, load=str(folders[name])) for name in ("wrapped", "wrapped_moved")))
    said = [one for one in changes.statements if "text does not reach" in one]
    assert len(said) == 1
    assert "vision_tower" in said[0]
    assert said[0].startswith(f"{sum('vision' in name or 'projector' in name for name in changes.names)} tensors are of what")


@pytest.mark.parametrize(("base", "tuned"), [("wrapped", "text_moved"), ("text", "wrapped_moved"), ("wrapped", "wrapped_moved")])
def test_every_mixture_of_the_two_forms_gives_the_rows_of_the_text_models(
    folders: dict[str, Path], plain: pl.DataFrame, base: str, tuned: str, tmp_path: Path
) -> None:
    mixed = _rows(folders, base, tuned, tmp_path / "mixed", page=(base, tuned) == ("wrapped", "wrapped_moved"))
    keys = [name for name in plain.columns if name != "value"]
    both = plain.join(mixed, on=keys, how="full", coalesce=True, nulls_equal=True)
    effects = both.filter(pl.col("measure").is_in(["divergence", "grafting", "patching"]))
    assert effects.height > 100
    missing = effects.filter(pl.col("value").is_null() | pl.col("value_right").is_null())
    assert missing.is_empty(), missing.select("measure", "arm", "metric").unique().rows()
    assert (effects["value"] - effects["value_right"]).abs().max() < 1e-5
