"""Where others share a cluster, what depends on it has another key: a store that studies share gives no rows of other clusters."""

import json
from pathlib import Path
from typing import Any

import pytest

import every_measure
from mechdiff.labels import CROSSED
from mechdiff.measures.catalogue import make_study
from mechdiff.store.run_folder import cell_hash
from runs import opened

MEASURES: list[Any] = [
    {"patching": {"sites": ["resid_post", "mlp_out"], "layers": [0, 1], "pairs": 2, "arms": ["identity", "resample"], "map_prompts": 0}},
    {"similarity": {"sites": ["resid_post"], "layers": [1], "permutations": 4}},
    {
        "transport": {
            "sites": ["resid_post"],
            "layers": [1],
            "closer": [1],
            "maps": ["anchored_ridge"],
            "positions": ["last_2"],
            "strengths": [],
            "permutations": 2,
        }
    },
    {"rank": {"sites": ["resid_post"], "layers": [1], "closer": [1]}},
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clusters")
    every_measure.made(folder)
    return folder


def cells(pair: Path, folder: Path, clusters: int | None) -> dict[str, Any]:
    """The plan's cells by the hash of their key; so many prompts after one another share a cluster, None: nothing is said of clusters."""
    folder.mkdir()
    for split in every_measure.SPLITS:
        lines = [json.loads(line) for line in (pair / f"{split}.jsonl").read_text().splitlines()]
        if clusters:
            lines = [{**line, "meta": {"cluster": f"{split} {i // clusters}"}} for i, line in enumerate(lines)]
        (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    prompts = {split: str(folder / f"{split}.jsonl") for split in every_measure.SPLITS}
    models = {"base": str(pair / "base"), "tuned": str(pair / "tuned")}
    study = make_study({"pair": models, "prompts": prompts, "measures": MEASURES, "answers": {"tokens": 3, "prompts": 4}})
    with opened(study, folder / "unrun", device="cpu") as (prepared, _):
        return {cell_hash(cell.key): cell for cell in prepared.plan.cells}


def arms(cell: Any) -> str:
    return str(cell.key.get("arm", cell.stage))


def test_keys_know_which_prompts_share_a_cluster(pair: Path, tmp_path: Path) -> None:
    none, alone, pairs, threes = (cells(pair, tmp_path / str(n), n) for n in (None, 1, 2, 3))
    assert list(none) == list(alone), "a cluster of one prompt is none: keys of older runs stay"
    by_pairs, by_threes = (set(one) - set(none) for one in (pairs, threes))
    assert not by_pairs & by_threes
    for keys, of in ((by_pairs, pairs), (by_threes, threes)):
        stages = {of[name].stage for name in keys}
        assert {(of[name].stage, of[name].key.get("direction")) for name in keys} >= {("pairs", direction) for direction in CROSSED}
        assert {"fits", "similarity", "rank", "rank_curve", "closer", "mapped_positions", "mapped_answers"} <= stages
        patches = {arms(of[name]) for name in keys if of[name].stage == "patching"}
        assert patches == {"resample"}
        assert {"capture", "answer", "answer_states", "divergence"} & stages == set()
