"""Steps of `mkdocs build`: formulae as MathML, pages from outside docs/, a complete reference."""

import ast
import base64
import html
import json
import logging
import re
from pathlib import Path
from typing import Any

import latex2mathml.converter
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent.parent
LOG = logging.getLogger("mkdocs.hooks.wsa_jax")
ROOMS = ("", "data", "federated", "files", "merging", "models", "training")

_REST = re.compile(r"<!-- further names of ([\w.]+) -->")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the results and their figures, which live beside the scripts that make them."""
    found = [ROOT / "benchmarks" / "RESULTS.md", ROOT / "benchmarks" / "README.md"]
    found += [ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]
    found += sorted((ROOT / "benchmarks" / "results").glob("*.png"))
    for path in found:
        if path.exists():
            name = path.relative_to(ROOT).as_posix().replace("README.md", "about.md")
            files.append(File.generated(config, name, abs_src_path=str(path)))
    for path in sorted((ROOT / "examples").glob("*.ipynb")):
        for name, content in notebook(path).items():
            files.append(File.generated(config, f"examples/{name}", content=content))
    return files


def notebook(path: Path) -> dict[str, str | bytes]:
    """A notebook's page, and the figures that it shows, by the names of their files."""
    parts, figures = list[str](), dict[str, bytes]()
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            if output["output_type"] == "stream":
                parts.append("```text\n" + "".join(output["text"]).rstrip() + "\n```")
            elif "image/png" in output["data"]:
                name = f"{path.stem}_{len(figures) + 1}.png"
                figures[name] = base64.b64decode("".join(output["data"]["image/png"]))
                parts.append(f"![What the cell above draws]({name})")
    parts.append(f"This page is the notebook `examples/{path.name}` of the repository.")
    return {f"{path.stem}.md": "\n\n".join(parts) + "\n", **figures}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links between docs/ and what lives beside it hold in the repository, and on the site."""
    source = page.file.src_uri
    if source.split("/")[0] in ("benchmarks", "examples") or "/" not in source:
        markdown = markdown.replace("](../docs/", "](../").replace("](docs/", "](")
    up = "../" * source.count("/")
    for beside in ("benchmarks/", "examples/", "CONTRIBUTING.md", "CHANGELOG.md"):
        markdown = markdown.replace(f"]({up}../{beside}", f"]({up}{beside}")
    markdown = markdown.replace("](README.md)", "](about.md)")
    markdown = markdown.replace("benchmarks/README.md)", "benchmarks/about.md)")
    markdown = re.sub(r"(examples/\w+)\.ipynb\)", r"\1.md)", markdown)
    # Sessions of Python, whose prompts and output the copy button leaves out.
    markdown = markdown.replace("```python\n>>>", "```pycon\n>>>").replace("<BLANKLINE>\n", "\n")
    return _REST.sub(_rest_of, markdown)


def _rest_of(found: re.Match[str]) -> str:
    """Entries for what a room exports and no page names yet, so that the reference is whole."""
    room = found[1]
    pages = "".join(path.read_text() for path in (ROOT / "docs" / "api").glob("*.md"))
    path = ROOT / "wsa_jax" / room.removeprefix("wsa_jax").lstrip(".") / "__init__.py"
    rest = [name for name in exported(path) if not re.search(rf"\b{name}\b", pages)]
    if not rest:
        return ""
    options = f"{{heading_level: 3, members: [{', '.join(rest)}]}}"
    return f"## Further\n\n::: {room}\n    options: {options}\n"


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Formulae become MathML, which browsers draw by themselves: no script, no font, no network."""

    def mathml(found: re.Match[str]) -> str:
        display = "block" if found[2] == "[" else "inline"
        return latex2mathml.converter.convert(html.unescape(found[3]).strip(), display=display)

    content = _FORMULA.sub(mathml, content)
    if 'class="arithmatex"' in content:
        LOG.warning("%s: a formula was not converted", page.file.src_uri)
    return content


def on_post_build(config: MkDocsConfig) -> None:
    """Warn, and so fail a strict build, of public names that no page of the reference shows."""
    reference = config.plugins["autorefs"]
    for room in ROOMS:
        path = ROOT / "wsa_jax" / room / "__init__.py"
        if not path.exists():
            continue
        for name in exported(path):
            dotted = ".".join(part for part in ("wsa_jax", room, name) if part)
            try:
                reference.get_item_url(dotted)
            except KeyError:
                LOG.warning("%s is public, but no page under docs/api shows it", dotted)


def exported(path: Path) -> list[str]:
    """The names in a module's ``__all__``."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return ast.literal_eval(node.value)
    return []
