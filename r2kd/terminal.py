"""What a program owes the terminal that it was started in: no text that cannot be printed, no traceback for a signal."""

import argparse
import difflib
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

INTERRUPTED = 130
STOPS = (signal.SIGINT, signal.SIGTERM)


def prepare() -> None:
    """Before anything else is imported, which takes seconds: streams that lead somewhere, and signals that end the program at once.

    Raised inside an import, an interrupt comes out as the import's failure, or not at all.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # closed, 2>&-: the next file would get its number, and its messages
            stream = open(os.devnull, "w" if number else "r")  # noqa: SIM115 (it stays)
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    _at_stops(_leave)


def raise_interrupt() -> None:
    """SIGTERM is as good as Ctrl-C: from here on both are a KeyboardInterrupt."""
    _at_stops(signal.default_int_handler)


class Parser(argparse.ArgumentParser):
    """Says wrong use in one line, with the option that was meant; no option is taken by its beginning, and none is empty."""

    def __init__(self, **settings) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def parse_known_args(self, args=None, namespace=None):
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            near = difflib.get_close_matches(unknown[0].partition("=")[0], self._option_string_actions, 1)
            self.error(f"unknown option {unknown[0]}" + (f": {near[0]} is meant?" if near else ""))
        for name, value in vars(found).items():
            if "" in (value if isinstance(value, list) else [value]):
                self.error(f"--{name.rpartition('.')[2].replace('_', '-')} is empty")
        return found, unknown

    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: {message} (all options: {self.prog} --help)\n")


def run(main: Callable[[], int]) -> int:
    """The exit code of a program: that of `main`, or 1 where what it said cannot be written."""
    try:
        code = main()
    except SystemExit as stop:  # argparse's
        code = stop.code
    _at_stops(_leave)
    return tell(None, code)


def tell(text: str | None, code: int) -> int:
    """Print a result, if there is one, at once; the exit code, 1 where it cannot be written."""
    try:
        if text is not None:
            print(text)
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter tries again, and says so
        if not isinstance(error, BrokenPipeError):  # `| head` has seen enough
            complain(f"what it says cannot be written: {error}")
            code = code or 1
    return code


def complain(line: str) -> None:
    """On stderr, where there still is one."""
    with suppress(OSError):
        print(line, file=sys.stderr)


def _at_stops(handler: Callable) -> None:
    for stop in STOPS:
        if signal.getsignal(stop) is not signal.SIG_IGN:  # of a program in the background, Ctrl-C is another's
            signal.signal(stop, handler)


def _leave(*_) -> None:
    with suppress(OSError):
        os.write(2, b"\ninterrupted\n")
    os._exit(INTERRUPTED)
