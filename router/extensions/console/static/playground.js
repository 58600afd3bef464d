// The playground: asks, and shows each response in a column of its own. All text goes in as text, never as HTML.
(() => {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";
  const byId = (id) => document.getElementById(id);
  const form = byId("ask");
  const columns = byId("columns");
  const state = byId("state");
  const csrf = document.querySelector('meta[name="csrf"]').content;
  const home = form.action.replace(/\/route$/, "");
  const FIELDS = {
    input: "text", "input.text": "text", "routing.adapter": "model", "routing.unit": "unit",
    "sampling.temperature": "temperature", "sampling.max_tokens": "max_tokens", "sampling.seed": "seed",
  };
  let running = null;

  // -- Small tools
  const el = (tag, name = "", ...inside) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    made.append(...inside);
    return made;
  };
  const button = (label, act, name = "small") => {
    const made = el("button", name, label);
    made.type = "button";
    made.addEventListener("click", () => act(made));
    return made;
  };
  const svg = (tag, values) => {
    const made = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(values)) made.setAttribute(key, value);
    return made;
  };
  const bar = (share, mark) => {
    const made = svg("svg", { class: "bar", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" });
    made.append(svg("rect", { width: 100 * Math.min(1, Math.max(0, share)), height: 10 }));
    if (mark > 0) made.append(svg("line", { x1: 100 * mark, x2: 100 * mark, y1: 0, y2: 10 }));
    return made;
  };
  const time = (seconds) => (seconds < 1 ? `${(1000 * seconds).toFixed(seconds < 0.01 ? 1 : 0)} ms` : `${seconds.toFixed(1)} s`);
  const percent = (share) => `${(100 * share).toFixed(1)} %`;
  const facts = (pairs) => {
    const list = el("dl", "facts");
    for (const [key, value] of pairs) if (value) list.append(el("dt", "", key), el("dd", "", value));
    return list;
  };

  // -- Errors stand where they belong
  const clear = () => {
    for (const line of form.querySelectorAll(".error")) line.hidden = true;
    for (const input of form.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
  };
  const complain = (error) => {
    const id = FIELDS[error.field] || "";
    const line = byId(id ? `${id}-error` : "form-error");
    line.textContent = error.message;
    line.hidden = false;
    if (id) {
      byId(id).setAttribute("aria-invalid", "true");
      byId(id).focus();
    }
  };

  // -- Asking
  const post = (path, fields, accept, signal) =>
    fetch(home + path, {
      method: "POST", signal, body: new URLSearchParams(fields),
      headers: { accept, "x-csrf-token": csrf, "content-type": "application/x-www-form-urlencoded" },
    });
  const refusal = async (answer) => {
    try {
      return (await answer.json()).error;
    } catch {
      return { status: answer.status, message: `the server answered ${answer.status} without saying why`, field: "" };
    }
  };
  const told = async (path, fields) => {
    const answer = await post(path, fields, "application/json");
    if (!answer.ok) throw new Error((await refusal(answer)).message);
    return answer.json();
  };
  const events = async (body, take) => {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      for (let end = rest.indexOf("\n\n"); end >= 0; end = rest.indexOf("\n\n")) {
        let name = "message";
        let data = "";
        for (const line of rest.slice(0, end).split("\n")) {
          if (line.startsWith("event: ")) name = line.slice(7);
          if (line.startsWith("data: ")) data += line.slice(6);
        }
        rest = rest.slice(end + 2);
        take(name, JSON.parse(data));
      }
    }
  };

  // -- What was decided
  const sure = (decision) => {
    if (!decision.threshold && !decision.classifier) return "";
    const row = el("div", "sure", bar(decision.confidence, decision.threshold));
    row.append(el("span", "num", `${percent(decision.confidence)}, needed ${percent(decision.threshold)}`));
    return row;
  };
  const vote = (one, chosen) => {
    const cell = el("td");
    if (one.error) cell.append(el("span", "badge bad", `lost: ${one.error}`));
    else if (one.declined || !one.scores.length) cell.append(el("span", "muted", "declined"));
    for (const [name, score] of one.scores) {
      const line = el("div", name === chosen ? "score" : "score low", el("span", "", name), bar(score), el("span", "", percent(score)));
      line.firstChild.title = name;
      cell.append(line);
    }
    if (one.more) cell.append(el("div", "muted", `and ${one.more} more`));
    if (one.evidence) cell.append(el("div", "muted", one.evidence));
    const head = el("th", "", one.classifier);
    head.scope = "row";
    return el("tr", "", head, cell, el("td", "right", time(one.seconds)));
  };
  const votes = (decision) => {
    if (!decision.votes.length) return "";
    const head = el("tr", "", ...["Classifier", "Says", "Time"].map((name) => el("th", name === "Time" ? "right" : "", name)));
    for (const cell of head.children) cell.scope = "col";
    const chosen = decision.model.split("@")[0];
    const table = el("table", "", el("thead", "", head), el("tbody", "", ...decision.votes.map((one) => vote(one, chosen))));
    const box = el("div", "scroll", table);
    box.tabIndex = 0;
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", "Votes of the classifiers");
    if (asked().length < 2) return box;
    // Beside others the answers are what is compared, so they stand at one height.
    const count = decision.votes.length;
    return el("details", "", el("summary", "", count === 1 ? "The vote of one classifier" : `The votes of ${count} classifiers`), box);
  };
  const who = (decision, wanted, answered) => {
    const digest = decision.digest ? el("code", "", decision.digest) : decision.model === "base" ? `none: the base alone, ${form.dataset.base}` : "";
    const other = answered && wanted !== "auto" && ![decision.model, decision.model.split("@")[0]].includes(wanted);
    const note = other ? el("p", "notice warn", `Asked for ${wanted}; this is the answer of ${decision.model}.`) : "";
    const list = facts([
      [answered ? "Answered by" : "Would go to", el("strong", "", decision.model)], ["Digest", digest],
      ["Why", decision.why], ["Confidence", sure(decision)],
      ["Decided", decision.classifier && `by ${decision.classifier}, in ${time(decision.seconds)}`],
      ["Experiment", decision.experiment && `${decision.experiment}, arm ${decision.arm}`],
      ["Calibration", decision.reason !== "named" && decision.calibration],
    ]);
    return [note, list, votes(decision)].filter(Boolean);
  };

  // -- A column: what is in it comes from its own response
  const column = (asked, hidden = false) => {
    const badge = el("span", "badge info", "asking");
    const decided = el("div", "stack");
    const text = document.createTextNode("");
    const answer = el("div", "answer", text);
    answer.setAttribute("role", "region");
    answer.setAttribute("aria-label", `Answer of ${asked}`);
    answer.setAttribute("aria-live", "polite");
    answer.setAttribute("aria-busy", "true");
    answer.tabIndex = 0;
    const numbers = el("p", "muted small num");
    const feedback = el("div", "feedback stack");
    feedback.hidden = answer.hidden = true;
    const card = el("article", "card", el("div", "row apart", el("h2", "", asked), badge), decided, answer, numbers, feedback);
    card.setAttribute("aria-label", `Column ${asked}`);
    columns.append(card);
    const end = (word, kind) => {
      badge.textContent = word;
      badge.className = `badge ${kind}`;
      answer.setAttribute("aria-busy", "false");
    };
    return { asked, hidden, card, decided, text, answer, numbers, feedback, end, started: null, began: 0, first: 0, tokens: 0 };
  };
  const count = (one) => {
    if (one.hidden) return; // tokens and times would tell who it is
    const seconds = (performance.now() - one.first) / 1000;
    const rate = one.tokens > 1 && seconds > 0.05 ? `, ${((one.tokens - 1) / seconds).toFixed(1)} tokens/s` : "";
    one.numbers.textContent = `${one.tokens} tokens${rate}, first after ${time((one.first - one.began) / 1000)}`;
  };
  const finish = (one, usage) => {
    const spent = usage.total - usage.first;
    const rate = usage.tokens > 1 && spent > 0.01 ? `, ${((usage.tokens - 1) / spent).toFixed(1)} tokens/s` : "";
    const cached = usage.cached_tokens ? ` (${usage.cached_tokens} cached)` : "";
    if (one.hidden) return one.end("done", "ok");
    one.numbers.textContent =
      `${usage.tokens} tokens${rate}, first after ${time(usage.first)} (${time(usage.queued)} of it waiting), ` +
      `all in ${time(usage.total)}; prompt ${usage.prompt_tokens} tokens${cached}; ended by ${usage.reason}`;
    one.end("done", "ok");
  };
  const take = (one) => (name, data) => {
    if (name === "started") {
      one.started = data;
      one.answer.hidden = false;
      if (!one.hidden) one.decided.replaceChildren(...who(data.decision, one.asked, true));
      one.end("answering", "info");
      one.answer.setAttribute("aria-busy", "true");
    } else if (name === "delta") {
      if (!one.first) one.first = performance.now();
      one.tokens += data.tokens;
      one.text.appendData(data.text);
      one.answer.scrollTop = one.answer.scrollHeight;
      count(one);
    } else if (name === "finished") {
      one.finished = true;
      finish(one, data);
    } else if (data.error) {
      one.failed = true;
      one.end("failed", "bad");
      one.decided.append(el("p", "notice bad", data.error.message));
    }
  };
  const failed = (one, error) => {
    if (error.name === "AbortError") return one.end("stopped", "warn");
    one.end("cut off", "bad");
    one.decided.append(el("p", "notice bad", `The answer was cut off: ${error.message || "the connection ended"}`));
  };
  const run = async (one, fields, signal) => {
    one.began = performance.now();
    try {
      const answer = await post("/stream", fields, "text/event-stream", signal);
      if (!answer.ok) {
        const error = await refusal(answer);
        one.end("refused", "bad");
        one.decided.append(el("p", "notice bad", error.message));
        return complain(error);
      }
      await events(answer.body, take(one));
      if (!one.finished && !one.failed) failed(one, new Error("the stream ended before the answer did"));
    } catch (error) {
      failed(one, error);
    }
    if (one.started && !one.hidden) respond(one);
  };

  // -- What became of it
  const copy = async (one, from) => {
    try {
      await navigator.clipboard.writeText(one.text.data);
      from.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(one.answer); // a page without TLS may not write there: the keys can
      from.textContent = "Selected: press Ctrl+C";
    }
  };
  const respond = (one) => {
    const id = one.started.response_id;
    const line = el("p", "small");
    line.setAttribute("role", "status");
    const tell = async (path, fields, words, done) => {
      try {
        line.className = "small";
        line.textContent = words(await told(path, { response_id: id, ...fields }));
        done();
      } catch (error) {
        line.className = "small error";
        line.textContent = error.message;
      }
    };
    const thumbs = ["1", "0"].map((value) => {
      const made = button(value === "1" ? "Good" : "Bad", () =>
        tell("/outcome", { value }, (said) => `Recorded: ${said.status}.`, () => thumbs.forEach((b) => { b.disabled = true; })));
      made.setAttribute("aria-label", value === "1" ? "Good answer" : "Bad answer");
      return off(made, form.dataset.noOutcomes);
    });
    const name = el("input");
    name.setAttribute("list", "names");
    name.setAttribute("aria-label", "Who should have answered");
    name.placeholder = "should have been";
    const text = form.elements.text.value;
    const record = button("Correct", () =>
      tell("/correction", { adapter: name.value, text: text.length <= 4000 ? text : "" }, (said) => `Kept: ${said.kept}.`, () => {}));
    off(record, form.dataset.noCorrections);
    name.disabled = record.disabled;
    name.title = record.title;
    name.addEventListener("keydown", (event) => { if (event.key === "Enter") record.click(); });
    one.feedback.replaceChildren(
      el("div", "row", button("Copy", (from) => copy(one, from)), ...thumbs), el("div", "row", name, record), line,
      el("p", "muted small", "Response ", el("code", "", id)));
    const why = form.dataset.noCorrections;
    if (why) one.feedback.insertBefore(el("p", "muted small", why), line);
    one.feedback.hidden = false;
  };
  const off = (made, why) => {
    made.disabled = Boolean(why);
    made.title = why || "";
    return made;
  };

  // -- The form
  const more = [...form.querySelectorAll("[data-compare]")];
  const show = (part, shown) => {
    part.hidden = !shown;
    part.querySelector("input").disabled = !shown;
    byId("compare").disabled = !more.some((one) => one.hidden);
    byId("fewer").hidden = more.every((one) => one.hidden);
  };
  byId("compare").addEventListener("click", () => {
    const next = more.find((part) => part.hidden);
    show(next, true);
    if (!next.querySelector("input").value) next.querySelector("input").value = "base";
    next.querySelector("input").focus();
  });
  byId("fewer").addEventListener("click", () => show(more.filter((part) => !part.hidden).pop(), false));
  const asked = () => [...form.querySelectorAll('[name^="model"]')].filter((i) => !i.disabled).map((i) => i.value.trim() || "auto");
  const fieldsOf = (model, seed, explain) => {
    const said = Object.fromEntries(["text", "temperature", "max_tokens", "unit"].map((name) => [name, form.elements[name].value]));
    return { ...said, seed, model, explain: explain ? "yes" : "" };
  };
  const busy = (on) => {
    byId("go").disabled = byId("decide").disabled = on;
    byId("blind").disabled = on || Boolean(form.dataset.noPreferences);
    byId("stop").disabled = !on;
  };
  const begin = () => {
    clear();
    if (!form.elements.text.value.trim()) {
      complain({ field: "input", message: "Write what you want to ask." });
      return false;
    }
    columns.replaceChildren();
    byId("choice").hidden = true;
    running = new AbortController();
    busy(true);
    return true;
  };
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (running || !begin()) return;
    const models = asked();
    let seed = form.elements.seed.value.trim();
    if (!seed && models.length > 1) seed = String(Math.floor(Math.random() * 2 ** 31));
    const answering = models.map((model) => column(model));
    state.textContent = models.length > 1 ? `Asking ${models.length} at once, seed ${seed}.` : "Asking.";
    await Promise.all(answering.map((one) =>
      run(one, fieldsOf(one.asked, seed, models.length === 1 || one.asked === "auto"), running.signal)));
    state.textContent = running.signal.aborted ? "Stopped." : `Done${models.length > 1 ? `, seed ${seed}` : ""}.`;
    running = null;
    busy(false);
  });
  byId("decide").addEventListener("click", async () => {
    if (running || !begin()) return;
    state.textContent = "Deciding.";
    for (const model of asked()) {
      const one = column(model);
      try {
        const answer = await post("/route", fieldsOf(model, "", true), "application/json", running.signal);
        if (answer.ok) {
          one.decided.replaceChildren(...who(await answer.json(), model, false));
          one.end("decided", "ok");
        } else {
          const error = await refusal(answer);
          one.end("refused", "bad");
          one.decided.append(el("p", "notice bad", error.message));
          complain(error);
        }
      } catch (error) {
        failed(one, error);
      }
    }
    state.textContent = running.signal.aborted ? "Stopped." : "Decided; nothing was generated.";
    running = null;
    busy(false);
  });

  // -- Blind: the order is random, and who answered is shown after the choice
  const CHOICES = [["left", "Left is better"], ["right", "Right is better"], ["same", "Both the same"], ["both_bad", "Both bad"]];
  const shuffled = (pair) => (crypto.getRandomValues(new Uint8Array(1))[0] & 1 ? [...pair].reverse() : pair);
  const choose = (pair) => {
    const box = byId("choice");
    const line = el("p", "small");
    line.setAttribute("role", "status");
    const pick = async (choice) => {
      try {
        const [left, right] = pair.map((one) => one.started.response_id);
        const said = await told("/preference", { left, right, choice });
        buttons.forEach((made) => { made.disabled = true; });
        pair.forEach((one) => {
          one.card.querySelector("h2").append(`: ${one === pair[0] ? said.left : said.right}`);
          one.decided.replaceChildren(...who(one.started.decision, one.asked, true));
        });
        const so = said.so_far;
        line.className = "small";
        line.textContent = `Recorded. ${so ? `So far ${so.version} is ${so.text} against ${so.other}. ${so.reading}.` : ""}`;
      } catch (error) {
        line.className = "small error";
        line.textContent = error.message;
      }
    };
    const buttons = CHOICES.map(([choice, label]) => button(label, () => pick(choice), ""));
    box.replaceChildren(el("h2", "", "Which answer is better?"), el("div", "row", ...buttons), line);
    box.hidden = false;
    buttons[0].focus();
  };
  byId("blind").addEventListener("click", async () => {
    if (running) return;
    if (more[0].hidden) {
      show(more[0], true);
      more[0].querySelector("input").value ||= "base";
    }
    const models = asked().slice(0, 2);
    if (models.includes("auto") || models[0] === models[1]) {
      clear();
      return complain({ field: "routing.adapter", message: "Name two different versions in the first two columns, then compare them." });
    }
    if (!begin()) return;
    const seed = form.elements.seed.value.trim() || String(Math.floor(Math.random() * 2 ** 31));
    const pair = shuffled(models).map((model, i) => Object.assign(column(i ? "Right" : "Left", true), { asked: model }));
    state.textContent = "Asking both at once.";
    await Promise.all(pair.map((one) => run(one, { ...fieldsOf(one.asked, seed, false), blind: "yes" }, running.signal)));
    state.textContent = running.signal.aborted ? "Stopped." : "Done.";
    running = null;
    busy(false);
    if (pair.every((one) => one.finished)) choose(pair);
  });
  byId("stop").addEventListener("click", () => running?.abort());
  form.elements.text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
})();
