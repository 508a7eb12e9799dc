"""CKA was of the residual stream as it stands, and of no state as the model reads it: after the norm of the block that it enters.

A coordinate that the norm shrinks or its gain takes out made two models look alike, or unlike, that read the same.
"""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor, nn

from mechdiff.architectures.sites import Site
from mechdiff.audit.rerun import Rerun
from mechdiff.engine.activations import capture, forward
from mechdiff.engine.norms import NORMED, norm_reading, norms_of
from mechdiff.measures.catalogue import EXPERIMENTS, NUMBERS
from mechdiff.measures.similarity.formula import measure
from mechdiff.measures.similarity.geometry import pairings
from mechdiff.measures.similarity.page import similarity as section
from mechdiff.measures.similarity.verify import again
from mechdiff.models.pair import Model
from mechdiff.report import parts
from mechdiff.statistics.summary import summarise
from mechdiff.store.tables import read_rows
from oracles.states import cka
from pico import FEW, each, moved, pico, prompts, save, twin
from runs import run
from tokenizers_made import CHATML, byte_tokenizer

pytestmark = pytest.mark.ci

PROMPTS = prompts(8, shortest=6, longest=9)


def scaled(net: nn.Module) -> None:
    """Every weight, the gains of norms among them, by a factor of its own."""
    torch.manual_seed(5)
    for parameter in net.parameters():
        parameter.mul_(1 + 0.3 * torch.randn_like(parameter))


def captured(model: Model, kind: str) -> tuple[dict[Site, Tensor], dict[Site, Tensor]]:
    """The last position's states, and what mechdiff says the norm makes of them."""
    sites = [Site(layer, kind) for layer in range(4)]
    cleans = [capture(model, ids, sites, [len(ids) - 1]) for ids in PROMPTS]
    states = {site: torch.cat([clean.states[site] for clean in cleans]) for site in sites}
    norms = norms_of(model, kind, {site.layer: states[site] for site in sites})
    normed = {site: norms.apply(site.layer, states[site]) for site in sites}
    return states, {site: one.float() for site, one in normed.items() if one is not None}


def out_of(module: nn.Module, model: Model) -> np.ndarray:
    """What comes out of a module at the last position, in whole passes."""
    rows: list[Tensor] = []
    handle = module.register_forward_hook(lambda _, args, output: rows.append(output.reshape(-1, output.shape[-1])[-1].double()))
    for ids in PROMPTS:
        forward(model, torch.tensor([ids]), use_cache=False)
    handle.remove()
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("name", each(usual=FEW))
def test_cka_is_of_what_goes_out_of_each_models_own_norm(name: str) -> None:
    base = twin(pico(name), moved)
    tuned = twin(base, scaled)
    for kind in (kind for kind in NORMED if kind in base.kinds()):
        (x, x_normed), (y, y_normed) = captured(base, kind), captured(tuned, kind)
        names = [str(i) for i in range(len(PROMPTS))]
        frame = measure(x, y, names, "report", normed=(x_normed, y_normed))
        for site in x:
            found = frame.filter(layer=site.layer, metric="cka_normed")
            modules = norm_reading(base, site), norm_reading(tuned, site)
            if modules[0] is None or modules[1] is None:
                assert found.is_empty()
                assert name in ("olmo2", "olmo3")
                continue
            a, b = out_of(modules[0], base), out_of(modules[1], tuned)
            assert found["value"].item() == pytest.approx(cka(a, b), abs=2e-4), str(site)
            without = dict(frame.filter(layer=site.layer, metric="cka_normed_without_prompt").select("prompt", "value").iter_rows())
            expected = {left: cka(np.delete(a, i, 0), np.delete(b, i, 0)) for i, left in enumerate(names)}
            assert without == pytest.approx(expected, abs=1e-3)


def ran(folder: Path, name: str) -> Path:
    """A run of a pair of a family whose gains, and all else, differ."""
    base = twin(pico(name), moved)
    tokenizer = byte_tokenizer(CHATML)
    save(base.net, tokenizer, folder / "base")
    save(twin(base, scaled).net, tokenizer, folder / "tuned")
    texts = [f'{{"id": "p{i}", "text": "Say {i * 7919 % 1000}{"!" * (i % 5)}"}}\n' for i in range(40)]
    (folder / "prompts.jsonl").write_text("".join(texts))
    run(
        base=str(folder / "base"), tuned=str(folder / "tuned"), prompts=folder / "prompts.jsonl", out=folder / "run",
        measures=["divergence", {"similarity": {"permutations": 3, "sites": ["resid_pre", "attn_out", "resid_post"]}}], page=name == "gpt2",
    )  # fmt: skip
    return folder / "run"


@pytest.mark.parametrize(("name", "at"), [("gpt2", range(4)), ("gemma2", range(4)), ("olmo2", [3])])
def test_a_run_has_it_with_an_interval_and_the_second_way_agrees(name: str, at: list[int], tmp_path: Path) -> None:
    folder = ran(tmp_path, name)
    rows = read_rows(folder)
    report = rows.filter(pl.col("metric").str.starts_with("cka_normed"), pl.col("split") == "report")
    assert set(report["site"]) <= {"resid_pre", "resid_post"}
    assert sorted(report.filter(site="resid_post", metric="cka_normed")["layer"]) == list(at)
    rerun = Rerun(folder, EXPERIMENTS)
    for row in report.filter(layer=3).iter_rows(named=True):
        assert again(rerun, row) == pytest.approx(row["value"], abs=2e-4, nan_ok=True)
    loaded = parts.load(folder)
    summary = loaded.summary.filter(pl.col("metric") == "cka_normed", pl.col("split") == "report", pl.col("mean").is_not_nan())
    assert summary["ci_low"].null_count() == summary["ci_high"].null_count() == 0
    assert ((summary["ci_low"] < summary["mean"]) & (summary["mean"] <= summary["ci_high"]) & (summary["ci_high"] <= 1)).all()
    drawn = section(loaded).parts[0]
    assert "after the norm that reads the residual stream there" in drawn.caption.lower()
    assert ("no norm reads them in both models" in drawn.caption) == (name == "olmo2")


def test_the_page_says_where_the_norm_makes_it_another() -> None:
    """One coordinate is alike and a hundred times as wide, and the norm's gain takes it out."""
    random = torch.Generator().manual_seed(0)
    x, y = (torch.randn(40, 64, generator=random, dtype=torch.float64) for _ in range(2))
    x[:, 7] = y[:, 7] = 100 * torch.randn(40, generator=random, dtype=torch.float64)
    site, kept = Site(1, "resid_post"), [i for i in range(64) if i != 7]
    normed = {site: x[:, kept] / x.norm(dim=1, keepdim=True)}, {site: y[:, kept] / y.norm(dim=1, keepdim=True)}
    frame = measure({site: x}, {site: y}, [f"p{i}" for i in range(40)], "report", orders=pairings(range(40), 3, 0), normed=normed)
    caption = section(parts.Run(rows=frame, summary=summarise(frame, NUMBERS), manifest={})).parts[0].caption
    assert (
        "At 1 of 1 sites CKA moves by more than 0.1 after the norm that reads the residual stream there, most at L1.resid_post: 1.000"
        in caption
    )
