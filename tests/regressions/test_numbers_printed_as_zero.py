"""A user's `check` said "weights moved by 0.0000" where tensors differ by 7e-6. What is not 0 is never printed as 0, nor what is not all as 100 %."""

import ast
import re
from pathlib import Path

import pytest
import torch

from mechdiff import api
from mechdiff.digits import fixed, percent
from mechdiff.study.config import RunOptions
from mechdiff.validate.made import save
from pico import pico, twin
from tokenizers_made import CHATML, byte_tokenizer

SOURCE = Path(__file__).parents[2] / "src" / "mechdiff"


@pytest.mark.parametrize(
    ("value", "decimals", "said"),
    [(0.0, 4, "0.0000"), (-0.0, 4, "0.0000"), (7.1e-6, 4, "7.1e-06"), (-7.1e-6, 4, "-7.1e-06"), (0.00006, 4, "0.0001"), (0.12345, 4, "0.1235"),
     (0.2, 0, "0.2"), (0.0, 0, "0"), (12.4, 0, "12"), (float("nan"), 2, "nan"), (float("inf"), 2, "inf")],
)  # fmt: skip
def test_a_number_is_0_only_where_it_is(value: float, decimals: int, said: str) -> None:
    assert fixed(value, decimals) == said


@pytest.mark.parametrize(
    ("value", "decimals", "said"),
    [(0.0, 0, "0%"), (0.0003, 0, "0.03%"), (0.996, 0, ">99%"), (1.0, 0, "100%"), (0.99996, 1, ">99.9%"), (0.5, 1, "50.0%"), (-0.0002, 1, "-0.02%"),
     (1.2, 0, "120%")],
)  # fmt: skip
def test_a_share_is_none_or_all_only_where_it_is(value: float, decimals: int, said: str) -> None:
    assert percent(value, decimals) == said


def test_check_prints_by_how_much_weights_moved(tmp_path: Path) -> None:
    base = pico("llama")

    def one_step(net: torch.nn.Module) -> None:
        weight = net.get_parameter("model.layers.1.mlp.down_proj.weight")
        weight.mul_(1 + 2e-6)

    save(base.net, byte_tokenizer(CHATML), tmp_path / "base")
    save(twin(base, one_step).net, byte_tokenizer(CHATML), tmp_path / "tuned")
    models = {side: str(tmp_path / side) for side in ("base", "tuned")}
    found = api.check(**models, alternatives=(models["base"],), options=RunOptions(device="cpu"))
    said = " ".join(one.said for one in found if one.what == "lineage")
    assert re.search(r"weights moved by \d\.\d?e-07 of the base's size; 1 tensors changed", said), said
    assert re.search(r"distance from \S+: \d\.\d?e-07 of its size", said), said
    assert "0.0000" not in said


def test_no_line_of_the_terminal_or_of_a_warning_rounds_by_itself() -> None:
    """Fixed decimals of a plain format string stand nowhere but where 0 cannot come, or is meant as "under one"."""
    allowed = {
        "GiB": "2**30 and more", "min": "100 s and more", " h": "6000 s and more", " apart, relative": "above 0.5", "GFLOP": "of a processor",
        "seconds. Are": "a constant", ", not 1": "beyond 0.02 of 1", " s[/]": "wall time of a proof", " s": "wall time", "words": "mean length",
    }  # fmt: skip
    files = [SOURCE / name for name in ("api.py", "demo.py")]
    files += [
        *(SOURCE / "study").glob("*.py"),
        *(SOURCE / "engine").glob("*.py"),
        *(SOURCE / "curate").glob("*.py"),
        *(SOURCE / "cli").glob("*.py"),
    ]
    loose = []
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.JoinedStr):
                continue
            for part, after in zip(node.values, [*node.values[1:], ast.Constant("")], strict=True):
                spec = part.format_spec if isinstance(part, ast.FormattedValue) else None
                if spec is None or not re.fullmatch(
                    r"\.\d[f%]", "".join(str(one.value) for one in spec.values if isinstance(one, ast.Constant))
                ):  # type: ignore[attr-defined]
                    continue
                behind = str(after.value) if isinstance(after, ast.Constant) else ""
                if not any(behind.startswith((word, f" {word}")) for word in allowed):
                    loose.append(f"{path.name}:{node.lineno}: ...{behind[:30]}")
    assert loose == []
