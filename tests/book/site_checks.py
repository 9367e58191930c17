"""What the built pages must keep, read as files. Each check takes the site's folder and returns its faults."""

import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup

FETCHING = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "video": "src",
    "source": "src",
    "audio": "src",
    "embed": "src",
}


@cache
def soup(page: Path) -> BeautifulSoup:
    """The parsed page."""
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


@cache
def anchors(page: Path) -> set[str]:
    """The ids of a page's elements."""
    return {found["id"] for found in soup(page).find_all(id=True)}


def html_pages(site: Path) -> list[Path]:
    """All pages of the site; those under _static belong to the theme."""
    return sorted(p for p in site.rglob("*.html") if "_static" not in p.relative_to(site).parts)


def fetched(page: Path) -> Iterator[str]:
    """Addresses that a browser asks for when it opens the page, before any script runs."""
    for tag, attribute in FETCHING.items():
        yield from (found[attribute] for found in soup(page).find_all(tag) if found.get(attribute))
    for link in soup(page).find_all("link", href=True):
        if {"stylesheet", "icon", "preload", "modulepreload"} & set(link.get("rel", [])):
            yield link["href"]
    for style in soup(page).find_all("style"):
        yield from re.findall(r"""(?:@import\s+["']|url\(\s*["']?)([^"')\s]+)""", style.get_text())


def nothing_from_elsewhere(site: Path) -> list[str]:
    """No script, style, picture or frame comes from another host."""
    pairs = [(page, address) for page in html_pages(site) for address in fetched(page)]
    return [f"{p.relative_to(site)}: fetches {a}" for p, a in pairs if re.match(r"(?:https?:)?//", a)]


def parts_exist(site: Path) -> list[str]:
    """Every local script, style and picture is there."""
    faults = []
    for page in html_pages(site):
        for address in fetched(page):
            parts = urlsplit(address)
            if not parts.scheme and not parts.netloc and not (page.parent / unquote(parts.path)).is_file():
                faults.append(f"{page.relative_to(site)}: {address} is missing")
    return faults


def links_lead_somewhere(site: Path) -> list[str]:
    """Every internal link has its page, and every anchor its element."""
    faults = []
    for page in html_pages(site):
        for link in soup(page).find_all("a", href=True):
            parts = urlsplit(link["href"])
            if parts.scheme or parts.netloc or link["href"] == "#":
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if not target.is_file():
                faults.append(f"{page.relative_to(site)}: no page for the link {link['href']}")
            elif parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in anchors(target):
                faults.append(f"{page.relative_to(site)}: no anchor for the link {link['href']}")
    return faults


def pictures_have_alt_text(site: Path) -> list[str]:
    """Every picture of an article has an alternative text that is not its file's name."""
    faults = []
    for page in html_pages(site):
        for image in soup(page).select("article img"):
            alt = (image.get("alt") or "").strip()
            if not alt or re.search(r"\.(png|jpe?g|svg|gif)$", alt):
                faults.append(f"{page.relative_to(site)}: alt text {alt!r} of {image.get('src', '')[:60]}")
    return faults


def pictures_are_lazy_files(site: Path) -> list[str]:
    """Every picture of an article is a file, loads when it comes into view, and keeps its place before."""
    faults = []
    for page in html_pages(site):
        for image in soup(page).select("article img"):
            where = f"{page.relative_to(site)}: {image['src'][:60]}"
            if image["src"].startswith("data:"):
                faults.append(f"{where} stands in the page")
            if image.get("loading") != "lazy":
                faults.append(f"{where} does not wait until it is seen")
    return faults


def one_title(site: Path) -> list[str]:
    """A page has one heading of the first level, and the browser's tab does not say a title twice."""
    faults = []
    for page in html_pages(site):
        headings = soup(page).find_all("h1")
        if len(headings) > 1:
            faults.append(f"{page.relative_to(site)}: {len(headings)} first-level headings")
        parts = soup(page).title.get_text().split(" \u2014 ") if soup(page).title else []
        if len(set(parts)) < len(parts):
            faults.append(f"{page.relative_to(site)}: titled {parts}")
    return faults


def figures_are_numbered(site: Path) -> list[str]:
    """Every figure of `companion.show` that has a caption has a number and a target."""
    return [
        f"{page.relative_to(site)}: no number for {figure.figcaption.get_text()[:60]!r}"
        for page in html_pages(site)
        for figure in soup(page).select('article figure[class*="companion-"]:has(figcaption)')
        if not figure.select(".caption-number") or not figure.get("id")
    ]


CHECKS: list[Callable[[Path], list[str]]] = [
    nothing_from_elsewhere,
    parts_exist,
    links_lead_somewhere,
    pictures_have_alt_text,
    pictures_are_lazy_files,
    one_title,
    figures_are_numbered,
]
