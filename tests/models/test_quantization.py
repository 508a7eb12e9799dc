"""Models whose matrices are held in 8 or 4 bits: what they compute with, what is measured on them, and what is not."""

import shutil
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

import mechdiff
import pico
from mechdiff.architectures.network import quiet
from mechdiff.errors import ModelError
from mechdiff.models import pair as models_pair
from mechdiff.models.pair import Pair, open_pair, wrap
from mechdiff.models.quantization import held_matrix, quantizing, rounded
from mechdiff.models.tensors import open_tensors
from mechdiff.store.tables import read_manifest, read_rows
from mechdiff.study.config import RunOptions
from mechdiff.validate import edits
from runs import run
from tokenizers_made import CHATML, byte_tokenizer

pytest.importorskip("bitsandbytes", reason="extra `quantization`")
CPU = torch.device("cpu")
NF4 = (-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0,
       0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0)  # fmt: skip
"""The quantiles of QLoRA, appendix E."""
MEASURES: list[Any] = [
    "divergence", "weights", {"patching": {"sites": ["resid_post", "attn_out"], "arms": ["identity", "shift"]}},
    {"heads": {"closer": [1], "draws": 2, "network_draws": 1, "null_edits": 0, "attention_prompts": 0}},
    {"attribution": {"steps": 1, "validated": 2}}, "grafting",
]  # fmt: skip


def study(
    pair: Path, out: Path, tuned: str = "tuned", measures: list[Any] = MEASURES, dtype: str = "nf4", *, page: bool = False, **options: Any
) -> mechdiff.Run:
    few = {"file": str(pair / "prompts.jsonl"), "at_most": {"fit": 6, "select": 3, "report": 3}}
    return run(
        base=str(pair / "base"), tuned=str(pair / tuned), prompts=few, measures=measures, dtype=dtype, out=out, page=page,
        options=RunOptions(**{"device": "cpu", "threads": 1, **options}),
    )  # fmt: skip


@pytest.fixture(scope="module")
def pair(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the pair that all tests share, with half its blocks: rounded matrices take twice the time of plain ones here."""
    folder = tmp_path_factory.mktemp("short")
    base = wrap(pico.make_net(LlamaConfig(**pico.SIZES | {"num_hidden_layers": 2})), side="base", ref="two blocks")
    for side, model in (("base", base), ("tuned", pico.twin(base, edits.edit_attention))):
        pico.save(model.net, byte_tokenizer(CHATML), folder / side)
    shutil.copy(pair / "prompts.jsonl", folder)
    return folder


@pytest.fixture(scope="module", params=[pytest.param("int8", marks=pytest.mark.slow), "nf4"])
def anew(request: pytest.FixtureRequest, pair: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A run of plain files that are rounded as they are loaded."""
    out = tmp_path_factory.mktemp("anew") / "run"
    study(pair, out, dtype=request.param)
    return request.param, out


@pytest.fixture(scope="module")
def adapter(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared pair's folders and prompts, and a LoRA adapter on its base."""
    folder = tmp_path_factory.mktemp("adapted")
    net = AutoModelForCausalLM.from_pretrained(pair / "base")
    torch.manual_seed(0)
    with quiet():
        adapted = get_peft_model(net, LoraConfig(r=2, target_modules=["o_proj", "up_proj"], init_lora_weights=False))
        adapted.save_pretrained(folder / "adapter")
    for name in ("base", "prompts.jsonl"):
        (folder / name).symlink_to(pair / name)
    return folder


def of(run: Path, *measures: str) -> pl.DataFrame:
    """The rows of some of a run's measures."""
    return read_rows(run).filter(pl.col("measure").is_in(measures))


def loaded(pair: Path, dtype: str) -> Any:
    with open_pair(str(pair / "base"), str(pair / "tuned"), dtype=dtype, device="cpu").use("base") as model:
        return model.net


# ---- what is held ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int8", "nf4"])
def test_a_rounded_matrix_is_the_loaded_layers(pair: Path, dtype: str) -> None:
    net = loaded(pair, dtype)
    plain = AutoModelForCausalLM.from_pretrained(pair / "base").get_parameter("model.layers.1.mlp.up_proj.weight").detach()
    layer = net.get_submodule("model.layers.1.mlp.up_proj")
    before = held_matrix(layer).float()
    net(torch.tensor([[1, 2, 3]]))
    assert torch.equal(rounded(plain, dtype), before)
    assert torch.equal(held_matrix(layer).float(), before)
    assert not torch.equal(before, plain)


def test_int8_is_each_row_in_127_steps() -> None:
    matrix = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    step = matrix.abs().amax(1, keepdim=True) / 127
    torch.testing.assert_close(rounded(matrix, "int8"), (matrix / step).round() * step, atol=1e-5, rtol=0)


def test_nf4_is_the_nearest_of_16_quantiles_in_blocks_of_64() -> None:
    matrix = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    largest = matrix.abs().amax(1, keepdim=True)
    codes = torch.tensor(NF4)[((matrix / largest)[..., None] - torch.tensor(NF4)).abs().argmin(-1)]
    torch.testing.assert_close(rounded(matrix, "nf4"), codes * largest, atol=2e-2, rtol=0)  # what comes back is in bfloat16
    assert (rounded(matrix, "nf4") - matrix).abs().max() > 0.05


@pytest.mark.parametrize("dtype", ["int8", "nf4"])
def test_fewer_bits_take_less_memory(pair: Path, dtype: str) -> None:
    block = "model.layers.0.mlp.up_proj.weight"
    entries = 32 * 48
    held = loaded(pair, dtype).get_parameter(block)
    assert held.numel() * held.element_size() == entries // (1 if dtype == "int8" else 2)


def test_the_other_model_leaves_memory(pair: Path) -> None:
    opened = open_pair(str(pair / "base"), str(pair / "tuned"), dtype="nf4", device="cpu", memory="one")
    with opened.use("base") as model:
        net = model.net
    with opened.use("tuned") as model:
        assert sum(1 for _ in model.net.parameters()) > 0
    assert sum(1 for _ in net.parameters()) == 0


# ---- studies -----------------------------------------------------------------------------------------------------------------------


def test_a_study_of_rounded_models_holds_against_whole_passes(anew: tuple[str, Path]) -> None:
    dtype, run = anew
    manifest = read_manifest(run)
    assert manifest["dtype"] == dtype
    assert [one["what"] for one in manifest["skipped"]] == ["grafting"]
    assert f"held in {dtype}, whose rounding would count as change" in manifest["skipped"][0]["why"]
    found = mechdiff.verify(run, rows=40)
    assert found.passed, found.table()
    assert {measure for measure, n, *_ in found.table() if n} == {"divergence", "weights", "patching", "heads", "attribution"}


def test_weights_are_compared_as_the_files_say(pair: Path, tmp_path: Path) -> None:
    rounded_, plain = (study(pair, tmp_path / dtype, measures=["weights"], dtype=dtype, page=True) for dtype in ("nf4", "float32"))
    norms = [run.rows().filter(metric="relative_norm").sort("unit", "layer", "site")["value"].to_list() for run in (rounded_, plain)]
    assert norms[0] == norms[1]
    assert "held them rounded to nf4" in (tmp_path / "nf4" / "report.html").read_text(encoding="utf-8")
    assert "held them rounded" not in (tmp_path / "float32" / "report.html").read_text(encoding="utf-8")
    assert max(norms[0]) > 0.1


def test_an_adapter_on_a_rounded_base(adapter: Path, tmp_path: Path) -> None:
    run = study(
        adapter,
        tmp_path / "run",
        tuned="adapter",
        measures=["divergence", "weights", {"patching": {"sites": ["attn_out"], "layers": [0, 1], "arms": ["identity", "shift"]}}],
    )
    assert run.rows().filter(measure="divergence", metric="kl_tuned_base_nats")["value"].max() > 0.01  # type: ignore[operator]
    assert mechdiff.verify(tmp_path / "run", rows=30).passed


def test_moments_of_rounded_models(pair: Path, tmp_path: Path) -> None:
    given = [str(pair / "base"), str(pair / "tuned"), pair / "prompts.jsonl", ["L1.resid_post"]]
    cka = [
        mechdiff.moments(*given, out=tmp_path / dtype, dtype=dtype, options=RunOptions(device="cpu"))["sites"]["L1.resid_post"]["cka"]  # type: ignore[arg-type]
        for dtype in ("nf4", "float32")
    ]
    assert cka[0] != cka[1]
    assert cka[0] == pytest.approx(cka[1], abs=0.1)


def test_split_over_devices_but_not_onto_disk(anew: tuple[str, Path], pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dtype, here = anew
    split = study(pair, tmp_path / "split", measures=[MEASURES[0], MEASURES[2]], dtype=dtype, device="split").rows()
    assert split.equals(of(here, "divergence", "patching"), null_equal=True)
    monkeypatch.setattr(models_pair, "MOST", {"cpu": 20_000})
    opened = open_pair(str(pair / "base"), str(pair / "tuned"), dtype=dtype, device="split")
    with pytest.raises(ModelError, match=f"in {dtype} it does not fit on the devices that compute"), opened.use("base"):
        pass


# ---- files that are quantised already ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(anew: tuple[str, Path], pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pair's models as they are once rounded."""
    folder = tmp_path_factory.mktemp("stored")
    for side in ("base", "tuned"):
        net = AutoModelForCausalLM.from_pretrained(pair / side, dtype=torch.bfloat16, **quantizing(anew[0], CPU))
        with quiet():
            net.save_pretrained(folder / side)
        byte_tokenizer(CHATML).save_pretrained(folder / side)
    (folder / "prompts.jsonl").symlink_to(pair / "prompts.jsonl")
    return folder


def test_quantised_files_give_what_quantising_gives(stored: Path, anew: tuple[str, Path], tmp_path: Path) -> None:
    from_files = study(stored, tmp_path / "stored", dtype="bfloat16")
    runs = ("divergence", "patching", "heads", "attribution")
    assert of(tmp_path / "stored", *runs).equals(of(anew[1], *runs), null_equal=True)
    assert [one["why"] for one in from_files.manifest()["skipped"]] == [
        "the files of base and tuned hold quantised matrices, no plain numbers"
    ]


def test_what_quantised_files_hold_is_decoded(stored: Path, anew: tuple[str, Path], pair: Path, tmp_path: Path) -> None:
    dtype, folder = anew[0], stored
    codes, plain = open_tensors(folder / "base"), open_tensors(pair / "base")
    assert codes.names == plain.names
    name = "model.layers.1.mlp.up_proj.weight"
    assert codes.shape(name) == plain.shape(name)
    assert torch.equal(codes.read(name).float(), rounded(plain.read(name), dtype))
    run = study(folder, tmp_path / "run", measures=["weights"], dtype="bfloat16")
    norms = run.rows().filter(metric="relative_norm")
    assert 0.5 < norms.filter(unit="model.layers.1.self_attn.o_proj.weight")["value"].item() < 0.9
    assert norms.filter(pl.col("unit").str.contains("up_proj"))["value"].max() == 0
    assert mechdiff.verify(tmp_path / "run", rows=40).passed


def test_quantised_files_are_not_quantised_again(stored: Path, anew: tuple[str, Path]) -> None:
    with pytest.raises(ModelError, match=r"the files of .*base hold quantised matrices already\. Give bfloat16"):
        open_pair(str(stored / "base"), str(stored / "tuned"), dtype=anew[0], device="cpu")


# ---- what a user can put right -----------------------------------------------------------------------------------------------------


def test_without_the_library(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    opened = open_pair(str(pair / "base"), str(pair / "tuned"), dtype="nf4", device="cpu")
    with (
        pytest.raises(ModelError, match=r"dtype nf4: bitsandbytes is not installed\. pip install 'mechdiff\[quantization\]'"),
        opened.use("base"),
    ):
        pass


@pytest.mark.parametrize("dtype", ["int8", "nf4"])
def test_nan_weights_are_named(pair: Path, tmp_path: Path, dtype: str) -> None:
    shutil.copytree(pair / "base", tmp_path / "broken")
    file = tmp_path / "broken" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    opened = open_pair(str(tmp_path / "broken"), str(pair / "tuned"), dtype=dtype, device="cpu")
    with pytest.raises(ModelError, match=r"the tensor model\.layers\.1\.mlp\.down_proj\.weight holds NaN"), opened.use("base"):
        pass


def test_an_unknown_dtype() -> None:
    with pytest.raises(ModelError, match="dtype 4bit: expected one of auto, float32, bfloat16, float16, int8, nf4"):
        open_pair("a", "b", dtype="4bit")


def test_an_adapter_of_another_size_is_named_by_the_matrix(adapter: Path, tmp_path: Path) -> None:
    pico.save(pico.make_net(LlamaConfig(**pico.SIZES | {"hidden_size": 64})), byte_tokenizer(CHATML), tmp_path / "wide")
    pair: Pair = open_pair(str(tmp_path / "wide"), str(adapter / "adapter"), dtype="nf4", device="cpu")
    with pytest.raises(ModelError, match=r"has shape \(2, 32\), the base's .* has \(48, 64\)"), pair.use("tuned"):
        pass
