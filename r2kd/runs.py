"""The run folder: its address from the configuration, atomic writes, provenance, resume; and all of them in one table.

A finished run holds config.json, environment.json (an entry a start), metrics.csv (a row an epoch), timing.csv, last.pt,
best.pt and, written last, result.json with the digests of what belongs to it: a folder that lacks any of it is not finished.
state.pt is where an unfinished run goes on; everything in it is of one whole epoch. What does not hold what was written is
renamed, <name>.damaged, said, and made again.
"""

import hashlib
import json
import math
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

from . import ROOT, __version__, acceleration, files
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
        """Whether its weights are here, with all that belongs to them. They are not read: `sound` does."""
        result = self.folder / "result.json"
        return result.is_file() and not set(self.damaged) - {"environment.json"}  # which a training does not need

    @property
    def damaged(self) -> list[str]:
        """Which of its files do not hold what was written, and of a run that has a result, which are missing.

        Weights and state are not read.
        """
        found = {name: (self.folder / name).exists() for name in _SOUND}
        wrong = [name for name, there in found.items() if there and self._stored(name) is None]
        if result := self._stored("result.json"):
            wrong += [] if found["config.json"] else ["config.json"]
            weights = {f"{which}.pt" for which in WEIGHTS} & set(result.get("files", _FILES))
            wrong += sorted(name for name in weights if not (self.folder / name).is_file())
            wrong += [] if self._holds_metrics(result) else ["metrics.csv"]
        return wrong

    @property
    def source(self) -> str:
        """Where its numbers are from: "run" or "record"."""
        return "run" if self.record is None else "record"

    @property
    def result(self) -> dict[str, Any]:
        """last_top1 and best_top1, the last and the best epoch's accuracy in percent, best_epoch, and more of the last."""
        if self.record is not None:
            return {name: value for name, value in self.record.items() if name in RESULTS and not pd.isna(value)}
        if (stored := self._stored("result.json")) is None:
            raise ValueError(f"{self.folder / 'result.json'} is not there, or does not hold what was written")
        return {name: value for name, value in stored.items() if name not in ("files", "sha256") and value == value}

    @property
    def config(self) -> dict[str, Any]:
        """Every setting, flat, and under "acts" what its address is made of. Empty where there is none that can be read."""
        return self._stored("config.json") or {}

    @property
    def starts(self) -> list[dict[str, Any]]:
        """What `environment` said at each start, the precision, and after how many whole epochs that was."""
        stored = self._stored("environment.json") or []
        return [stored] if isinstance(stored, dict) else stored  # before, the last start alone was kept

    @property
    def metrics(self) -> pd.DataFrame:
        """A row for each whole epoch; of a record epoch and test_top1 alone. Raises ValueError for a damaged file."""
        if self.record is not None:
            curve = [float(value) for value in self.record["curve"].split()]
            return pd.DataFrame({"epoch": range(1, len(curve) + 1), "test_top1": curve})
        path, result = self.folder / "metrics.csv", self._stored("result.json")
        if result and not self._holds_metrics(result):
            raise ValueError(f"{path} does not hold what was written; asked for again, the run makes it anew")
        return pd.read_csv(path)

    @property
    def row(self) -> dict[str, Any]:
        """All that is known of a run: address, state, every setting, results, machine, commit."""
        if self.record is not None:
            return dict(self.record)
        wrong, finished = self.damaged, self.finished
        state = "finished" if finished else f"unfinished, {self.epochs} epochs"
        state = f"damaged: {', '.join(wrong)}" if wrong else state
        settings = _flat({name: value for name, value in self.config.items() if name != "acts"})
        settings = {
            name: v for name, v in settings.items() if name.rpartition(".")[2] not in PLACES and name not in MACHINE
        }
        for name in settings.keys() & _PATHS:  # a record goes to where others read it
            settings[name] = Path(settings[name]).name
        row = {"address": self.address, "state": state} | settings
        if finished:
            row |= self.result | {
                "curve": " ".join(map(repr, self.metrics["test_top1"].tolist())) if self.epochs else ""
            }
        return row | self.machine

    @property
    def machine(self) -> dict[str, Any]:
        """Where it ran last, in what precision, by which commit."""
        if self.record is not None:
            return {name: self.record.get(name) for name in MACHINE}
        return _machine(self.starts)

    @property
    def epochs(self) -> int:
        """How many are kept: the rows of metrics.csv."""
        path = self.folder / "metrics.csv"
        return max(0, path.read_bytes().count(b"\n") - 1) if path.is_file() else 0

    def _holds_metrics(self, result: Mapping[str, Any]) -> bool:
        """Whether metrics.csv is the one that the result was made of; of a teacher whose weights were given there is none."""
        written = result.get("files", {}).get("metrics.csv")
        if written is None:
            return self.epochs == result.get("epochs", 0)
        path = self.folder / "metrics.csv"
        return path.is_file() and files.sha256(path) == written

    def _stored(self, name: str) -> Any:
        """What a file of JSON holds; None where it is not there, or holds something else than what was written."""
        path = self.folder / name
        if not path.is_file():
            return None
        try:
            value = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            return None
        return value if _SOUND[name](value) else None

    def weights(self, which: str = "last") -> Path:
        """The checkpoint of the "last" or the "best" epoch, {"model": state_dict}."""
        return self.folder / f"{which}.pt"

    def sound(self, which: str = "last") -> bool:
        """Whether the weights are those that `finish` wrote; where it kept no digest of them yet, they are taken as they are."""
        written = (self._stored("result.json") or {}).get("files", {}).get(f"{which}.pt")
        path = self.weights(which)
        return path.is_file() and (written is None or files.sha256(path) == written)

    def set_aside(self, *names: str) -> None:
        """Rename those of its files that are there, and say in a line that they are damaged or missing, and made again."""
        kept = [files.set_aside(self.folder / name).name for name in names if (self.folder / name).exists()]
        told = f", kept as {', '.join(kept)}" if kept else ""
        print(f"{self.folder}: {', '.join(names)} damaged or missing{told}; made again", file=sys.stderr)

    def prepare(self, config: dict[str, Any]) -> None:
        """Make the folder, set aside what is damaged in it, and write down the configuration. For who holds the run alone."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for unfinished in self.folder.glob(".*.tmp"):  # of processes that died
            unfinished.unlink(missing_ok=True)
        wrong = self.damaged
        if set(wrong) - {"config.json", "environment.json"}:
            wrong.append("result.json")  # it is no longer true
        wrong += [name for name in _FILES if (self.folder / name).is_dir()]
        if wrong:
            self.set_aside(*dict.fromkeys(wrong))
        write_json(self.folder / "config.json", config)

    def start(self, device: torch.device, precision: str, epochs: int = 0, threads: int | None = None) -> None:
        """Write down where it runs after so many whole epochs; if otherwise than those, that is said. `threads`: of torch's, its
        share, else all."""
        how = {"precision": acceleration.carried_out(device, precision), "threads": threads or torch.get_num_threads()}
        starts = [*self.starts, environment(device) | how | {"epochs": epochs}]
        write_json(self.folder / "environment.json", starts)
        for name in _ACTING:
            now = starts[-1][name]
            if others := [str(used) for used in _used(starts, name) if used != now]:
                told = f"{self.address} goes on with {name} {now}, before with {' and '.join(others)}"
                print(f"{told}: its numbers are not those of a run by one of them alone", file=sys.stderr)

    def save_epoch(self, state: dict[str, Any]) -> None:
        """Store a whole epoch: `state`, whose "metrics" and "timing" are lists of rows, replaces the last one."""
        write_torch(self.folder / "state.pt", state | {"address": self.address}, sealed=True)
        self.write_tables(state)

    def write_tables(self, state: Mapping[str, Any], lasting: bool = False) -> None:
        """metrics.csv and timing.csv: until the run is finished they can be written again from the state."""
        write_table(self.folder / "metrics.csv", state["metrics"], lasting)
        write_table(self.folder / "timing.csv", state["timing"], lasting)

    def load_epoch(self) -> dict[str, Any] | None:
        """The state that save_epoch stored, None if there is none; one that is damaged, or another run's, is set aside."""
        try:
            state = files.read_sealed(self.folder / "state.pt")
        except FileNotFoundError:
            return None
        except ValueError:
            state = None
        if isinstance(state, dict) and state.keys() >= _STATE and state.get("address", self.address) == self.address:
            return state
        self.set_aside("state.pt")
        return None

    def finish(self, last: dict, best: dict | None, result: dict[str, Any]) -> None:
        """Store the weights of the last and, if they are there, of the best epoch and the result; from here on it is finished."""
        weights = {which: state for which, state in zip(WEIGHTS, (last, best), strict=True) if state is not None}
        digests = {
            f"{which}.pt": write_torch(self.weights(which), {"model": state}) for which, state in weights.items()
        }
        if (metrics := self.folder / "metrics.csv").is_file():
            digests["metrics.csv"] = files.sha256(metrics)
        stored = result | {"files": digests}
        write_json(self.folder / "result.json", stored | {"sha256": _seal(stored)})
        (self.folder / "state.pt").unlink(missing_ok=True)

    def put_back(self, record: "Run", last: dict) -> None:
        """Make a finished run of a record and the weights of its last epoch. For who has prepared it."""
        write_json(self.folder / "environment.json", [{name: record.row[name] for name in MACHINE}])
        write_table(self.folder / "metrics.csv", record.metrics)
        self.finish(last, None, record.result | {"epochs": len(record.metrics)})


ACCURACIES = ("last_top1", "best_top1", "best_epoch", "chosen_top1", "chosen_epoch", "validation_top1")
ACCURACIES += ("last_validation_top1",)
RESULTS = (*ACCURACIES, "last_top5", "last_loss", "seconds")
MACHINE = ("device", "precision", "threads", "torch", "started", "commit")
WEIGHTS = ("last", "best")
_PATHS = {"dataset", "teacher.dataset", "checkpoint", "teacher.checkpoint"}
_ACTING = ("threads", "torch", "device", "precision")  # what of the machine can change a digit
_FILES = (
    "config.json",
    "environment.json",
    "result.json",
    "state.pt",
    "last.pt",
    "best.pt",
    "metrics.csv",
    "timing.csv",
)
_STATE = {"epoch", "model", "optimizer", "best", "best_row", "metrics", "timing"}


def _is_result(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("files", {}), dict):
        return False
    numbers = [value.get(name) for name in ("last_top1", "best_top1")] + [value.get("last_loss", 0.0)]
    unsealed = {name: stored for name, stored in value.items() if name != "sha256"}
    sealed = "sha256" not in value or value["sha256"] == _seal(unsealed)  # before, there was no seal
    return sealed and all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)


def _is_environment(value: Any) -> bool:
    starts = [value] if isinstance(value, dict) else value
    return isinstance(starts, list) and bool(starts) and all(isinstance(start, dict) for start in starts)


_SOUND = {"config.json": lambda v: isinstance(v, dict), "environment.json": _is_environment, "result.json": _is_result}


def _seal(result: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()


def _used(starts: list[dict[str, Any]], name: str) -> list[Any]:
    """What the epochs were computed with, in order: of the starts since the last beginning, those that came to an epoch."""
    epochs = [start.get("epochs", 0) for start in starts]
    since = max((i for i, count in enumerate(epochs) if not count), default=0)
    reached = [*epochs[1:], math.inf]
    ran = [end > begun for begun, end in zip(epochs, reached, strict=True)]
    return list(
        dict.fromkeys(start.get(name) for start, at_work in [*zip(starts, ran, strict=True)][since:] if at_work)
    )


def _machine(starts: list[dict[str, Any]]) -> dict[str, Any]:
    """What a row says of where it ran: of the last start, and where threads, torch or device changed on the way, each."""
    last = starts[-1] if starts else {}
    changed = {name: " then ".join(map(str, used)) for name in _ACTING if len(used := _used(starts, name)) > 1}
    return {name: last.get(name) for name in MACHINE} | changed


def at(root: str | Path | None, title: str, acts: dict[str, Any]) -> Run:
    """The run of a configuration: folder <root>/<title>-<hash of what acts>."""
    digest = hashlib.sha256(json.dumps(acts, sort_keys=True).encode()).hexdigest()
    return Run(root_folder(root) / f"{title}-{digest[:10]}")


def computed_otherwise(run: Run, acts: dict[str, Any]) -> str | None:
    """In words, which run of the same settings had functions that computed something else, or another precision; or None."""
    title, mine = run.address.rsplit("-", 1)[0], _flat(acts)
    for folder in sorted(run.folder.parent.glob(f"{title}-*")):
        other = Run(folder)
        if folder == run.folder or not other.config:
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
    return pd.DataFrame([Run(folder).row for folder in _folders(root)])


def _folders(root: str | Path | None) -> list[Path]:
    names = ("config.json", "state.pt", "result.json")
    return sorted({path.parent for name in names for path in root_folder(root).glob(f"*/{name}")})


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
    for folder in [path for path in _folders(root) if files.is_aside(path) or not Run(path).finished]:
        with files.alone(folder, wait=False) as ours:
            if not ours:
                print(f"{folder.name} is left: another process is at it", file=sys.stderr)
                continue
            aside = files.is_aside(folder) or any(map(files.is_aside, folder.iterdir()))
            if aside or (folder / "result.json").exists():
                if aside or not Run(folder).finished:  # else its process has just finished it
                    print(
                        f"{folder} is left: it is damaged, not unfinished; look at it, and delete it by hand",
                        file=sys.stderr,
                    )
            else:
                shutil.rmtree(folder)
                deleted.append(folder.name)
            files.forget(folder)
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
