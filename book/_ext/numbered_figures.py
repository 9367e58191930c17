"""Sphinx extension: what `companion.show` puts on a page becomes a numbered figure or table that text can refer to.

An output whose HTML is `<figure class="companion-…" id="NAME">…<figcaption>…</figcaption>
</figure>`, and perhaps a script, turns into a Sphinx figure (a table where the class is
companion-table) with the target NAME, for {numref}`NAME` and #NAME. Without an id the target
is `fig-<page>-<n>`. An output without a caption stays what it was, and has no number.
"""

import html
import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

FIGURE = re.compile(
    r'\s*<figure class="(companion-[\w-]+)"([^>]*)>(.*)</figure>(.*)', re.DOTALL
)
WIDTH = re.compile(r'<img\b[^>]*? width="(\d+)"')
WIDE = 520  # pixels
CAPTION = re.compile(r"<figcaption[^>]*>(.*?)</figcaption>", re.DOTALL)


class table_figure(nodes.figure):
    """A figure that is counted among the tables."""


def numbered(source: str, default_name: str) -> nodes.figure | None:
    """The figure node of an output's HTML; None when it is no captioned figure of `companion.show`."""
    whole = FIGURE.fullmatch(source)
    caption = CAPTION.search(whole[3]) if whole else None
    if whole is None or caption is None:
        return None
    named = re.search(r'\bid="([^"]+)"', whole[2])
    figure = (table_figure if whole[1] == "companion-table" else nodes.figure)(
        classes=[whole[1]]
    )
    figure["names"] = [nodes.fully_normalize_name(named[1] if named else default_name)]
    body = CAPTION.sub("", whole[3])
    drawn = WIDTH.search(body)
    if whole[1] == "companion-figure" and drawn and int(drawn[1]) > WIDE:
        # On a phone it scrolls in this box: shrunk to the page, its labels could not be read (book.css).
        body = f'<div class="companion-wide" style="--drawn:{drawn[1]}px">{body}</div>'
    content = nodes.raw("", body + whole[4], format="html")
    text = nodes.caption("", html.unescape(re.sub(r"<[^>]+>", "", caption[1])))
    figure += [text, content] if isinstance(figure, table_figure) else [content, text]
    return figure


class NumberFigures(SphinxTransform):
    """Replace the outputs before Sphinx collects labels and counts figures."""

    default_priority = 700

    def apply(self, **kwargs: Any) -> None:
        """Run the transform on one page."""
        page = self.env.docname.rsplit("/", 1)[-1]
        count = 0
        for bundle in list(self.document.findall(nodes.container)):
            if bundle.get("nb_element") != "mime_bundle":
                continue
            sources = [
                kind[0].astext()
                for kind in bundle.children
                if kind["mime_type"] == "text/html"
            ]
            figure = (
                numbered(sources[0], f"fig-{page}-{count + 1}") if sources else None
            )
            if figure is not None:
                count += 1
                figure.source, figure.line = bundle.source, bundle.line
                self.document.note_explicit_target(figure, figure)
                bundle.replace_self(figure)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the transform, and the tables as a kind that Sphinx numbers."""
    app.add_transform(NumberFigures)

    def visit(self: Any, node: nodes.Node) -> None:
        self.visit_figure(node)

    def depart(self: Any, node: nodes.Node) -> None:
        self.depart_figure(node)

    app.add_enumerable_node(
        table_figure, "table", html=(visit, depart), latex=(visit, depart)
    )
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
