"""What a terminal does to a program: Ctrl-C and SIGTERM, streams that are closed, cut off, or know ASCII alone."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

STOPS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = 130


def ready() -> None:
    """For the first line of a program, while nothing has begun: it can be stopped at once, and written from, wherever it is."""
    for number in STOPS:
        _on(number, _leave)
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # a file that is opened later would take its place, and get what is written there
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        else:
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def stoppable() -> Iterator[None]:
    """While the block runs, Ctrl-C and SIGTERM are a KeyboardInterrupt, so that what is under way is kept."""
    for number in STOPS:
        _on(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in STOPS:
            _on(number, _leave)


def tell(text: str | None, code: int) -> int:
    """Print a result; the exit code: `code`, or 1 where it could not be written. That `| head` has seen enough is no error."""
    try:
        if text is not None:
            print(text)
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter tries once more
        if not isinstance(error, BrokenPipeError):
            complain(f"r2kd: stdout cannot be written: {error}")
            return 1
    return code


def complain(line: str) -> None:
    """On stderr, where there still is one."""
    with suppress(OSError):
        print(line, file=sys.stderr)


def _on(number: int, handler) -> None:
    if signal.getsignal(number) is not signal.SIG_IGN:  # of a program in the background, Ctrl-C is the other's
        signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    """At once: an exception would travel through half-imported libraries, some of which keep it."""
    with suppress(OSError):
        os.write(2, b"\ninterrupted\n")
    os._exit(INTERRUPTED)
