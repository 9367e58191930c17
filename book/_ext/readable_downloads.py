"""Sphinx extension: notebooks that a reader downloads stand on their own.

The book's notebooks are written in MyST, which Jupyter shows as it stands: `{cite:p}` and directives in braces, links
to neighbours that were not downloaded. The copies behind the pages' download buttons are plain Markdown, begin with what
they need, and link to the site when _config.yml names its address (html: baseurl).
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import Any
from urllib.parse import urljoin

import nbformat
from pybtex.database import Entry, parse_file
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

ROLE = re.compile(r"\{([\w:]+)\}`(?:([^`<]*)<)?([^`>]+)>?`")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#|mailto:)([^)\s]+)\)")
LABELLED_EQUATION = re.compile(r"\$\$(.+?)\$\$ *\(([\w-]+)\)", re.DOTALL)
FENCE = re.compile(
    r"^(?P<fence>`{3,}|:{3,})\{(?P<name>[\w:-]+)\} *(?P<title>[^\n]*)\n(?P<options>(?::[\w-]+:[^\n]*\n)*)"
    r"(?P<body>.*?)^(?P=fence) *$",
    re.MULTILINE | re.DOTALL,
)
NAMES = {
    "exercise-start": "Exercise",
    "solution-start": "Solution",
    "exercise": "Exercise",
    "solution": "Solution",
}


def authors(entry: Entry) -> str:
    """The authors as a text names them: two in full, of more the first."""
    names = [" ".join(person.last_names) for person in entry.persons.get("author", [])]
    names = names or [str(entry.fields.get("title", entry.key))]
    return f"{names[0]} et al." if len(names) > 2 else " and ".join(names)


def citation(role: str, keys: str, sources: Mapping[str, Entry]) -> str:
    """What a {cite:p} or {cite:t} role says."""
    found = [
        (
            authors(sources[key.strip()]),
            sources[key.strip()].fields.get("year", "n. d."),
        )
        for key in keys.split(",")
    ]
    if role.endswith("t"):
        return ", ".join(f"{who} ({year})" for who, year in found)
    return "(" + "; ".join(f"{who}, {year}" for who, year in found) + ")"


def directive(match: re.Match[str]) -> str:
    """A directive as plain Markdown: a quoted box, a heading, or folded text."""
    name, title, body = match["name"], match["title"].strip(), match["body"].strip()
    if name.endswith("-end"):
        return ""
    if name in NAMES:
        heading = (
            f"**{NAMES[name]}**"
            if NAMES[name] == "Solution"
            else f"**{NAMES[name]}. {title}**"
        )
        return f"{heading}\n\n{body}" if body else f"{heading}\n"
    if name == "dropdown":
        return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>"
    if name == "math":
        return f"$$\n{body}\n$$"
    kind = name.removeprefix("prf:").capitalize()
    heading = {"admonition": title}.get(name) or f"{kind} ({title})" if title else kind
    return "\n".join(
        f"> {line}".rstrip() for line in f"**{heading}**\n\n{body}".splitlines()
    )


def plain(
    text: str,
    cite: Callable[[str, str], str],
    number: Callable[[str], str],
    link: Callable[[str], str],
) -> str:
    """MyST as the Markdown that Jupyter shows.

    `cite` takes role and keys, `number` a label, `link` a relative address; an empty answer of `link` leaves the words.
    """

    def role(match: re.Match[str]) -> str:
        name, words, target = match.groups()
        if name.startswith("cite"):
            return cite(name, target)
        if name == "eq":
            return f"({number(target)})"
        return words.replace("%s", number(target)).strip() if words else number(target)

    def linked(match: re.Match[str]) -> str:
        address = link(match[2])
        return f"[{match[1]}]({address})" if address else match[1]

    while FENCE.search(text):
        text = FENCE.sub(directive, text)
    text = LABELLED_EQUATION.sub(
        lambda m: f"$${m[1].rstrip()} \\tag{{{number(m[2])}}}$$", text
    )
    return LINK.sub(linked, ROLE.sub(role, text))


def numbers(env: BuildEnvironment) -> dict[str, str]:
    """Number or title of everything with a label: equations, figures, tables, theorems, sections."""
    named = {}
    standard: Any = env.get_domain("std")
    found = {
        **{k: (d, i, i) for k, (d, i) in standard.anonlabels.items()},
        **standard.labels,
    }
    figures = {"figure": "Figure", "table": "Table"}
    for label, (page, anchor, title) in found.items():
        named[label] = str(title)
        for kind, known in env.toc_fignumbers.get(page, {}).items():
            if anchor in known:
                named[label] = (
                    f"{figures.get(kind, str(title))} {'.'.join(map(str, known[anchor]))}"
                )
    for label, (page, _) in env.get_domain("math").data["objects"].items():
        counted = (
            env.toc_fignumbers.get(page, {})
            .get("displaymath", {})
            .get(f"equation-{label}", ())
        )
        named[label] = ".".join(map(str, counted)) or label
    return named


def preface(title: str, address: str, install: str) -> str:
    """What stands above a downloaded chapter."""
    page = (
        f"[its page]({address}), with numbered figures and all links"
        if address
        else "the book's site"
    )
    return (
        f"> This notebook is a chapter of *{title}*. To run it, you need Python 3.11 or newer and the package "
        f"`flow-priors`, which is imported as `companion`: {install}. The chapter is best read at {page}."
    )


def install_line(repository: str) -> str:
    """How the package is installed, in Markdown."""
    return (
        f"`pip install git+{repository}`"
        if repository
        else "`pip install` with its wheel, or `pip install .` in a copy of the book's repository"
    )


def write(app: Sphinx, exception: Exception | None) -> None:
    """Rewrite the notebooks that the download buttons lead to."""
    if exception is not None or app.builder.format != "html":
        return
    sources = {}
    for file in app.config.bibtex_bibfiles:
        sources.update(parse_file(str(Path(app.srcdir) / file)).entries)
    named, base = numbers(app.env), app.config.html_baseurl
    install = install_line(app.config.html_theme_options.get("repository_url", ""))
    for page in app.env.found_docs:
        path = Path(app.outdir) / "_sources" / f"{page}.ipynb"
        if not path.is_file():
            continue

        def link(address: str, page: str = page) -> str:
            target, _, anchor = address.partition("#")
            document = PurePosixPath(
                normpath(PurePosixPath(page).parent / target)
            ).with_suffix(".html")
            return (
                urljoin(
                    f"{base.rstrip('/')}/", f"{document}{'#' * bool(anchor)}{anchor}"
                )
                if base
                else ""
            )

        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = plain(
                    cell.source,
                    lambda r, k: citation(r, k, sources),
                    lambda label: named.get(label.lower(), label),
                    link,
                )
        address = link(PurePosixPath(page).name)
        head = nbformat.v4.new_markdown_cell(
            preface(app.config.html_title, address, install), id="companion-preface"
        )
        notebook.cells.insert(0, head)
        nbformat.write(notebook, path)


def substitutions(app: Sphinx, config: Any) -> None:
    """Words for the book's pages that depend on the repository's address: {{ get_code }} and {{ install }}."""
    address = config.html_theme_options.get("repository_url", "")
    folder = address.rstrip("/").rsplit("/", 1)[-1].removesuffix(".git")
    clone = (
        f"git clone {address}\ncd {folder}\n"
        if address
        else "cd flow-priors   # your copy of the book's repository\n"
    )
    config.myst_substitutions = {
        "get_code": f"```sh\n{clone}make book   # the site, from the stored notebooks\nmake lab    # the chapters in JupyterLab\n```",
        "install": install_line(address),
    }


def setup(app: Sphinx) -> dict[str, Any]:
    """Register what runs before and after the build."""
    app.connect("config-inited", substitutions)
    app.connect("build-finished", write)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
