"""links.py SITE: does each link of a built site lead to a page, a heading or a file of it?"""
import html.parser
import pathlib
import sys
import urllib.parse


class Page(html.parser.HTMLParser):
    """The links and the places of a page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.places = [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.places.update(value for name, value in attrs.items() if name in ("id", "name") and value)
        for name in ("href", "src"):
            if attrs.get(name):
                self.links.append(attrs[name])


def main():
    site = pathlib.Path(sys.argv[1]).resolve()
    # The page that prints all pages repeats their links, with places of its own; the list of contents is in a frame of its own.
    pages = {path: Page(path) for path in site.rglob("*.html") if path.name not in ("print.html", "404.html")}
    problems, checked, outside = [], 0, set()
    for path, page in pages.items():
        for link in page.links:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or parts.netloc:
                outside.add(link)
                if parts.scheme not in ("https", "mailto"):
                    problems.append(f"{path.relative_to(site)}: {link} is neither https nor a page of the site")
                continue
            checked += 1
            target = (path.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            if not target.is_relative_to(site) or not target.exists():
                problems.append(f"{path.relative_to(site)}: {link} leads nowhere")
            elif parts.fragment and target in pages and urllib.parse.unquote(parts.fragment) not in pages[target].places:
                problems.append(f"{path.relative_to(site)}: {link}: the page has no such heading")
    for problem in problems:
        print("docs:", problem, file=sys.stderr)
    if problems or checked < 1000:
        sys.exit(1)
    print(f"docs: {len(pages)} pages, {checked} links within the site lead somewhere; {len(outside)} lead outside and were not followed")


main()
