"""Checks of a page's structure, by the standard parser: what a browser and a screen reader rely on."""

from __future__ import annotations

from collections import Counter
from html.parser import HTMLParser

VOID = {"meta", "br", "line", "circle", "polyline"}  # elements that are never closed; shapes close themselves


class Page(HTMLParser):
    """A page's elements in order, and its texts by the element that they stand in.

    Raises:
        AssertionError: an element is closed that is not the innermost, or never.
    """

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], tuple[str, ...]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), attrs
        self.elements.append((tag, dict(attrs), tuple(self._open)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), tuple(self._open)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts.setdefault(self._open[-1], []).append(data)

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes, _ in self.elements if name == tag]


def check_page(source: str) -> Page:
    """The page, whose structure holds what a reader without eyes, mouse or network needs."""
    assert source.startswith('<!DOCTYPE html>\n<html lang="en">')
    page = Page(source)
    counts = Counter(tag for tag, _, _ in page.elements)
    assert counts["h1"] == counts["title"] == counts["main"] == 1
    assert not counts["script"]
    assert not counts["link"]
    assert not counts["img"]
    assert counts["caption"] == counts["table"]
    assert all("scope" in attributes for attributes in page.attributes("th"))
    regions = [attributes for attributes in page.attributes("div") if attributes.get("class") == "wide"]
    assert len(regions) == counts["table"]
    assert all(attributes["tabindex"] == "0" and attributes["aria-label"] for attributes in regions)
    for attributes in page.attributes("svg"):
        assert attributes.get("aria-hidden") == "true" or (attributes["role"] == "img" and attributes["aria-label"])
    assert counts["summary"] == counts["details"]
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    links = [str(attributes["href"]) for attributes in page.attributes("a")]
    assert links == [f"#{name}" for name in ids]
    named = [attributes.get("aria-labelledby") for attributes in page.attributes("section")]
    assert named == ids
    for _, attributes, _ in page.elements:  # nothing is fetched, and nothing runs
        assert not {"src", "onclick", "onload", "onerror", "action"} & attributes.keys()
    assert "@import" not in source
    assert "url(" not in source
    return page
