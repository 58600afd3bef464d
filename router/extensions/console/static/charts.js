// The overview's charts: uPlot on the columns that the server keeps of the last minutes.
(() => {
  "use strict";
  const KEPT = 15 * 60; // seconds
  const EVERY = 5000;
  const grid = document.getElementById("chart-grid");
  const places = [...document.querySelectorAll(".chart")];
  let columns = { time: [] };
  let charts = [];

  const digits = (value, most) => value.toLocaleString("en", { maximumFractionDigits: most });
  const scaled = (value, units, step) => {
    let at = 0;
    while (Math.abs(value) >= step && at < units.length - 1) {
      value /= step;
      at += 1;
    }
    return `${digits(value, value < 10 ? 1 : 0)} ${units[at]}`;
  };
  const SHOWN = {
    rate: (value) => digits(value, value < 10 ? 2 : 0),
    count: (value) => digits(value, 1),
    bytes: (value) => scaled(value, ["B", "kB", "MB", "GB", "TB"], 1000),
    seconds: (value) => (value < 1 ? `${digits(value * 1000, value < 0.01 ? 1 : 0)} ms` : `${digits(value, 1)} s`),
  };
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const clock = (seconds, exact = true) =>
    new Date(seconds * 1000).toLocaleTimeString("en-GB", {
      hour: "2-digit",
      minute: "2-digit",
      second: exact ? "2-digit" : undefined,
    });

  const dataOf = (place) => [columns.time, ...place.dataset.columns.split(",").map((name) => columns[name] ?? [])];

  const draw = (place) => {
    const shown = SHOWN[place.dataset.unit];
    const value = (_, raw) => (raw == null ? "–" : shown(raw));
    const brief = () => columns.time.length && columns.time.at(-1) - columns.time[0] < 240;
    const last = (chart) => chart.setLegend({ idx: chart.data[0].length - 1 }, false);
    const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
    const series = place.dataset.labels.split(",").map((label, at) => ({
      label,
      value,
      stroke: colour(at ? "--two" : "--one"),
      width: 1.6,
      dash: at ? [5, 3] : undefined,
      points: { show: false },
      spanGaps: place.dataset.unit === "seconds", // nobody answered in between
    }));
    const options = {
      width: place.clientWidth,
      height: 150,
      cursor: { y: false, points: { size: 6 } },
      hooks: {
        ready: [last],
        setData: [last],
        setCursor: [(chart) => chart.cursor.idx == null && last(chart)],
      },
      scales: {
        x: { range: (_, low, high) => [Math.max(low ?? 0, (high ?? KEPT) - KEPT), high ?? KEPT] },
        y: { range: (_, low, high) => [0, high > 0 ? high * 1.12 : 1] },
      },
      axes: [
        { ...axis, size: 26, space: 64, values: (_, ticks) => ticks.map((tick) => clock(tick, brief())) },
        { ...axis, size: 56, space: 28, values: (_, ticks) => ticks.map(shown) },
      ],
      series: [{ label: "time", value: (_, raw) => (raw == null ? "–" : clock(raw)) }, ...series],
    };
    place.replaceChildren();
    return new uPlot(options, dataOf(place), place);
  };

  const summary = (place) => {
    const names = place.dataset.labels.split(",");
    const last = dataOf(place).slice(1).map((column) => column.at(-1));
    const said = names.map((name, at) => `${name} ${last[at] == null ? "none" : SHOWN[place.dataset.unit](last[at])}`);
    const title = place.closest("figure").querySelector("h3").textContent;
    place.setAttribute("aria-label", `${title}, the last 15 minutes; now ${said.join(", ")}`);
  };

  const redraw = () => {
    for (const chart of charts) chart.destroy();
    charts = places.map(draw);
  };
  const look = async () => {
    if (document.hidden && charts.length) return;
    try {
      const after = columns.time.at(-1) ?? 0;
      const answer = await fetch(`${grid.dataset.series}?after=${after}`);
      if (!answer.ok) return; // the live part above says why
      const more = await answer.json();
      if (charts.length && !more.time.length) return;
      const from = (more.time.at(-1) ?? 0) - KEPT;
      const drop = columns.time.filter((time) => time < from).length;
      for (const name of Object.keys(more)) {
        columns[name] = [...(columns[name] ?? []).slice(drop), ...more[name]];
      }
    } catch {
      return; // no answer: the next look may have one
    }
    if (charts.length) charts.forEach((chart, at) => chart.setData(dataOf(places[at])));
    else redraw();
    places.forEach(summary);
  };

  let width = 0;
  new ResizeObserver(() => {
    if (!charts.length || grid.clientWidth === width) return;
    width = grid.clientWidth;
    charts.forEach((chart, at) => chart.setSize({ width: places[at].clientWidth, height: 150 }));
  }).observe(grid);
  document.addEventListener("console:theme", redraw);
  document.addEventListener("visibilitychange", look);
  setInterval(look, EVERY);
  look();
})();
