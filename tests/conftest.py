"""Shared by all tests: no hub, quiet threads, no clock, and a pico pair on disk."""

import gc
import json
import os
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["MECHDIFF_PROOFS"] = "off"  # the engine proves itself in every test
os.environ.setdefault("OMP_NUM_THREADS", "1")  # processes that tests start share the cores with the other workers
os.environ.setdefault("POLARS_MAX_THREADS", "1")  # and tables of tests are small
os.environ.setdefault(
    "TORCHDYNAMO_DISABLE", "1"
)  # two functions of bitsandbytes, which peft imports; to load a compiler takes three seconds

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
settings.register_profile("no clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no clock")  # how long an example takes says how busy the machine is


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A test that runs with more threads (`--threads 64`) does not leave them to those after it, which would share two cores among 64."""
    yield
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def no_power_cut() -> Iterator[None]:
    """Files are not waited for until they are on the disk, which takes a tenth of a tiny study: what tests kill are processes, never the machine."""
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, `tuned` (rank 2 on one matrix of block 1) and `prompts.jsonl` (24 prompts)."""
    import pico
    from mechdiff.validate import edits
    from tokenizers_made import CHATML, byte_tokenizer

    folder = tmp_path_factory.mktemp("pair")
    base = pico.pico("llama")
    tuned = pico.twin(base, edits.edit_attention)
    tokenizer = byte_tokenizer(CHATML)
    pico.save(base.net, tokenizer, folder / "base")
    pico.save(tuned.net, tokenizer, folder / "tuned")
    texts = [f"Say something about the number {number * 7919 % 1000}{'!' * (number % 5)}" for number in range(24)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"id": f"p{i}", "text": text}) + "\n" for i, text in enumerate(texts)))
    return folder


@pytest.fixture(scope="session")
def every_measure(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of tests/every_measure.py with its `run`, made once for all workers. No test changes it: who wants another one copies it."""
    from filelock import FileLock

    from every_measure import made
    from mechdiff.measures.catalogue import load_study
    from runs import finish

    place = tmp_path_factory.getbasetemp()
    folder = (place.parent if "PYTEST_XDIST_WORKER" in os.environ else place) / "every_measure"
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "run" / "manifest.json").is_file():
            study, text = load_study(made(folder))
            finish(study, folder / "run", text=text, device="cpu")
    return folder


@pytest.fixture(scope="session")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of tests/mixture.py with its `run`, made once for all workers. No test changes it."""
    from filelock import FileLock

    from mechdiff.measures.catalogue import load_study
    from mixture import made
    from runs import finish

    place = tmp_path_factory.getbasetemp()
    folder = (place.parent if "PYTEST_XDIST_WORKER" in os.environ else place) / "mixture"
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "run" / "manifest.json").is_file():
            study, text = load_study(made(folder))
            finish(study, folder / "run", text=text, device="cpu")
    return folder


LONG = (
    "test_demo.py", "test_truths.py", "test_cli.py", "test_verify.py", "test_crashes_without_a_message.py", "test_quantization.py",
    "test_page.py", "test_mapping.py", "test_on_ray.py", "test_faults.py", "test_two_tokenizers.py", "test_breakage_of_88_times_d.py",
    "test_browser.py", "test_worked_example.py",
)  # fmt: skip
"""Files that take longest, in this order (`pytest -p cpu_seconds` says): first, so that no worker is left alone with one of them."""


def pytest_collection_finish() -> None:
    """The garbage collector spends a tenth of the suite's time on modules, which stay to the end: it looks at them no more, and less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONG)))
