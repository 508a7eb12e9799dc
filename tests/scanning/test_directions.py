"""Cosines along directions are those of whole passes; what stands out is counted against random directions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_scan import scanned, shipped

import pico
from mechdiff.architectures.sites import Site
from mechdiff.engine.activations import capture, matrix_inputs
from mechdiff.maps.vectors import save_vector
from mechdiff.models.pair import open_pair
from mechdiff.scanning.directions import Spread, empirical_p, random_directions

SITE = Site(2, "resid_post")


def test_cosines_are_those_of_whole_passes(pair: Path, tmp_path: Path) -> None:
    """A steering vector at its site, and what the largest change reads and writes: of each of the listed texts, its value and its token."""
    vector = torch.randn(32, generator=torch.Generator().manual_seed(5))
    save_vector(tmp_path / "v.safetensors", SITE, vector)
    texts = shipped(12)
    told = scanned(pair, texts, tmp_path / "out", vectors=(str(tmp_path / "v.safetensors"),), matrices=1)
    opened = open_pair(str(pair / "base"), str(pair / "tuned"), device="cpu")
    name, seen = "model.layers.1.self_attn.o_proj", {}
    with opened.use("base") as model:
        before = model.net.get_submodule(name).weight.detach().double().clone()
    with opened.use("tuned") as model:
        weight = model.net.get_submodule(name).weight.detach()
        left, _, right = torch.linalg.svd(weight.double() - before)
        for number, text in enumerate(texts):
            ids = opened.tokenizer("tuned")(text)["input_ids"][:60]
            places = list(range(1, len(ids)))
            read = matrix_inputs(model, ids, [f"{name}.weight"], places)[f"{name}.weight"]
            seen[number] = {"site": capture(model, ids, [SITE], places).states[SITE], "input": read, "output": read @ weight.T}
    axes = {"site": vector[None], "input": right[:2].float(), "output": left.T[:2].float()}
    assert len(told["directions"]) == 2 * (1 + 2 + 2)
    for line in told["directions"]:
        nth = int(line["direction"][-1]) - 1 if line["end"] != "site" else 0
        cos = {i: torch.nn.functional.cosine_similarity(states[line["end"]], axes[line["end"]][nth], dim=-1) for i, states in seen.items()}
        both = [{text["number"] for text in line["texts"]}, [text["value"] for text in line["texts"]]]
        agree = []
        for sign in (1, -1):  # a singular vector has no sign
            largest = {i: float((sign * value).max()) for i, value in cos.items()}
            first = sorted(largest, key=lambda i: -largest[i])[:8]
            agree.append(both[1] == pytest.approx([largest[i] for i in first], abs=1e-5) and both[0] == set(first))
            if agree[-1]:
                assert [text["token"] for text in line["texts"]] == [
                    1 + int((sign * cos[text["number"]]).argmax()) for text in line["texts"]
                ]
        assert any(agree), line["direction"]
        assert agree[line["sign"] == "-"] or line["end"] != "site"


def test_spreads_add_and_p_counts_random_directions_that_stand_out_as_far() -> None:
    cos = np.random.default_rng(0).normal(size=(50, 2, 3)).astype(np.float32)
    added, whole = Spread.of(cos[:20]) + Spread.of(cos[20:]), Spread.of(cos)
    wide = cos.astype(np.float64)
    expected = (wide.max(0) - wide.mean(0)) / wide.std(0)
    np.testing.assert_allclose(added.standing_out(), expected, rtol=1e-6)
    np.testing.assert_allclose(whole.standing_out(), expected, rtol=1e-6)
    assert empirical_p(np.array([[2.0], [9.0]]), np.array([[1.0, 2.0], [3.0, 0.0]])).tolist() == [[3 / 5], [1 / 5]]


def test_random_directions_lie_where_states_do() -> None:
    """Of states in a plane every direction lies in it, has norm 1, and none is another."""
    plane = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    states = torch.randn(100, 2, generator=torch.Generator().manual_seed(2)) @ plane + 3
    found = random_directions(states, 20, seed=0)
    axes = torch.linalg.qr(plane.T).Q
    torch.testing.assert_close((found @ axes).norm(dim=-1), torch.ones(20))
    assert len({tuple(row) for row in found.round(decimals=4).tolist()}) == 20


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_families_that_store_or_handle_matrices_otherwise_are_read(name: str, tmp_path: Path) -> None:
    from mechdiff.validate import edits
    from tokenizers_made import byte_tokenizer

    base = pico.pico(name)
    for side, model in (("base", base), ("tuned", pico.twin(base, edits.edit_attention))):
        pico.save(model.net, byte_tokenizer(), tmp_path / side)
    told = scanned(tmp_path, shipped(24), tmp_path / "out", matrices=1)
    assert not [said for said in told["left_out"] if "is read nowhere" in said]
    assert {one["end"] for one in told["directions"]} == {"input", "output"}
