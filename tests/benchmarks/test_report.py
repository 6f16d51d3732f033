"""Pages of results: what is committed is what the rows make, and the prose stays readable."""

import re
from pathlib import Path

import pytest

from benchmarks.record.claims import Claim, verdict_of
from benchmarks.record.ledger import ROOT
from benchmarks.report import pages as report

FOLDER = Path(ROOT).parent


@pytest.fixture(scope="module")
def pages():
    return {str(page.path): page for page in report.pages()}


def test_committed_pages_are_what_the_rows_make(pages):
    for path, page in pages.items():
        assert (FOLDER / path).read_text() == page.text, "run python -m benchmarks report"
    written = {str(path.relative_to(FOLDER)) for path in (FOLDER / report.PAGES).glob("*.md")}
    assert written == pages.keys() - {"benchmarks/RESULTS.md"}


def test_every_figure_of_a_page_is_committed(pages):
    for page in pages.values():
        linked = re.findall(r"^!\[[^]]+\]\((.*)\)$", page.text, re.M)
        assert {Path(link).stem for link in linked} == page.figures.keys()
        assert all((FOLDER / page.path.parent / link).is_file() for link in linked)


def paragraphs(text):
    """Prose alone: no tables, code, images or remarks to the reader of the source."""
    for block in re.split(r"\n\s*\n", text):
        if not re.match(r"(\||    |!\[|<!--)", block):
            # Each point of a list is a paragraph of its own.
            yield from re.split(r"\n(?=\* )", block)


def test_prose_is_short(pages):
    for path, page in pages.items():
        for paragraph in paragraphs(page.text):
            lines = [line for line in paragraph.splitlines() if not line.startswith("|")]
            assert all(len(line) <= 120 for line in lines), (path, paragraph)
            assert len(lines) <= 5, (path, paragraph)


def test_claims_lead_to_a_heading_and_their_verdicts_are_five_words_at_most(pages):
    claims = [*report.all_claims(), *report.speed_claims()]
    for claim in claims:
        assert len(claim.verdict.split()) <= 5
        name, heading = claim.page.split("#")
        text = pages[f"docs/results/{name}"].text
        assert heading in {report.anchor(line) for line in re.findall(r"^#.*", text, re.M)}
        if claim.verdict != "not run yet":
            assert f"**Verdict: {claim.verdict}.**" in text
    assert sum(claim.source.startswith("WSA") for claim in claims) > 10


def test_a_verdict_that_has_no_place_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no claim belongs to a.md#there"):
        report.render("# There\n{{ verdicts }}", tmp_path / "a.md", [])
    claim = Claim("WSA, Table 9", "it gains", "a run", "+1.00", "+2.00", "confirmed", "a.md#there")
    page = report.render("# There\n{{ verdicts }}", tmp_path / "a.md", [claim])
    line = "* **Verdict: confirmed.** It gains (a run): +1.00; the paper: +2.00."
    assert page.text.splitlines()[-1] == line


def test_the_interval_decides_and_not_the_mean():
    # Means of +1: with this spread the paper's 4 is possible, then it is not, then 0 is not.
    verdicts = [verdict_of([1 - s, 1.0, 1 + s], 4.0) for s in (2.0, 1.0, 0.1)]
    assert verdicts == ["undecided", "no gain", "gain, but smaller"]
    assert verdict_of([-1.1, -1.0, -0.9], 4.0) == "the reverse"
