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

  // Live parts ask again while somebody looks.
  setInterval(() => {
    if (document.hidden) return;
    for (const part of document.querySelectorAll("[data-live]")) {
      part.dispatchEvent(new CustomEvent("tick"));
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
