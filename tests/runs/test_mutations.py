"""Damaged run directories: the same result, or one line that names the path; never another.

A sample of what ``python tests/runs/mutate.py --all`` does: each trial starts a run, which takes a
third of a second.

Long are the mutations, a campaign: each way a file may be torn is in test_checkpoint, each refusal
of a directory in test_run_directory.
"""

import pytest

from tests.runs.mutate import Trials, count, flips, mutations

pytestmark = pytest.mark.usefixtures("frozen")


@pytest.fixture(scope="module")
def trials(tmp_path_factory) -> Trials:
    return Trials(tmp_path_factory.mktemp("trials"))


@pytest.mark.long
def test_damaged_directories_resume_bitwise_or_say_so_in_one_line(trials):
    counts, bad = count(trials, mutations(trials, seed=0)[:24])
    assert not bad
    assert counts["resumed"] and counts["clear"]
    assert counts.total() == 24


def test_a_flipped_bit_changes_nothing_or_is_named(trials):
    counts, bad = count(trials, flips(trials, 16, seed=0))
    assert not bad
    assert counts["clear"] >= 5  # Weights: two thirds of all bits, and of a larger draw.
    assert counts.total() == 16
