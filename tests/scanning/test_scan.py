"""A scan of a corpus: its numbers against whole logits in float64, from any source, resumed, on Ray; copies confirm nothing."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from tokenizers import AddedToken
from torch import Tensor

import mechdiff
import pico
from mechdiff.errors import MechdiffError
from mechdiff.models.pair import open_pair
from mechdiff.scanning.record import LLAMA_CPP
from mechdiff.scanning.words import sentences
from mechdiff.study.config import RunOptions
from mechdiff.validate import edits
from mechdiff.validate.studies import with_rows
from tokenizers_made import byte_tokenizer

PANEL = Path(mechdiff.__file__).parent / "data" / "panel"


def shipped(n: int) -> list[str]:
    """Texts of every group of the panel, in turn."""
    groups = [[json.loads(line) for line in path.read_text().splitlines()] for path in sorted(PANEL.glob("*.jsonl"))]
    return [one.get("text") or one["prompt"] for row in zip(*groups, strict=True) for one in row][:n]


def scanned(pair: Path, texts: list[str], out: Path, *, tuned: str = "tuned", **how: Any) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    corpus = out.parent / f"{out.name}.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = RunOptions(threads=1, **{name: how.pop(name) for name in ("ray", "workers", "memory") if name in how})
    return mechdiff.scan(
        corpus, base=str(pair / "base"), tuned=str(pair / tuned), out=out, options=options, **{"longest": 60, "chunk": 20, **how}
    )


@pytest.fixture(scope="module")
def found(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one scan: fifty texts in three chunks."""
    out = tmp_path_factory.mktemp("scan") / "out"
    scanned(pair, shipped(50), out)
    return out


def record(out: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((out / "scan.json").read_text())
    return told


def naively(pair: Path, texts: list[str], longest: int) -> Iterator[dict[str, Tensor]]:
    """Of each text every number at every token that another one follows: whole logits in float64, a text a pass."""
    opened = open_pair(str(pair / "base"), str(pair / "tuned"), device="cpu")
    for text in texts:
        ids = torch.tensor(opened.tokenizer("base")(text)["input_ids"][:longest])
        laws = {}
        for side in ("base", "tuned"):
            with opened.use(side) as model, torch.inference_mode():  # type: ignore[arg-type]
                laws[side] = model.net(ids[None]).logits[0, :-1].double().log_softmax(-1)
        said = ids[1:, None]
        base, tuned = laws["base"], laws["tuned"]
        yield {
            "kl_tuned_base": (tuned.exp() * (tuned - base)).sum(-1), "kl_base_tuned": (base.exp() * (base - tuned)).sum(-1),
            "loss_base": -base.gather(-1, said)[:, 0], "loss_tuned": -tuned.gather(-1, said)[:, 0],
            "same": base.argmax(-1) == tuned.argmax(-1),
        }  # fmt: skip


def test_a_row_a_text_and_the_numbers_of_all_tokens_are_those_of_whole_logits(pair: Path, found: Path) -> None:
    expected = list(naively(pair, shipped(50), 60))
    table = pl.read_parquet(found / "texts.parquet")
    assert table["n_tokens"].to_list() == [len(one["same"]) for one in expected]
    for name in ("kl_tuned_base", "kl_base_tuned", "loss_base", "loss_tuned"):
        np.testing.assert_allclose(table[name], [one[name].mean() for one in expected], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(table["kl_max"], [one["kl_tuned_base"].max() for one in expected], rtol=1e-5, atol=2e-6)
    assert table["kl_max_at"].to_list() == [int(one["kl_tuned_base"].argmax()) for one in expected]
    changes = [one["loss_tuned"] - one["loss_base"] for one in expected]
    np.testing.assert_allclose(table["loss_change_max"], [one[one.abs().argmax()] for one in changes], rtol=1e-4, atol=1e-5)
    assert table["top1_same"].to_list() == pytest.approx([float(one["same"].double().mean()) for one in expected], abs=1e-9)


def test_llama_cpp_s_numbers_are_those_of_all_values_at_once(pair: Path, found: Path) -> None:
    parts = list(naively(pair, shipped(50), 60))
    every = {name: torch.cat([one[name] for one in parts]).double().numpy() for name in parts[0]}
    kld, dp = every["kl_base_tuned"], np.exp(-every["loss_tuned"]) - np.exp(-every["loss_base"])
    exact = {
        "Mean KLD": kld.mean(), "Maximum KLD": kld.max(), "Mean Δp": dp.mean(), "RMS Δp": np.sqrt((dp**2).mean()), "Same top p": every["same"].mean(),
        "Mean PPL(Q)": np.exp(every["loss_tuned"].mean()), "Mean PPL(base)": np.exp(every["loss_base"].mean()),
        "Mean PPL(Q)/PPL(base)": np.exp((every["loss_tuned"] - every["loss_base"]).mean()),
    }  # fmt: skip
    numbers = record(found)["numbers"]
    for said, value in exact.items():
        assert numbers[LLAMA_CPP[said]] == pytest.approx(value, rel=1e-5, abs=1e-7), said
    for said, share in (("Median KLD", 0.5), ("99.0% KLD", 0.99), ("99.9% KLD", 0.999)):
        assert numbers[LLAMA_CPP[said]] == pytest.approx(float(np.quantile(kld, share)), rel=1.1e-3, abs=1e-7), said


def test_a_scan_that_was_interrupted_goes_on_and_the_page_says_what_the_record_says(pair: Path, found: Path, tmp_path: Path) -> None:
    told, page = record(found), (found / "report.html").read_text()
    for sentence in sentences(told):
        assert sentence[:40] in page
    assert told["contexts"]["kl"][0]["value"] == pl.read_parquet(found / "texts.parquet")["kl_max"].max()
    log = (found / "log.txt").read_text()
    (cell,) = [one.parent for one in found.glob("cells/*/cell.json") if json.loads(one.read_text())["cell"]["key"].get("number") == 1]
    for file in cell.iterdir():
        file.unlink()
    cell.rmdir()
    corpus = found.parent / "out.jsonl"
    again = mechdiff.scan(
        corpus, base=str(pair / "base"), tuned=str(pair / "tuned"), out=found, options=RunOptions(threads=1), longest=60, chunk=20
    )
    assert json.loads(json.dumps(again)) == told
    assert (found / "log.txt").read_text().count(" computed ") == log.count(" computed ") + 1


def test_copies_say_nothing(pair: Path, tmp_path: Path) -> None:
    told = scanned(pair, shipped(48), tmp_path / "out", tuned="base")
    assert told["numbers"]["kl_tuned_base_max"] == told["numbers"]["dp_rms"] == 0
    assert told["numbers"]["top1_same"] == told["numbers"]["ppl_ratio"] == 1
    assert (told["features"], told["contexts"], told["directions"]) == ([], {}, [])
    assert sentences(told) == [f"Over 48 texts ({told['tokens']:,} tokens) the two models predict exactly the same."]


@pytest.mark.slow
def test_every_source_and_both_ways_of_memory_give_the_same(pair: Path, tmp_path: Path) -> None:
    texts = [text.replace("\n", " ").replace("\r", " ").strip() for text in shipped(24)]
    plain, table, folder = tmp_path / "t.txt", tmp_path / "t.parquet", tmp_path / "set"
    plain.write_text("\n".join(texts) + "\n\n")
    pl.DataFrame({"body": texts}).write_parquet(table)
    import datasets

    datasets.Dataset.from_dict({"text": texts}).save_to_disk(str(folder))
    expected = scanned(pair, texts, tmp_path / "jsonl", matrices=0)["numbers"]
    ends = {"base": str(pair / "base"), "tuned": str(pair / "tuned"), "longest": 60, "chunk": 20, "matrices": 0}
    for source, how in ((plain, {}), (table, {"field": "body"}), (folder, {})):
        assert mechdiff.scan(source, out=tmp_path / f"of-{source.name}", **ends, **how)["numbers"] == expected
    one = scanned(pair, texts, tmp_path / "one", matrices=0, memory="one")["numbers"]
    assert one == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_what_a_user_can_put_right_is_said(pair: Path, tmp_path: Path) -> None:
    ends = {"base": str(pair / "base"), "tuned": str(pair / "tuned"), "out": tmp_path / "out"}
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"body": "not"}\n')
    (tmp_path / "none.jsonl").write_text("\n")
    for name, how, said in (
        ("bad.jsonl", {}, r"bad.jsonl, text 2: 'text' is None, expected a string; its fields are body"),
        ("none.jsonl", {}, "holds no texts"),
        ("absent.jsonl", {}, "no such file"),
        ("bad.jsonl", {"longest": 1}, "--longest 1: expected 2 or more"),
        ("bad.jsonl", {"vectors": ("absent.gguf",)}, "--vectors absent.gguf: no such file"),
    ):
        with pytest.raises(MechdiffError, match=said):
            mechdiff.scan(tmp_path / name, **ends, **how)


@pytest.mark.slow
def test_workers_on_ray_give_the_same(pair: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    alone = scanned(pair, shipped(24), tmp_path / "alone", chunk=8)
    there = scanned(pair, shipped(24), tmp_path / "there", chunk=8, ray="local", workers=2)
    assert {**alone, "corpus": ""} == {**there, "corpus": ""}
    assert " worker=" in (tmp_path / "there" / "log.txt").read_text()


@pytest.mark.parametrize("name", ["gemma2", pytest.param("bloom", marks=pytest.mark.slow)])
def test_whole_logits_and_texts_read_alone_give_the_same_numbers(name: str, tmp_path: Path) -> None:
    """Gemma 2 caps its logits, Bloom's texts are read one by one."""
    base = pico.pico(name)
    for side, model in (("base", base), ("tuned", pico.twin(base, edits.edit_attention))):
        pico.save(model.net, byte_tokenizer(), tmp_path / side)
    texts = shipped(12)
    scanned(tmp_path, texts, tmp_path / "out", matrices=0)
    expected, table = list(naively(tmp_path, texts, 60)), pl.read_parquet(tmp_path / "out" / "texts.parquet")
    for what in ("kl_tuned_base", "kl_base_tuned", "loss_base", "loss_tuned"):
        np.testing.assert_allclose(table[what], [one[what].mean() for one in expected], rtol=2e-5, atol=1e-6)


def test_two_tokenizers_are_compared_where_both_have_read_the_same(pair: Path, tmp_path: Path) -> None:
    """Other ids change no number; tokens that cut a text otherwise leave each model's loss of the whole text as it is by itself."""
    base, order = pico.pico("llama"), torch.randperm(259, generator=torch.Generator().manual_seed(0))
    extended = byte_tokenizer()
    extended.add_tokens([AddedToken(text, normalized=False) for text in ("the", "tion", " a")])
    ends = (("permuted", byte_tokenizer(order=order.tolist()), order), ("extended", extended, torch.tensor([*range(259), -1, -1, -1])))
    pico.save(base.net, byte_tokenizer(), tmp_path / "base")
    pico.save(pico.twin(base, edits.edit_attention).net, byte_tokenizer(), tmp_path / "tuned")
    for name, tokenizer, ids in ends:
        net = pico.twin(base, edits.edit_attention).net
        with_rows(net, ids)
        pico.save(net, tokenizer, tmp_path / name)
    texts = [text[:50] for text in shipped(12)]
    same, other = (scanned(tmp_path, texts, tmp_path / f"of-{name}", tuned=name, matrices=0)["numbers"] for name in ("tuned", "permuted"))
    assert other == pytest.approx(same, rel=2e-3, abs=1e-6)
    told = scanned(tmp_path, texts, tmp_path / "of-extended", tuned="extended", matrices=0)
    table = pl.read_parquet(tmp_path / "of-extended" / "texts.parquet")
    masses = []
    opened = open_pair(str(tmp_path / "base"), str(tmp_path / "extended"), device="cpu")
    for text, row in zip(texts, table.iter_rows(named=True), strict=True):
        for side in ("base", "tuned"):
            ids = torch.tensor(opened.tokenizer(side)(text)["input_ids"][:60])  # type: ignore[arg-type]
            with opened.use(side) as model, torch.inference_mode():  # type: ignore[arg-type]
                logits = model.net(ids[None]).logits[0, :-1].double()
                each = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum")
                if side == "tuned" and len(logits) == row["n_tokens"]:
                    masses.append((row["mass_own_tuned"], float(logits.softmax(-1)[:, 259:].sum(-1).mean())))
            assert row[f"loss_{side}"] * row["n_tokens"] == pytest.approx(float(each), rel=1e-5)
    assert masses
    for found, expected in masses:
        assert found == pytest.approx(expected, rel=1e-4)
    assert table["mass_own_base"].max() == 0
    assert "over the tokens of both vocabularies (on others lies 0 % of the base's probability and " in sentences(told)[0]


@pytest.mark.parametrize("name", pico.each(pico.FEW))
def test_tiles_are_used_where_a_product_is_all_there_is(name: str) -> None:
    from mechdiff.scanning.tokens import head_of

    assert (head_of(pico.pico(name)) is None) == (name == "gemma2"), "gemma 2 caps its logits"


def test_the_page_shows_means_at_once_and_folds_quantiles(found: Path) -> None:
    page = (found / "report.html").read_text()
    shown, folded = page.split("Quantiles over tokens", 1)
    assert "ppl_ratio" in shown
    assert "kl_tuned_base_p99" not in shown
    assert "kl_tuned_base_p99" in folded
