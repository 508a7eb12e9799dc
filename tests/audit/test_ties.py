"""What rounding decides, no second way contradicts."""

from types import SimpleNamespace
from typing import Any

import torch

from mechdiff.audit import answers


def test_two_first_tokens_are_tied_within_what_a_run_strays() -> None:
    exact: Any = SimpleNamespace(floor=1e-12)
    rounded: Any = SimpleNamespace(floor=1e-3)
    near, far = torch.tensor([1.0, 1.0 + 1e-3, 0.0]), torch.tensor([1.0, 5.0, 0.0])
    assert [answers.tied(exact, one) for one in (near, far)] == [False, False]
    assert [answers.tied(rounded, one) for one in (near, far)] == [True, False]
    assert answers.tied(exact, torch.tensor([2.0, 2.0, 0.0]))
