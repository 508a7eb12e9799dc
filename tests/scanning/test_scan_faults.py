"""Texts, tokenizers and adapters that a scan got wrong or stopped at."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import polars as pl
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from test_scan import scanned, shipped
from tokenizers import AddedToken

import pico
from mechdiff.cli.printing import show_scan
from mechdiff.engine.grafts import batches, logits_at
from mechdiff.models import pair as models_pair
from mechdiff.models.pair import Pair, open_pair
from mechdiff.scanning import compute, directions, evidence, shown
from mechdiff.scanning.corpus import Asked, Read, Scan
from mechdiff.scanning.directions import Place
from mechdiff.scanning.texts import Text
from mechdiff.scanning.tokens import Numbers, head_of, last_states
from mechdiff.scanning.words import outstanding, parting, sentences
from mechdiff.statistics.intervals import holm
from mechdiff.validate import edits
from tokenizers_made import bpe_tokenizer, byte_tokenizer

TEXTS = [text[:30] for text in shipped(6)]


def opened(base: Path, tuned: Path, **how: Any) -> Scan:
    return Scan(pair=open_pair(str(base), str(tuned), device="cpu", **how), asked=Asked(corpus="none"))


def losses(scan: Scan, text: str) -> dict[str, float]:
    """The mean loss of a text by each model's own pass."""
    found = {}
    for side in ("base", "tuned"):
        ids = torch.tensor(scan.pair.tokenizer(side)(text)["input_ids"])  # type: ignore[arg-type]
        with scan.pair.use(side) as model, torch.inference_mode():  # type: ignore[arg-type]
            found[side] = float(torch.nn.functional.cross_entropy(model.net(ids[None]).logits[0, :-1].double(), ids[1:]))
    return found


def of_texts(scan: Scan, texts: list[str] = TEXTS) -> list[Numbers]:
    ones = scan.read([Text(number=i, id=f"t{i}", text=text) for i, text in enumerate(texts)])
    return [numbers for _, numbers in sorted(compute.numbers_of(scan, ones), key=lambda pair: pair[0].number)]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("on", ["q_proj", "lm_head"])
def test_an_adapter_s_unembedding_is_that_of_its_side(on: str, pair: Path, tmp_path: Path) -> None:
    """One parameter holds the tuned matrix beside the base's; or the head is wrapped, and has the base's matrix under its name."""
    net = pico.pico("llama").net
    net.load_state_dict(load_file(pair / "base" / "model.safetensors"), strict=False)
    adapted = peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=[on], init_lora_weights=False))
    adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    file = tmp_path / "adapter_model.safetensors"
    if on == "q_proj":
        held = load_file(file)
        save_file({**held, "base_model.model.lm_head.weight": 1.5 * net.state_dict()["lm_head.weight"]}, file, metadata={"format": "pt"})
    scan = opened(pair / "base", tmp_path, dtype="bfloat16", memory="one" if on == "lm_head" else "both")
    for text, numbers in zip(TEXTS, of_texts(scan), strict=True):
        expected = losses(scan, text)
        assert float(numbers.loss_base.mean()) == pytest.approx(expected["base"], abs=0.01)
        assert float(numbers.loss_tuned.mean()) == pytest.approx(expected["tuned"], abs=0.01)
    assert float(torch.cat([numbers.kl_tuned_base for numbers in of_texts(scan)]).mean()) > 1e-3
    assert (scan.heads["tuned"] is None) == (on == "lm_head")


def test_numbers_are_those_of_their_texts_whatever_the_tokenizers_say_of_ends(tmp_path: Path) -> None:
    base = pico.pico("llama")
    pico.save(base.net, bpe_tokenizer([], 259), tmp_path / "base")
    pico.save(pico.twin(base, edits.edit_attention).net, bpe_tokenizer([], 259, trim_offsets=True), tmp_path / "tuned")
    scan = opened(tmp_path / "base", tmp_path / "tuned")
    for text, numbers in zip(TEXTS, of_texts(scan), strict=True):
        expected = losses(scan, text)
        assert len(numbers.same) == len(scan.pair.tokenizer("base")(text)["input_ids"]) - 1
        assert float(numbers.loss_base.mean()) == pytest.approx(expected["base"], rel=1e-5)
        assert float(numbers.loss_tuned.mean()) == pytest.approx(expected["tuned"], rel=1e-5)


def test_texts_with_numbers_that_are_not_finite_are_left_out_and_named(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = compute._held

    def broken(scan: Scan, group: list[Read], base: torch.Tensor, tuned: torch.Tensor) -> list[Numbers]:
        numbers = held(scan, group, base, tuned)
        nan = torch.tensor(float("nan"), dtype=torch.float64)
        return [
            replace(here, kl_base_tuned=here.kl_base_tuned * nan) if one.number == 3 else here
            for one, here in zip(group, numbers, strict=True)
        ]

    whole = scanned(pair, TEXTS[:3] + TEXTS[4:], tmp_path / "without", chunk=3, matrices=1)
    monkeypatch.setattr(compute, "_held", broken)
    told = scanned(pair, TEXTS, tmp_path / "with", chunk=3, matrices=1)
    assert told["numbers"] == pytest.approx(whole["numbers"], rel=1e-5, abs=1e-7)
    assert told["texts_left_out"] == 1
    assert "1 text (text-4): a model's logits there are NaN or infinite" in told["left_out"]
    assert all(text["number"] != 3 for one in told["directions"] for text in one["texts"])
    assert pl.read_parquet(tmp_path / "with" / "texts.parquet")["n_tokens"][3] == 0


def refused(constant: str) -> None:
    raise AssertionError(constant)


def test_texts_of_one_token_and_texts_that_no_model_can_read_stop_no_scan(tmp_path: Path) -> None:
    tokenizer = bpe_tokenizer([], 259, adds_bos=False)
    tokenizer.add_tokens([AddedToken("zebra", normalized=False)])  # has no row
    base = pico.pico("llama")
    for side, model in (("base", base), ("tuned", pico.twin(base, edits.edit_attention))):
        pico.save(model.net, tokenizer, tmp_path / side)
    alone = scanned(tmp_path, ["a", "b"], tmp_path / "alone", matrices=1)
    json.loads((tmp_path / "alone" / "scan.json").read_text(), parse_constant=refused)
    assert sentences(alone) == ["No text has a token that another one follows: nothing could be compared."]
    twice = f"{tokenizer.bos_token}{tokenizer.bos_token}xyz"
    texts = ["a", *TEXTS, "a zebra", twice]
    told = scanned(tmp_path, texts, tmp_path / "out", chunk=4, matrices=1)
    json.loads((tmp_path / "out" / "scan.json").read_text(), parse_constant=refused)
    assert (told["texts"], told["texts_scored"], told["texts_left_out"]) == (9, 6, 2)
    assert "1 text (text-8): the base model has no row for one of its tokens" in told["left_out"]
    assert f"1 text (text-9): two {tokenizer.bos_token!r} at the start for the base model's tokenizer" in told["left_out"]
    none = scanned(tmp_path, [twice], tmp_path / "none", matrices=0)
    why = f"1 text (text-1): two {tokenizer.bos_token!r} at the start for the base model's tokenizer"
    assert sentences(none) == [f"Nothing could be compared: of 1 texts 1 were left out, and no other has two tokens ({why})."]
    console = Console(record=True, width=200, file=io.StringIO())
    show_scan(none, console)
    assert f"left out: {why}" in console.export_text()


def test_a_router_that_changed_is_read_where_it_reads_and_nowhere_else(tmp_path: Path) -> None:
    base = pico.pico("mixtral")
    name = next(name for name, one in base.net.named_parameters() if name.endswith("gate.weight") and one.ndim == 2)

    def plant(net: Any) -> None:
        net.get_parameter(name).data.add_(torch.randn(net.get_parameter(name).shape, generator=edits.generator(0)))

    for side, model in (("base", base), ("tuned", pico.twin(base, plant))):
        pico.save(model.net, byte_tokenizer(), tmp_path / side)
    told = scanned(tmp_path, TEXTS, tmp_path / "out")
    assert {one["end"] for one in told["directions"]} == {"input"}
    assert any("it gives more than one tensor" in said for said in told["left_out"])


def sample(n: int = 240) -> evidence.Sample:
    """Zebra's texts are sure ones that moved more than sure ones do, and less than all others."""
    draw = np.random.default_rng(0)
    here = np.arange(n) % 4 == 0
    loss = np.where(here, 1.0, np.where(np.arange(n) % 4 == 1, 1.2, 4.0)) + 0.2 * draw.standard_normal(n)
    kl = np.exp(-6.0 + loss + 0.9 * here + 0.05 * draw.standard_normal(n))
    words = draw.choice([f"{a}{b}" for a in "bcdfgh" for b in "aeiou"], size=(n, 6))
    texts = [" ".join([*row, *(["zebra"] if one else [])]) for row, one in zip(words, here, strict=True)]
    change = 0.3 * here + 0.05 * draw.standard_normal(n)
    found = np.arange(n) % 8 < 4
    return evidence.Sample(texts=texts, kl=kl, loss_base=loss, loss_change=change, clusters=np.arange(n), found=found)


def test_where_kl_is_more_than_predicted_is_not_where_the_models_part_most() -> None:
    one = sample()
    lines = evidence.features(one, np.zeros(240, int), ["all"])
    (zebra,) = (line for line in lines if line["feature"] == "“zebra”" and line["score"] == "kl")
    assert zebra["confirmed"]
    tested = ~one.found
    with_it = np.array(["zebra" in text for text in one.texts])
    raw = np.log(one.kl[tested & with_it]).mean() - np.log(one.kl[tested & ~with_it]).mean()
    assert raw < 0
    assert zebra["raw"] == pytest.approx(raw)
    assert parting(zebra).startswith("In texts with “zebra” KL is × ")
    assert parting({**zebra, "raw": 1.0, "raw_low": 0.5, "raw_high": 1.5}).startswith(
        "They part more in texts with “zebra”: KL there is × "
    )


def test_features_of_both_numbers_are_one_family_in_the_order_of_the_half_where_they_were_found() -> None:
    lines = evidence.features(sample(), np.zeros(240, int), ["all"])
    assert {line["score"] for line in lines} == {"kl", "loss"}
    np.testing.assert_allclose([line["p_holm"] for line in lines], holm(np.array([line["p"] for line in lines])))
    assert lines == sorted(lines, key=lambda line: (not line["confirmed"], line["score"], -abs(line["effect_found"])))


def test_a_corpus_of_few_texts_again_and_again_has_domains() -> None:
    texts = [["the cat sat", "a dog ran far", "my bird flew up high"][i % 3] for i in range(120)]
    zero = np.zeros(120)
    one = evidence.Sample(texts=texts, kl=zero, loss_base=zero, loss_change=zero, clusters=np.arange(120) % 3, found=np.arange(120) < 100)
    labels, names = evidence.domains(one)
    assert len(set(texts)) == len(names) == 3
    assert len({(text, label) for text, label in zip(texts, labels.tolist(), strict=True)}) == 3


def test_a_corpus_of_few_texts_is_read_written_and_printed(pair: Path, tmp_path: Path) -> None:
    told = scanned(pair, TEXTS[:3] * 8, tmp_path / "out", matrices=0, chunk=24)
    json.loads((tmp_path / "out" / "scan.json").read_text(), parse_constant=refused)
    assert [one["kl_low"] for one in told["domains"]] == [None] * len(told["domains"])
    console = Console(record=True, width=200, file=io.StringIO())
    show_scan(told, console)
    assert "–" in console.export_text()


def test_among_more_directions_there_are_more_random_ones() -> None:
    for places in (2, 16, 80):
        at = [Place(what="w", end="input", names=("one", "other"), vectors=torch.eye(2))] * places
        least = 1 / (1 + 2 * directions.how_many(at))
        assert len(outstanding({"directions": [{"p": least, "texts": [1]}] * (4 * places)})) == 4 * places


def test_a_text_of_two_lists_is_shown_around_a_token_each_and_these_are_the_base_s() -> None:
    one = {"number": 7, "token": 3}
    told = {"contexts": {"kl": [one], "loss": [{**one, "token": 9}]}, "directions": [{"texts": [one]}]}
    assert shown.wanted(told) == [(7, 3), (7, 9)]
    text = Read(number=0, id="", ids={"base": (1, 2, 3, 4, 5), "tuned": (1, 6, 5)}, pairs=((0, 0), (3, 1), (4, 2)))
    assert compute.of_base(text, np.array([[1, 2], [0, 1]])).tolist() == [[3, 4], [0, 3]]


def test_with_one_model_in_memory_a_chunk_takes_one_load(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads, load = [], Pair._load
    monkeypatch.setattr(Pair, "_load", lambda self, side: loads.append(side) or load(self, side))
    scanned(pair, TEXTS[:4], tmp_path / "out", chunk=1, memory="one", matrices=0)
    assert len(loads) <= 4 + 3


def test_an_unembedding_on_the_disk_is_swept_in_no_tiles(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models_pair, "MOST", {"cpu": 100_000})
    scan = opened(pair / "base", pair / "tuned", dtype="float32")
    split = Scan(pair=open_pair(str(pair / "base"), str(pair / "tuned"), device="split", memory="both"), asked=Asked(corpus="none"))
    with split.pair.use("base") as model:
        assert model.head.weight.is_meta
        assert head_of(model) is None
    for here, there in zip(of_texts(scan, TEXTS[:2]), of_texts(split, TEXTS[:2]), strict=True):
        torch.testing.assert_close(here.kl_tuned_base, there.kl_tuned_base, rtol=1e-4, atol=1e-6)


def test_what_is_said_of_a_text_is_of_what_was_read(pair: Path) -> None:
    scan = Scan(pair=open_pair(str(pair / "base"), str(pair / "tuned"), device="cpu"), asked=Asked(corpus="none", longest=5))
    assert scan.seen([Text(number=4, id="", text="abcdefgh"), Text(number=6, id="", text="ab")]) == {4: "abcd", 6: "ab"}


def test_random_directions_that_are_not_known_let_no_text_stand_out() -> None:
    z = np.array([[3.0], [1.0]])
    assert np.isnan(directions.empirical_p(z, np.array([[np.nan, 1.0]]))).all()
    assert directions.empirical_p(z, np.array([[2.0, 1.5]])).tolist() == [[1 / 3], [1.0]]
    spread = directions.Spread(n=4, total=np.full((2, 1), np.nan), squares=np.ones((2, 1)), top=np.ones((2, 1)))
    assert np.isnan(spread.standing_out()).all()
    assert outstanding({"directions": [{"p": None, "texts": [1]}]}) == []


def test_a_first_chunk_of_too_few_tokens_gives_no_directions_and_says_so(pair: Path, tmp_path: Path) -> None:
    told = scanned(pair, ["ab", *shipped(20)], tmp_path / "out", chunk=1)
    assert told["directions"] == []
    assert any("the first chunk has too few tokens" in one for one in told["left_out"])
    assert "or what was left out says why" in (tmp_path / "out" / "report.html").read_text()


def test_one_text_again_and_again_is_one_domain() -> None:
    n = 60
    same = replace(sample(), texts=["the same words again"] * n, found=np.ones(n, bool))
    assert evidence.domains(same)[1] == ["all"]


def test_an_unembedding_that_is_moved_for_each_pass_is_moved_afterwards_too() -> None:
    """accelerate stands in the place of its forward where a network is split; only of a bare one the product is left out."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    model = pico.pico("llama")
    (batch,) = batches(model, [[1, 2, 3, 4]], n_places=[3])
    expected, logits = last_states(model, batch), logits_at(model, batch)
    add_hook_to_module(model.head, AlignDevicesHook(execution_device="cpu", offload=True))
    assert model.head.weight.is_meta
    torch.testing.assert_close(last_states(model, batch), expected, rtol=0, atol=0)
    torch.testing.assert_close(logits_at(model, batch), logits, rtol=0, atol=0)
