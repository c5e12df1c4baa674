"""R2KD, Robustness-Reinforced Knowledge Distillation (Kim, Ham, Cho & Kim, IEEE TKDE 2024), reproduced."""

from pathlib import Path

__version__ = "0.1.0"

_checkout = Path(__file__).resolve().parents[1]
ROOT = _checkout if (_checkout / "pyproject.toml").exists() else Path.cwd()
"""The folder that holds data/, runs/ and figures/: the clone, or the working directory of an installed package."""
