"""The built site as files, and proof that each check can fail."""

from pathlib import Path

import pytest
import site_checks

FINE = (
    "<html><head><link rel=stylesheet href=a.css></head><body><article id=top>"
    "<img src=a.png alt='A lighthouse' loading=lazy>"
    "<a href=#top>up</a> <a href=page.html#top>here</a> <a href=https://elsewhere.invalid>out</a>{}</article></body></html>"
)
BROKEN = {
    "nothing_from_elsewhere": "<script src='https://other.invalid/x.js'></script>",
    "parts_exist": "<img src='missing.png' alt='A face' loading=lazy>",
    "links_lead_somewhere": "<a href='page.html#nowhere'>lost</a>",
    "pictures_have_alt_text": "<img src='a.png' alt='../_images/a.png' loading=lazy>",
    "pictures_are_lazy_files": "<img src='a.png' alt='A face'>",
    "one_title": "<h1>One</h1><h1>Two</h1>",
    "figures_are_numbered": "<figure class=companion-figure id=fig-a><figcaption>A face</figcaption></figure>",
}


def small_site(folder: Path, extra: str) -> Path:
    """A site of one page."""
    (folder / "a.css").touch()
    (folder / "a.png").touch()
    (folder / "page.html").write_text(FINE.format(extra))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("check", site_checks.CHECKS, ids=lambda check: check.__name__)
def test_site(check: site_checks.Callable[[Path], list[str]], site: Path) -> None:
    assert check(site) == []


@pytest.mark.parametrize("check", site_checks.CHECKS, ids=lambda check: check.__name__)
def test_site_check_can_fail(check: site_checks.Callable[[Path], list[str]], tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    assert check(small_site(tmp_path / "good", "")) == []
    (tmp_path / "bad").mkdir()
    assert len(check(small_site(tmp_path / "bad", BROKEN[check.__name__]))) == 1


@pytest.mark.parametrize(
    "extra", ["<link rel=icon href=//cdn.invalid/i.png>", "<style>@import url(https://f.invalid/a)</style>"]
)
def test_hidden_requests_are_found(extra: str, tmp_path: Path) -> None:
    assert len(site_checks.nothing_from_elsewhere(small_site(tmp_path, extra))) == 1


def test_a_link_to_a_missing_page_is_found(tmp_path: Path) -> None:
    assert len(site_checks.links_lead_somewhere(small_site(tmp_path, "<a href=gone.html>gone</a>"))) == 1


def test_a_title_said_twice_and_a_picture_inside_the_page_are_found(tmp_path: Path) -> None:
    small_site(
        tmp_path, "<title>Book \u2014 Book</title><img alt='A face' loading=lazy src='data:image/png;base64,AAAA'>"
    )
    assert len(site_checks.one_title(tmp_path)) == 1
    assert len(site_checks.pictures_are_lazy_files(tmp_path)) == 1


def test_site_carries_its_own_mathjax_with_its_fonts(site: Path) -> None:
    folder = site / "_static" / "mathjax"
    scripts = [path.read_text(encoding="utf-8") for path in folder.rglob("*.js")]
    assert (folder / "startup.js").is_file()
    assert not any(".woff" in script for script in scripts)
    assert sum(script.count("data:font/woff;base64,") for script in scripts) > 20
