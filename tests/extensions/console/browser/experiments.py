"""`python experiments.py URL AXE`: a plan with errors, its life; a promotion and back; thresholds."""

from seen import browsing, tell, until

EVIL = '"><script>alert(1)</script>'
PLAN = {
    "name": "Tone",
    "route": "legal",
    "hypothesis": EVIL,
    "arms[0].adapter": "legal@2.0.0",
    "arms[1].adapter": "legal@9.0.0",
    "primary.name": "solved",
}


def life(page, url):
    """Plan, mend, start, stop; what the pages said."""
    found = {}
    page.goto(f"{url}/console/experiments")
    page.get_by_role("link", name="New experiment").click()
    for name, value in PLAN.items():
        page.fill(f'[name="{name}"]', value)
    page.get_by_role("button", name="Keep as a draft").click()
    found["errors"] = {
        one.get_attribute("id").removesuffix("-error-1"): one.inner_text()
        for one in page.query_selector_all("p.error")
    }
    found["kept"] = {name: page.input_value(f'[name="{name}"]') for name in PLAN}
    page.fill('[name="effect"]', "0.05")
    page.fill('[name="baseline"]', "0.5")
    page.fill('[name="arms[1].adapter"]', "base")
    page.fill('[name="name"]', "tone")
    page.get_by_role("button", name="How long would it take?").click()
    found["size"] = page.inner_text(".tiles")
    page.get_by_role("button", name="Keep as a draft").click()
    found["draft"] = [page.url, page.inner_text("h1"), page.inner_text(".head .badge")]
    page.get_by_role("button", name="Start", exact=True).click()
    found["running"] = page.inner_text(".head .badge")
    page.locator("summary", has_text="Stop").click()
    page.fill("#reason-stop", "seen enough")
    page.get_by_role("button", name="Stop").click()
    found["stopped"] = [page.inner_text(".head .badge"), "seen enough" in page.inner_text("main")]
    return found


with browsing() as seen:
    page, watch = seen.page()
    said = {"life": life(page, seen.url)}
    said["complaints"] = [one for one in watch.wrong if "400" not in one]
    watch.wrong.clear()

    page.goto(f"{seen.url}/console/experiments/trial")
    until(page, "document.querySelectorAll('.uplot canvas').length === 1")
    said["verdict"] = page.inner_text("[aria-label=Verdict]")
    page.get_by_role("link", name="Promote").click()
    page.fill("#reason-promote-new", "as the report says")
    page.get_by_role("button", name="Promote new").click()
    said["promoted"] = page.inner_text(".head")
    page.locator("summary", has_text="Roll back").click()
    page.get_by_role("button", name="Roll back").click()
    said["rolled_back"] = page.inner_text(".head")
    said["history"] = page.inner_text("[aria-label=History]")
    page.goto(f"{seen.url}/console/experiments/too-early")
    button = page.locator("button:disabled", has_text="Promote").last
    said["why_not"] = [
        button.get_attribute("title"),
        page.inner_text(f"#{button.get_attribute('aria-describedby')}"),
    ]

    page.goto(f"{seen.url}/console/routing")
    until(page, "document.querySelector('#would-routed').textContent !== '–'")
    said["in_force"] = [page.inner_text("#would"), page.inner_text("#would-threshold")]
    page.focus("#threshold")
    for _ in range(12):
        page.keyboard.press("ArrowRight")
    said["looser"] = [page.inner_text("#would"), page.get_attribute("#threshold", "aria-valuetext")]
    said["drawn"] = page.evaluate(
        """() => {
          const canvas = document.querySelector('.uplot canvas');
          const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
          return data.some((value) => value !== 0);
        }"""
    )
    said["wrong"] = watch.wrong

    plain, watching = seen.page(java_script_enabled=False)
    plain.goto(f"{seen.url}/console/experiments/a-draft")
    plain.get_by_role("button", name="Start", exact=True).click()
    said["plain"] = (
        plain.inner_text(".notice.bad") if plain.locator(".notice.bad").count() else plain.inner_text(".head")
    )
    plain.goto(f"{seen.url}/console/routing")
    said["plain_rows"] = plain.locator("#curve tbody tr").count()
    tell(**said)
