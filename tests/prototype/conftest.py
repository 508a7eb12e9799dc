"""What several faults are held against: one tiny study, and one planted run."""

import polars as pl
import pytest

import pico
from mechdiff.validate import edits
from prototype.tiny_runs import PLAIN, Finished, finish, save_pair, study
from report.planted_run import planted_rows

CLOSER = 1
"""The block whose attention was edited."""


@pytest.fixture(scope="session")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Rank 2 on W_O of block 1: every measure that the prototype had, two maps, one of them the prototype's own."""
    folder = tmp_path_factory.mktemp("edited")
    base = pico.pico("llama")
    save_pair(folder, base.net, pico.twin(base, edits.edit_attention).net, n_prompts=60)
    at = {"sites": ["attn_out"], "closer": [CLOSER]}
    sites = ["attn_out", "mlp_out", "resid_post"]
    measures = [
        PLAIN,
        {"similarity": {"sites": ["attn_out"], "permutations": 20}},
        {"patching": {"sites": sites, "arms": ["identity", "oracle"], "positions": ["decision", "last_4"]}},
        {"transport": {**at, "maps": ["rrr", "whitened_procrustes"], "strengths": [0.25, 0.5], "permutations": 10}},
        {"rank": {**at, "fisher_samples": 1, "strengths": [], "draws": 1}},
        {"heads": {"closer": [CLOSER], "null_edits": 0, "network_draws": 2, "attention_prompts": 0, "z_swap": [1.0], "draws": 10}},
    ]
    return finish(study(folder, *measures), folder / "run")


@pytest.fixture(scope="session")
def rows() -> pl.DataFrame:
    """Rows with a planted truth: seven layers, 24 prompts a split, attention's output changed at layer 4."""
    return planted_rows(n_layers=7, n_prompts=24, changed=4, permutations=40)
