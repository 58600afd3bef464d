"""`python live.py URL AXE`: numbers that change by themselves, charts, a tab that nobody sees, no answer."""

from seen import browsing, tell, until

HIDE = """(hidden) => {
  Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
  document.dispatchEvent(new Event("visibilitychange"));
}"""
with browsing() as seen:
    page, watch = seen.page()
    page.goto(f"{seen.url}/console")
    requests = page.locator(".tile", has_text="Requests").locator("dd").first
    before = requests.inner_text()
    until(page, "document.querySelectorAll('.uplot canvas').length === 6")
    until(
        page, "[...document.querySelectorAll('.u-series .u-value')].some((e) => /^[1-9]/.test(e.textContent))"
    )
    drawn = page.evaluate(
        """() => [...document.querySelectorAll('.uplot canvas')].map((canvas) => {
          const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
          return data.some((value) => value !== 0);
        })"""
    )
    label = page.locator(".chart").first.get_attribute("aria-label")
    page.locator("#theme").click()
    themes = [page.evaluate("document.documentElement.dataset.theme || ''")]
    page.reload()
    themes.append(page.evaluate("document.documentElement.dataset.theme || ''"))
    page.wait_for_timeout(2500)
    changed = requests.inner_text()
    row = page.locator("tbody tr", has_text="medical").first
    answered = row.inner_text()

    page.evaluate(HIDE, True)
    page.wait_for_timeout(500)
    asked = len(watch.asked)
    page.wait_for_timeout(5000)
    hidden = len(watch.asked) - asked
    page.evaluate(HIDE, False)
    page.wait_for_timeout(2600)
    again = len(watch.asked) - asked - hidden
    wrong = list(watch.wrong)

    page.route("**/overview/live", lambda route: route.abort())
    page.wait_for_selector("#notice .notice", timeout=8000)
    lost = page.inner_text("#notice")
    page.unroute("**/overview/live")
    until(page, "!document.querySelector('#notice .notice')")
    tell(
        wrong=wrong,
        changed=[before, changed],
        drawn=drawn,
        label=label,
        themes=themes,
        answered=answered,
        hidden=hidden,
        again=again,
        lost=lost,
    )
