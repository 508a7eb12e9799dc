"""Steering vectors are files that other programs read: what to add, where, and how long it is.

**safetensors**: one float32 tensor, named by its site (`L24.resid_post`), to be added to the states there at strength 1; the metadata say of which
models and prompts it is the mean difference.

**GGUF control vector**, for llama.cpp's `--control-vector`: `general.architecture` "controlvector", the model's family as
`controlvector.model_hint`, the number of directions as `controlvector.layer_count`, and a float32 tensor `direction.N` each. llama.cpp adds
`direction.N` to the residual stream as it leaves block N, blocks counted from 0, at every position; the first block can have none (`direction.0` is
refused; `common_control_vector_load_one` in common/common.cpp, `llama_adapter_cvec::apply` in src/llama-adapter.cpp). So only `resid_post` above
the first block can be written as one.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechdiff.architectures.sites import Site
from mechdiff.errors import StudyError
from mechdiff.models.alignment import aligned

ARCHITECTURE = "controlvector"


def save_vector(path: Path, site: Site, vector: Float[Tensor, " d"], **said: str) -> None:
    """One steering vector as safetensors; `said` goes into the metadata beside the site and the norm."""
    from safetensors.torch import save_file

    metadata = {"site": str(site), "norm": f"{float(vector.norm()):.9g}", **said}
    save_file({str(site): vector.float().contiguous()}, path, metadata=metadata)


def load_vector(path: Path) -> tuple[Site, Float[Tensor, " d"], dict[str, str]]:
    """The site, the vector, and the metadata of a saved steering vector."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        ((name, vector),) = [(name, aligned(file.get_tensor(name))) for name in file.keys()]  # noqa: SIM118  (safe_open is no mapping)
        return Site.parse(name), vector, dict(file.metadata())


def has_control_vector(site: Site, streams: int = 1) -> bool:
    """Whether llama.cpp has a place for a vector at this site of a model with so many residual streams."""
    return site.kind == "resid_post" and site.layer > 0 and streams == 1


def save_control_vector(path: Path, vectors: Mapping[Site, Float[Tensor, " d"]], *, model_hint: str) -> None:
    """Vectors at some blocks as a GGUF control vector. Raises StudyError for a site that llama.cpp has no place for."""
    from gguf import GGUFWriter

    if odd := [str(site) for site in vectors if not has_control_vector(site)]:
        raise StudyError(
            f"llama.cpp adds a control vector to the residual stream after a block other than the first: {odd} cannot be written."
        )
    writer = GGUFWriter(str(path), ARCHITECTURE)
    writer.add_string(f"{ARCHITECTURE}.model_hint", model_hint)
    writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(vectors))
    for site, vector in sorted(vectors.items()):
        writer.add_tensor(f"direction.{site.layer}", vector.float().numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load_control_vector(path: Path) -> dict[Site, Float[Tensor, " d"]]:
    """The vectors of a GGUF control vector, by site."""
    from gguf import GGUFReader

    tensors = GGUFReader(str(path)).tensors
    return {Site(int(one.name.removeprefix("direction.")), "resid_post"): torch.tensor(np.asarray(one.data)) for one in tensors}
