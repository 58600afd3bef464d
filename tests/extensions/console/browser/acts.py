"""`python acts.py URL AXE ADMIN OBSERVER`: signing in, every action by keyboard, and without a script."""

import sys

from seen import browsing, tell

admin, observer = sys.argv[3:5]
VERSION = "/console/adapters/medical/1.0.0"


def sign_in(page, seen, token):
    page.goto(f"{seen.url}/console/adapters")
    page.fill("#token", token)
    page.keyboard.press("Enter")
    page.wait_for_selector("main table")


def by_keyboard(page, title):
    """Reach the button by Tab, open its dialog, confirm there; what the page says then."""
    page.goto(page.url.partition("?")[0])
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent.trim()") == title:
            break
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open]")
    inside = page.evaluate("document.activeElement.closest('dialog') !== null")
    found = seen_by_axe.extend(seen.axe(page)) or inside
    page.locator("dialog button").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".notice.ok")
    return [found, page.inner_text(".notice.ok")]


with browsing() as seen:
    seen_by_axe, done, plain = [], {}, {}
    page, watch = seen.page()
    page.goto(f"{seen.url}/console")
    wrong_first = [one for one in watch.wrong if "401" not in one]
    watch.wrong.clear()  # the browser itself notes the 401
    page.fill("#token", "lrk_nobody_wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector(".notice.bad")
    refused = page.inner_text(".notice.bad")
    watch.wrong.clear()
    sign_in(page, seen, admin)
    watch.wrong.clear()
    who = page.inner_text(".who")
    readable = page.evaluate("document.cookie")

    page.goto(seen.url + VERSION)
    for title in ("Load", "Pin", "Unpin", "Unload", "Automatic default"):
        done[title] = by_keyboard(page, title)
    page.goto(f"{seen.url}/console/adapters/medical/1.1.0")
    done["Make default"] = by_keyboard(page, "Make default")
    page.goto(seen.url + VERSION)
    page.locator("a", has_text="Roll back to it").click()
    page.wait_for_selector("dialog[open]")
    page.keyboard.press("Escape")
    escaped = page.locator("dialog[open]").count() == 0
    page.locator("a", has_text="Roll back to it").click()
    page.wait_for_selector("dialog[open]")
    page.locator("dialog a", has_text="Cancel").click()
    cancelled = page.locator("dialog[open]").count() == 0
    wrong = [*wrong_first, *watch.wrong]
    page.locator("button", has_text="Sign out").click()
    page.wait_for_selector("#token")
    page.goto(f"{seen.url}/console/adapters")
    away = page.locator("#token").count() == 1

    page, watch = seen.page(java_script_enabled=False)
    sign_in(page, seen, admin)
    for title in ("Load", "Pin", "Unload"):
        page.goto(seen.url + VERSION)
        page.locator("a.button", has_text=title).first.click()
        page.locator("main button").click()
        plain[title] = page.inner_text(".notice.ok")

    page, watch = seen.page()
    sign_in(page, seen, observer)
    watch.wrong.clear()
    page.goto(seen.url + VERSION)
    off = page.locator("main button:disabled").count()
    reason = page.inner_text("[aria-label='Actions']")
    links = page.locator("a[data-dialog]").count()
    nav = page.locator("nav a").all_inner_texts()
    tell(
        wrong=[*wrong, *watch.wrong],
        axe=seen_by_axe,
        refused=refused,
        who=who,
        readable=readable,
        done=done,
        escaped=escaped,
        cancelled=cancelled,
        away=away,
        plain=plain,
        observer=[off, reason, links, nav],
    )
