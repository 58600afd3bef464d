"""Chromium for the scripts here, watched: what it complains of, where it asks, what axe finds."""

import json
import sys
from contextlib import contextmanager

from playwright.sync_api import sync_playwright

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
WIDE = """() => ({
  most: document.documentElement.scrollWidth,
  who: [...document.querySelectorAll("main *, header *")]
    .filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".scroll, nav"))
    .slice(0, 3).map((e) => e.outerHTML.slice(0, 100)),
})"""


class Watch:
    """What one page did that it should not."""

    def __init__(self, page, origin):
        self.page, self.origin, self.wrong, self.asked = page, origin, [], []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        page.on("dialog", self._dialog)
        page.on("request", self._request)

    def _console(self, message):
        if message.type in ("error", "warning"):
            self.wrong.append(f"{message.type}: {message.text}")

    def _dialog(self, dialog):
        self.wrong.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _request(self, request):
        self.asked.append(request.url)
        if not request.url.startswith((self.origin, "data:", "blob:")):
            self.wrong.append(f"elsewhere: {request.url}")


class Seen:
    """A browser at one server. `axe` is the path of axe.min.js."""

    def __init__(self, browser, url, axe):
        self.browser, self.url = browser, url
        with open(axe) as file:
            self.axe_source = file.read()

    def page(self, width=1100, theme="light", **options):
        """A page of a context of its own, and its watch."""
        options = {"viewport": {"width": width, "height": 800}, "color_scheme": theme, **options}
        page = self.browser.new_context(**options).new_page()
        return page, Watch(page, self.url)

    def axe(self, page):
        """The rules that it breaks, with what breaks them."""
        page.evaluate(self.axe_source)
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        return [
            f"{one['id']}: {node['html'][:120]} {node['failureSummary'][:160]}"
            for one in found["violations"]
            for node in one["nodes"][:2]
        ]

    def wide(self, page):
        """What makes it scroll sideways."""
        found = page.evaluate(WIDE)
        return found["who"] or [f"{found['most']} px"] if found["most"] > page.viewport_size["width"] else []

    def shoot(self, page, path):
        """A picture of all of it."""
        page.screenshot(path=path, full_page=True)


def until(page, expression, seconds=30):
    """Wait until it is true. The page's own policy lets Playwright's way of waiting evaluate nothing."""
    for _ in range(seconds * 5):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(200)
    raise AssertionError(f"waited in vain for {expression}")


@contextmanager
def browsing():
    """Of the arguments URL AXE."""
    url, axe = sys.argv[1:3]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield Seen(browser, url, axe)
        browser.close()


def tell(**seen):
    """The last line that is printed is what the test reads."""
    print(json.dumps(seen))
