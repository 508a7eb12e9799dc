"""mechdiff: what did a fine-tune change inside a language model, where, and does it matter?

import mechdiff
run = mechdiff.diff("BASE", "TUNED", prompts=["What is 2+2?"])
run.results   # a polars data frame
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mechdiff.api import Run, compare, diff, moments, open_run, run, scan, verify
    from mechdiff.architectures.sites import Site
    from mechdiff.comparison.compare import Comparison
    from mechdiff.errors import MechdiffError
    from mechdiff.exchange.trainer import MechdiffCallback
    from mechdiff.maps.maps import load_map

_HOME = {
    "diff": "api", "run": "api", "open_run": "api", "Run": "api", "Site": "architectures.sites", "MechdiffError": "errors", "load_map": "maps.maps",
    "verify": "api", "moments": "api", "scan": "api", "compare": "api", "Comparison": "comparison.compare",
    "MechdiffCallback": "exchange.trainer",
}  # fmt: skip
__all__ = [
    "Comparison",
    "MechdiffCallback",
    "MechdiffError",
    "Run",
    "Site",
    "compare",
    "diff",
    "load_map",
    "moments",
    "open_run",
    "run",
    "scan",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"mechdiff.{_HOME[name]}"), name)
    raise AttributeError(f"module 'mechdiff' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
