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
    """What each column of the last turn says of itself."""
    found = []
    for card in page.query_selector_all(".turn:last-child .columns article"):
        answer = card.query_selector(".answer")
        code = card.query_selector("dd code")
        found.append(
            {
                "from": card.query_selector(".from").inner_text(),
                "digest": code.text_content() if code else "",
                "badge": card.query_selector("[data-state]").inner_text(),
                "answer": answer.inner_text() if answer.is_visible() else "",
                "busy": answer.get_attribute("aria-busy"),
                "votes": len(card.query_selector_all("tbody tr")),
                "bars": len(card.query_selector_all(".score svg")),
                "folded": not card.query_selector(".folds table:visible"),
                "numbers": card.query_selector("p.num").inner_text(),
                "notices": [one.inner_text() for one in card.query_selector_all(".notice")],
                "buttons": [one.inner_text() for one in card.query_selector_all("button:visible")],
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
    for fold in ("Decision and votes", "Should have been another adapter"):
        page.locator("summary", has_text=fold).click()
    said["axe"] += seen.axe(page)
    page.get_by_label("Which adapter should have answered").fill("legal")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('article [role=status]').textContent !== ''")
    said["corrected"] = page.inner_text("article [role=status]")
    page.locator("[aria-label='Good answer']").click()
    until(
        page,
        "document.querySelector('article [role=status]').textContent !== corrected".replace(
            "corrected", repr(said["corrected"])
        ),
    )
    said["good"] = page.inner_text("article [role=status]")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("article button", has_text="Copy").first.click()
    until(page, "document.querySelector('article button').textContent === 'Copied'")
    said["copied"] = page.evaluate("navigator.clipboard.readText()")

    asked(page, "and in one word?")
    page.click("#go")
    ended(page)
    said["second"] = columns(page)
    said["turns"] = page.locator(".turn").count()
    asked(page, "a legal question")
    page.click("#decide")
    ended(page, "Decided")
    said["decided"] = columns(page)
    page.click("#clear")
    said["cleared"] = page.locator(".turn").count()

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
    until(page, "document.querySelector('.turn:last-child .answer').textContent.length > 40")
    live = page.inner_text(".turn:last-child p.num")
    page.click("#stop")
    ended(page, "Stopped")
    said["stopped"] = [columns(page)[0], live]

    page.locator("#options summary").click()
    page.fill("#temperature", "warm")
    page.select_option("#shape", "regex")
    page.locator("#options summary").click()
    asked(page, "one")
    turns = page.locator(".turn").count()
    page.click("#go")
    ended(page, "Not sent")
    said["wrong_field"] = [
        page.inner_text("#temperature-error"),
        page.evaluate("document.activeElement.id"),
        page.input_value("#text"),
        page.get_attribute("#temperature", "aria-invalid"),
        page.inner_text("#shape_text-error"),
        page.locator(".turn").count() == turns,
    ]
    page.fill("#temperature", "")
    page.select_option("#shape", "")
    asked(page, "x", model="nobody")
    page.click("#go")
    until(page, "!document.getElementById('model-error').hidden")
    said["nobody"] = page.inner_text("#model-error")
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

    narrow, watching = seen.page(390, "dark")
    narrow.goto(f"{seen.url}/console/playground?text=medical&model=auto")
    narrow.click("#go")
    ended(narrow)
    said["narrow"] = [*seen.wide(narrow), *watching.wrong, *seen.axe(narrow)]
    box = narrow.locator(".answer").bounding_box()
    said["in_sight"] = [box["y"] > 0, box["y"] + box["height"] < 800]
    picture(seen, narrow, "narrow")

    plain, watching = seen.page(java_script_enabled=False)
    plain.goto(f"{seen.url}/console/playground?text=medical")
    said["plain"] = plain.inner_text("main")
    tell(**said)
