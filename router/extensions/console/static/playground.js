// The playground: asks, and shows each answer in a column of its own, turn by turn. All text goes in as text,
// never as HTML.
(() => {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";
  const byId = (id) => document.getElementById(id);
  const form = byId("ask");
  const turns = byId("turns");
  const state = byId("state");
  const csrf = document.querySelector('meta[name="csrf"]').content;
  const home = form.action;
  const PLACES = JSON.parse(form.dataset.places);
  const OPTIONS = ["system", "shape", "shape_text", "temperature", "top_p", "top_k", "max_tokens", "stops", "unit", "continuity"];
  const MOST_EARLIER = 160; // texts of earlier turns that a form has room for
  const conversation = []; // of each turn that was answered: `text`, and `answers` by column
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
  const fold = (title, ...inside) => el("details", "", el("summary", "", title), ...inside);
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
  const copy = async (text, source, from) => {
    const before = from.textContent;
    try {
      await navigator.clipboard.writeText(text);
      from.textContent = "Copied";
      setTimeout(() => { from.textContent = before; }, 2000);
    } catch {
      getSelection().selectAllChildren(source); // a page without TLS may not write there: the keys can
      from.textContent = "Selected: press Ctrl+C";
    }
  };

  // -- Errors stand beside the field that is wrong
  const clear = () => {
    for (const line of document.querySelectorAll("main p.error[id]")) line.hidden = true;
    for (const input of document.querySelectorAll("main [aria-invalid]")) input.removeAttribute("aria-invalid");
  };
  const placeOf = (field) => {
    if (field.startsWith("input")) return "text";
    return PLACES[field.split("[")[0]] || "";
  };
  // The message of an error names each wrong field before what is wrong with it. Gives the inputs.
  const parts = (error) => {
    if (error.reason === "ADAPTER_NOT_FOUND") return [["model", error.message]];
    const found = [];
    for (const part of error.message.split("; ")) {
      const [, field, text] = /^([\w.[\]]+): (.*)$/s.exec(part) || [];
      const place = field && placeOf(field);
      if (place) found.push([place, text]);
      else if (found.length) found.at(-1)[1] += `; ${part}`;
      else found.push([placeOf(error.field), part]);
    }
    return found;
  };
  const complain = (error, model = "model") => {
    const wrong = parts(error).map(([place, text]) => [place === "model" ? model : place, text]); // the input of its column
    for (const [id, text] of wrong) {
      const line = byId(id ? `${id}-error` : "form-error");
      line.textContent = line.hidden ? text : `${line.textContent}; ${text}`;
      line.hidden = false;
      byId(id)?.setAttribute("aria-invalid", "true");
      const details = byId(id)?.closest("details");
      if (details) details.open = true;
    }
    byId(wrong[0][0])?.focus();
    return wrong.every(([id]) => id);
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
  const asked = async (path, fields) => {
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
    const head = el("tr", "", ...["Classifier", "Vote", "Time"].map((name) => el("th", name === "Time" ? "right" : "", name)));
    for (const cell of head.children) cell.scope = "col";
    const chosen = decision.model.split("@")[0];
    const table = el("table", "", el("thead", "", head), el("tbody", "", ...decision.votes.map((one) => vote(one, chosen))));
    const box = el("div", "scroll", table);
    box.tabIndex = 0;
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", "Votes of the classifiers");
    return box;
  };
  // The line ahead of an answer, and the fold below it.
  const decided = (one, decision, answered) => {
    one.from.replaceChildren(el("strong", "", decision.model), ` ${answered ? "answered" : "would answer"}: ${decision.line}`);
    const other = answered && one.asked !== "auto" && ![decision.model, decision.model.split("@")[0]].includes(one.asked);
    if (other) one.notes.append(el("p", "notice warn", `Asked for ${one.asked}; this is the answer of ${decision.model}.`));
    const digest = decision.digest ? el("code", "", decision.digest) : decision.model === "base" ? `none: the base alone, ${form.dataset.base}` : "";
    const list = facts([
      ["Why", `${decision.why} ${decision.note}`.trim()], ["Confidence", sure(decision)],
      ["Decided", decision.classifier && `by ${decision.classifier}, in ${time(decision.seconds)}`],
      ["Experiment", decision.experiment && `${decision.experiment}, arm ${decision.arm}`],
      ["Calibration", decision.reason !== "named" && decision.calibration], ["Digest", digest],
    ]);
    one.folds.prepend(fold(decision.votes.length ? "Decision and votes" : "Decision", list, votes(decision)));
  };

  // -- A turn, and its columns: what is in a column comes from its own response
  const turn = (text, many) => {
    const columns = el("div", "columns");
    const made = el("article", "turn", el("p", "question text", text), columns);
    made.toggleAttribute("data-many", many);
    turns.append(made);
    byId("tries")?.remove();
    byId("clear").hidden = false;
    return { made, columns };
  };
  const column = (columns, name) => {
    const input = (inputs()[columns.children.length] || byId("model")).id;
    const badge = el("span", "badge info", "asking");
    badge.dataset.state = "";
    const from = el("p", "from", name);
    const notes = el("div", "stack");
    const text = document.createTextNode("");
    const answer = el("div", "answer", text);
    answer.setAttribute("role", "region");
    answer.setAttribute("aria-label", `Answer of ${name}`);
    answer.setAttribute("aria-live", "polite");
    answer.setAttribute("aria-busy", "true");
    answer.tabIndex = 0;
    const numbers = el("p", "muted small num");
    const acts = el("div", "stack");
    const folds = el("div", "folds");
    answer.hidden = true;
    const card = el("article", "card reply", el("div", "row apart", from, badge), answer, notes, numbers, acts, folds);
    card.setAttribute("aria-label", `Column ${name}`);
    columns.append(card);
    const end = (word, kind) => {
      badge.textContent = word;
      badge.className = word === "done" ? "hidden" : `badge ${kind}`;
      answer.setAttribute("aria-busy", "false");
    };
    return { asked: name, input, card, from, notes, text, answer, numbers, acts, folds, end, began: 0, first: 0, tokens: 0 };
  };
  const refused = (one, error, word = "refused") => {
    one.failed = true;
    one.end(word, "bad");
    one.notes.append(el("p", "notice bad", error.message));
    one.placed = complain(error, one.input);
  };
  const rateOf = (tokens, seconds) => (tokens > 1 && seconds > 0.03 ? `, ${((tokens - 1) / seconds).toFixed(1)} tokens/s` : "");
  const count = (one) => {
    const rate = rateOf(one.tokens, (performance.now() - one.first) / 1000);
    one.numbers.textContent = `${one.tokens} tokens${rate}, first after ${time((one.first - one.began) / 1000)}`;
  };
  const finish = (one, usage) => {
    one.end("done", "ok");
    const cached = usage.cached_tokens ? ` (${usage.cached_tokens} cached)` : "";
    const queued = usage.queued > 0.05 ? ` (${time(usage.queued)} of it in the queue)` : "";
    one.numbers.textContent =
      `${usage.tokens} tokens${rateOf(usage.tokens, usage.total - usage.first)}, first after ${time(usage.first)}${queued}, ` +
      `all in ${time(usage.total)}; prompt ${usage.prompt_tokens} tokens${cached}; ended by ${usage.reason}`;
  };
  const atEnd = () => innerHeight + scrollY > document.documentElement.scrollHeight - 60;
  const take = (one) => (name, data) => {
    if (name === "started") {
      one.started = data;
      one.answer.hidden = false;
      decided(one, data.decision, true);
      one.end("answering", "info");
      one.answer.setAttribute("aria-busy", "true");
    } else if (name === "delta") {
      if (!one.first) one.first = performance.now();
      one.tokens += data.tokens;
      const follow = atEnd();
      one.text.appendData(data.text);
      one.answer.scrollTop = one.answer.scrollHeight;
      count(one);
      if (follow) scrollTo(0, document.documentElement.scrollHeight);
    } else if (name === "finished") {
      one.finished = true;
      finish(one, data);
    } else if (data.error) {
      one.failed = true;
      one.end("failed", "bad");
      one.notes.append(el("p", "notice bad", data.error.message));
    }
  };
  const failed = (one, error) => {
    if (error.name === "AbortError") return one.end("stopped", "warn");
    one.end("cut off", "bad");
    one.notes.append(el("p", "notice bad", `The answer was cut off: ${error.message || "the connection ended"}`));
  };
  const run = async (one, fields, signal) => {
    one.began = performance.now();
    try {
      const answer = await post("/stream", fields, "text/event-stream", signal);
      if (!answer.ok) return refused(one, await refusal(answer));
      await events(answer.body, take(one));
      if (!one.finished && !one.failed) failed(one, new Error("the stream ended before the answer did"));
    } catch (error) {
      failed(one, error);
    }
    if (one.started) respond(one);
  };

  // -- What may be done with an answer: only what this server can keep is offered
  const respond = (one) => {
    const id = one.started.response_id;
    const line = el("p", "small");
    line.setAttribute("role", "status");
    const tell = async (work) => {
      try {
        line.className = "small";
        line.textContent = await work();
        return true;
      } catch (error) {
        line.className = "small error";
        line.textContent = error.message;
        return false;
      }
    };
    const row = el("div", "row", button("Copy", (from) => copy(one.text.data, one.answer, from)));
    const judge = async (value, more = {}) => {
      const kept = await asked("/feedback", { response_id: id, value, ...more });
      return `${kept.replaced ? "Changed" : "Kept"}: ${kept.kept}.`;
    };
    if ("feedback" in form.dataset) {
      for (const [value, label] of [["1", "Good"], ["0", "Bad"]]) {
        const made = button(label, () => tell(() => judge(value)));
        made.setAttribute("aria-label", `${label} answer`);
        row.append(made);
      }
    }
    row.append(line);
    one.acts.append(row);
    if (form.dataset.feedback === "texts") {
      const better = el("textarea");
      better.rows = 2;
      better.setAttribute("aria-label", "What the answer should have been");
      const send = button("Send", () => {
        if (better.value.trim()) tell(() => judge("0", { corrected: better.value }));
      });
      one.folds.append(fold("Write a better answer", el("div", "row", better, send)));
    }
    if ("feedback" in form.dataset) {
      const name = el("input");
      name.type = "text";
      name.setAttribute("list", "names");
      name.setAttribute("aria-label", "Which adapter should have answered");
      name.placeholder = "adapter, or base";
      const record = button("Record", () => {
        if (name.value.trim()) tell(() => judge("0", { should_have_been: name.value }));
      });
      name.addEventListener("keydown", (event) => { if (event.key === "Enter") record.click(); });
      one.folds.append(fold("Should have been another adapter", el("div", "row", name, record)));
    }
    one.folds.append(el("p", "muted small", "Response ", el("code", "", id)));
  };

  // -- The form
  const more = [...document.querySelectorAll("[data-compare]")];
  const show = (part, shown) => {
    part.hidden = !shown;
    part.querySelector("input").disabled = !shown;
    byId("compare").hidden = !more.some((one) => one.hidden);
    byId("fewer").hidden = more.every((one) => one.hidden);
  };
  byId("compare").addEventListener("click", () => {
    const next = more.find((part) => part.hidden);
    show(next, true);
    if (!next.querySelector("input").value) next.querySelector("input").value = "base";
    next.querySelector("input").focus();
  });
  byId("fewer").addEventListener("click", () => show(more.filter((part) => !part.hidden).pop(), false));
  for (const part of more) if (part.querySelector("input").value) show(part, true);
  for (const part of document.querySelectorAll("[data-scripted]")) part.hidden = false;
  const inputs = () => [byId("model"), ...more.map((part) => part.querySelector("input"))].filter((one) => !one.disabled);
  const models = () => inputs().map((one) => one.value.trim() || "auto");
  // The conversation as the answers of that column have it; a column that is new has the first column's.
  const earlier = (index) => {
    const texts = conversation.flatMap(({ text, answers }) => [text, answers[index] || answers[0] || answers.find(Boolean)]);
    return Object.fromEntries(texts.map((text, i) => [`earlier-${i}`, text]));
  };
  const fieldsOf = (text, index, model, seed, explain) => ({
    text, ...Object.fromEntries(OPTIONS.map((name) => [name, form.elements[name].value])), ...earlier(index),
    seed, model, explain: explain ? "yes" : "",
  });
  const busy = (on) => {
    const [shown, gone] = on ? ["stop", "go"] : ["go", "stop"];
    const focused = document.activeElement === byId(gone);
    byId("go").hidden = on;
    byId("decide").disabled = on;
    byId("stop").hidden = !on;
    if (focused) byId(shown).focus({ preventScroll: true });
  };
  const begin = () => {
    clear();
    const text = form.elements.text.value;
    if (!text.trim()) {
      complain({ field: "input", message: "Write what you want to ask." });
      return "";
    }
    if (2 * conversation.length > MOST_EARLIER) {
      complain({ field: "", message: `This conversation has ${conversation.length} turns, the most there can be: begin a new one.` });
      return "";
    }
    running = new AbortController();
    busy(true);
    return text;
  };
  const ended = (words, made, columns) => {
    // What is only about a field is said beside it, and is no turn.
    const wrong = columns.every((one) => one.placed);
    if (wrong) made.remove();
    byId("clear").hidden = !turns.children.length;
    state.textContent = running.signal.aborted ? "Stopped." : wrong ? "Not sent." : words;
    running = null;
    busy(false);
  };
  // An answer, or a part of one, belongs to the conversation; what was refused goes back to where it was typed.
  const keep = (text, made, columns) => {
    if (!made.isConnected) return; // the conversation was cleared meanwhile
    const answers = columns.map((one) => one.text.data);
    if (answers.some((answer) => answer.trim())) conversation.push({ text, answers });
    else if (!form.elements.text.value) form.elements.text.value = text;
  };
  const seeded = (many) => form.elements.seed.value.trim() || (many ? String(Math.floor(Math.random() * 2 ** 31)) : "");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (event.submitter === byId("decide")) return decide();
    const text = running ? "" : begin();
    if (!text) return;
    const wanted = models();
    const seed = seeded(wanted.length > 1);
    const { made, columns } = turn(text, wanted.length > 1);
    const answering = wanted.map((model) => column(columns, model));
    const fields = answering.map((one, i) => fieldsOf(text, i, one.asked, seed, wanted.length === 1 || one.asked === "auto"));
    form.elements.text.value = "";
    made.scrollIntoView();
    state.textContent = wanted.length > 1 ? `Asking ${wanted.length} at once, seed ${seed}.` : "Asking.";
    await Promise.all(answering.map((one, i) => run(one, fields[i], running.signal)));
    keep(text, made, answering);
    ended(`Done${wanted.length > 1 ? `, seed ${seed}` : ""}.`, made, answering);
  });
  const decide = async () => {
    const text = running ? "" : begin();
    if (!text) return;
    state.textContent = "Deciding.";
    const wanted = models();
    const { made, columns } = turn(text, wanted.length > 1);
    made.scrollIntoView();
    const deciding = wanted.map((model) => column(columns, model));
    for (const [i, one] of deciding.entries()) {
      try {
        const answer = await post("/route", fieldsOf(text, i, one.asked, "", true), "application/json", running.signal);
        if (answer.ok) {
          decided(one, await answer.json(), false);
          one.end("decided", "ok");
        } else refused(one, await refusal(answer));
      } catch (error) {
        failed(one, error);
      }
    }
    ended("Decided; nothing was generated.", made, deciding);
  };
  byId("clear").addEventListener("click", () => {
    running?.abort();
    conversation.length = 0;
    turns.replaceChildren();
    byId("clear").hidden = true;
    state.textContent = "";
    form.elements.text.focus();
  });

  byId("stop").addEventListener("click", () => running?.abort());
  form.elements.text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
})();
