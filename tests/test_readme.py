"""The README stays short, its blocks run alone, and what it links is there."""

import doctest
import re
from pathlib import Path

import numpy as np
import pytest

from wsa_jax.cli import main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
EXAMPLES = [text for language, text in BLOCKS if language == "python"]
(COMMANDS,) = [text for language, text in BLOCKS if language == "console"]


def printed(text, capsys):
    """What a block prints, run alone, and the numbers that its comments promise."""
    exec(compile(text, "README.md", "exec"), {"__name__": "README"})
    promised = re.search(r"print\(.*?  # (.*)", text)[1]
    said, told = capsys.readouterr().out, re.findall(r"\d\.\d+", promised)
    return [float(word) for word in said.split()], [float(word) for word in told]


def test_the_training_loop_runs_alone(capsys):
    (divergence,), (with_wsa, without) = printed(EXAMPLES[0], capsys)
    assert round(divergence, 2) == with_wsa < without


def test_the_merge_runs_alone_and_then_the_commands(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (plain, matched), told = printed(EXAMPLES[1], capsys)
    assert plain < 0.7
    assert matched > 0.9
    # Rounding differs between machines, and 2,000 steps make more of it.
    assert np.allclose([plain, matched], told, atol=0.1)
    check_commands(COMMANDS, capsys)


def check_commands(text, capsys):
    """Commands print what a block shows; three dots stand for what it leaves out."""
    shown = re.split(r"^\$ wsa-jax (.*)\n", text, flags=re.MULTILINE)[1:]
    assert len(shown) >= 4
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    for command, expected in zip(shown[::2], shown[1::2], strict=True):
        main(command.split())
        found = capsys.readouterr().out
        # Numbers are those of one machine, and with them which layer comes first.
        pair = (re.sub(r"[-+]?\d[\d.,]*(e[-+]\d+)?", "#", one) for one in (expected, found))
        assert doctest.OutputChecker().check_output(*pair, flags), found


def test_it_can_be_read_in_two_minutes():
    prose = re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL)
    assert len(prose.split()) < 450
    assert sum(bool(line.strip()) for _, text in BLOCKS for line in text.splitlines()) <= 45


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/index.md"])
def test_links_lead_somewhere(page):
    path = ROOT / page
    links = re.findall(r"\]\(([^)#]+)", path.read_text())
    assert links
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert not missing
