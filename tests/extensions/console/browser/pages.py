"""`python pages.py URL AXE FOLDER PATH...`: every page, wide and narrow, light and dark."""

import sys

from seen import browsing, tell

folder, paths = sys.argv[3], sys.argv[4:]
wrong, weights = {}, {}
with browsing() as seen:
    for theme in ("light", "dark"):
        for width in (1100, 360):
            for path in paths:
                page, watch = seen.page(width, theme)
                page.goto(seen.url + path)
                page.wait_for_load_state("load")
                page.wait_for_timeout(300)
                name = f"{path} {theme} {width}"
                found = [*watch.wrong, *seen.wide(page)]
                for details in page.query_selector_all("details"):
                    details.evaluate("e => { e.open = true }")
                if (theme == "light") == (width == 1100):  # all of both themes and both widths
                    found += seen.axe(page)
                found += seen.wide(page)
                if found:
                    wrong[name] = found
                if folder != "-":
                    stem = path.strip("/").replace("/", "_").replace("?", "_")
                    seen.shoot(page, f"{folder}/{stem}-{theme}-{width}.png")
                page.context.close()
tell(wrong=wrong)
