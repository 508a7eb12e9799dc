"""A run's record says what machine it ran on, and never a host name, a user or a secret. No torch here."""

import hashlib
import importlib.metadata
import math
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = ("mechdiff", "torch", "transformers", "tokenizers", "peft", "accelerate", "safetensors", "gguf", "numpy", "scipy", "polars",
            "bitsandbytes")  # fmt: skip
"""Whose versions can change a number."""

_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY", re.IGNORECASE)
_SHORTEST_SECRET = 8  # characters; a shorter value would be cut out of innocent words


def versions() -> dict[str, str]:
    """Of Python and of those PACKAGES that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def code_hash() -> str:
    """Of every Python file of mechdiff as it is installed here."""
    root = Path(__file__).parents[1]
    found = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        found.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return found.hexdigest()


def environment() -> dict[str, Any]:
    """Versions, platform and source state: {"versions": {...}, "platform": {...}, "git": {"commit", "dirty"} or None}.

    `git` is the repository of the current folder, if it is in one; dirty: files that git tracks differ from the commit.
    Nothing is imported to find a version.
    """
    machine = {"system": platform.system(), "release": platform.release(), "machine": platform.machine(), "cpus": os.cpu_count()}
    return {"versions": versions(), "platform": machine, "git": _git_state()}


def _git_state() -> dict[str, Any] | None:
    commit = _git("rev-parse", "--verify", "--quiet", "HEAD")
    if commit is None:
        return None
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": changed is None or bool(changed)}


def _git(*words: str) -> str | None:
    """What git answers here; None where there is no git, no repository, no commit, or no answer in ten seconds."""
    calm = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", "-c", "core.fsmonitor=false", *words], capture_output=True, text=True, timeout=10, env=calm, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def plain(value: Any) -> Any:
    """The value in JSON's own types: numbers that are not finite become null, tuples lists, all else texts; secrets are cut out."""
    secrets = sorted((held for name, held in os.environ.items() if _SECRET.search(name) and len(held) >= _SHORTEST_SECRET), key=len)[::-1]
    return _plain(value, secrets)


def _plain(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, Mapping):
        return {_plain(str(name), secrets): _plain(content, secrets) for name, content in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, secrets) for item in value]
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, "[removed]")
        return value
    if isinstance(value, np.generic):
        return _plain(value.item(), secrets)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int)) else _plain(str(value), secrets)
