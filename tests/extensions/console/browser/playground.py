"""`python playground.py URL AXE FOLDER`: ask, decide, compare, stop, correct, a stream that is cut.

FOLDER is for pictures; -: none.
"""

import sys

from seen import browsing, tell, until

folder = sys.argv[3]
EVIL = 'medical <script>alert(1)</script> <img src=x onerror="alert(2)"> </textarea>'


def asked(page, text, **fields):
    page.fill("#text", text)
    for name, value in fields.items():
        page.fill(f"#{name.replace('_', '-') if name.startswith('model') else name}", value)


def ended(page, words="Done"):
    until(page, f"document.getElementById('state').textContent.startsWith('{words}')")


def columns(page):
    """What each column says of itself."""
    found = []
    for card in page.query_selector_all("#columns article"):
        answer = card.query_selector(".answer")
        code = card.query_selector("dd code")
        found.append(
            {
                "asked": card.query_selector("h2").inner_text(),
                "who": card.query_selector("dd strong").inner_text()
                if card.query_selector("dd strong")
                else "",
                "digest": code.inner_text() if code else "",
                "badge": card.query_selector(".badge").inner_text(),
                "answer": answer.inner_text() if answer.is_visible() else "",
                "busy": answer.get_attribute("aria-busy"),
                "votes": len(card.query_selector_all("tbody tr")),
                "bars": len(card.query_selector_all(".score svg")),
                "numbers": card.query_selector("p.num").inner_text(),
                "notices": [one.inner_text() for one in card.query_selector_all(".notice")],
            }
        )
    return found


def picture(seen, page, name):
    if folder != "-":
        seen.shoot(page, f"{folder}/playground-{name}.png")


with browsing() as seen:
    said = {}
    page, watch = seen.page()
    page.goto(f"{seen.url}/console/playground")

    asked(page, EVIL)
    page.keyboard.press("Control+Enter")
    ended(page)
    said["one"] = columns(page)
    said["axe"] = seen.axe(page)
    picture(seen, page, "one")
    page.locator("article button", has_text="Correct").locator("xpath=../input").fill("legal")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('article [role=status]').textContent !== ''")
    said["corrected"] = page.inner_text("article [role=status]")
    page.locator("[aria-label='Good answer']").click()
    until(page, "!document.querySelector('article [role=status]').textContent.startsWith('Kept')")
    said["thumb"] = page.inner_text("article [role=status]")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("article button", has_text="Copy").click()
    until(page, "document.querySelector('article .feedback button').textContent === 'Copied'")
    said["copied"] = page.evaluate("navigator.clipboard.readText()")

    page.click("#decide")
    ended(page, "Decided")
    said["decided"] = columns(page)

    for _ in range(3):
        page.click("#compare")
    asked(
        page,
        "one two three",
        model="medical",
        **{"model_2": "medical@1.1.0", "model_3": "base", "model_4": "legal"},
    )
    page.click("#go")
    ended(page)
    said["many"], said["state"] = columns(page), page.inner_text("#state")
    said["axe_many"], said["wide"] = seen.axe(page), seen.wide(page)
    picture(seen, page, "many")

    for _ in range(3):
        page.click("#fewer")
    asked(page, "one " * 900, model="base")
    page.click("#go")
    until(page, "document.querySelector('article .answer').textContent.length > 40")
    live = page.inner_text("article p.num")
    page.click("#stop")
    ended(page, "Stopped")
    said["stopped"] = [columns(page)[0], live]

    page.fill("#temperature", "warm")
    page.click("#go")
    until(page, "!document.getElementById('temperature-error').hidden")
    said["wrong_field"] = [
        page.inner_text("#temperature-error"),
        page.evaluate("document.activeElement.id"),
        page.input_value("#text")[:4],
        page.get_attribute("#temperature", "aria-invalid"),
    ]
    page.fill("#temperature", "")
    asked(page, "x", model="nobody")
    page.click("#go")
    until(page, "document.querySelector('#form-error').textContent !== ''")
    said["nobody"] = page.inner_text("#form-error")
    said["complaints"] = [one for one in watch.wrong if "Failed to load resource" not in one]

    page.route(
        "**/playground/stream",
        lambda route: route.fulfill(
            status=200,
            content_type="text/event-stream",
            body='event: delta\ndata: {"text": "half", "tokens": 1}\n\nevent: del',
        ),
    )
    asked(page, "x", model="auto")
    page.click("#go")
    ended(page)
    said["cut"] = columns(page)[0]
    page.unroute("**/playground/stream")

    narrow, watching = seen.page(360, "dark")
    narrow.goto(f"{seen.url}/console/playground?text=medical&model=auto")
    narrow.click("#go")
    ended(narrow)
    said["narrow"] = [*seen.wide(narrow), *watching.wrong, *seen.axe(narrow)]
    picture(seen, narrow, "narrow")
    tell(**said)
