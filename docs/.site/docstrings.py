"""What docstrings say in reStructuredText and in code marks, as the site's Markdown."""

import re
from typing import Any

import griffe

# The rooms whose names are linked wherever a docstring mentions them; the first one wins.
_ROOMS = (
    "wsa_jax",
    "federated",
    "merging",
    "data",
    "models",
    "training",
    "conv",
    "tree",
    "plots",
    "files",
    "tracking",
)
_BLOCK = re.compile(r"^( *)\.\. math:: *(.*(?:\n\1 +\S.*|\n *(?=\n\1 {4,}\S))*)", re.MULTILINE)
_INLINE = re.compile(r":math:`([^`]*)`")
_MARKED = re.compile(r"(?<!`)`([A-Za-z_][\w.]*)`(?!`)")
_DOCTEST = re.compile(r"^( *)>>>.*(?:\n\1\S.*|\n\1 +\S.*)*", re.MULTILINE)


def as_markdown(text: str, linked: dict[str, str]) -> str:
    """Fence doctests, turn formulae into ``$``, and link the names of public objects."""
    pieces, end = list[str](), 0
    for found in _DOCTEST.finditer(text):
        indent = found[1]
        pieces.append(_prose(text[end : found.start()], linked))
        session = found[0].replace("<BLANKLINE>", "")
        pieces.append(f"{indent}```pycon\n{session}\n{indent}```")
        end = found.end()
    return "".join([*pieces, _prose(text[end:], linked)])


def _prose(text: str, linked: dict[str, str]) -> str:
    def link(found: re.Match[str]) -> str:
        target = linked.get(found[1].removeprefix("wsa_jax.").rpartition(".")[2])
        ours = "." not in found[1] or found[1].startswith("wsa_jax.")
        return f"[`{found[1]}`][{target}]" if target and ours else found[0]

    text = _BLOCK.sub(_formula, text)
    text = _INLINE.sub(lambda found: f"${found[1]}$", text)
    text = _MARKED.sub(link, text)
    return re.sub(r"::$", ":", text, flags=re.MULTILINE)


def _formula(found: re.Match[str]) -> str:
    indent, formula = found[1], " ".join(found[2].split())
    return f"{indent}$$\n{indent}{formula}\n{indent}$$"


class Docstrings(griffe.Extension):
    """Rewrites the docstrings of the package once it is loaded."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: Any) -> None:
        """Find what is public, then rewrite every docstring."""
        loader.resolve_aliases(implicit=True, external=False)
        linked: dict[str, str] = {}
        for name in reversed(_ROOMS):
            room = pkg if name == "wsa_jax" else pkg.members.get(name)
            if room is None:
                continue
            room.docstring = None  # its page says what it is
            for exported in room.exports or ():
                linked[str(exported)] = f"{room.path}.{exported}"
        linked |= {name: f"wsa_jax.tree.{name}" for name in ("stack", "unstack", "lerp")}
        self._rewrite(pkg, linked)
        _prefer_exported(pkg)

    def _rewrite(self, holder: Any, linked: dict[str, str]) -> None:
        for member in holder.members.values():
            if member.is_alias:
                continue
            if member.docstring:
                member.docstring.value = as_markdown(member.docstring.value, linked)
            if member.is_module or member.is_class:
                self._rewrite(member, linked)


def _prefer_exported(package: Any) -> None:
    """Let an exported function stand for itself where the module that holds it has its name."""
    for member in list(package.members.values()):
        if not member.is_alias and member.is_module:
            _prefer_exported(member)
    for exported in package.exports or ():
        name = str(exported)
        target = package.members[name]
        while target.is_alias or target.is_module:
            target = target.final_target if target.is_alias else target.members[name]
        if target is not package.members[name]:
            package.members[name] = griffe.Alias(name, target, parent=package)
