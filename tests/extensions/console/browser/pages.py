"""`python pages.py URL AXE FOLDER PATH...`: every page, wide and narrow, light and dark.

FOLDER is for pictures; -: none.
"""

import sys

from seen import browsing, tell

MOST_BYTES, MOST_HIGH = 160_000, 2500  # of a page; pixels of it on a phone
WEIGHT = """() => [...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]
  .filter((one) => !one.name.endsWith('.png'))
  .reduce((sum, one) => sum + one.decodedBodySize, 0)"""
folder, paths = sys.argv[3], sys.argv[4:]
wrong = {}
with browsing() as seen:
    for theme in ("light", "dark"):
        for width in (1280, 390):
            for path in paths:
                page, watch = seen.page(width, theme)
                page.goto(seen.url + path)
                page.wait_for_load_state("load")
                page.wait_for_timeout(300)
                name = f"{path} {theme} {width}"
                found = [*watch.wrong, *seen.wide(page)]
                if (weight := page.evaluate(WEIGHT)) > MOST_BYTES:
                    found.append(f"{weight} bytes")
                high = page.evaluate("document.documentElement.scrollHeight")
                if width == 390 and high > MOST_HIGH and "/experiments/" not in path:
                    found.append(f"{high} pixels high")
                if folder != "-":
                    stem = path.strip("/").replace("/", "_").replace("?", "_")
                    seen.shoot(page, f"{folder}/{stem}-{theme}-{width}.png")
                for details in page.query_selector_all("details"):
                    details.evaluate("e => { e.open = true }")
                if (theme == "light") == (width == 1280):  # all of both themes and both widths
                    found += seen.axe(page)
                found += seen.wide(page)
                if found:
                    wrong[name] = found
                page.context.close()
tell(wrong=wrong)
