"""Sphinx extension: pages that need no network, weigh little, and raise no complaint in a browser's console.

MathJax and the icons travel with the site, without the parts that no page uses. Pictures that notebooks hold as text
become files, which a browser loads when they come into view. Fonts stand inside the scripts and styles that use them,
because some browsers load no font from the disk.
"""

import base64
import hashlib
import io
import re
import shutil
from collections.abc import Callable
from importlib.metadata import files
from pathlib import Path
from typing import Any

from fontTools import subset, ttLib
from PIL import Image
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

# The first loads the others; extensions of TeX (colour, cancel, ...) are fetched by pages that use them. The second is
# what a screen reader reads.
MATHJAX = (
    "startup.js",
    "a11y/assistive-mml.js",
    "core.js",
    "input/tex.js",
    "output/chtml.js",
    "output/chtml/fonts/tex.js",
)
WITH_FONTS = MATHJAX[-2:]
# For a page beside which the scripts lie.
MATHJAX_SETTINGS = {
    "loader": {"load": [name.removesuffix(".js") for name in MATHJAX[1:-1]]}
}
IMAGE = re.compile(r"<img\b[^>]*>")
DATA_URI = re.compile(r'src="data:image/([a-z]+)[^,"]*;base64,([^"]+)"')
ICON_RULE = re.compile(r'((?:\.fa-[\w-]+:+before,?)+)\{content:"\\([0-9a-f]+)"\}')
ICON_FONT = "vendor/fontawesome/webfonts/fa-solid-900"


def replaced(
    pattern: str, new: str | Callable[[re.Match[str]], str], text: str, where: str
) -> str:
    """`text` with every match replaced; an error when there is none, for then the theme is not the pinned one."""
    text, count = re.subn(pattern, new, text, flags=re.DOTALL)
    if not count:
        raise ExtensionError(
            f"{where}: {pattern!r} was not found; is the pinned theme installed (requirements.lock)?"
        )
    return text


def mathjax_wheel() -> Path:
    """The folder of MathJax inside the installed wheel, whose name is not an importable one."""
    for file in files("sphinx-mathjax-offline") or []:
        if file.name == MATHJAX[0]:
            return Path(str(file.locate())).parent
    raise ExtensionError(
        "MathJax is not in the installed sphinx-mathjax-offline; run: rm -rf .venv && make book"
    )


def data_uri(kind: str, content: bytes) -> str:
    """The content as an address."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def copy_mathjax(target: Path) -> None:
    """Write the scripts that formulas need, with their fonts inside; TeX's extensions lie beside them."""
    source = mathjax_wheel()
    fonts = source / "output/chtml/fonts/woff-v2"
    shutil.copytree(
        source / "input/tex/extensions",
        target / "input/tex/extensions",
        dirs_exist_ok=True,
    )
    for name in MATHJAX:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
    for name in WITH_FONTS:
        script = (target / name).read_text(encoding="utf-8")
        font = r"%%URL%%/(MathJax_[\w-]+\.woff)"
        script = replaced(
            font,
            lambda m: data_uri("font/woff", (fonts / m[1]).read_bytes()),
            script,
            name,
        )
        (target / name).write_text(script, encoding="utf-8")


def lean_icons(site: Path, pages: str) -> None:
    """Keep the icons that pages and styles use, inside the theme's style sheet, and drop those it does not use."""
    static = site / "_static"
    theme = static / "styles/pydata-sphinx-theme.css"
    style = theme.read_text(encoding="utf-8")
    scripts = "".join(
        p.read_text(encoding="utf-8")
        for p in static.rglob("*.js")
        if p.name != "fontawesome.js"
    )
    used = set(re.findall(r"fa-[\w-]+", pages + scripts))
    styles = ICON_RULE.sub(
        "", "".join(p.read_text(encoding="utf-8") for p in static.rglob("*.css"))
    )
    letters = {int(code, 16) for code in re.findall(r'"\\([ef][0-9a-f]{3})"', styles)}

    def keep(rule: re.Match[str]) -> str:
        if not used & set(re.findall(r"fa-[\w-]+", rule[1])):
            return ""
        letters.add(int(rule[2], 16))
        return rule[0]

    style = replaced(ICON_RULE.pattern, keep, style, "pydata-sphinx-theme.css")
    font = ttLib.TTFont(static / f"{ICON_FONT}.ttf")
    maker = subset.Subsetter()
    maker.populate(unicodes=letters)
    maker.subset(font)
    font.flavor = "woff"
    buffer = io.BytesIO()
    font.save(buffer)
    new = f'url({data_uri("font/woff", buffer.getvalue())}) format("woff")'
    old = r'url\([^)]*fa-solid-900\.woff2\) format\("woff2"\),url\([^)]*fa-solid-900\.ttf\) format\("truetype"\)'
    theme.write_text(
        replaced(old, new, style, "pydata-sphinx-theme.css"), encoding="utf-8"
    )


def lean_page(text: str, title: str) -> str:
    """A page without the theme's 1.5 MB of icons as script, and without the title that only paper showed, twice.

    The page that only leads to the first one names the book's icon, for which browsers else ask a server in vain.
    """
    if text.startswith('<meta http-equiv="Refresh"'):
        return f'<!doctype html>\n<title>{title}</title>\n<link rel="icon" href="_static/favicon.svg">\n{text}'
    text = re.sub(
        r'\s*<(?:script src|link rel="preload"[^>]* href)="[^"]*/fontawesome[^>]*>(?:</script>)?',
        "",
        text,
    )
    text = re.sub(
        r'(<div id="jb-print-docs-body"[^>]*>)\s*<h1>.*?</h1>',
        r"\1",
        text,
        flags=re.DOTALL,
    )
    return text


def finish(app: Sphinx, exception: Exception | None) -> None:
    """After all pages are written: put MathJax beside them, and take out what no reader needs."""
    if exception is not None or app.builder.format != "html":
        return
    site = Path(app.outdir)
    copy_mathjax(site / "_static/mathjax")
    texts = {page: page.read_text(encoding="utf-8") for page in site.rglob("*.html")}
    lean_icons(site, "".join(texts.values()))
    for page, text in texts.items():
        page.write_text(lean_page(text, app.config.html_title), encoding="utf-8")


def lazy(tag: str, store: Path, address: Callable[[str], str]) -> str:
    """An <img> whose picture is a file below `store` and loads when it comes into view."""
    inline = DATA_URI.search(tag)
    if inline and inline[1] in ("png", "webp", "jpeg", "gif"):
        content = base64.b64decode(inline[2])
        name = f"{hashlib.sha256(content).hexdigest()[:20]}.{inline[1]}"
        store.mkdir(parents=True, exist_ok=True)
        (store / name).write_bytes(content)
        size = (
            ""
            if " height=" in tag
            else ' width="{}" height="{}"'.format(*Image.open(io.BytesIO(content)).size)
        )
        tag = tag.replace(inline[0], f'src="{address(name)}"{size}')
    return (
        tag
        if " loading=" in tag
        else tag.replace("<img", '<img loading="lazy" decoding="async"', 1)
    )


def trim(
    app: Sphinx,
    pagename: str,
    templatename: str,
    context: dict[str, Any],
    doctree: object,
) -> None:
    """Before a page is written: pictures become files, and the front page's title stands once."""
    if "body" in context:
        store, pathto = Path(app.outdir) / "_images", context["pathto"]
        body = context["body"]
        context["body"] = IMAGE.sub(
            lambda m: lazy(m[0], store, lambda name: pathto(f"_images/{name}", 1)), body
        )
    if context.get("title") == context.get("docstitle"):
        context["docstitle"] = ""


def settings(app: Sphinx, config: Any) -> None:
    """Point the pages at the local MathJax."""
    config.mathjax_path = f"mathjax/{MATHJAX[0]}"
    config.mathjax3_config = {
        "loader": {"load": [name.removesuffix(".js") for name in MATHJAX[1:-1]]}
    }


def setup(app: Sphinx) -> dict[str, Any]:
    """Register what runs before, during and after the build."""
    app.connect("config-inited", settings)
    app.connect("html-page-context", trim)
    app.connect("build-finished", finish)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
