"""What one sees of long work: the bar, an output that is updated in JupyterLab and text elsewhere, and two lines where it is interrupted.

`run_all.py` asks its notebooks for text bars, to pass them on.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import tqdm as usual

_ipython = sys.modules.get("IPython") and sys.modules["IPython"].get_ipython()
if os.environ.get("R2KD_PROGRESS") == "text" or not hasattr(_ipython, "kernel"):
    tqdm = usual.tqdm
else:
    from IPython.display import display

    _NOWHERE = open(os.devnull, "w")  # noqa: SIM115
    _FREE: list[tuple[int, Any]] = []  # (cell, output) of bars that are gone: the next ones of the cell show there

    class tqdm(usual.tqdm):
        """A line of text, which stays in the saved notebook, where a widget would be an error; empty where it is not to stay."""

        def __init__(self, *given, **options) -> None:
            self.shown = None
            super().__init__(*given, **{"file": _NOWHERE, "ncols": 110} | options)

        def display(self, msg: str | None = None, pos: int | None = None) -> None:
            text = str(self) if msg is None else msg
            line = {"text/plain": text} if text else {"text/html": "", "text/plain": ""}  # of no height
            cell = _ipython.execution_count
            if text and not self.shown:
                _FREE[:] = [free for free in _FREE if free[0] == cell]
                self.shown = _FREE.pop()[1] if _FREE else display(line, raw=True, display_id=True)
            if self.shown:
                self.shown.update(line, raw=True)
                if not text:
                    _FREE.append((cell, self.shown))
                    self.shown = None


__all__ = ["Interrupted", "interruptible", "tqdm"]


class Interrupted(KeyboardInterrupt):
    """Of an interrupt, a notebook shows the text alone."""

    def _render_traceback_(self) -> list[str]:  # IPython asks for it
        return str(self).splitlines()


@contextmanager
def interruptible(where: Callable[[], str]) -> Iterator[None]:
    """An interrupt says where it was, and what to do."""
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted {where()}; all that was finished is kept\nrun the cell again to go on"
        ) from None
