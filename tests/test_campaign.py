"""The short form of the campaign; tests/README.md says what it is."""

import subprocess
import sys
from pathlib import Path


def test_a_short_campaign_is_all_right():
    kinds = ["--kind", "killed", "full", "damaged", "lied to"]
    subjects = ["--subject", "figures", "figures-only", "cache", "checkpoint", "download"]
    command = [sys.executable, "-m", "tests.campaign", "--seed", "0", "--rounds", "2", *kinds, *subjects]
    ended = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert ended.returncode == 0 and ended.stdout.endswith("seed 0: 28 cases, 0 failed\n"), ended.stdout


def test_a_case_is_replayed_by_its_number():
    case = ["--seed", "3", "--kind", "killed at every write", "--subject", "download", "--case", "2"]
    ended = subprocess.run(
        [sys.executable, "-m", "tests.campaign", *case], cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    assert ended.returncode == 0 and "seed 3: 1 cases, 0 failed" in ended.stdout, ended.stdout
