"""The page of a run that is being computed is there at once and fills in; a stopped run's says so; a finished run's tells nothing of it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mechdiff import api, live
from mechdiff.live import LivePage
from mechdiff.measures.catalogue import CHAPTERS
from mechdiff.report.page import build_report
from mechdiff.study.config import RunOptions
from mechdiff.study.run import SoFar

MEASURES = ["divergence", "weights", "similarity", {"patching": {"arms": ["identity"]}}]


def asked(pair: Path, out: Path) -> dict[str, Any]:
    """A study of a small pair."""
    models = {"base": str(pair / "base"), "tuned": str(pair / "tuned"), "prompts": str(pair / "prompts.jsonl")}
    return {**models, "measures": MEASURES, "out": out, "options": RunOptions(device="cpu")}


def words(page: Path) -> str:
    body = re.sub(r"<script.*?</script>", "", page.read_text(encoding="utf-8").partition("<body>")[2], flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


def section(page: Path, name: str) -> str:
    found = re.search(rf'<section id="{name}" class="(\w+)">', page.read_text(encoding="utf-8"))
    assert found
    return found[1]


@pytest.mark.ci
def test_a_page_fills_in_says_where_it_stopped_and_ends_as_if_it_had_been_built_once(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, told, seen = tmp_path / "run/report.html", list[Path](), list[tuple[set[str], str, bool]]()
    plain = LivePage.step

    def step(self: LivePage, look: Callable[[], SoFar]) -> None:
        """Builds the page when it is new, and when weights are there and patching is not."""
        waits = set(look().waits)
        new = not seen or ("weights" not in waits and "weights" in seen[-1][0])
        monkeypatch.setattr(live, "SHARE", 1e9 if new else 0.0)
        plain(self, look)
        if new:
            seen.append((waits, words(page), 'http-equiv="refresh"' in page.read_text(encoding="utf-8")))
            if len(seen) == 2:
                assert [section(page, name) for name in ("weights", "patching", "rank")] == ["effect", "waits", "absent"]

    def progress(what: str, share: float) -> None:
        if what.startswith("patching") and not stopped:
            stopped.append(what)
            raise KeyboardInterrupt

    stopped: list[str] = []
    monkeypatch.setattr(LivePage, "step", step)
    with pytest.raises(KeyboardInterrupt):
        api.run(**asked(pair, tmp_path / "run"), progress=progress, opened=told.append)
    (first, before, _), (later, meanwhile, fresh) = seen
    assert told == [page]
    assert {"weights", "patching", "divergence"} <= first
    assert "This run is being computed: 0 of" in before
    assert "The fine-tune changed 1 of 39 tensors" in meanwhile
    assert "Not computed yet." in meanwhile
    assert "patching" in later
    assert fresh
    assert re.search(r"This run stopped after \d+ of \d+ tasks, at patching", words(page))
    assert "The fine-tune changed 1 of 39 tensors" in words(page), "what was there stays"
    assert 'http-equiv="refresh"' not in page.read_text(encoding="utf-8")

    finished = api.run(**asked(pair, tmp_path / "run"))
    at_its_end = page.read_bytes()
    page.unlink()
    assert build_report(finished.path, CHAPTERS).read_bytes() == at_its_end
    assert "Not computed yet" not in words(page)
    assert "page_failed" not in (tmp_path / "run/log.txt").read_text()


def test_a_page_is_built_anew_only_where_it_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    now, built = [0.0], list[float]()

    def write(self: LivePage, so_far: SoFar, stopped: str = "") -> None:
        built.append(now[0])
        now[0] += 3.0  # what a page takes

    monkeypatch.setattr(LivePage, "_write", write)
    monkeypatch.setattr(LivePage, "_empty", lambda self: ())
    page = LivePage(Path(), None, lambda *what, **why: None, clock=lambda: now[0])  # type: ignore[arg-type]
    look = lambda: SoFar(done=1, cells=2, share=0.5, now="", waits=frozenset(), tables=lambda: ())  # type: ignore[arg-type,return-value] # noqa: E731
    while now[0] < 600:
        page.step(look)
        now[0] += 1
    assert built[0] == 0, "it is there at once"
    assert built[1] == pytest.approx(live.EXPECTED / live.SHARE, abs=2)
    assert len(built) >= 8
    assert 3.0 * len(built) / now[0] <= live.SHARE + 0.01
    page.stopped(KeyboardInterrupt())
    assert built[-1] == now[0] - 3.0, "a run that stops always says so"
