"""Sums over a corpus: what all states at once would give, shard by shard, resumed, and on Ray."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mechdiff
from mechdiff.architectures.sites import Site
from mechdiff.engine.activations import capture
from mechdiff.errors import MechdiffError
from mechdiff.maps.maps import Map
from mechdiff.maps.moments import SUMS, Moments
from mechdiff.measures.similarity import formula as similarity_formula
from mechdiff.models.pair import open_pair
from mechdiff.study import corpus as study_corpus
from mechdiff.study.config import RunOptions

pytestmark = pytest.mark.ci

SITES = ["L1.attn_out", "L2.resid_post"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty texts, with empty lines between some."""
    path = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    lines = [
        json.dumps({"text": f"{i * 7919 % 1000} things that were said of {i * 31 % 17} others, {'again ' * (i % 4)}"}) for i in range(60)
    ]
    path.write_text("\n\n".join(lines) + "\n")
    return path


def sums(pair: Path, corpus: Path, out: Path, **how: Any) -> dict[str, Any]:
    options = RunOptions(threads=1, **{name: how.pop(name) for name in ("ray", "workers", "cells") if name in how})
    return mechdiff.moments(str(pair / "base"), str(pair / "tuned"), corpus, SITES, out=out, options=options, **{"shard": 16, **how})


def rows(pair: Path, corpus: Path, site: str, *, last: bool = False) -> tuple[Tensor, Tensor]:
    """All states at once, each text by itself."""
    opened = open_pair(str(pair / "base"), str(pair / "tuned"), device="cpu")
    found = {}
    for side in ("base", "tuned"):
        parts = []
        with opened.use(side) as model:
            for line in corpus.read_text().splitlines():
                if line:
                    ids = opened.tokenizer(side)(json.loads(line)["text"])["input_ids"]
                    places = [len(ids) - 1] if last else range(1, len(ids))
                    parts.append(capture(model, ids, [Site.parse(site)], list(places)).states[Site.parse(site)])
        found[side] = torch.cat(parts)
    return found["base"], found["tuned"]


@pytest.mark.parametrize("positions", ["all", "last"])
def test_sums_say_what_all_states_at_once_say(
    pair: Path, corpus: Path, tmp_path: Path, positions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_corpus, "MERGED", 3)  # four shards, three of them and the last, both
    found = sums(pair, corpus, tmp_path / "out", positions=positions)
    assert json.loads((tmp_path / "out" / "moments.json").read_text()) == found
    assert found["shards"] == 4
    for site in SITES:
        base, tuned = rows(pair, corpus, site, last=positions == "last")
        said = found["sites"][site]
        assert said["rows"] == len(base)
        assert said["cka"] == pytest.approx(similarity_formula.linear_cka(base, tuned), abs=1e-9)
        mean = (tuned.double() - base.double()).mean(0)
        assert said["mean_difference_over_state"] == pytest.approx(float(mean.norm() / base.double().norm(dim=1).mean()), rel=1e-9)
        made = mechdiff.load_map(tmp_path / "out" / f"{site}.anchored_ridge.base_to_tuned.safetensors")
        expected = Map("anchored_ridge", lam=said["ridge_lambda"]).fit(base, tuned)
        torch.testing.assert_close(made.transform(base), expected.transform(base), rtol=1e-4, atol=1e-4)
        kept, told = Moments.load(tmp_path / "out" / f"{site}.safetensors")
        assert (kept.n, told) == (len(base), {"site": site})
    assert found["sites"]["L1.attn_out"]["rank"] <= 2, "what was planted there has rank 2"


def test_a_corpus_that_was_interrupted_goes_on(pair: Path, corpus: Path, tmp_path: Path) -> None:
    whole = sums(pair, corpus, tmp_path / "out")
    log = tmp_path / "out" / "log.txt"
    cells = sorted(tmp_path.glob("out/cells/[0-9a-f]*"))
    for file in cells[2].iterdir():
        file.unlink()
    cells[2].rmdir()
    before = log.read_text().count(" computed ")
    assert sums(pair, corpus, tmp_path / "out") == whole
    assert log.read_text().count(" computed ") == before + 1
    with pytest.raises(MechdiffError, match="holds the run of another study"):
        sums(pair, corpus, tmp_path / "out", shard=8)


@pytest.mark.ci
def test_workers_on_ray_give_the_same_bits(pair: Path, corpus: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    alone = sums(pair, corpus, tmp_path / "alone", shard=2)
    assert sums(pair, corpus, tmp_path / "ray", shard=2, ray="local", workers=2) == alone
    log = (tmp_path / "ray" / "log.txt").read_text()
    merges = [line for line in log.splitlines() if 'cell="shards ' in line]
    assert [line.split('"')[1] for line in sorted(merges)][-1] == "shards 0 to 29"
    assert all(" worker=" in line for line in merges)
    assert len(merges) == 3  # thirty shards: sixteen, fourteen, and both
    for site in SITES:
        one, other = (Moments.load(tmp_path / place / f"{site}.safetensors")[0] for place in ("ray", "alone"))
        assert one.n == other.n
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in SUMS)


def test_what_a_user_can_put_right_is_said(pair: Path, corpus: Path, tmp_path: Path) -> None:
    ends = str(pair / "base"), str(pair / "tuned")
    for sites, path, how, said in (
        (["L9.resid_post"], corpus, {}, "--sites L9.resid_post: the base model has blocks 0 to 3"),
        (SITES, corpus, {"positions": "first"}, "--positions first: expected all or last"),
        (SITES, tmp_path / "none.jsonl", {}, "cannot be read"),
    ):
        with pytest.raises(MechdiffError, match=said):
            mechdiff.moments(*ends, path, sites, out=tmp_path / "out", **how)
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"txt": "not"}\n')
    with pytest.raises(MechdiffError, match=r"bad.jsonl, text 2: unknown key 'txt'"):
        mechdiff.moments(*ends, tmp_path / "bad.jsonl", SITES, out=tmp_path / "out")
