"""The run folder: its address from the configuration, atomic writes, provenance, resume; and all of them in one table.

A finished run holds config.json, environment.json, metrics.csv (a row an epoch), timing.csv, last.pt, best.pt and, written
last, result.json: a folder without it is not finished. state.pt is where an unfinished run goes on; everything in it is of
one whole epoch.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from . import ROOT, __version__, files
from .files import write_json, write_table, write_torch
from .parts import PLACES


@dataclass(frozen=True)
class Run:
    """One training's folder. `record`: its row of a study's records, where it was finished elsewhere and is not here."""

    folder: Path
    record: Mapping[str, Any] | None = field(default=None, compare=False)

    @property
    def address(self) -> str:
        """The folder's name: what the run is in words, and a hash of what acts."""
        return self.folder.name

    @property
    def finished(self) -> bool:
        """Whether its weights are here."""
        return (self.folder / "result.json").exists()

    @property
    def source(self) -> str:
        """Where its numbers are from: "run" or "record"."""
        return "run" if self.record is None else "record"

    @property
    def result(self) -> dict[str, Any]:
        """last_top1 and best_top1, the last and the best epoch's accuracy in percent, best_epoch, and more of the last."""
        if self.record is not None:
            return {name: value for name, value in self.record.items() if name in RESULTS and not pd.isna(value)}
        return json.loads((self.folder / "result.json").read_text())

    @property
    def config(self) -> dict[str, Any]:
        """Every setting, flat, and under "acts" what its address is made of."""
        return json.loads((self.folder / "config.json").read_text())

    @property
    def metrics(self) -> pd.DataFrame:
        """A row for each whole epoch; of a record epoch and test_top1 alone."""
        if self.record is not None:
            curve = [float(value) for value in self.record["curve"].split()]
            return pd.DataFrame({"epoch": range(1, len(curve) + 1), "test_top1": curve})
        return pd.read_csv(self.folder / "metrics.csv")

    @property
    def row(self) -> dict[str, Any]:
        """All that is known of a run: address, state, every setting, results, machine, commit."""
        if self.record is not None:
            return dict(self.record)
        state = "finished" if self.finished else f"unfinished, {len(self.metrics) if self._begun else 0} epochs"
        settings = _flat({name: value for name, value in self.config.items() if name != "acts"})
        settings = {
            name: v for name, v in settings.items() if name.rpartition(".")[2] not in PLACES and name not in MACHINE
        }
        for name in settings.keys() & _PATHS:  # a record goes to where others read it
            settings[name] = Path(settings[name]).name
        row = {"address": self.address, "state": state} | settings
        if self.finished:
            row |= self.result | {
                "curve": " ".join(map(repr, self.metrics["test_top1"].tolist())) if self._begun else ""
            }
        environment = json.loads((self.folder / "environment.json").read_text())
        return row | {name: environment.get(name) for name in MACHINE}

    @property
    def _begun(self) -> bool:
        return (self.folder / "metrics.csv").exists()

    def weights(self, which: str = "last") -> Path:
        """The checkpoint of the "last" or the "best" epoch, {"model": state_dict}."""
        return self.folder / f"{which}.pt"

    def start(self, config: dict[str, Any], device: torch.device, precision: str) -> None:
        """Make the folder and write down the configuration and where it runs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for unfinished in self.folder.glob(".*.tmp"):
            unfinished.unlink(missing_ok=True)
        write_json(self.folder / "config.json", config)
        write_json(self.folder / "environment.json", environment(device) | {"precision": precision})

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


RESULTS = ("last_top1", "best_top1", "best_epoch", "chosen_top1", "chosen_epoch", "validation_top1")
RESULTS += ("last_top5", "last_loss", "seconds")
MACHINE = ("device", "precision", "threads", "torch", "started", "commit")
_PATHS = {"dataset", "teacher.dataset", "checkpoint", "teacher.checkpoint"}


def at(root: str | Path | None, title: str, acts: dict[str, Any]) -> Run:
    """The run of a configuration: folder <root>/<title>-<hash of what acts>."""
    digest = hashlib.sha256(json.dumps(acts, sort_keys=True).encode()).hexdigest()
    return Run(root_folder(root) / f"{title}-{digest[:10]}")


def computed_otherwise(run: Run, acts: dict[str, Any]) -> str | None:
    """In words, which run of the same settings had functions that computed something else, or another precision; or None."""
    title, mine = run.address.rsplit("-", 1)[0], _flat(acts)
    for folder in sorted(run.folder.parent.glob(f"{title}-*")):
        other = Run(folder)
        if folder == run.folder or not (folder / "config.json").exists():
            continue
        theirs = _flat(other.config.get("acts", {}))
        differing = sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))
        if differing and all(key.endswith("digest") for key in differing):
            what = " and ".join(key.removesuffix(".digest") for key in differing)
            return f"{what} computes something else than in {other.address}"
        if differing and all(key.endswith("machine.precision") for key in differing):
            precisions = [flat.get(differing[-1], "float32") for flat in (mine, theirs)]
            return f"the precision is {precisions[0]}, not {precisions[1]} as in {other.address}"
    return None


def table(root: str | Path | None = None) -> pd.DataFrame:
    """A row a run under `root`: address, state, the settings of its parts in use, results, device, precision, commit."""
    folders = sorted(path.parent for path in root_folder(root).glob("*/config.json"))
    return pd.DataFrame([Run(folder).row for folder in folders if (folder / "environment.json").exists()])


def brief(table: pd.DataFrame) -> pd.DataFrame:
    """Of such a table the addresses, states, main results, and those settings in which the runs differ."""
    told = ["last_top1", "best_top1", "seconds", "device", "precision", "commit"]
    settings = [name for name in table if name not in ("address", "state", "curve", *RESULTS, *MACHINE)]
    differing = [name for name in settings if table[name].nunique() > 1]
    shown = [name for name in ("address", "state", *differing, *told) if name in table]
    return table[shown].astype(object).where(table[shown].notna(), "")


def delete_unfinished(root: str | Path | None = None) -> list[str]:
    """Delete the folders of runs that are not finished; their addresses. What is left of them is said on stderr.

    It leaves a run that another process has in work, and what was set aside or damaged after it was finished.
    """
    deleted = []
    for folder in sorted(path.parent for path in root_folder(root).glob("*/config.json")):
        with files.alone(folder, wait=False) as ours:
            if Run(folder).finished and not files.is_aside(folder):
                continue
            if not ours:
                print(f"{folder.name} is left: another process is at it", file=sys.stderr)
            elif (
                files.is_aside(folder)
                or (folder / "result.json").exists()
                or any(map(files.is_aside, folder.iterdir()))
            ):
                print(
                    f"{folder} is left: it is damaged, not unfinished; look at it, and delete it by hand",
                    file=sys.stderr,
                )
            else:
                shutil.rmtree(folder)
                deleted.append(folder.name)
    return deleted


def _flat(acts: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in acts.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": _cell(value)}
    return flat


def _cell(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else value


def root_folder(root: str | Path | None = None) -> Path:
    """Where runs go: the argument, else $R2KD_RUNS, else runs/."""
    return Path(root or os.environ.get("R2KD_RUNS") or ROOT / "runs").expanduser()


def environment(device: torch.device | None = None) -> dict[str, Any]:
    """Versions, machine and commit of this process, and the device that it computes on: a GPU's name, or "cpu"."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    on_gpu = device is not None and device.type == "cuda"
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "r2kd": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "device": torch.cuda.get_device_name(device) if on_gpu else str(device or "cpu"),
        "command": Path(sys.argv[0]).name,
    }


def package() -> str:
    """Which r2kd this process runs, as an executed notebook says it: version, commit, folder."""
    return f"r2kd {__version__}, commit {commit()}, {Path(__file__).parent}"


@cache  # asked for each run
def commit() -> str:
    """The clone's commit, "+" behind it where its code was changed; "unknown" outside of a clone."""
    try:
        code = ["--", ".", ":(exclude)figures"]  # which a study writes itself
        changed = _git("status", "--porcelain", "--untracked-files=no", *code)
        return _git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(*arguments: str) -> str:
    call = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(call, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
