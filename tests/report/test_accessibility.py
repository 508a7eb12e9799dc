"""The page keeps the rules of WCAG 2.2, levels A and AA, as axe-core checks them: at both widths, light and dark, everything unfolded."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

AXE = "axe-core@4"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
GRAVE = {"serious", "critical"}

pytestmark = [pytest.mark.slow, pytest.mark.browser]


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The checker's script, from npm into a folder of its own."""
    npm, folder = shutil.which("npm"), tmp_path_factory.mktemp("axe")
    if not npm:
        pytest.skip("npm is not installed, which fetches axe-core")
    asked = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--silent", AXE, "--prefix", str(folder)]
    done = subprocess.run(asked, check=False, capture_output=True, timeout=120)
    if done.returncode:
        pytest.skip(f"npm cannot fetch {AXE}: {done.stderr.decode()[-200:]}")
    return (folder / "node_modules/axe-core/axe.min.js").read_text(encoding="utf-8")


@pytest.fixture
def checked(chromium: Any, full_run: Path, axe: str) -> Iterator[Any]:
    """A function that gives what axe finds grave in the page of a whole run, behind an address, at a width, in a colour scheme."""
    contexts = []

    def check(behind: str, width: int, scheme: str) -> list[str]:
        context = chromium.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce", bypass_csp=True
        )  # the page's own policy lets no other script in
        contexts.append(context)
        page = context.new_page()
        page.goto((full_run / "report.html").as_uri() + behind)
        for figure in page.locator("#everything figure:visible").all():
            figure.scroll_into_view_if_needed()
            figure.locator(".plot[data-drawn]").wait_for()
        page.evaluate(axe)
        found = page.evaluate(f"axe.run(document, {{ runOnly: {RULES}, resultTypes: ['violations'] }})")["violations"]
        assert page.evaluate("typeof axe.version") == "string"
        return [
            f"{one['id']} ({one['impact']}, {len(one['nodes'])}): {one['nodes'][0]['html'][:150]} {one['nodes'][0]['failureSummary'][:250]}"
            for one in found
            if one["impact"] in GRAVE
        ]

    yield check
    for context in contexts:
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("behind", ["", "?print=all#everything"])
def test_no_rule_is_broken_that_matters(checked: Any, behind: str, width: int, scheme: str) -> None:
    assert checked(behind, width, scheme) == []


def test_what_is_broken_on_purpose_is_found(checked: Any, full_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check itself works: grey on grey is found."""
    page = (full_run / "report.html").read_text(encoding="utf-8")
    pale = page.replace('<p class="kicker">', '<p class="kicker"><font color="#dddddd">pale words</font> ', 1)
    assert pale != page
    (full_run / "report.html").write_text(pale, encoding="utf-8")
    try:
        assert any("color-contrast" in one for one in checked("", 1280, "light"))
    finally:
        (full_run / "report.html").write_text(page, encoding="utf-8")
