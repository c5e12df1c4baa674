"""What the notebooks work with, in one line: from r2kd.notebook import *. No name here is that of a notebook's parameter."""

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown

from . import (
    ROOT,
    attacks,
    augmentation,
    data,
    evaluation,
    experiments,
    explorers,
    fidelity,
    figures,
    findings,
    losses,
    models,
    profiles,
    pruning,
    published,
    randomness,
    records,
    runs,
    simplex,
    stats,
    student_explorers,
    tables,
    teachers,
    tested,
    training,
    widgets,
    words,
)

__all__ = [name for name in dir() if not name.startswith("_")]
