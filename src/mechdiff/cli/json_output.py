"""Every verb that reads prints its result as JSON in one form: one object, which begins with who printed it.

    {"mechdiff": "0.1.0", "verb": "ls", "schema": 1, ...}

What follows is in docs/USAGE.md, verb by verb. A number that is not finite is null. `schema` rises when a key changes its meaning or goes.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from mechdiff import __version__

SCHEMA = 1


def print_json(verb: str, data: Mapping[str, Any]) -> None:
    """One object on standard output."""
    print(
        json.dumps(
            {"mechdiff": __version__, "verb": verb, "schema": SCHEMA, **plain(dict(data))}, ensure_ascii=False, indent=1, allow_nan=False
        )
    )


def plain(value: Any) -> Any:
    """The value as JSON has it: dataclasses as objects, paths as text, tuples and sets as lists, numbers that are not finite as null."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, set | frozenset):
        return sorted(plain(inner) for inner in value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
