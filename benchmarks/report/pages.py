"""The pages of results, written from the rows: RESULTS.md, and one page a topic.

    python -m benchmarks report [--no-figures]

Templates beside this module hold the hand-written text. A line {{ NAME SETTINGS }} stands for a
command: the page shows it, what it finds on record, and its figures; {{ figure NAME }} shows these
alone. {{ claims }} is the table of what the papers claim, {{ verdicts }} stands for the verdicts
that belong under the heading above it.
"""

import os
import re
import shlex
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.record.claims import Claim
from benchmarks.record.ledger import ROOT
from benchmarks.record.statistics import markdown_table
from benchmarks.registry import EXPERIMENTS, TOOLS, full_name, script
from benchmarks.script import Command, Findings, NothingRecordedError, Reported, Summary, save
from benchmarks.speed.claims import SPEED, speed_claims

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATES = Path(__file__).resolve().parent / "templates"
SUMMARY_PAGE = "RESULTS.md"
PAGES = Path("docs") / "results"
FIGURES = Path("benchmarks") / "results"
WIDTH = 120
_DIRECTIVE = re.compile(r"^\{\{ (.+) \}\}$")
_NOTE = "<!-- Written by `python -m benchmarks report`; edit benchmarks/report/templates. -->"


@dataclass(frozen=True, kw_only=True)
class Args:
    """Where the pages go."""

    figures: bool = True
    """Draw the figures, too."""
    output: Path = ROOT.parent
    """The folder that holds docs/ and benchmarks/."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page, and what draws its figures."""

    path: Path
    """Below the repository's folder."""
    text: str
    figures: Mapping[str, Callable[[], "Figure"]]


def anchor(heading: str) -> str:
    """How a heading is linked to.

    >>> anchor("## Table 2: 10 clients, all in every round")
    'table-2-10-clients-all-in-every-round'
    """
    plain = re.sub(r"[^\w\- ]", "", heading.lstrip("# ").lower())
    return plain.strip().replace(" ", "-")


def all_claims() -> list[Claim]:
    """Of every experiment, in the order of the registry."""
    found = (script(name) for name in EXPERIMENTS)
    return [
        claim
        for each in found
        if isinstance(each, Reported) and each.claims is not None
        for claim in each.claims()
    ]


def claims_table(claims: list[Claim], folder: str) -> str:
    """One line a claim; its verdict links to where more is told."""
    head = ["source", "claim", "what was run", "ours", "paper", "verdict"]
    lines = [
        [*claim[:5], f"[{claim.verdict}]({folder}{claim.page})"]
        for claim in claims
        if claim.verdict != "not run yet"
    ]
    return markdown_table(head, lines)


def speed_table(claims: list[Claim], folder: str) -> str:
    """The same for timings, whose aims are no paper's."""
    head = ["claim", "what was run", "ours over theirs", "aim, at most", "verdict"]
    lines = [[*claim[1:5], f"[{claim.verdict}]({folder}{claim.page})"] for claim in claims]
    return markdown_table(head, lines)


def wrapped(text: str) -> str:
    """Prose in lines of at most 120 characters; tables, code and images stay as they are."""
    lines = []
    for line in text.splitlines():
        prose = len(line) > WIDTH and not line.startswith(("|", "    ", "!["))
        indent = "  " if line.startswith("* ") else ""
        lines += textwrap.wrap(line, WIDTH, subsequent_indent=indent) if prose else [line]
    return "\n".join(lines)


def verdicts(claims: list[Claim], page: str) -> str:
    """A line for each claim that a heading answers."""
    lines = []
    for claim in claims:
        if claim.page == page:
            aim = "aim, at most" if claim.source == SPEED else "the paper"
            paper = f"; {aim}: {claim.paper}" if claim.paper else ""
            lines.append(
                f"* **Verdict: {claim.verdict}.** {claim.claim[0].upper()}{claim.claim[1:]} "
                f"({claim.run}): {claim.ours or 'nothing on record'}{paper}."
            )
    if not lines:
        raise ValueError(f"no claim belongs to {page}; take its {{{{ verdicts }}}} out")
    return "\n".join(lines)


def image(title: str, stem: str, page: Path) -> str:
    """A figure as a page shows it."""
    return f"![{title}]({os.path.relpath(FIGURES, page.parent)}/{stem}.png)"


def run_directive(command: str) -> tuple[str, Findings]:
    """How a page shows a command, and its findings; nothing runs."""
    name, *settings = shlex.split(command)
    modules = {**EXPERIMENTS, **TOOLS}
    found = script(full_name(name, modules), modules)
    if not isinstance(found, Reported):
        raise ValueError(f"{name} keeps no table for a page; name an experiment")
    try:
        findings = found.findings(found.parsed(settings))
    except NothingRecordedError:
        findings = Findings(title=name, text="Not run yet.")
    typed = " ".join(["python -m benchmarks", name, *settings])
    return f"```sh\n{typed}\n```", findings


def render(template: str, path: Path, claims: list[Claim]) -> Page:
    """A page of a template."""
    lines, figures, heading = [_NOTE, ""], dict[str, Callable[[], "Figure"]](), ""
    for line in template.splitlines():
        heading = anchor(line) if line.startswith("#") else heading
        if (directive := _DIRECTIVE.match(line)) is None:
            lines.append(line)
        elif (command := directive[1]) == "verdicts":
            lines.append(wrapped(verdicts(claims, f"{path.name}#{heading}")))
        elif command == "claims":
            papers = [claim for claim in claims if claim.source != SPEED]
            lines.append(claims_table(papers, "../docs/results/"))
        elif command == "claims speed":
            timed = [claim for claim in claims if claim.source == SPEED]
            lines.append(speed_table(timed, "../docs/results/"))
        elif command.startswith("figure "):
            findings = run_directive(command.removeprefix("figure "))[1]
            lines += [image(findings.title, stem, path) for stem in findings.figures]
            figures |= findings.figures
        else:
            typed, findings = run_directive(command)
            images = [image(findings.title, stem, path) for stem in findings.figures]
            lines.append("\n\n".join([typed, wrapped(findings.text), *images]))
            figures |= findings.figures
    return Page(path=path, text="\n".join(lines) + "\n", figures=figures)


def pages() -> list[Page]:
    """All pages, as the rows on record make them."""
    claims = all_claims()
    return [
        render(
            template.read_text(),
            (Path("benchmarks") if template.name == SUMMARY_PAGE else PAGES) / template.name,
            [*claims, *speed_claims()],
        )
        for template in sorted(TEMPLATES.glob("*.md"))
    ]


def run(args: Args) -> Summary:
    written, drawn = [], []
    for page in pages():
        path = args.output / page.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page.text)
        written.append(str(page.path))
        print(f"page: {page.path}")
        if args.figures:
            folder = args.output / FIGURES
            folder.mkdir(parents=True, exist_ok=True)
            drawn += [save(draw(), folder / f"{name}.png") for name, draw in page.figures.items()]
    return {"pages": written, "figures": len(drawn)}


SCRIPT = Command(name="report", description=__doc__, arguments=Args, function=run)
