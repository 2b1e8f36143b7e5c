"""The README and the book say nothing that is not there. Their examples run by `conftest.py`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import wiredactors as wa
from wiredactors import testing

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
REFERENCE = (ROOT / "docs" / "reference.md").read_text()
EVENTS = (ROOT / "docs" / "guides" / "events.md").read_text()

_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
#: A file of this repository, named in backquotes.
_PATH = re.compile(r"`((?:wiredactors|tests|scenarios|docs)/[\w/.-]+)`")
_HEADING = re.compile(r"^#+ +(.+?)\s*$", re.MULTILINE)


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = _HEADING.findall(_without_code(page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in _LINK.findall(_without_code(page.read_text())):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{_name(page)} links to {target}"
        if anchor:
            assert anchor in _anchors(found), f"{_name(page)} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_file_that_is_named_exists(page: Path) -> None:
    missing = [path for path in _PATH.findall(page.read_text()) if not (ROOT / path).exists()]
    assert not missing, f"{_name(page)} names {missing}"


def test_every_page_of_the_book_is_in_its_index() -> None:
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / target).resolve() for target in _LINK.findall(index.read_text())}
    missing = [_name(page) for page in PAGES if page not in linked and page != index]
    assert not missing


@pytest.mark.parametrize("name", wa.__all__)
def test_every_public_name_is_in_the_reference(name: str) -> None:
    assert re.search(rf"`{name}\b", REFERENCE)


@pytest.mark.parametrize("name", testing.__all__)
def test_every_fake_for_users_tests_is_in_the_reference(name: str) -> None:
    assert re.search(rf"`{name}\b", REFERENCE)


@pytest.mark.parametrize("kind", wa.EventKind, ids=str)
def test_every_kind_of_event_is_in_the_guide(kind: wa.EventKind) -> None:
    assert f"| `{kind}` |" in EVENTS


def test_every_field_of_the_configuration_is_in_the_reference() -> None:
    fields = wa.WiredMemoryConfiguration.__annotations__
    assert [name for name in fields if f"`{name}`" not in REFERENCE] == []
