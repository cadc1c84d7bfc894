"""Runs that are killed during a write and resumed equal the uninterrupted one: a few of the kills of kills.py."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.mark.slow
def test_killed_and_resumed_runs_equal_the_uninterrupted_one():
    """In a separate process, which forks the runs: both stages, on one and on two ranks."""
    result = subprocess.run(
        [sys.executable, Path(__file__).with_name("kills.py"), "3"], env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=ROOT, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert re.search(r"^12 kills, ([1-9]\d*) of them inside checkpoint,", result.stdout, re.MULTILINE), result.stdout
