// What every page of the console does beside htmx: ticks for live parts, notices, the theme, dialogs.
(() => {
  "use strict";
  const TICK = 2000;
  const notice = document.getElementById("notice");
  const root = document.documentElement;
  let lost = false;

  const say = (text, kind = "bad") => {
    notice.replaceChildren();
    if (!text) return;
    const line = document.createElement("p");
    line.className = `notice ${kind}`;
    line.textContent = text;
    notice.append(line);
  };

  // Live parts ask again while somebody looks; `data-live` may say after how many seconds.
  let ticks = 0;
  setInterval(() => {
    if (document.hidden) return;
    ticks += 1;
    for (const part of document.querySelectorAll("[data-live]")) {
      const every = Math.max(1, Math.round((Number(part.dataset.live) * 1000 || TICK) / TICK));
      if (ticks % every === 0) part.dispatchEvent(new CustomEvent("tick"));
    }
  }, TICK);
  // Without an answer the live parts are of the past: they are greyed, and what says "now" is hidden.
  let answered = Date.now();
  document.addEventListener("htmx:error", () => {
    lost = true;
    root.dataset.lost = "yes";
    say(`The server does not answer. What is below is of ${written(new Date(answered))}. This page goes on asking.`);
  });
  document.addEventListener("htmx:after:request", (event) => {
    const status = event.detail?.ctx?.response?.status ?? 0;
    const refused = status >= 400;
    if (status && !refused && (lost || notice.dataset.refused)) say("");
    if (status && !refused) answered = Date.now();
    lost = false;
    if (refused) root.dataset.lost = "yes";
    else delete root.dataset.lost;
    notice.dataset.refused = refused ? "yes" : "";
  });

  // Times are written in the zone of the viewer, by its name. Live parts bring new ones.
  const parts = new Intl.DateTimeFormat("en-GB", {
    year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit",
    hourCycle: "h23", timeZoneName: "short",
  });
  const written = (date, zone = true) => {
    const at = Object.fromEntries(parts.formatToParts(date).map((part) => [part.type, part.value]));
    const text = `${at.year}-${at.month}-${at.day} ${at.hour}:${at.minute}:${at.second}`;
    return zone ? `${text} ${at.timeZoneName}` : text;
  };
  const put = (element, text) => {
    if (element.textContent !== text) element.textContent = text;
  };
  const localize = () => {
    for (const element of document.querySelectorAll("time[datetime]")) {
      const date = new Date(element.getAttribute("datetime"));
      if (Number.isNaN(date.getTime())) continue;
      const { form } = element.dataset;
      if (form === "short") put(element, written(date, false).slice(11));
      else if (form !== "ago") put(element, written(date, form !== "bare"));
      element.title = written(date);
    }
    for (const element of document.querySelectorAll("[data-zone]")) put(element, parts.resolvedOptions().timeZone);
  };
  new MutationObserver(localize).observe(document.getElementById("main"), { childList: true, characterData: true, subtree: true });
  localize();

  // What an action asks before it does anything is a page; with a script it comes as a dialog.
  const dialog = document.getElementById("dialog");
  const ask = async (link) => {
    try {
      const answer = await fetch(link.href, { headers: { accept: "text/html" } });
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const form = answer.ok && page.getElementById("confirm");
      if (!form) throw new Error("no form");
      form.removeAttribute("class");
      dialog.firstElementChild.replaceChildren(document.adoptNode(form));
      dialog.showModal();
    } catch {
      location.href = link.href; // the page says what is wrong
    }
  };
  document.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    const link = event.target.closest("a[data-dialog], a[data-close]");
    if (!link || !dialog) return;
    if (link.matches("[data-dialog]")) {
      event.preventDefault();
      ask(link);
    } else if (dialog.open) {
      event.preventDefault();
      dialog.close();
    }
  });

  // Light, dark, or as the system has it: kept in a cookie, so that the server says it from the start.
  const theme = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const present = () => root.dataset.theme || (system.matches ? "dark" : "light");
  const other = () => (present() === "dark" ? "light" : "dark");
  const label = () => {
    theme.textContent = other() === "dark" ? "Dark" : "Light";
    theme.setAttribute("aria-label", `Switch to the ${other()} theme`);
  };
  theme.hidden = false;
  label();
  theme.addEventListener("click", () => {
    const wanted = other();
    const own = wanted !== (system.matches ? "dark" : "light");
    if (own) root.dataset.theme = wanted;
    else delete root.dataset.theme;
    const life = own ? "max-age=31536000" : "max-age=0";
    document.cookie = `lora_router_theme=${wanted}; path=/console; samesite=strict; ${life}`;
    label();
  });
  system.addEventListener("change", label);
})();
