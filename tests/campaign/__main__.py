"""python -m tests.campaign --seed N --minutes M: the package's work while it is killed, cut short, damaged, lied to and crowded.

A case is right where its numbers are those of the undisturbed work; or where it says in a line what is wrong, and the next
start is right. All else is a failure: a wrong number, a traceback, silence, a hang. A failure is printed with the options that replay it.
"""

import argparse
import itertools
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
from typing import NamedTuple

os.environ |= {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}

from r2kd.progress import tqdm

import torch

from .children import Child, Ended, Moment
from .damage import DAMAGES
from .subjects import ANSWER, SUBJECTS, TRICKS, Subject

PROCESSES = 8  # of a crowd
RARE = 10  # rounds to one of what takes long


class Failure(Exception):
    """A case that is not right: what was seen."""


class Undisturbed(NamedTuple):
    """A subject's work in peace: its folder, answer, number of writes and seconds."""

    folder: Path
    answer: str
    writes: int
    seconds: float


def start(subject: Subject, folder: Path, moment: Moment | None = None) -> Child:
    return Child(lambda: subject.work(folder), moment).start()


def answer(ended: Ended) -> str | None:
    lines = [line for line in ended.out.splitlines() if line.startswith(ANSWER)]
    return lines[-1] if lines and ended.code == 0 else None


def judge(ended: Ended, expected: str) -> str:
    """ "right" or "said". Raises Failure for anything else."""
    told = ended.said.strip()
    shown = f"exit {ended.code}, {ended.seconds:.1f} s\n{ended.out[-300:]}\n{told[-1500:]}"
    if ended.code is None:
        raise Failure(f"it hangs: {shown}")
    if "Traceback" in told:
        raise Failure(f"a traceback: {shown}")
    if ended.code == 0 and answer(ended) != expected:
        raise Failure(f"a wrong number, not {expected}: {shown}")
    if ended.code and (not told or ended.killed):
        raise Failure(f"it says nothing: {shown}")
    return "said" if ended.code else "right"


class Campaign:
    """Cases in folders under `root`; what they draw is of `seed` and of their own number."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.seed = root, seed
        self.known: dict[str, Undisturbed] = {}

    def undisturbed(self, subject: Subject) -> Undisturbed:
        if subject.name not in self.known:
            folder = self.prepared(subject, self.root / f"{subject.name}-finished")
            ended = start(subject, folder, Moment(folder, 0, "count")).ended()
            if ended.code:
                raise SystemExit(f"campaign: {subject.name} fails undisturbed: {ended.said}")
            self.known[subject.name] = Undisturbed(folder, answer(ended), ended.writes, ended.seconds)
        return self.known[subject.name]

    def prepared(self, subject: Subject, folder: Path) -> Path:
        """A folder where the subject has not been at work."""
        folder.mkdir(parents=True)
        if Child(lambda: subject.prepare(folder)).start().ended().code:
            raise SystemExit(f"campaign: {subject.name} cannot be prepared")
        return folder

    def judged(self, subject: Subject, folder: Path, moment: Moment | None = None) -> str:
        return judge(start(subject, folder, moment).ended(), self.undisturbed(subject).answer)

    def again(self, subject: Subject, folder: Path) -> None:
        if self.judged(subject, folder) != "right":
            raise Failure("the next start is not right")

    def killed(self, subject: Subject, draws: random.Random, folder: Path) -> str:
        """One to three times, at random times."""
        seconds = self.undisturbed(subject).seconds
        self.prepared(subject, folder)
        for _ in range(draws.randint(1, 3)):
            child = start(subject, folder)
            time.sleep(draws.random() * seconds)
            os.kill(child.pid, 9)
            child.ended()
        self.again(subject, folder)
        return "right"

    def full(self, subject: Subject, draws: random.Random, folder: Path) -> str:
        """The disk, from a random write on."""
        return self.at_write(subject, draws.randint(1, self.undisturbed(subject).writes), "full", folder)

    def at_write(self, subject: Subject, count: int, what: str, folder: Path) -> str:
        """Disturbed at its write of this number."""
        self.prepared(subject, folder)
        ended = start(subject, folder, Moment(folder, count, what)).ended()
        verdict = "right" if ended.killed else judge(ended, self.undisturbed(subject).answer)
        self.again(subject, folder)
        return verdict

    def damaged(self, subject: Subject, draws: random.Random, folder: Path) -> str:
        """A file of what is finished; no picture, as a changed one is another data set."""
        shutil.copytree(self.undisturbed(subject).folder, folder)
        paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".lock", ".jpg"))
        path, how = draws.choice(paths), draws.choice(list(DAMAGES))
        DAMAGES[how](path, draws)
        try:
            return self.judged(subject, folder)
        except Failure as failure:
            raise Failure(f"{path.relative_to(folder)}: {how}\n{failure}") from None

    def lied_to(self, subject: Subject, draws: random.Random, folder: Path) -> str:
        """By a server, one to six times."""
        self.prepared(subject, folder)
        tricks = [draws.choice(TRICKS) for _ in range(draws.randint(1, 6))]
        (folder / "tricks.json").write_text(json.dumps(tricks))
        try:
            verdict = self.judged(subject, folder)
            (folder / "tricks.json").unlink()
            self.again(subject, folder)
        except Failure as failure:
            raise Failure(f"{', '.join(tricks)}\n{failure}") from None
        return verdict

    def crowded(self, subject: Subject, draws: random.Random, folder: Path) -> str:
        """Several processes at once: all are right, and no run is computed twice."""
        expected = self.undisturbed(subject).answer
        self.prepared(subject, folder)
        children = [start(subject, folder) for _ in range(PROCESSES)]
        verdicts = [judge(ended, expected) for ended in [child.ended(600) for child in children]]
        if set(verdicts) != {"right"}:
            raise Failure("one of the processes is not right")
        for path in folder.glob("runs/*/environment.json"):
            if len(json.loads(path.read_text())) != 1:
                raise Failure(f"{path.parent.name} was computed more than once")
        return "right"


WRITING = tuple(name for name in SUBJECTS if name not in ("checkpoint", "run_all"))
EVERY_WRITE = {"killed at every write": "kill", "cut off in every write": "half", "full from every write": "full"}
KINDS: dict[str, tuple[Callable, tuple[str, ...]]] = {  # by name: what is done, to which subjects
    "killed": (Campaign.killed, WRITING),
    "full": (Campaign.full, WRITING),
    "damaged": (Campaign.damaged, (*WRITING, "checkpoint")),
    "lied to": (Campaign.lied_to, ("download",)),
    "crowded": (Campaign.crowded, ("study", "cache", "download")),
    "killed, with a kernel": (Campaign.killed, ("run_all",)),
    "full, with a kernel": (Campaign.full, ("run_all",)),
}


def cases(campaign: Campaign, kinds: list[str], subjects: list[str]) -> Iterator[tuple[str, str, int]]:
    """(kind, subject, number): first every write of every subject, where that is asked for; then round after round without end."""
    for kind in [kind for kind in EVERY_WRITE if kind in kinds]:
        for name in [name for name in WRITING if name in subjects]:
            for count in range(1, campaign.undisturbed(SUBJECTS[name]).writes + 1):
                yield kind, name, count
    drawn = [kind for kind in KINDS if kind in kinds]
    for number in itertools.count() if drawn else ():
        for kind in drawn:
            if number % RARE == 0 or not (kind == "crowded" or "kernel" in kind):
                yield from ((kind, name, number) for name in KINDS[kind][1] if name in subjects)


def run(campaign: Campaign, kind: str, name: str, number: int) -> str:
    """The verdict of a case. Raises Failure."""
    folder, subject = campaign.root / "case", SUBJECTS[name]
    try:
        if kind in EVERY_WRITE:
            return campaign.at_write(subject, number, EVERY_WRITE[kind], folder)
        draws = random.Random(f"{campaign.seed} {kind} {name} {number}")
        return KINDS[kind][0](campaign, subject, draws, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    top = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__, allow_abbrev=False)
    top.add_argument("--seed", type=int, default=0)
    top.add_argument("--minutes", type=float, default=10, help="[10]")
    top.add_argument("--rounds", type=int, help="at most so many")
    top.add_argument("--kind", nargs="+", choices=[*EVERY_WRITE, *KINDS], default=list(KINDS), help="[those that draw]")
    top.add_argument("--subject", nargs="+", choices=SUBJECTS, default=list(SUBJECTS), help="[all]")
    top.add_argument("--case", type=int, help="this number alone, of one kind and subject")
    options = top.parse_args()
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # a thread of the bar's could hold its lock when a child is forked
    counts: Counter[tuple[str, str]] = Counter()
    failures: list[str] = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as root:
        campaign = Campaign(Path(root), options.seed)
        for kind, name, number in tqdm(cases(campaign, options.kind, options.subject), unit="case", disable=False):
            over = options.rounds is not None and kind in KINDS and number >= options.rounds
            past = options.case is not None and number > options.case
            if over or past or time.monotonic() - started > 60 * options.minutes:
                break
            if options.case not in (None, number):
                continue
            try:
                counts[kind, run(campaign, kind, name, number)] += 1
            except Failure as failure:
                counts[kind, "failed"] += 1
                failures.append(f'--seed {options.seed} --kind "{kind}" --subject {name} --case {number}: {failure}')
                print(f"\n{failures[-1]}\n", flush=True)
    for (kind, verdict), count in sorted(counts.items()):
        print(f"{kind:24} {verdict:8} {count}")
    print(f"seed {options.seed}: {sum(counts.values())} cases, {len(failures)} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
