"""Steering vectors come back from their files as they went in, and GGUF ones are what llama.cpp's loader asks for."""

from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader

from mechdiff.architectures.sites import Site
from mechdiff.errors import StudyError
from mechdiff.maps.vectors import has_control_vector, load_control_vector, load_vector, save_control_vector, save_vector

VECTOR = torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_a_vector_comes_back_with_its_site_and_what_is_said_of_it(tmp_path: Path) -> None:
    save_vector(tmp_path / "one.safetensors", Site(3, "attn_out"), VECTOR, base="a", tuned="b")
    site, vector, said = load_vector(tmp_path / "one.safetensors")
    assert site == Site(3, "attn_out")
    torch.testing.assert_close(vector, VECTOR.float())
    assert said == {"site": "L3.attn_out", "norm": f"{float(VECTOR.norm()):.9g}", "base": "a", "tuned": "b"}


def test_a_control_vector_is_what_llama_cpp_loads(tmp_path: Path) -> None:
    vectors = {Site(1, "resid_post"): VECTOR, Site(7, "resid_post"): 2 * VECTOR}
    save_control_vector(tmp_path / "one.gguf", vectors, model_hint="llama")
    reader = GGUFReader(str(tmp_path / "one.gguf"))
    assert reader.fields["general.architecture"].contents() == "controlvector"
    assert reader.fields["controlvector.model_hint"].contents() == "llama"
    assert reader.fields["controlvector.layer_count"].contents() == 2
    assert [(one.name, one.tensor_type, one.shape.tolist()) for one in reader.tensors] == [
        ("direction.1", GGMLQuantizationType.F32, [64]),
        ("direction.7", GGMLQuantizationType.F32, [64]),
    ]
    found = load_control_vector(tmp_path / "one.gguf")
    assert list(found) == list(vectors)
    for site, vector in vectors.items():
        torch.testing.assert_close(found[site], vector.float())


def test_places_that_llama_cpp_does_not_have(tmp_path: Path) -> None:
    for site in (Site(0, "resid_post"), Site(3, "attn_out")):
        assert not has_control_vector(site)
        with pytest.raises(StudyError, match=str(site)):
            save_control_vector(tmp_path / "no.gguf", {site: VECTOR}, model_hint="llama")
    assert not (tmp_path / "no.gguf").exists()
