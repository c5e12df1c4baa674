"""The run folder: its address from the configuration, atomic writes, provenance, resume.

A finished run holds config.json, environment.json, metrics.csv (a row an epoch), timing.csv, last.pt, best.pt and, written
last, result.json: a folder without it is not finished. state.pt is where an unfinished run goes on; everything in it is of
one whole epoch.
"""

import hashlib
import io
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from . import ROOT, __version__


@dataclass(frozen=True)
class Run:
    """One training's folder."""

    folder: Path

    @property
    def finished(self) -> bool:
        return (self.folder / "result.json").exists()

    @property
    def result(self) -> dict[str, Any]:
        """last_top1 and best_top1, the last and the best epoch's accuracy in percent, best_epoch, and more of the last."""
        return json.loads((self.folder / "result.json").read_text())

    @property
    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / "config.json").read_text())

    @property
    def metrics(self) -> pd.DataFrame:
        """A row for each whole epoch."""
        return pd.read_csv(self.folder / "metrics.csv")

    def weights(self, which: str = "last") -> Path:
        """The checkpoint of the "last" or the "best" epoch, {"model": state_dict}."""
        return self.folder / f"{which}.pt"

    def start(self, config: dict[str, Any]) -> None:
        """Make the folder and write down the configuration and where it runs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for unfinished in self.folder.glob(".*.tmp"):
            unfinished.unlink(missing_ok=True)
        write_json(self.folder / "config.json", config)
        write_json(self.folder / "environment.json", environment())

    def save_epoch(self, state: dict[str, Any]) -> None:
        """Store a whole epoch: `state`, whose "metrics" and "timing" are lists of rows, replaces the last one."""
        write_torch(self.folder / "state.pt", state)
        write_table(self.folder / "metrics.csv", state["metrics"])
        write_table(self.folder / "timing.csv", state["timing"])

    def load_epoch(self) -> dict[str, Any] | None:
        """The state that save_epoch stored, None if there is none. Raises ValueError where it cannot be read."""
        path = self.folder / "state.pt"
        if not path.exists():
            return None
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(f"{path} cannot be read ({error}); delete {self.folder} to start this run anew") from None

    def finish(self, last: dict, best: dict, result: dict[str, Any]) -> None:
        """Store the weights of the last and of the best epoch and the result; from here on the run is finished."""
        write_torch(self.weights("last"), {"model": last})
        write_torch(self.weights("best"), {"model": best})
        write_json(self.folder / "result.json", result)
        (self.folder / "state.pt").unlink(missing_ok=True)


def at(root: str | Path | None, name: str, identity: dict[str, Any]) -> Run:
    """The run of a configuration: folder <root>/<name>-<hash of `identity`>."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return Run(root_folder(root) / f"{name}-{digest[:10]}")


def root_folder(root: str | Path | None = None) -> Path:
    """Where runs go: the argument, else $R2KD_RUNS, else runs/."""
    return Path(root or os.environ.get("R2KD_RUNS") or ROOT / "runs").expanduser()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all. Raises OSError naming the file, for instance where the disk is full."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise OSError(error.errno, f"{error.strerror}; what was written before is kept", str(path)) from None


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def write_table(path: Path, rows: list[dict] | pd.DataFrame) -> None:
    write_atomically(path, pd.DataFrame(rows).to_csv(index=False, lineterminator="\n").encode())


def write_torch(path: Path, value: Any) -> None:
    """torch.save through memory: the bytes do not depend on the file's name."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    write_atomically(path, buffer.getvalue())


def environment() -> dict[str, Any]:
    """Versions, machine and commit of this process."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "r2kd": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": device,
        "command": Path(sys.argv[0]).name,
    }


def _commit() -> str:
    """The clone's commit, "+" behind it where tracked files were changed; "unknown" outside of a clone."""
    try:
        call = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
        return subprocess.run(call, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
