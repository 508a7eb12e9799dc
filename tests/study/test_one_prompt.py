"""One prompt is enough for what needs no others; what does is left out, each with its reason."""

from pathlib import Path

import pytest

import mechdiff


@pytest.mark.ci
def test_one_text_in_quotes_is_a_study(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MECHDIFF_CACHE", str(tmp_path / "cache"))
    measures = [
        "divergence",
        "weights",
        "similarity",
        {"patching": {"sites": ["resid_post"], "layers": [1]}},
        {"transport": {"layers": [1]}},
        "rank",
    ]
    run = mechdiff.run(base=pair / "base", tuned=pair / "tuned", prompts="What is 2+2?", measures=measures, out=tmp_path / "run")
    rows = run.rows()
    assert {"divergence", "weights", "patching"} <= set(rows["measure"].unique())
    assert set(rows["split"].drop_nulls().unique()) == {"report"}
    reasons = {one["what"]: one["why"] for one in run.manifest()["skipped"]}
    assert reasons["transport"] == reasons["rank"] == "the study has no training prompts"
    assert reasons["patching condition resample"].startswith("there is only one prompt")
