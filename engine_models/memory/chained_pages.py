"""KV pages named by the chain of their contents, shared while in use, and found again by whole pages and by parts of pages.

A full page's name follows from its tokens and the name of the page before it; a page that is not full has a name that nobody
else knows. Pages without users keep their contents. The one whose serial is oldest is taken first; the serial rises with every
page that is taken, and a page keeps the highest it was given. A page that was taken and not written gets its old identity back.

When a row begins to write a page, all pages that follow the same page are compared with its tokens, and the longest common
beginning of more than one token is copied. A row that completes a page which others use already goes over to theirs.

Source: behaviour of ExLlamaV2 0.3.2 (`exllamav2/generator/dynamic.py`: `CachePage`, `prefill`, `receive_sample`,
`allocate_pages`), checked step by step against recordings; see docs/engines/exllamav2.md.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from weakref import WeakValueDictionary

from engine_models.memory.radix import Content, Runs

PAGE_TOKENS = 256


class Name:
    """The name of a page, known to whoever refers to it; it is forgotten with the last of them."""

    __slots__ = ("__weakref__",)


START = Name()
"""The name before the first page of a sequence."""


Place = tuple[Name, int, int]
"""Where pages are looked for: the name before them, and segment and offset of their first token."""


class Page:
    """One page: its name and that of the page before it, its users, and the tokens in it.

    The tokens are the first `filled` of `content` from `begin` on. `old` is the identity that it gets back if it is not written.
    """

    __slots__ = ("before", "begin", "content", "entry", "filled", "name", "old", "place", "serial", "users")

    def __init__(self, serial: int) -> None:
        self.name = Name()
        self.before = START
        self.users = 0
        self.serial = serial
        self.filled = 0
        self.content: Content | None = None
        self.begin = 0
        self.old: tuple[Name, Name, int, int] | None = None
        self.entry = 0
        self.place: Place | None = None


class ChainedPages:
    """The pages of one cache."""

    def __init__(self, pages: int) -> None:
        self.capacity_blocks = pages
        self._chains: WeakValueDictionary[tuple[Name, Runs], Name] = WeakValueDictionary()
        self._used: dict[Name, Page] = {}
        self._free: dict[Name, Page] = {}
        self._oldest: list[
            tuple[int, int, Page]
        ] = []  # serial, entry, page; stale where the page was taken since
        self._entries = 0
        self._places: dict[Place, dict[Page, None]] = {}
        self._serial = 0
        for serial in range(pages):
            self._set_free(Page(serial))
        self._serial = pages

    @property
    def free_blocks(self) -> int:
        """Pages without users."""
        return len(self._free)

    @property
    def used_blocks(self) -> int:
        """Pages with users."""
        return len(self._used)

    # -- names ----------------------------------------------------------------------------------------------

    def _chain(self, before: Name, content: Content, page: int) -> Name:
        """Name of a full page of a content behind the page named `before`."""
        key = before, content.slice(page * PAGE_TOKENS, (page + 1) * PAGE_TOKENS)
        name = self._chains.get(key)
        if name is None:
            name = self._chains[key] = Name()
        return name

    def names(self, content: Content, pages: int) -> list[Name]:
        """Names of the first full pages of a content."""
        found: list[Name] = []
        name = START
        for page in range(pages):
            name = self._chain(name, content, page)
            found.append(name)
        return found

    # -- users ----------------------------------------------------------------------------------------------

    def missing(self, names: Iterable[Name]) -> int:
        """How many of these pages nobody uses."""
        used = self._used
        return sum(name not in used for name in names)

    def take(self, names: Iterable[Name], more: int) -> list[Page]:
        """Give a row the pages of these names, found or new, and `more` others; there must be as many without users."""
        pages = []
        for name in names:
            self._serial += 1
            page = self._used.get(name) or self._free.get(name)
            if page is not None:
                self._use(page, self._serial)
            else:
                page = self._take_oldest(name)
                page.before, page.filled, page.old = START, 0, None
                self._note(page)
            pages.append(page)
        for _ in range(more):
            self._serial += 1
            oldest = self._take_oldest(None)
            oldest.before, oldest.filled = START, 0
            self._note(oldest)
            pages.append(oldest)
        return pages

    def _use(self, page: Page, serial: int) -> None:
        if not page.users:
            del self._free[page.name]
            self._used[page.name] = page
        page.users += 1
        page.serial = max(serial, page.serial)
        page.old = None

    def _take_oldest(self, name: Name | None) -> Page:
        """Take the oldest page without users for a name, or for one that nobody knows; then its identity is kept."""
        oldest = self._oldest
        while True:
            _, entry, page = heapq.heappop(oldest)
            if not page.users and page.entry == entry:
                break
        del self._free[page.name]
        if name is None:
            page.old = page.name, page.before, page.serial, page.filled
            name = Name()
        page.name = name
        self._used[name] = page
        page.users = 1
        page.serial = self._serial
        return page

    def release(self, pages: Iterable[Page]) -> None:
        """Take a row's pages back."""
        for page in pages:
            self._let_go(page)

    def _let_go(self, page: Page) -> None:
        page.users -= 1
        if page.users:
            return
        del self._used[page.name]
        if page.old is not None:
            page.name, page.before, page.serial, page.filled = page.old
            page.old = None
        if page.name in self._used or page.name in self._free:
            page.name, page.before = Name(), START
        self._set_free(page)
        self._note(page)

    def _set_free(self, page: Page) -> None:
        self._free[page.name] = page
        self._entries += 1
        page.entry = self._entries
        heapq.heappush(self._oldest, (page.serial, page.entry, page))

    # -- contents -------------------------------------------------------------------------------------------

    def _note(self, page: Page) -> None:
        """Enter a page where it is looked for."""
        place = None
        if page.filled and page.content is not None:
            segment, offset, _ = page.content.slice(page.begin, page.begin + 1)[0]
            place = page.before, segment, offset
        if place == page.place:
            return
        if page.place is not None:
            found = self._places[page.place]
            del found[page]
            if not found:
                del self._places[page.place]
        if place is not None:
            self._places.setdefault(place, {})[page] = None
        page.place = place

    def write(self, pages: list[Page], number: int, content: Content, filled: int) -> None:
        """A row's page holds the first `filled` of its tokens."""
        page = pages[number]
        page.content, page.begin, page.filled, page.old = content, number * PAGE_TOKENS, filled, None
        self._note(page)

    def follow(self, pages: list[Page], number: int) -> None:
        """A row's page follows the one before it."""
        page = pages[number]
        page.before = pages[number - 1].name if number else START
        page.old = None
        self._note(page)

    def match(self, pages: list[Page], number: int, content: Content, end: int) -> int:
        """Tokens of a content from this page on, short of `end`, that another page behind the same one begins with."""
        begin = number * PAGE_TOKENS
        before = pages[number - 1].name if number else START
        segment, offset, _ = content.slice(begin, begin + 1)[0]
        best = 0
        for page in self._places.get((before, segment, offset), ()):
            if page is pages[number] or page.content is None:
                continue
            known = page.content.slice(page.begin, page.begin + page.filled)
            best = max(best, content.common(begin, min(end, begin + page.filled), known))
        return best

    def complete(self, pages: list[Page], number: int, content: Content) -> None:
        """A row has filled a page by itself: it is named, or given up for one of that name which is in use."""
        self.write(pages, number, content, PAGE_TOKENS)
        page = pages[number]
        name = self._chain(pages[number - 1].name if number else START, content, number)
        other = self._used.get(name)
        if other is not None:
            serial = page.serial
            self._let_go(page)
            pages[number] = other
            self._use(other, serial)
        else:
            if name in self._free:
                self._forget(self._free[name])
            del self._used[page.name]
            page.name = name
            self._used[name] = page
        self.follow(pages, number + 1)

    def _forget(self, page: Page) -> None:
        """Clear a page without users."""
        del self._free[page.name]
        page.name, page.before, page.filled, page.old = Name(), START, 0, None
        self._set_free(page)
        self._note(page)
