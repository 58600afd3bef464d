"""`python live.py URL AXE`: numbers that change, times, a hidden tab, no answer."""

from seen import browsing, tell, until

HIDE = """(hidden) => {
  Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
  document.dispatchEvent(new Event("visibilitychange"));
}"""
with browsing() as seen:
    page, watch = seen.page(timezone_id="Asia/Tokyo")
    page.goto(f"{seen.url}/console")
    answered = page.locator(".tile", has_text="Answered").locator("dd").first
    before = answered.inner_text()
    state = page.inner_text(".present")
    times = page.evaluate("[...document.querySelectorAll('time')].map((e) => e.textContent)")
    page.locator("#theme").click()
    themes = [page.evaluate("document.documentElement.dataset.theme || ''")]
    page.reload()
    themes.append(page.evaluate("document.documentElement.dataset.theme || ''"))
    page.wait_for_timeout(2500)
    changed = answered.inner_text()

    page.evaluate(HIDE, True)
    page.wait_for_timeout(500)
    asked = len(watch.asked)
    page.wait_for_timeout(5000)
    hidden = len(watch.asked) - asked
    page.evaluate(HIDE, False)
    page.wait_for_timeout(2600)
    again = len(watch.asked) - asked - hidden
    wrong = list(watch.wrong)

    page.route("**/overview/*", lambda route: route.abort())
    page.wait_for_selector("#notice .notice", timeout=8000)
    lost = page.inner_text("#notice")
    healthy = page.locator(".present").is_visible()
    page.unroute("**/overview/*")
    until(page, "!document.querySelector('#notice .notice')")
    tell(
        wrong=wrong,
        changed=[before, changed],
        state=state,
        times=times,
        themes=themes,
        hidden=hidden,
        again=again,
        lost=lost,
        healthy=healthy,
    )
