"""The built site as files, and proof that each check can fail."""

from pathlib import Path

import pytest
import site_checks

FINE = (
    "<html><head><link rel=stylesheet href=a.css></head><body><article id=top><img src=a.png alt='A lighthouse'>"
    "<a href=#top>up</a> <a href=page.html#top>here</a> <a href=https://elsewhere.invalid>out</a>{}</article></body></html>"
)
BROKEN = {
    "nothing_from_elsewhere": "<script src='https://other.invalid/x.js'></script>",
    "parts_exist": "<img src='missing.png' alt='A face'>",
    "links_lead_somewhere": "<a href='page.html#nowhere'>lost</a>",
    "pictures_have_alt_text": "<img src='a.png' alt='../_images/a.png'>",
}


def small_site(folder: Path, extra: str) -> Path:
    """A site of one page."""
    (folder / "a.css").touch()
    (folder / "a.png").touch()
    (folder / "page.html").write_text(FINE.format(extra))
    return folder


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


def test_site_carries_its_own_mathjax(site: Path) -> None:
    assert (site / "_static" / "mathjax" / "tex-svg.js").stat().st_size > 1_000_000
