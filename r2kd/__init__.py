"""R2KD, Robustness-Reinforced Knowledge Distillation (Kim, Ham, Cho & Kim, IEEE TKDE 2024), reproduced."""

import os
from pathlib import Path

# Threads of OpenMP that spin while they wait stand in each other's way beside another busy program. Read when torch is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.1.0"

_checkout = Path(__file__).resolve().parents[1]
ROOT = _checkout if (_checkout / "pyproject.toml").exists() else Path.cwd()
"""The folder that holds data/, runs/ and figures/: the clone, or the working directory of an installed package."""
