"""The progress bar: a widget in JupyterLab, text elsewhere; `run_all.py` asks its notebooks for text, to pass it on."""

import os

if os.environ.get("R2KD_PROGRESS") == "text":
    from tqdm import tqdm
else:
    from tqdm.auto import tqdm

__all__ = ["tqdm"]
