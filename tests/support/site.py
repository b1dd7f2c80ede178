"""What a built site would load: of each page, and of each style sheet."""

import re
from html.parser import HTMLParser

# tags whose address is fetched when the page is shown; a link in the text is not
_FETCHED = {
    "script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src",
    "audio": "src", "embed": "src", "object": "data", "input": "src",
}  # fmt: skip
_NOT_FETCHED = {"canonical", "author", "license", "help", "search", "index", "next", "prev"}
_ELSEWHERE = re.compile(r"^(?:[a-z]+:)?//", flags=re.IGNORECASE)


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        values = {key: value or "" for key, value in attrs}
        if tag == "link" and not set(values.get("rel", "").split()) & _NOT_FETCHED:
            self.found.append(values.get("href", ""))
        if tag in _FETCHED:
            self.found.append(values.get(_FETCHED[tag], ""))
        self.found += [part.split()[0] for part in values.get("srcset", "").split(",") if part]
        self.found += in_style(values.get("style", ""))

    def handle_data(self, data):
        if self.lasttag == "style":
            self.found += in_style(data)


def in_style(text):
    """Addresses that a style sheet loads."""
    return re.findall(r"""(?:url\(|@import\s+(?!url))\s*["']?([^"')]+)""", text)


def loaded_from_elsewhere(path):
    """Addresses outside of the site that a page or a style sheet loads."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".css":
        found = in_style(text)
    else:
        page = _Page()
        page.feed(text)
        found = page.found
    return [address for address in found if _ELSEWHERE.match(address)]
