"""python -m tests.campaign --seed N --minutes M: what the package computes while it is killed, cut short, damaged and crowded.

Kinds: killed, at a random time, and at every write; full, the disk from any write on; damaged, any file of what is finished;
crowded, eight processes at once. A case is right where its numbers are those of the undisturbed work, or where it says in
one line what is wrong, and the next start is right. All else is a failure, which --kind and --case replay.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ |= {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}

from r2kd.progress import tqdm

import torch

from .children import Child, Ended, Moment
from .subjects import ANSWER, SUBJECTS, TRICKS, Subject

PROCESSES = 8


class Failure(Exception):
    """A case that is not right: what was seen."""


def start(subject: Subject, folder: Path, moment: Moment | None = None) -> Child:
    return Child(lambda: subject.work(folder), moment).start()


def answer(ended: Ended) -> str | None:
    lines = [line for line in ended.out.splitlines() if line.startswith(ANSWER)]
    return lines[-1] if lines and ended.code == 0 else None


def judge(ended: Ended, expected: str) -> str:
    """ "right" or "said"; raises Failure for a wrong number, a traceback, silence or a hang."""
    told = ended.said.strip()
    shown = f"exit {ended.code}, {ended.seconds:.1f} s\n{ended.out[-300:]}\n{told[-1500:]}"
    if ended.code is None:
        raise Failure(f"it hangs: {shown}")
    if "Traceback" in told:
        raise Failure(f"a traceback: {shown}")
    if ended.code == 0:
        if answer(ended) != expected:
            raise Failure(f"a wrong number, not {expected}: {shown}")
        return "right"
    if not told or ended.killed:
        raise Failure(f"it says nothing: {shown}")
    return "said"


class Campaign:
    """Prepared folders and undisturbed answers of every subject, made once; cases draw from generators of their own."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.seed = root, seed
        self.expected: dict[str, str] = {}
        self.writes: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        for name, subject in tqdm(SUBJECTS.items(), desc="undisturbed", disable=False):
            folder = self.prepared(subject, self.root / f"{name}-finished")
            ended = start(subject, folder, Moment(folder, 0, "count")).ended()
            if ended.code:
                raise SystemExit(f"campaign: {name} fails undisturbed: {ended.said}")
            self.expected[name] = answer(ended)
            self.writes[name], self.seconds[name] = ended.writes, ended.seconds

    def prepared(self, subject: Subject, folder: Path) -> Path:
        """A folder where the subject has not been at work."""
        folder.mkdir(parents=True)
        code = Child(lambda: subject.prepare(folder)).start().ended().code
        if code:
            raise SystemExit(f"campaign: {subject.name} cannot be prepared")
        return folder

    def finished(self, subject: Subject, folder: Path) -> Path:
        """A copy of the folder where its work is done."""
        shutil.copytree(self.root / f"{subject.name}-finished", folder, symlinks=True)
        return folder

    def again(self, subject: Subject, folder: Path) -> None:
        """After what has happened the next start is right."""
        if judge(start(subject, folder).ended(), self.expected[subject.name]) != "right":
            raise Failure("the next start is not right")

    def killed_at_a_time(self, subject: Subject, draws: random.Random, folder: Path) -> str:
        self.prepared(subject, folder)
        for _ in range(draws.randint(1, 3)):
            child = start(subject, folder)
            time.sleep(draws.random() * self.seconds[subject.name])
            os.kill(child.pid, 9)
            child.ended()
        self.again(subject, folder)
        return "right"

    def killed_at_a_write(self, subject: Subject, draws: random.Random, folder: Path) -> str:
        return self.at_write(
            subject, draws.randint(1, self.writes[subject.name]), draws.choice(("kill", "half")), folder
        )

    def full_disk(self, subject: Subject, draws: random.Random, folder: Path) -> str:
        return self.at_write(subject, draws.randint(1, self.writes[subject.name]), "full", folder)

    def at_write(self, subject: Subject, count: int, what: str, folder: Path) -> str:
        """Disturbed at its write of this number; then it is right."""
        self.prepared(subject, folder)
        ended = start(subject, folder, Moment(folder, count, what)).ended()
        verdict = "right" if ended.killed else judge(ended, self.expected[subject.name])
        self.again(subject, folder)
        return verdict

    def damaged(self, subject: Subject, draws: random.Random, folder: Path) -> str:
        self.finished(subject, folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
        path, how = draws.choice(files), draws.choice(list(DAMAGES))
        DAMAGES[how](path, draws)
        try:
            return judge(start(subject, folder).ended(), self.expected[subject.name])
        except Failure as failure:
            raise Failure(f"{path.relative_to(folder)}: {how}\n{failure}") from None

    def lied_to(self, subject: Subject, draws: random.Random, folder: Path) -> str:
        """By a server; then it answers well."""
        self.prepared(subject, folder)
        tricks = [draws.choice(TRICKS) for _ in range(draws.randint(1, 6))]
        (folder / "tricks.json").write_text(json.dumps(tricks))
        try:
            verdict = judge(start(subject, folder).ended(), self.expected[subject.name])
            (folder / "tricks.json").unlink()
            self.again(subject, folder)
        except Failure as failure:
            raise Failure(f"{', '.join(tricks)}\n{failure}") from None
        return verdict

    def crowded(self, subject: Subject, draws: random.Random, folder: Path) -> str:
        self.prepared(subject, folder)
        children = [start(subject, folder) for _ in range(PROCESSES)]
        verdicts = [judge(ended, self.expected[subject.name]) for ended in [child.ended(600) for child in children]]
        if set(verdicts) != {"right"}:
            raise Failure("one of the processes is not right")
        for path in folder.glob("runs/*/environment.json"):
            if len(json.loads(path.read_text())) != 1:
                raise Failure(f"{path.parent.name} was computed more than once")
        return "right"


def _flip(path: Path, draws: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
    path.write_bytes(content)


def _folder(path: Path, draws: random.Random) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path, random.Random], object]] = {
    "a flipped bit": _flip,
    "cut short": lambda path, draws: path.write_bytes(path.read_bytes()[: draws.randrange(path.stat().st_size + 1)]),
    "empty": lambda path, draws: path.write_bytes(b""),
    "zeros": lambda path, draws: path.write_bytes(bytes(path.stat().st_size)),
    "noise": lambda path, draws: path.write_bytes(draws.randbytes(200)),
    "another kind": lambda path, draws: path.write_bytes(b"[1, 2, 3]\n"),
    "a folder in its place": _folder,
    "gone": lambda path, draws: path.unlink(),
}

WRITING = tuple(name for name in SUBJECTS if name not in ("checkpoint", "run_all"))
RARE = 10  # how many rounds there are to one of what takes long
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {  # by name: the method, the subjects
    "killed at a time": ("killed_at_a_time", WRITING),
    "killed at a write": ("killed_at_a_write", WRITING),
    "full disk": ("full_disk", WRITING),
    "damaged": ("damaged", tuple(name for name in SUBJECTS if name != "run_all")),
    "lied to": ("lied_to", ("download",)),
    "crowded": ("crowded", ("study", "cache", "download")),
    "killed, with a kernel": ("killed_at_a_time", ("run_all",)),
    "full disk, with a kernel": ("full_disk", ("run_all",)),
}


def cases(campaign: Campaign, every_write: bool) -> Iterator[tuple[str, str, int]]:
    """(kind, subject, number) without end, kind after kind; first, where asked for, every write of every subject."""
    number = 0
    while True:
        for kind, (_, subjects) in KINDS.items():
            if number % RARE and (kind == "crowded" or "kernel" in kind):
                continue
            for subject in subjects:
                yield kind, subject, number
        number += 1


def main() -> int:
    top = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__, allow_abbrev=False)
    top.add_argument("--seed", type=int, default=0)
    top.add_argument("--minutes", type=float, default=10)
    top.add_argument("--rounds", type=int, help="in place of minutes")
    top.add_argument("--every-write", action="store_true", help="kill at each write of each subject, twice; then go on")
    top.add_argument("--kind", choices=KINDS, help="with --subject and --case: one case again")
    top.add_argument("--subject", choices=SUBJECTS)
    top.add_argument("--case", type=int)
    options = top.parse_args()
    torch.set_num_threads(1)
    counts: Counter[tuple[str, str]] = Counter()
    failures = []
    with tempfile.TemporaryDirectory() as root:
        campaign = Campaign(Path(root), options.seed)
        folder, started = Path(root) / "case", time.monotonic()
        if options.every_write:
            for name in WRITING:
                for count in tqdm(range(1, campaign.writes[name] + 1), desc=f"{name}, every write", disable=False):
                    for what in ("kill", "half", "full"):
                        _try(
                            counts,
                            failures,
                            f"{what} at every write",
                            name,
                            count,
                            folder,
                            lambda n=name, c=count, w=what: campaign.at_write(SUBJECTS[n], c, w, folder),
                        )
        with tqdm(desc="cases", disable=False) as bar:
            for kind, name, number in cases(campaign, options.every_write):
                if options.case is not None and (kind, name, number) != (options.kind, options.subject, options.case):
                    if number > options.case:
                        break
                    continue
                over = (
                    number >= options.rounds
                    if options.rounds is not None
                    else time.monotonic() - started > 60 * options.minutes
                )
                if over:
                    break
                method = getattr(campaign, KINDS[kind][0])
                draws = random.Random(f"{options.seed} {kind} {name} {number}")
                _try(
                    counts,
                    failures,
                    kind,
                    name,
                    number,
                    folder,
                    lambda m=method, n=name, d=draws: m(SUBJECTS[n], d, folder),
                )
                bar.update()
    print(f"seed {options.seed}")
    for (kind, verdict), count in sorted(counts.items()):
        print(f"{kind:24} {verdict:8} {count}")
    for failure in failures:
        print(f"\n{failure}")
    return 1 if failures else 0


def _try(
    counts: Counter, failures: list[str], kind: str, name: str, number: int, folder: Path, case: Callable[[], str]
) -> None:
    try:
        counts[kind, case()] += 1
    except Failure as failure:
        counts[kind, "failed"] += 1
        failures.append(f'--kind "{kind}" --subject {name} --case {number}: {failure}')
        print(f"\n{failures[-1]}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
