"""Patches at one part of a prompt are whole hooked passes; the parts are those of the tokens."""

import pytest
import torch
from torch import Tensor

from mechdiff.architectures.sites import Site
from mechdiff.engine.activations import edited, forward
from mechdiff.engine.choice import engine_for
from mechdiff.engine.replay import ENGINES, Variant, Write, relay
from mechdiff.labels import POSITIONS
from mechdiff.measures.patching import positions_page
from mechdiff.measures.patching.positions import behind
from mechdiff.prompts.parts import parts
from mechdiff.report import drawing
from mechdiff.report.parts import Run
from mechdiff.validate import edits, made, planted
from mechdiff.validate.studies import study
from pico import pico

IDS = [256, 5, 6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen2_sliding", "bloom"])
@pytest.mark.parametrize(("start", "n"), [(0, 3), (2, 2), (7, 1)])
def test_a_patch_at_a_part_is_a_whole_hooked_pass(name: str, start: int, n: int) -> None:
    model = pico(name)
    generator = torch.Generator().manual_seed(0)
    layers = (0, 2, 3)
    values = [torch.randn(1, n, model.shape.d_model, generator=generator) for _ in layers]
    variants: list[Variant] = [{Site(layer, "resid_post"): Write(value=value)} for layer, value in zip(layers, values, strict=True)]
    expected = [forward(model, torch.tensor([IDS]), use_cache=False).logits[0, -1].float()]
    for layer, value in zip(layers, values, strict=True):

        def put(tensor: Tensor, value: Tensor = value) -> None:
            tensor[0, start : start + n] = value[0]

        with edited(model, {Site(layer, "resid_post"): put}):
            expected.append(forward(model, torch.tensor([IDS]), use_cache=False).logits[0, -1].float())
    assert (expected[1] - expected[0]).abs().max() > 0.01
    for engine in {ENGINES[engine_for(model.config)[0]], relay}:
        found = behind(model, engine, IDS, start, variants, max_rows=20)
        torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-5)


def test_parts_are_what_all_prompts_share_and_the_words_between() -> None:
    prompts = [[1, 2, 3, *words, 7, 8, 9] for words in (range(20, 31), range(40, 52), (60, 61))]
    named = {name: [prompts[0][place] for place in places] for name, places in parts(prompts, prompts[0]).items()}
    assert named == {
        "template before": [1, 2, 3], "first words": [20, 21, 22], "words": list(range(23, 28)), "last words": [28, 29, 30], "template after": [7, 8],
        "decision": [9],
    }  # fmt: skip
    assert list(named) == list(POSITIONS)
    few = {name: list(places) for name, places in parts(prompts, prompts[2]).items()}
    assert few == {"template before": [0, 1, 2], "first words": [3, 4], "template after": [5, 6], "decision": [7]}
    for everyone, one in ((prompts, prompts[1]), ([[5]], [5]), ([[5, 6], [5, 6]], [5, 6])):
        covered = [place for places in parts(everyone, one).values() for place in places]
        assert covered == list(range(len(one)))


def test_an_example_is_drawn_token_by_token_with_its_tokens_beside_it() -> None:
    base = made.tiny_net()
    measures = ["divergence", {"patching": {"sites": ["resid_post"], "arms": ["identity"], "map_tokens": 1, "map_layers": 2}}]
    with study(base, planted.edited(base, edits.edit_attention), measures=measures) as found:
        run = Run(rows=found.rows, summary=found.summary, manifest=found.record)
    (name,) = run.manifest["mapped_tokens"]
    texts, table = run.manifest["mapped_tokens"][name], positions_page.by_token(run.rows)
    assert "".join(texts).endswith("<|assistant|>\n")
    assert sorted(set(table["place"])) == list(range(len(texts)))
    d = float(run.rows.filter(metric="kl_tuned_base_nats", prompt=name, split="report", measure="divergence")["value"][0])
    one = table.filter(direction="base<-tuned", place=len(texts) - 1, layer=table["layer"].max())["share"].item()
    unit = run.rows.filter(
        measure="patching", direction="base<-tuned", metric="kl_other_nats", prompt=name, unit=f"position {len(texts) - 1}"
    )
    assert one == pytest.approx(1 - float(unit.filter(layer=table["layer"].max())["value"].item()) / d)
    drawn = [part for part in positions_page.parts(run) if part.name == "token_map_0"]
    svg = drawing.to_svg(drawn[0].chart(run.rows, run.summary, run.manifest, width=700, **drawn[0].options))
    assert f", {len(texts) - 1} \u21b5" in svg or f", {len(texts) - 1}: share" in svg
    assert svg.count("after block") == 2 * 2 * min(len(texts), positions_page.TOKENS)
