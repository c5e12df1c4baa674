"""What one sees of long work: the bar, a widget in JupyterLab and text elsewhere, and two lines where it is interrupted.

`run_all.py` asks its notebooks for text bars, to pass them on.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

if os.environ.get("R2KD_PROGRESS") == "text":
    from tqdm import tqdm
else:
    from tqdm.auto import tqdm

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
