// The plot of routing: what it draws stands in a table beside it, too.
(() => {
  "use strict";
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const percent = (share, digits = 1) => (share == null ? "–" : `${(100 * share).toFixed(digits)} %`);
  const drawn = [];

  const axis = (label, values, size) => ({
    label, values, size, labelSize: 18, labelFont: "12px sans-serif", font: "11px sans-serif",
    stroke: color("muted"), grid: { stroke: color("line"), width: 1 }, ticks: { stroke: color("line"), width: 1 },
  });
  // Draws now, and again where the theme or the width changes.
  const plot = (box, make) => {
    let chart = null;
    const draw = () => {
      chart?.destroy();
      const { options, data } = make();
      chart = new uPlot({ width: Math.max(260, box.clientWidth), height: 260, ...options }, data, box);
    };
    draw();
    drawn.push(draw);
    new ResizeObserver(() => chart.setSize({ width: Math.max(260, box.clientWidth), height: 260 })).observe(box);
    return { redraw: () => chart.redraw(false, false) };
  };
  document.addEventListener("console:theme", () => drawn.forEach((draw) => draw()));

  // -- Error against coverage, and a slider that shows what each threshold would do
  const curve = (card) => {
    const said = JSON.parse(card.dataset.curve);
    const slider = card.querySelector("input");
    const { points, rows, strange, present } = said;
    const routed = points.map((one) => one.routed / rows);
    const error = points.map((one) => (one.routed ? one.errors / one.routed : null));
    const column = (name) => points.map((one) => one[name]);
    const share = (value) => percent(value);
    const line = (label, name, more = {}) => ({ label, stroke: color(name), width: 1.5, points: { show: false }, value: (_, v) => share(v), ...more });
    const mark = (chart, place, name, whole) => {
      if (place == null || error[place] == null) return;
      const x = chart.valToPos(routed[place], "x", true);
      const y = chart.valToPos(error[place], "y", true);
      chart.ctx.beginPath();
      chart.ctx.arc(x, y, 5 * devicePixelRatio, 0, 2 * Math.PI);
      chart.ctx.lineWidth = 2 * devicePixelRatio;
      chart.ctx.strokeStyle = chart.ctx.fillStyle = color(name);
      if (whole) chart.ctx.fill();
      else chart.ctx.stroke();
    };
    const drawing = plot(card.querySelector(".chart"), () => ({
      data: [routed, error, column("error_bound"), points.map(() => said.target),
        ...(strange ? [column("strange_bound"), points.map(() => said.ood_target)] : [])],
      options: {
        scales: { x: { time: false }, y: { range: (_, low, high) => [0, high * 1.1 || 1] } },
        series: [
          { label: "Routed", value: (_, v) => share(v) },
          line("Wrong", "one", { width: 2 }), line("Wrong, at most", "one", { dash: [2, 4] }), line("target", "one", { dash: [9, 5], width: 1 }),
          ...(strange ? [line("Strange, at most", "two", { dash: [2, 4] }), line("target, strange", "two", { dash: [9, 5], width: 1 })] : []),
        ],
        axes: [axis("share of requests routed", (_, ticks) => ticks.map((v) => percent(v, 0)), 30),
          axis("share wrong", (_, ticks) => ticks.map((v) => percent(v, 0)), 46)],
        hooks: { draw: [(chart) => { mark(chart, present, "three", true); mark(chart, Number(slider.value), "text", false); }] },
      },
    }));
    const put = (name, text) => { document.getElementById(`would${name}`).textContent = text; };
    const less = (count, what) => `${Math.abs(count).toLocaleString("en")} ${count < 0 ? "fewer" : "more"} ${what}`;
    const verdict = (one) => {
      const beyond = [];
      if (one.error_bound > said.target) beyond.push(`errors may be ${percent(one.error_bound)}, the target is ${percent(said.target)}`);
      if (one.strange_bound > said.ood_target) beyond.push(`strange requests routed may be ${percent(one.strange_bound)}, the target is ${percent(said.ood_target)}`);
      return beyond.length ? `Beyond the targets: ${beyond.join("; ")}.` : "Within the targets.";
    };
    const show = () => {
      const place = Number(slider.value);
      const one = points[place];
      put("-threshold", percent(one.threshold));
      put("-novelty", `strangeness ${percent(one.novelty_limit)} at most`);
      put("-routed", percent(one.routed / rows));
      put("-routed-count", `${one.routed.toLocaleString("en")} of ${rows.toLocaleString("en")}`);
      put("-error", percent(error[place]));
      put("-bound", `${one.errors}; at most ${percent(one.error_bound)}`);
      put("-strange", strange ? percent(one.strange_routed / strange) : "–");
      put("-strange-bound", strange ? `${one.strange_routed}; at most ${percent(one.strange_bound)}` : "none were given");
      const now = points[present];
      const change = present == null ? "" : place === present ? "This is in force." :
        `Against what is in force: ${less(one.routed - now.routed, "requests routed")}, ${less(one.errors - now.errors, "of them wrong")}, ${less(one.strange_routed - now.strange_routed, "strange requests routed")}.`;
      put("", `${change} ${verdict(one)}`.trim());
      slider.setAttribute("aria-valuetext", `confidence ${percent(one.threshold)}`);
      drawing.redraw();
    };
    slider.addEventListener("input", show);
    show();
  };
  document.querySelectorAll("[data-curve]").forEach(curve);
})();
