"""docs/CLAIMS.md: what the pages claim, and what was found when it was last measured."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def claims() -> ModuleType:
    spec = importlib.util.spec_from_file_location("claims", ROOT / "benchmarks" / "claims.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules["claims"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_claim_was_measured_and_holds_and_the_page_says_so(claims: ModuleType) -> None:
    found = json.loads(claims.FOUND.read_text())
    assert set(found) == set(claims.CLAIMS)
    for name, claim in claims.CLAIMS.items():
        assert found[name]["exit"] == 0, name
        assert claim.holds(found[name]["number"]), name
    said = claims.PAGE.read_text(encoding="utf-8")
    assert said.splitlines()[:-1] == claims.page(found).splitlines()[:-1], "the last line names the machine"


def test_every_command_is_one_that_there_is(claims: ModuleType) -> None:
    made = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for claim in claims.CLAIMS.values():
        words = claim.command.split()
        if words[0] == "make":
            assert words[1] in made
        for word in words:
            if word.startswith(("benchmarks/", "tests/")):
                assert (ROOT / word).exists(), word


def test_a_claim_takes_the_number_nearest_to_failing(claims: ModuleType) -> None:
    least = claims.Claim(says="", command="", number=r"(\d+) times", least=10)
    assert least.worst("30 times\n12 times", 1.0) == 12
    assert least.holds(12)
    assert not least.holds(9)
    most = claims.Claim(says="", command="", number=None, most=60)
    assert most.worst("whatever", 61.0) == 61
    assert not most.holds(61)
    assert not least.holds(least.worst("nothing is printed", 1.0)), "no number is no proof"
