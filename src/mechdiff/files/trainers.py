"""A folder that a trainer wrote is named, with what makes a model of it: a checkpoint inside it, or a converter of its weights.

| in the folder | whose | what reads it |
|---|---|---|
| `checkpoint-500/`, `checkpoint-1000/` and no config.json | Trainer's output folder | one of them, given by name |
| `pytorch_model_fsdp.bin` | FSDP, one state dict | mechdiff itself (models/checkpoint.py) |
| `pytorch_model_fsdp_0/__0_0.distcp` | FSDP, sharded | `accelerate merge-weights` |
| `global_step500/*_states.pt`, `zero_to_fp32.py` | DeepSpeed ZeRO | its `zero_to_fp32.py` |
| `iter_0000500/mp_rank_00/` | Megatron | its own converter |
| `consolidated.00.pth`, `*.ckpt`, `*.nemo` | an original release, Lightning, NeMo | their own converters |
"""

import json
import re
from pathlib import Path

_STEP = re.compile(r"checkpoint-(\d+)$")


def said_of(folder: Path) -> str | None:
    """What to do with a folder that holds no weights that anyone but its trainer can load; None where nothing of a trainer is there."""
    if steps := _checkpoints(folder):
        last, best = steps[-1], _best(steps[-1])
        named = f"{steps[0].name} to {last.name}" if len(steps) > 1 else last.name
        told = f" (the trainer calls {best} the best)" if best and best != last.name else ""
        return f"this is a trainer's output folder: its {len(steps)} checkpoints ({named}) hold the models. Give one of them: {last}{told}."
    if sharded := next((path.parent for path in sorted(folder.glob("*/*.distcp"))), folder if list(folder.glob("*.distcp")) else None):
        target = folder.parent if sharded == folder else folder
        return f"its weights are FSDP's shards ({sharded.name}). Merge them once: accelerate merge-weights {sharded} {target}"
    if zero := next((path.parent for path in sorted(folder.glob("global_step*/*_states.pt"))), None):
        script = folder / "zero_to_fp32.py"
        how = f"python {script} {folder} {folder}" if script.is_file() else f"DeepSpeed's zero_to_fp32.py {folder} {folder}"
        return f"its weights are DeepSpeed's shards ({zero.name}). Put them together once: {how} --safe_serialization"
    if list(folder.glob("iter_*/mp_rank_*")) or list(folder.glob("mp_rank_*")):
        return "its weights are Megatron's shards (mp_rank_...). Convert them to a Hugging Face folder with the code that trained it."
    for pattern, whose in (("consolidated.*.pth", "an original release"), ("*.nemo", "NeMo"), ("*.ckpt", "Lightning")):
        if found := sorted(path.name for path in folder.glob(pattern)):
            return f"its weights are {found[0]}, in the form of {whose}. Convert them to a Hugging Face folder with its own converter."
    return None


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run, the last one last; none where the folder is a model itself."""
    if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
        return []
    found = {int(step[1]): path for path in folder.iterdir() if path.is_dir() and (step := _STEP.match(path.name))}
    return [found[step] for step in sorted(found)]


def _best(checkpoint: Path) -> str | None:
    """The name of the checkpoint that the trainer's state calls the best."""
    state = checkpoint / "trainer_state.json"
    try:
        stated = json.loads(state.read_text()).get("best_model_checkpoint") if state.is_file() else None
    except ValueError:
        return None
    return Path(str(stated)).name if stated else None
