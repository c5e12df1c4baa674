"""A child process that can be killed, or find its disk full, at any of its writes; and what came of it."""

import faulthandler
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import RLock, Thread

from r2kd.progress import tqdm

EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
HANGS = 120  # seconds
FEW = 100  # bytes that can still be written to a file once the disk is full


@dataclass(frozen=True)
class Moment:
    """The `count`-th write below `folder`, and what happens there.

    kill: the process is gone before it. half: within it, or within the next write of more than a few bytes. full: from there on, no file
    can be longer than that. count: nothing, and at the end the number of writes is told.
    """

    folder: Path
    count: int
    what: str


@dataclass(frozen=True)
class Ended:
    """`code`: of the exit, or minus the signal; None where it had to be stopped. `writes`: how many, where they were counted."""

    code: int | None
    out: str
    said: str
    seconds: float
    writes: int = 0

    @property
    def killed(self) -> bool:
        return self.code in (-signal.SIGKILL, -signal.SIGXFSZ)


@dataclass
class Child:
    """A fork that does `work`, a function that returns its exit code; the parent has trained nothing, so that it may fork."""

    work: Callable[[], int | None]
    moment: Moment | None = None

    def start(self) -> "Child":
        self.pipes = [os.pipe() for _ in range(2)]
        self.started = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._be()
        self.read: list[bytearray] = [bytearray(), bytearray()]
        for _, end in self.pipes:
            os.close(end)
        self.readers = [
            Thread(target=_drain, args=(pipe[0], into)) for pipe, into in zip(self.pipes, self.read, strict=True)
        ]
        for reader in self.readers:
            reader.start()
        return self

    def ended(self, within: float = HANGS) -> Ended:
        """Wait for it; after so many seconds it is stopped."""
        code, deadline = None, self.started + within
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                break
            time.sleep(0.005)
        else:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        for reader in self.readers:
            reader.join()
        out, said = (bytes(read).decode(errors="replace") for read in self.read)
        told, _, rest = out.rpartition("writes ")
        writes = int(rest) if self.moment and self.moment.what == "count" and rest.strip().isdigit() else 0
        return Ended(code, told if writes else out, said, time.monotonic() - self.started, writes)

    def _be(self) -> None:
        code = 1
        try:
            for (_, end), number in zip(self.pipes, (1, 2), strict=True):
                os.dup2(end, number)
            tqdm.set_lock(
                RLock()
            )  # its own is shared by forks: one that is killed while it holds it would stop all others
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
            faulthandler.dump_traceback_later(HANGS - 10)  # where it is, if it hangs
            counted = _watch(self.moment) if self.moment else []
            code = self.work() or 0
            if self.moment and self.moment.what == "count":
                print("writes", len(counted))
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def _drain(pipe: int, into: bytearray) -> None:
    while part := os.read(pipe, 2**16):
        into.extend(part)
    os.close(pipe)


def _watch(moment: Moment) -> list[str]:
    """Count this process's writes from here on, in the list that is returned; at the moment's one, do what it says."""
    counted: list[str] = []
    folder = str(moment.folder)

    def hook(event: str, arguments: tuple) -> None:
        writes = event in EVENTS or (event == "open" and (arguments[2] or 0) & WRITING)
        if not writes or not str(arguments[0]).startswith(folder):
            return
        counted.append(event)
        if len(counted) != moment.count or moment.what == "count":
            return
        if moment.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if moment.what == "half" else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (FEW, resource.RLIM_INFINITY))

    sys.addaudithook(hook)
    return counted
