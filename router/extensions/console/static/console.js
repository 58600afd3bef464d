// What every page of the console does beside htmx: ticks for live parts, notices, the theme, dialogs.
(() => {
  "use strict";
  const TICK = 2000;
  const notice = document.getElementById("notice");
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
  document.addEventListener("htmx:error", () => {
    lost = true;
    say("The server does not answer. This page goes on asking.");
  });
  document.addEventListener("htmx:after:request", (event) => {
    const status = event.detail?.ctx?.response?.status ?? 0;
    if (status && status < 400 && (lost || notice.dataset.refused)) say("");
    lost = false;
    notice.dataset.refused = status >= 400 ? "yes" : "";
  });

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
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const present = () => root.dataset.theme || (system.matches ? "dark" : "light");
  const other = () => (present() === "dark" ? "light" : "dark");
  const label = () => {
    theme.textContent = other() === "dark" ? "Dark" : "Light";
    theme.setAttribute("aria-label", `Switch to the ${other()} theme`);
  };
  const changed = () => {
    label();
    document.dispatchEvent(new CustomEvent("console:theme"));
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
    changed();
  });
  system.addEventListener("change", changed);
})();
