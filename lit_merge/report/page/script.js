"use strict";
// Draws the figures of a report from its data. Names come from experts and data of anybody: they are only ever text.
(() => {
  const runs = JSON.parse(document.getElementById("data").textContent);
  const STATES = ["pretrained", "static", "online", "first", "adapted", "routed", "expert"];
  const stateColours = { domain: STATES, range: STATES.map((one) => `var(--${one})`) };
  const TEN = ["#4c8dd6", "#e08a2c", "#3fa66b", "#d9534f", "#9a76d1", "#a1745c", "#d873b5", "#8a8f98", "#a9a932", "#2fb3c4"];
  const colourOf = (tasks) => (task) => (task === "mean" ? "var(--ink)" : TEN[tasks.indexOf(task) % TEN.length]);
  const percent = (value) => (value == null ? null : Math.round(value * 1e4) / 1e2);
  const letters = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);
  const common = { style: { background: "transparent", color: "currentColor", fontSize: "12px" } };
  const below = { labelAnchor: "center", labelArrow: "none", labelOffset: 38 };
  const roomFor = (names, most = 30) => 16 + 7.3 * Math.max(...names.map((name) => Math.min(name.length, most)));
  const left = (names, width) => Math.min(roomFor(names), Math.max(70, 0.4 * width));
  const cut = (names, width) => (name) => letters(String(name), Math.floor((left(names, width) - 14) / 7.2));

  // Every chart: the columns and rows of its data, and a function of the width that draws.
  const charts = {
    accuracy(run) {
      const { tasks, mean, split } = run.accuracy, states = run.accuracy.states.filter((one) => STATES.includes(one));
      const names = [...Object.keys(tasks), "mean"];
      const rows = names.flatMap((task) => states.map((state) => [task, state, percent((tasks[task] || mean)[`${state}_accuracy`])]));
      return { columns: ["task", "state", `${split} accuracy (%)`], rows: rows.filter((row) => row[2] != null), draw: dumbbells(names, stateColours, states, `${split} accuracy (%)`) };
    },
    comparison() {
      const known = runs.filter((run) => run.accuracy);
      const names = [...new Set(known.flatMap((run) => Object.keys(run.accuracy.tasks))), "mean"];
      const best = (row) => percent(row.adapted_accuracy ?? row.static_accuracy);
      const rows = known.flatMap((run) => names.map((task) => {
        const row = task === "mean" ? run.accuracy.mean : run.accuracy.tasks[task];
        return [task, run.name, row ? best(row) : null];
      }));
      const domain = known.map((run) => run.name);
      const colours = { domain, range: domain.map((_, i) => TEN[i % TEN.length]) };
      return { columns: ["task", "run", "accuracy (%)"], rows: rows.filter((row) => row[2] != null), draw: dumbbells(names, colours, domain, "accuracy (%)") };
    },
    coefficients(run, place) {
      const { layers, tasks, looks } = run.coefficients;
      const look = looks[place ?? looks.length - 1];
      const rows = tasks.flatMap((task, t) => layers.map((layer, l) => [task, layer.name, look.values[t][l], l]));
      return { columns: ["task", "weight", `coefficient at step ${look.step}`], rows, shown: 3, draw: heatMap(run.coefficients, look) };
    },
    sizes(run) {
      const rows = run.sizes.map(([what, bytes]) => [what, bytes / 1e6]);
      const names = rows.map((row) => row[0]);
      return { columns: ["what", "MB"], rows, draw: (width) => Plot.plot({
        ...common, width, height: 26 * rows.length + 70, marginLeft: roomFor(names), marginRight: 70, marginBottom: 44,
        x: { label: "MB", grid: true, ...below }, y: { domain: names, label: null, tickSize: 0 },
        marks: [Plot.barX(rows, { x: "1", y: "0", fill: "var(--static)", insetTop: 3, insetBottom: 3 }),
          Plot.text(rows, { x: "1", y: "0", text: (row) => row[1].toPrecision(3) + " MB", textAnchor: "start", dx: 5 })],
      }) };
    },
    interference: (run) => anchored(run, 1, "interference I(k)", "rank k / min(m, n) (%)"),
    energy: (run) => anchored(run, 2, "kept energy (%)", "rank k / min(m, n) (%)"),
    spectra(run) {
      const anchor = Object.values(run.bank.anchors)[0];
      const kinds = Object.keys(anchor.spectra).filter((kind) => anchor.spectra[kind].length);
      const rows = kinds.flatMap((kind) => anchor.spectra[kind].map(([x, y]) => [kind, x, y]));
      return { columns: ["kind of weight", "index / min(m, n) (%)", "σ / sum of all σ (%)"], rows, draw: (width) => Plot.plot({
        ...common, width, height: 280, marginLeft: 55, marginBottom: 44, x: { label: "index / min(m, n) (%)", ...below }, y: { type: "log", grid: true, label: "σ / sum of all σ (%)", ticks: 4, tickFormat: "~g" },
        color: { domain: kinds, range: kinds.map((_, i) => TEN[i % 10]), legend: true, tickFormat: (kind) => letters(kind, 40) },
        marks: [Plot.line(rows, { x: "1", y: "2", z: "0", stroke: "0", strokeWidth: 1.6, tip: true })],
      }) };
    },
    cosines(run) {
      const tasks = run.bank.tasks, values = Object.values(run.bank.anchors)[0].cosines;
      const rows = tasks.flatMap((one, i) => tasks.map((other, j) => [one, other, values[i][j]])).filter((row) => row[0] !== row[1]);
      const reach = Math.max(1e-9, ...rows.map((row) => Math.abs(row[2])));
      return { columns: ["task", "other task", "cosine"], rows, draw: (width) => {
        const margin = left(tasks, width), side = Math.min(width - margin - 10, Math.max(180, (tasks.length > 10 ? 24 : 40) * tasks.length));
        return Plot.plot({
          ...common, width: side + margin + 10, height: side + margin, marginLeft: margin, marginBottom: margin, padding: 0,
          x: { domain: tasks, label: null, tickRotate: -60, tickFormat: cut(tasks, width), tickSize: 0 },
          y: { domain: tasks, label: null, tickFormat: cut(tasks, width), tickSize: 0 },
          color: { scheme: "RdBu", reverse: true, domain: [-reach, reach], legend: true, label: "cosine", width: Math.min(240, width) },
          marks: [Plot.cell(rows, { x: "1", y: "0", fill: "2", tip: true }),
            tasks.length > 10 ? null : Plot.text(rows, { x: "1", y: "0", text: (row) => (row[2] == null ? "" : row[2].toFixed(2).replace("-", "−")), fill: (row) => (Math.abs(row[2]) > 0.6 * reach ? "white" : "black"), fontSize: 10 })],
        });
      } };
    },
  };

  function dumbbells(names, colours, shown, label) {
    return (width, rows) => Plot.plot({
      ...common, width, height: 24 * names.length + 70, marginLeft: left(names, width), marginBottom: 44,
      x: { domain: [0, 100], grid: true, label, ...below },
      y: { domain: names, label: null, tickFormat: cut(names, width), tickSize: 0 },
      color: { ...colours, domain: colours.domain.filter((one) => shown.includes(one)), range: colours.range.filter((_, i) => shown.includes(colours.domain[i])) },
      symbol: { domain: shown, legend: true },
      marks: [
        Plot.ruleY(rows, Plot.groupY({ x1: "min", x2: "max" }, { x1: "2", x2: "2", y: "0", stroke: "var(--line)", strokeWidth: 3 })),
        names.length > 2 ? Plot.ruleY(["mean"], { y: (d) => d, dy: -12, stroke: "var(--line)", strokeDasharray: "2,3" }) : null,
        Plot.dot(rows, { x: "2", y: "0", fill: "1", symbol: "1", r: 4.5, channels: { task: "0" }, tip: { format: { x: (v) => `${v} %` } } }),
      ],
    });
  }

  function anchored(run, column, label, x) {
    const rows = Object.entries(run.bank.anchors).flatMap(([anchor, { curves }]) => curves.map((row) => [anchor, row[0], row[column]]));
    return { columns: ["task vectors", x, label], rows, draw: (width) => Plot.plot({
      ...common, width, height: 260, marginLeft: 55, x: { type: "log", label: x, ticks: [1, 2, 5, 10, 20, 50, 100], tickFormat: "~g", ...below }, marginBottom: 44,
      y: { label, grid: true, zero: true }, marks: [Plot.line(rows, { x: "1", y: "2", z: "0", stroke: "var(--static)", strokeWidth: 2, marker: "dot", tip: true })],
    }) };
  }

  function curve(run, number) {
    const { title, curves } = run.curves[number];
    // The mean is drawn over the tasks.
    const tasks = Object.keys(curves).sort((a, b) => (a === "mean") - (b === "mean")), colour = colourOf(tasksOf(run));
    const rows = tasks.flatMap((task) => curves[task].map(([step, y]) => [task, step, y])).filter((row) => row[2] != null);
    const thrown = run.kept ? [run.kept.step] : [];
    return { columns: ["task", "step", title], rows, draw: (width) => Plot.plot({
      ...common, width, height: 230, marginLeft: 50, marginBottom: 44, x: { label: "step", ticks: 5, tickFormat: "d", ...below }, y: { grid: true, label: null },
      marks: [
        Plot.ruleX(thrown, { stroke: "var(--bad)", strokeDasharray: "3,3" }),
        Plot.text(thrown, { x: (d) => d, frameAnchor: "top", text: () => "kept", fill: "var(--bad)", dx: 4, textAnchor: "start" }),
        Plot.line(rows, { x: "1", y: "2", z: "0", stroke: (row) => colour(row[0]), strokeWidth: (row) => (row[0] === "mean" ? 2.6 : 1.1), strokeDasharray: (row) => (second(run, row[0]) ? "4,2" : null) }),
        Plot.tip(rows, Plot.pointer({ x: "1", y: "2", title: (row) => `${row[0]}\nstep ${row[1]}: ${row[2]}` })),
      ],
    }) };
  }

  const tasksOf = (run) => [...new Set(run.curves.flatMap((one) => Object.keys(one.curves)))].filter((task) => task !== "mean");
  const second = (run, task) => tasksOf(run).indexOf(task) > 9;

  function heatMap({ layers, tasks, looks }, look) {
    const all = look.values.flat().filter((value) => value != null);
    const low = all.length ? Math.min(...all) : 0, high = all.length ? Math.max(...all) : 0, first = looks[0].values[0][0];
    const one = looks[0].values.every((row) => row.every((value) => value === first)) && low < first && first < high;
    const reach = Math.max(high - first, first - low);
    const colours = one ? { scheme: "RdBu", reverse: true, domain: [first - reach, first + reach] } : { scheme: "viridis", domain: low < high ? [low, high] : [low - 0.1, low + 0.1] };
    const heads = layers.map((layer, i) => [i, layer.block]).filter(([i, block]) => block && (i === 0 || layers[i - 1].block !== block));
    return (width, rows) => {
      const margin = left(tasks, width), wide = Math.max(width, margin + 4 * layers.length + 20);
      return Plot.plot({
        ...common, width: wide, height: 22 * tasks.length + 70, marginLeft: margin, marginTop: 28, marginBottom: 8, padding: 0,
        x: { domain: layers.map((_, i) => i), axis: null, label: null }, y: { domain: tasks, label: null, tickFormat: cut(tasks, width), tickSize: 0 },
        color: { ...colours, legend: true, label: one ? `coefficient λ (white: ${first}, the start)` : "coefficient λ", width: Math.min(280, width) },
        marks: [
          Plot.cell(rows, { x: "3", y: "0", fill: "2", inset: 0, tip: true, title: (row) => `${row[0]}\n${row[1]}\nλ = ${row[2]}` }),
          Plot.text(heads, { x: "0", text: ([, block]) => block.split(".").pop(), frameAnchor: "top", dy: -14, fill: "var(--soft)", textAnchor: "start" }),
          Plot.tickX(heads, { x: "0", stroke: "var(--paper)", strokeWidth: 1.5, dx: heads.length ? -(wide - margin - 20) / layers.length / 2 : 0 }),
        ],
      });
    };
  }

  const asText = (value) => (value == null ? "" : String(value));

  function make(figure) {
    const run = runs[Number(figure.dataset.run)], chart = figure.dataset.chart;
    const slider = chart === "coefficients" ? document.getElementById(`step-${figure.dataset.run}`) : null;
    return chart.startsWith("curve-") ? curve(run, Number(chart.slice(6))) : charts[chart](run, slider ? Number(slider.value) : null);
  }

  function draw(figure) {
    const place = figure.querySelector(".chart"), made = make(figure);
    const drawn = made.draw(Math.max(280, Math.min(place.clientWidth || 640, 1150)), made.rows);
    const picture = drawn.tagName === "svg" ? drawn : [...drawn.querySelectorAll("svg")].pop();
    picture.setAttribute("role", "img");
    picture.setAttribute("aria-label", `${figure.querySelector("figcaption").textContent}. Its data are in the table below.`);
    place.replaceChildren(drawn);
    const details = figure.querySelector("details.data");
    if (details.open) fill(details, made);
  }

  function fill(details, made) {
    const shown = made.shown || made.columns.length, table = document.createElement("table");
    const row = (kind, cells) => {
      const line = document.createElement("tr");
      for (const value of cells) {
        const cell = document.createElement(kind);
        cell.textContent = asText(value);
        if (typeof value === "number") cell.className = "number";
        line.append(cell);
      }
      return line;
    };
    table.createTHead().append(row("th", made.columns));
    table.createTBody().append(...made.rows.map((cells) => row("td", cells.slice(0, shown))));
    const save = document.createElement("button");
    save.type = "button";
    save.className = "save";
    save.textContent = "Save as CSV";
    save.addEventListener("click", () => saveCsv(made, shown));
    details.querySelector(".rows").replaceChildren(save, table);
  }

  function saveCsv(made, shown) {
    const quoted = (value) => `"${asText(value).replaceAll('"', '""')}"`;
    const text = [made.columns, ...made.rows.map((row) => row.slice(0, shown))].map((row) => row.map(quoted).join(",")).join("\n");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text + "\n"], { type: "text/csv" }));
    link.download = "figure.csv";
    link.click();
    URL.revokeObjectURL(link.href);
  }

  function sortBy(button) {
    const head = button.closest("th"), table = head.closest("table"), body = table.tBodies[0];
    const column = [...head.parentElement.children].indexOf(head);
    const direction = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    const value = (line) => line.children[column].textContent.trim();
    const number = (text) => (text === "–" ? -Infinity : Number(text));
    const numeric = head.classList.contains("number");
    const order = (a, b) => (numeric ? number(value(a)) - number(value(b)) : value(a).localeCompare(value(b), undefined, { numeric: true }));
    const lines = [...body.rows].sort((a, b) => (direction === "ascending" ? order(a, b) : order(b, a)));
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", direction);
    body.append(...lines);
  }

  const figures = [...document.querySelectorAll("figure[data-chart]")];
  for (const button of document.querySelectorAll(".sortable th button")) button.addEventListener("click", () => sortBy(button));
  for (const figure of figures) {
    draw(figure);
    const details = figure.querySelector("details.data");
    details.addEventListener("toggle", () => details.open && fill(details, make(figure)));
  }
  for (const slider of document.querySelectorAll(".slider input")) {
    const run = runs[Number(slider.dataset.run)], figure = figures.find((one) => one.dataset.chart === "coefficients" && one.dataset.run === slider.dataset.run);
    const told = () => {
      const look = run.coefficients.looks[Number(slider.value)];
      slider.parentElement.querySelector("output").textContent = `${look.step}${look.note ? `, ${look.note}` : ""}`;
      slider.setAttribute("aria-valuetext", `step ${look.step}`);
    };
    told();
    slider.addEventListener("input", () => { told(); draw(figure); });
  }
  for (const legend of document.querySelectorAll(".legend")) {
    const run = runs[Number(legend.dataset.run)], tasks = tasksOf(run), colour = colourOf(tasks);
    for (const task of ["mean", ...tasks]) {
      const entry = document.createElement("span");
      entry.textContent = task;
      entry.style.setProperty("--of", colour(task));
      if (second(run, task)) entry.style.setProperty("--dash", "dashed");
      legend.append(entry);
    }
  }
  const root = document.documentElement;
  document.getElementById("theme").addEventListener("click", () => {
    const dark = root.style.colorScheme ? root.style.colorScheme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.style.colorScheme = dark ? "light" : "dark";
  });
  let width = root.clientWidth, waiting = 0;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      if (root.clientWidth !== width) { width = root.clientWidth; figures.forEach(draw); }
    }, 150);
  });
})();
