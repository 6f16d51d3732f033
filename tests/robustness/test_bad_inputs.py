"""No bad input ends in somebody else's traceback; the whole draw is in `bad_inputs`."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_bad_inputs_are_taken_or_refused_in_one_line(tmp_path):
    # In a process of its own: here, the tests' type checker would stand before the doors. In a
    # folder of its own, too: names of files are among the inputs.
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.robustness.bad_inputs", "--count", "150", "--seed", "7"]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    *lines, last = done.stdout.splitlines()
    counts = json.loads(last)
    assert counts["inputs"] == 150
    assert counts["refused"] > 100
    assert counts.get("foreign", 0) == 0, "\n".join(lines)
