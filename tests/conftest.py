import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import r2kd  # noqa: F401 (before torch, which reads how its threads wait)

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import nn

settings.register_profile("r2kd", deadline=None, max_examples=100, derandomize=True)
settings.load_profile("r2kd")

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.path.name == "test_cuda.py":
                item.add_marker(pytest.mark.skip(reason="needs CUDA"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the released code's numbers, checkpoints and data sets, beside a developer's clone."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder shared/ beside the clone: numbers and files of the released code")
    return SHARED


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    return shared / "golden"


@pytest.fixture(scope="session")
def tiny_imagenet(shared: Path, tmp_path_factory) -> Path:
    """A data root that holds Tiny ImageNet's validation split."""
    root = tmp_path_factory.mktemp("tiny-imagenet")
    shutil.unpack_archive(shared / "datasets" / "tiny-imagenet-val.zip", root)
    return root


@pytest.fixture(scope="session")
def smoke(tmp_path_factory) -> tuple[subprocess.CompletedProcess, Path, Path]:
    """The smoke profile on the digits, as a user starts it: (process, runs folder, folder of its figures)."""
    root = tmp_path_factory.mktemp("smoke")
    where = ["--runs-root", str(root / "runs"), "--figures-root", str(root / "figures"), "--device", "cpu"]
    command = [sys.executable, str(ROOT / "run_all.py"), "--profile", "smoke", *where]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    return done, root / "runs", root / "figures" / "digits" / "smoke-res20_res8"


class Stream:
    """In the place of a GPU's: what it is asked for is done at once."""

    def __init__(self, *_):
        self.waited = []

    def wait_stream(self, other):
        self.waited.append(other)

    wait_event = wait_stream

    def record_event(self):
        return object()

    def synchronize(self):
        pass


def fill(model: nn.Module) -> nn.Module:
    """The formula weights of golden/README.md: each entry from its name alone."""
    state = {}
    for name, value in model.state_dict().items():
        shape = tuple(value.shape)
        draws = np.random.RandomState(zlib.crc32(name.encode()))
        if name.endswith("num_batches_tracked"):
            filled = np.zeros(shape)
        elif name.endswith("running_var"):
            filled = draws.uniform(0.5, 1.5, shape)
        elif name.endswith(("running_mean", "bias")):
            filled = 0.1 * draws.standard_normal(shape)
        elif len(shape) >= 2:
            filled = draws.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        else:
            filled = draws.uniform(0.5, 1.5, shape)
        state[name] = torch.as_tensor(filled).to(value.dtype)
    model.load_state_dict(state)
    return model
