"""What the engine proved of a model is kept for later runs of the same weights, code, versions and device. No torch here."""

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mechdiff.errors import RunError
from mechdiff.store.disk import canonical, replace, sha256, writing
from mechdiff.store.run_folder import cell_hash


class Proofs:
    """Proofs in a folder, one file each under the hash of what was proved of what. `Proofs(None)` holds none and keeps none."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @classmethod
    def of_user(cls, cache: Path) -> "Proofs":
        """In $MECHDIFF_PROOFS, or `proofs` in the `cache`; none where the variable is `off`."""
        asked = os.environ.get("MECHDIFF_PROOFS")
        return cls(None if asked == "off" else Path(asked) if asked else cache / "proofs")

    def held(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """What was found, and `held_since`; None where nothing was proved under this key, or its file is not as it was written."""
        try:
            sealed = json.loads(self._file(key).read_bytes()) if self.folder else {}
            proof = sealed["proof"]
            whole = sealed["sha256"] == sha256(canonical(proof).encode()) and proof["key"] == json.loads(canonical(dict(key)))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return {**proof["found"], "held_since": proof["at"]} if whole else None

    def keep(self, key: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        """Keeps a proof for later runs. Where the folder cannot be written, nothing is kept: the proof holds for this run all the same."""
        if not self.folder:
            return
        proof = {"key": dict(key), "found": dict(found), "at": datetime.now(UTC).isoformat(timespec="seconds")}
        sealed = canonical({"proof": proof, "sha256": sha256(canonical(proof).encode())})
        try:
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                replace(self._file(key), sealed.encode())
        except RunError:
            return

    def _file(self, key: Mapping[str, Any]) -> Path:
        assert self.folder
        return self.folder / f"{cell_hash(key)}.json"
