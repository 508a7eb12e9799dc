"""A steering vector as an adapter does what adding it by a plain hook does, in every family that has a place for it; others are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from torch import Tensor

import pico
from mechdiff.architectures.sites import Site
from mechdiff.errors import ModelError, RunError
from mechdiff.exchange import vectors
from mechdiff.maps.vectors import save_vector
from mechdiff.models.pair import Model

VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(0))
PLACES = [
    ("llama", "resid_post", "down_proj"), ("llama", "resid_mid", "o_proj"), ("llama", "resid_pre", "down_proj"), ("llama", "mlp_out", "down_proj"),
    ("granite", "resid_post", "down_proj"), ("granite", "resid_mid", "o_proj"), ("gpt2", "resid_post", "c_proj"),
    ("neox_parallel", "resid_post", "dense_4h_to_h"), ("opt", "resid_post", "fc2"), ("mixtral", "resid_mid", "o_proj"),
]  # fmt: skip


def with_hook(model: Model, site: Site, ids: Tensor, vector: Tensor) -> Tensor:
    """Logits where the vector is added by a forward hook of torch, without mechdiff's engine.

    Between attention and MLP the norm reads the stream, and the skip connection does: what attention gives is what changes both.
    """
    half = Site(site.layer, "attn_out") if site.kind == "resid_mid" else site
    module, end = model.place(half)
    vector = vector / model.scale(half)

    def after(module: Any, args: Any, output: Any) -> Any:
        return (output[0] + vector, *output[1:]) if isinstance(output, tuple) else output + vector

    def before(module: Any, args: Any, kwargs: Any) -> Any:
        return ((args[0] + vector, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": kwargs["hidden_states"] + vector})

    handle = module.register_forward_pre_hook(before, with_kwargs=True) if end == "input" else module.register_forward_hook(after)
    with torch.no_grad():
        logits = model.net(input_ids=ids).logits
    handle.remove()
    return logits


@pytest.mark.parametrize(("family", "kind", "layer"), PLACES)
def test_the_adapter_adds_what_a_plain_hook_adds(family: str, kind: str, layer: str, tmp_path: Path) -> None:
    from peft import PeftModel

    model, site, ids = pico.pico(family), Site(2, kind), torch.tensor([[5, 9, 200, 31, 77, 8]])
    with torch.no_grad():
        clean = model.net(input_ids=ids).logits
    expected = with_hook(model, site, ids, VECTOR)
    made = vectors.save_adapter(model, site, VECTOR, tmp_path / "adapter")
    assert made.module is not None
    assert made.module.endswith(layer)
    assert made.kl_nats is not None
    assert made.kl_nats < 1e-9
    with torch.no_grad():
        torch.testing.assert_close(model.net(input_ids=ids).logits, clean, rtol=0, atol=0)  # the network is as it was
        with vectors._without_peft_s_warnings():
            adapted: Any = PeftModel.from_pretrained(model.net, str(tmp_path / "adapter"))
        torch.testing.assert_close(adapted(input_ids=ids).logits, expected, rtol=0, atol=2e-5)
        assert float((expected - clean).abs().max()) > 0.01
        adapted.unload()


@pytest.mark.parametrize(("family", "kind", "words"), [
    ("gemma2", "resid_post", "normed before it is added"), ("mixtral", "resid_post", "several experts"), ("llama", "z", "no linear layer adds to"),
])  # fmt: skip
def test_where_no_layer_adds_it_the_error_says_so(family: str, kind: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=words):
        vectors.save_adapter(pico.pico(family), Site(2, kind), VECTOR, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


@pytest.fixture
def run(pair: Path, tmp_path: Path) -> Path:
    (tmp_path / "steering").mkdir()
    names = []
    for layer in (1, 2):
        save_vector(tmp_path / "steering" / f"L{layer}.resid_post.safetensors", Site(layer, "resid_post"), layer * VECTOR)
        names += [f"steering/L{layer}.resid_post.safetensors", f"steering/L{layer}.resid_post.gguf"]
    one = {"ref": str(pair / "base"), "family": "llama"}
    record = {"pair": {"base": one}, "steering": {"files": names, "all_positions": {"resid_post": [1]}}}
    (tmp_path / "manifest.json").write_text(json.dumps(record))
    return tmp_path


def test_a_run_s_vector_as_gguf_and_as_an_adapter(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mechdiff.cli.exchange import export

    how: dict[str, Any] = {"formats": "pdf", "columns": "single", "base": None, "figures": None, "width": 3.3, "latex": False}
    export(run, to="control-vector", out=run / "new" / "v.gguf", site="L2.resid_post", strength=-0.5, **how)
    (tensor,) = GGUFReader(str(run / "new" / "v.gguf")).tensors
    assert tensor.name == "direction.2"
    torch.testing.assert_close(torch.tensor(tensor.data), -0.5 * 2 * VECTOR)
    export(run, to="peft", out=run / "steer", site=None, strength=3.0, **how)
    assert capsys.readouterr().out.split() == [str(run / "new" / "v.gguf"), str(run / "steer")]
    config = json.loads((run / "steer" / "adapter_config.json").read_text())
    assert (config["target_modules"], config["lora_bias"]) == (["model.layers.1.mlp.down_proj"], True), (
        "by default where it steered everywhere"
    )
    assert "adds it (length" in (run / "steer" / "README.md").read_text()
    with pytest.raises(RunError, match=r"no vector at L9\.resid_post\. There are: L1\.resid_post, L2\.resid_post"):
        vectors.chosen(run, "L9.resid_post")
    (run / "manifest.json").write_text("{}")
    with pytest.raises(RunError, match="saved no steering vector"):
        vectors.chosen(run, None)
