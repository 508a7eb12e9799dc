"""What a user saw: twelve prompts in two clusters were "2 report prompts" in the verdict, and the page beside it drew eight of them as eight."""

import dataclasses
import json
from pathlib import Path

import pytest

from mechdiff.measures.divergence.words import how_different
from mechdiff.report.difference import Difference
from mechdiff.report.parts import manifest_of

FOUND = Difference(split="report", n=2, mean=0.5, low=float("nan"), high=float("nan"), median=0.5, log_mean=None, floor=1e-9, flags=(),
                   other_token=1, other_share=0.4)  # fmt: skip


def folder(place: Path, clusters: list[str]) -> Path:
    """A run's folder as far as its prompts and its record go."""
    lines = [{"split": "report", "id": f"p{i}", "cluster": one} for i, one in enumerate(clusters)]
    (place / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return place


@pytest.mark.parametrize(("clusters", "n", "said"), [
    (["a", "b"] * 6, 2, "On 12 test prompts (2 clusters) the"),
    (["a"] * 3, 1, "On 3 test prompts (1 cluster) the"),
    (["a", "a", "b", "c", "d", "e"], 5, "On 6 test prompts (5 clusters) the"),
    (["a", "b", "c"], 3, "On 3 test prompts the"),
])  # fmt: skip
def test_prompts_and_their_clusters_are_both_counted(
    tmp_path: Path, clusters: list[str], n: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mechdiff.report.parts.read_manifest", lambda place: {})
    manifest = manifest_of(folder(tmp_path, clusters))
    assert how_different(dataclasses.replace(FOUND, n=n), manifest).startswith(said)


def test_a_cluster_in_which_only_some_first_choices_differ_counts_with_its_share() -> None:
    shared = {"units": {"report": {f"p{i}": "ab"[i % 2] for i in range(12)}}}
    assert "differ on 40 % of them" in how_different(FOUND, shared)
    assert "too few clusters for an interval" in how_different(FOUND, shared)
    assert "differ on 1 of them" in how_different(FOUND)
    assert "too few prompts for an interval" in how_different(FOUND)


def test_nothing_to_explain_counts_prompts_and_clusters_too() -> None:
    none = dataclasses.replace(FOUND, flags=("no_effect",), mean=0.0)
    shared = {"units": {"report": {f"p{i}": "ab"[i % 2] for i in range(12)}}}
    assert "on 12 prompts (2 clusters)." in how_different(none, shared)
