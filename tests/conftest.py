"""What all tests share: one real Ray cluster a session, started by the first test that asks for it."""

import atexit
import gc
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_metrics_report_interval_ms", "1000")
# Ray gives its workers a low priority: next to other programs they would hardly run.
os.environ.setdefault("RAY_worker_niceness", "0")
# Of the S3 servers that tests start: a sweep's trials write there by the keys that their processes were started with.
os.environ |= {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "AWS_DEFAULT_REGION": "us-east-1"}
# Tiny operations on as many threads as there are cores take a hundred times as long when the cores are busy: here one
# is enough, and so it is for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

# A shell's background jobs ignore Ctrl-C, and so would all that tests send one to.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What the package remembers for its user is none of the tests', nor theirs of each other.
STATE = tempfile.mkdtemp(prefix="ray_pcasgd_tests_")
os.environ["XDG_STATE_HOME"] = STATE
atexit.register(shutil.rmtree, STATE, ignore_errors=True)

# The same cases each time, however busy the machine is.
settings.register_profile("deterministic", deadline=None, derandomize=True)
# With as many where ``make test`` tries fewer.
settings.register_profile("whole", deadline=None, derandomize=True)
# For a long search: python -m pytest tests/unit/test_fuzz.py --hypothesis-profile=many --timeout=0
settings.register_profile("many", deadline=None, max_examples=10_000, print_blob=True)
settings.load_profile("deterministic")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests that start processes longer until they count as hanging: they share a busy machine."""
    for item in items:
        within = item.path.parts
        if {"ray", "engines", "cli"} & set(within) and "unit" not in within and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(600))


def pytest_collection_finish() -> None:
    """Leave what was imported out of garbage collection: half a million objects that stay until the end."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or some libraries' own look for leaks at the end would find them all


def pytest_runtest_setup() -> None:
    """Seed what a test's own models are drawn from: by chance, one of their numbers may hardly move in training."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - what users' code draws from
    torch.default_generator.manual_seed(0)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    import ray

    # Not whatever cluster another program has left its address of.
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="WARNING")
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def cifar_folder() -> Path:
    folder = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "cifar10"
    if not folder.is_dir():
        pytest.skip(f"real CIFAR-10 is not at {folder}")
    return folder
