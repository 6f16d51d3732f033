"""The README stays short, its blocks run alone, and what it links is there."""

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
EXAMPLES = [text for language, text in BLOCKS if language == "python"]


@pytest.mark.parametrize("text", EXAMPLES, ids=["train", "merge"])
def test_a_block_runs_alone(text):
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    example = doctest.DocTestParser().get_doctest(text, {}, "README.md", "README.md", 0)
    assert example.examples
    said = list[str]()
    results = doctest.DocTestRunner(optionflags=flags).run(example, out=said.append)
    assert not results.failed, "".join(said)


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
