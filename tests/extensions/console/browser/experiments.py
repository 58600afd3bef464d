"""`python experiments.py URL AXE`: a plan with errors, its life; a promotion and back."""

from seen import browsing, tell, until

EVIL = '"><script>alert(1)</script>'
PLAN = {
    "name": "Tone",
    "metric": "solved",
    "plan": f"hypothesis = '{EVIL}'\nplanned_units = 0",
}


def life(page, url):
    """Plan, mend, start, stop; what the pages said."""
    found = {}
    page.goto(f"{url}/console/experiments")
    page.get_by_role("link", name="New experiment").click()
    page.select_option('[name="control"]', "legal@2.0.0")
    page.select_option('[name="treatment"]', "base")
    for name, value in PLAN.items():
        page.fill(f'[name="{name}"]', value)
    page.get_by_role("button", name="Keep as a draft").click()
    found["errors"] = {
        one.get_attribute("id").removesuffix("-error-1"): one.inner_text()
        for one in page.query_selector_all("p.error")
    }
    found["kept"] = {name: page.input_value(f'[name="{name}"]') for name in PLAN}
    page.fill('[name="name"]', "tone")
    page.fill('[name="plan"]', "planned_units = 900")
    page.press('[name="plan"]', "Tab")
    until(page, "document.querySelector('#preview').textContent.includes('by 900 planned units')")
    found["size"] = page.inner_text("#preview")
    page.get_by_role("button", name="Keep as a draft").click()
    found["draft"] = [page.url, page.inner_text("h1"), page.inner_text(".head .badge")]
    page.locator("summary", has_text="Start").click()
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
    said["verdict"] = page.inner_text("[aria-label=Verdict]")
    said["ranges"] = page.locator("svg.range").count()
    page.locator("#checks > summary").click()
    page.evaluate("document.querySelector('.ruling h2').textContent = 'changed'")
    page.evaluate("document.querySelector('[data-live]').dispatchEvent(new CustomEvent('tick'))")
    until(page, "document.querySelector('.ruling h2').textContent !== 'changed'")
    said["still_open"] = page.locator("#checks[open]").count()
    page.locator("summary", has_text="Promote new").click()
    page.fill("#reason-promote-new", "as the report says")
    page.get_by_role("button", name="Promote new").click()
    said["promoted"] = page.inner_text(".head")
    page.locator("summary", has_text="Roll back").click()
    page.get_by_role("button", name="Roll back").click()
    said["rolled_back"] = page.inner_text(".head")
    page.locator("#history > summary").click()
    said["history"] = page.inner_text("[aria-label=History]")
    page.goto(f"{seen.url}/console/experiments/too-early")
    said["no_promotion"] = page.locator("summary", has_text="Promote").count()
    said["wrong"] = watch.wrong

    plain, watching = seen.page(java_script_enabled=False)
    plain.goto(f"{seen.url}/console/experiments/a-draft")
    plain.locator("summary", has_text="Start").click()
    plain.get_by_role("button", name="Start", exact=True).click()
    said["plain"] = (
        plain.inner_text(".notice.bad") if plain.locator(".notice.bad").count() else plain.inner_text(".head")
    )
    plain.goto(f"{seen.url}/console/routing")
    said["plain_rows"] = plain.locator("#tested tbody tr").count()
    tell(**said)
