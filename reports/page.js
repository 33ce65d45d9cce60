"use strict";
// The map, the closer look at a site and the curves, drawn from the page's own data. Texts are set, never parsed.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const [POINT, LAYER, STEP, STATUS, ERROR, FLOOR, DRIFT] = [0, 1, 2, 3, 4, 5, 6];
  const GLYPH = { agrees: "·", inherits: "~", diverges: "×", "not recorded": "-", "not comparable": "?" };
  const NO_LOOK = Object.keys(data.details).length
    ? "No closer look was kept here: of so many sites, only the first ones have one."
    : "No closer look was taken. Judge again with --html or --details for one.";
  const TOP = data.alphabet.length - 1;
  const SVG = "http://www.w3.org/2000/svg";
  const sites = data.sites;
  const byId = (id) => document.getElementById(id);
  const statusOf = (site) => data.statuses[site[STATUS]];
  const kind = (site) => statusOf(site).replace(" ", "-");

  const nameOf = (site) =>
    data.points[site[POINT]] + (site[LAYER] === null ? "" : `-${site[LAYER]}`) + (site[STEP] ? `@${site[STEP]}` : "");
  const index = new Map(sites.map((site, i) => [nameOf(site), i]));
  const diverging = sites.flatMap((site, i) => (statusOf(site) === "diverges" ? [i] : []));
  let shown = -1; // the site looked at
  let step = -1; // the step on the map

  // Making elements

  const make = (tag, attributes, ...children) => {
    const element = document.createElement(tag);
    return fill(element, attributes, children);
  };
  const draw = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  // Numbers

  const value = (x) => (typeof x === "string" ? Number(x.replace("inf", "Infinity").replace("nan", "NaN")) : x);
  const level = (c) => data.alphabet.indexOf(c);
  function number(x) {
    if (x === null || x === undefined) return "-";
    if (typeof x === "string") return x;
    if (!Number.isFinite(x)) return String(x).replace("Infinity", "inf").replace("NaN", "nan");
    if (x === 0) return "0";
    const size = Math.abs(x);
    const text = size >= 1e5 || size < 1e-3 ? x.toExponential() : String(x);
    return text.replace(/e\+?(-?)(\d+)$/, "e$1$2");
  }
  const errorAt = (c) => (level(c) === 0 ? 0 : level(c) === TOP ? Infinity : 10 ** ((level(c) - 1) / 8 - 9));
  const about = (x) => number(Number.isFinite(x) ? Number(x.toPrecision(2)) : x);
  /** Where an error lies between 1e-8 (0) and 1 (1). */
  const heat = (error) => Math.min(1, Math.max(0, (Math.log10(value(error)) + 8) / 8)) || 0;
  const pieceAt = (site, token) => (site[STEP] === 0 && data.pieces[token] !== undefined ? ` ${data.pieces[token]}` : "");

  // The map

  function cell(i, tabbable) {
    const site = sites[i];
    const a = make("a", { href: `#${encodeURIComponent(nameOf(site))}`, class: `cell ${kind(site)}`, "data-site": i });
    a.style.setProperty("--t", `${Math.round(16 + 68 * (site[ERROR] === null ? 0 : heat(site[ERROR])))}%`);
    a.textContent = GLYPH[statusOf(site)];
    const told = site[ERROR] === null ? "" : `, local error ${number(site[ERROR])}`;
    a.title = `${nameOf(site)}: ${statusOf(site)}${told}`;
    a.setAttribute("aria-label", a.title);
    a.tabIndex = tabbable ? 0 : -1;
    if (i === shown) a.setAttribute("aria-current", "true");
    return a;
  }

  function drawMap() {
    const own = sites.flatMap((site, i) => (site[STEP] === step ? [i] : []));
    const parts = [];
    for (const i of own) {
      const outside = sites[i][LAYER] === null;
      if (!parts.length || parts[parts.length - 1].outside !== outside) parts.push({ outside, of: [] });
      parts[parts.length - 1].of.push(i);
    }
    const grid = byId("grid");
    grid.replaceChildren();
    for (const part of parts) grid.append(part.outside ? ends(part.of) : layers(part.of));
    const current = grid.querySelector("[aria-current]") || grid.querySelector(".cell");
    if (current) current.tabIndex = 0;
    for (const button of byId("steps").children) button.setAttribute("aria-pressed", String(Number(button.value) === step));
  }

  const ends = (of) =>
    make("div", { class: "ends" }, ...of.map((i) => make("span", {}, data.points[sites[i][POINT]], cell(i))));

  function layers(of) {
    const rows = new Map();
    const points = [];
    let after = 0;
    let last = null;
    for (const i of of) {
      const [point, layer] = sites[i];
      if (layer !== last) [after, last] = [0, layer];
      if (!points.includes(point)) points.splice(after, 0, point);
      after = points.indexOf(point) + 1;
      if (!rows.has(layer)) rows.set(layer, new Map());
      rows.get(layer).set(point, i);
    }
    const head = make("tr", {}, make("th", { scope: "col" }, make("span", {}, "layer")));
    for (const point of points) head.append(make("th", { scope: "col" }, make("span", {}, data.points[point])));
    const body = make("tbody", {});
    for (const [layer, found] of rows) {
      const row = make("tr", {}, make("th", { scope: "row" }, String(layer)));
      for (const point of points) row.append(found.has(point) ? make("td", {}, cell(found.get(point))) : make("td", {}));
      body.append(row);
    }
    const columns = make("colgroup", {}, make("col", { class: "layer" }));
    return make("table", { class: "map", "aria-label": "Layers by points" }, columns, make("thead", {}, head), body);
  }

  function drawSteps() {
    const steps = [...new Set(sites.map((site) => site[STEP]))];
    if (steps.length < 2) return;
    const bad = new Set(diverging.map((i) => sites[i][STEP]));
    for (const n of steps) {
      const button = make("button", { type: "button", value: n, class: bad.has(n) ? "bad" : "" }, `Step ${n}`);
      button.addEventListener("click", () => setStep(n));
      byId("steps").append(button);
    }
  }

  function setStep(n) {
    if (n === step) return;
    step = n;
    drawMap();
    drawDepth();
  }

  // The closer look

  function look(i) {
    shown = i;
    const site = sites[i];
    setStep(site[STEP]);
    for (const a of byId("grid").querySelectorAll(".cell")) {
      const current = Number(a.dataset.site) === i;
      a.tabIndex = current ? 0 : -1;
      if (current) a.setAttribute("aria-current", "true");
      else a.removeAttribute("aria-current");
    }
    byId("site-title").textContent = nameOf(site);
    const parts = [moves(i), facts(i)];
    if (data.details[i]) parts.push(...closer(i, data.details[i]));
    else if (site[ERROR] !== null)
      parts.push(make("p", { class: "hint" }, NO_LOOK));
    parts.push(...tried(i));
    byId("look").replaceChildren(...parts);
  }

  function moves(i) {
    const go = (text, to, label) => {
      const button = make("button", { type: "button", "aria-label": label, title: label }, text);
      button.disabled = to === undefined;
      button.addEventListener("click", () => open(to));
      return button;
    };
    const [before, after] = around(i);
    const status = make("span", { class: "status" });
    status.append(make("i", { class: `cell ${kind(sites[i])}`, "aria-hidden": "true" }, GLYPH[statusOf(sites[i])]));
    status.append(make("span", { class: "big" }, statusOf(sites[i])));
    const line = make("div", { class: "pair" }, status, go("‹ before", i > 0 ? i - 1 : undefined, "the site before"));
    line.append(go("after ›", i + 1 < sites.length ? i + 1 : undefined, "the site after"));
    if (diverging.length) line.append(go("‹ ×", before, "the site before that diverges"), go("× ›", after, "the next site that diverges"));
    return line;
  }

  function around(i) {
    return [diverging.filter((d) => d < i).pop(), diverging.find((d) => d > i)];
  }

  function facts(i) {
    const site = sites[i];
    const more = data.more[i] || {};
    const list = make("dl", {});
    const tell = (label, said) => said && list.append(make("dt", {}, label), make("dd", {}, said));
    const place = `${site[LAYER] === null ? "" : `layer ${site[LAYER]}, `}step ${site[STEP]}`;
    tell("operation", `${data.ops[site[POINT]]}, ${place}`);
    if (site[ERROR] !== null) tell("local error", `${number(site[ERROR])} against a floor of ${number(site[FLOOR])}`);
    if (site[DRIFT] !== null) tell("drift", number(site[DRIFT]));
    if (site[ERROR] !== null) tell("inputs", more.inputs || (more.segment ? "not judged" : "right"));
    if (more.segment) tell("judged with", `${more.segment.join(", ")}, which could not be judged alone`);
    if (more.where) tell("wrong at", more.where.join(", "));
    if (more.broken) tell("NaN or infinite", `${more.broken} elements`);
    tell("reason", more.reason);
    if (statusOf(site) === "not recorded") tell("to do", "dump this point, and it will be judged");
    return list;
  }

  function closer(i, [shape, candidate, reference, worst, profiles, bars, pairs]) {
    const parts = [make("h3", {}, `Both values, ${shape.join(" × ") || "one number"}`)];
    const names = ["mean", "rms", "lowest", "highest", "NaN or infinite"];
    parts.push(table(["", "candidate", "reference"], names.map((n, k) => [n, number(candidate[k]), number(reference[k])])));
    if (worst.length) {
      const axes = profiles.map(([axis]) => axis).join(", ");
      const row = ([at, c, r]) => [`[${at.join(", ")}]`, number(c), number(r), about(value(c) - value(r))];
      parts.push(make("h3", {}, "Worst elements"));
      parts.push(table([axes, "candidate", "reference", "difference"], worst.map(row)));
    }
    for (const profile of profiles) if (profile[1] > 1) parts.push(along(i, profile));
    if (bars) parts.push(histogram(bars));
    if (pairs) parts.push(scatter(pairs));
    return parts;
  }

  function table(head, rows) {
    const t = make("table", {}, make("thead", {}, make("tr", {}, ...head.map((h, k) => make("th", { class: k ? "n" : "" }, h)))));
    const body = make("tbody", {});
    for (const row of rows) body.append(make("tr", {}, ...row.map((x, k) => make("td", { class: k ? "n" : "" }, x))));
    t.append(body);
    return make("div", { class: "scroll" }, t);
  }

  function tried(i) {
    const parts = [];
    for (const e of data.explanations.filter((x) => x.sites.includes(i))) {
      parts.push(make("h3", {}, `Hypotheses tried${e.sites[0] === i ? "" : ` at ${e.site}`}, and what each leaves`));
      parts.push(make("p", {}, e.says));
      if (e.tried.length) {
        const row = ([id, says, left, good]) => [good ? `${id} (explains)` : id, number(left), says];
        const t = table(["hypothesis", "residual", "what it says"], e.tried.map(row));
        for (const line of t.querySelectorAll("tr")) line.lastChild.className = "words";
        parts.push(t);
      }
    }
    return parts;
  }

  // Charts. All are 460 wide, with numbers and words beside them.

  const W = 460;
  const X0 = 46;
  const frame = (height, label) => draw("svg", { viewBox: `0 0 ${W} ${height}`, role: "img", "aria-label": label });
  const text = (x, y, said, anchor) => draw("text", { x, y, "text-anchor": anchor || "middle" }, said);
  const figure = (caption, svg) => make("figure", {}, make("figcaption", {}, caption), svg);
  const tip = (element, said) => {
    element.append(draw("title", {}, said));
    return element;
  };

  /** The decades that errors span, as a scale from the bottom to the top of a chart. */
  function decades(errors, top, bottom) {
    const finite = errors.filter((e) => e > 0 && Number.isFinite(e)).map(Math.log10);
    // a decade's room for what is no error at all, and for what is no number
    const zero = errors.includes(0) ? 1 : 0;
    const endless = errors.some((e) => !Number.isFinite(e)) ? 1 : 0;
    const low = finite.length ? Math.floor(Math.min(...finite)) : -9;
    const high = Math.max(low + 1, finite.length ? Math.ceil(Math.max(...finite)) : 0);
    const at = (e) => (e === 0 ? low - zero : Number.isFinite(e) ? Math.min(high, Math.max(low, Math.log10(e))) : high + endless);
    const y = (e) => bottom - ((at(e) - low + zero) / (high - low + zero + endless)) * (bottom - top);
    return { low, high, zero, endless, y };
  }

  function logAxis(svg, { low, high, zero, endless, y }, right) {
    const tick = (at, said) => svg.append(draw("path", { class: "axis", d: `M${X0} ${at}H${right}` }), text(X0 - 5, at + 4, said, "end"));
    if (zero) tick(y(0), "0");
    if (endless) tick(y(Infinity), "inf");
    const every = Math.ceil((high - low) / 5);
    for (let d = high; d >= low; d -= every) tick(y(10 ** d), `1e${d}`);
  }

  function along(i, [axis, size, wide, levels]) {
    const site = sites[i];
    const errors = [...levels].map(errorAt);
    const floor = value(site[FLOOR]);
    const scale = decades([...errors, floor], 8, 96);
    const svg = frame(116, `Error by ${axis}`);
    logAxis(svg, scale, W);
    const width = (W - X0) / errors.length;
    errors.forEach((e, k) => {
      const x = X0 + k * width;
      const bar = draw("rect", { class: e > 1.2 * floor ? "wrong" : "error", x: x + width * 0.1, width: width * 0.8 });
      bar.setAttribute("y", scale.y(e) - 1);
      bar.setAttribute("height", 97 - scale.y(e));
      const last = Math.min(size, (k + 1) * wide) - 1;
      const span = wide > 1 && last > k * wide ? `${k * wide} to ${last}` : `${k * wide}${axis === "token" || axis === "query" ? pieceAt(site, k * wide) : ""}`;
      svg.append(tip(bar, `${axis} ${span}: about ${about(e)}`));
    });
    svg.append(draw("path", { class: "floor", d: `M${X0} ${scale.y(floor)}H${W}` }));
    svg.append(text(X0, 112, "0", "start"), text(W, 112, String(size - 1), "end"));
    const each = wide > 1 ? `, the largest of each ${wide}` : "";
    return figure(`Error by ${axis}${each}, relative to the token's root mean square; dashed: floor`, svg);
  }

  function histogram([low, high, most, candidate, reference]) {
    const svg = frame(126, "Histogram of both");
    const outline = (levels) => {
      const width = (W - X0) / levels.length;
      const height = (c) => 104 - (level(c) / TOP) * 96;
      return `M${X0} 104` + [...levels].map((c, k) => `L${X0 + k * width} ${height(c)}H${X0 + (k + 1) * width}`).join("") + "V104";
    };
    svg.append(draw("path", { class: "axis", d: `M${X0} 104H${W}` }), text(X0 - 5, 16, number(most), "end"), text(X0 - 5, 108, "0", "end"));
    svg.append(draw("path", { class: "candidate", d: outline(candidate) }), draw("path", { class: "reference", d: outline(reference) }));
    svg.append(text(X0, 121, number(low), "start"), text(W, 121, number(high), "end"));
    return figure("Histogram, counts on a log scale; solid: candidate, dashed: reference", svg);
  }

  function scatter([low, high, levels]) {
    const svg = frame(250, "Candidate against reference");
    const side = 215;
    const place = (c) => (level(c) / TOP) * side;
    svg.append(draw("path", { class: "axis", d: `M${X0} 8V${8 + side}H${X0 + side}` }));
    svg.append(draw("path", { class: "floor", d: `M${X0} ${8 + side}L${X0 + side} 8` }));
    for (let k = 0; k + 1 < levels.length; k += 2) {
      svg.append(draw("circle", { class: "candidate", cx: X0 + place(levels[k + 1]), cy: 8 + side - place(levels[k]), r: 3.2 }));
    }
    svg.append(text(X0 - 5, 16, number(high), "end"), text(X0 - 5, 8 + side, number(low), "end"));
    svg.append(text(X0, 239, number(low), "start"), text(X0 + side, 239, number(high), "end"));
    const told = `${levels.length / 2} elements, the worst among them`;
    return figure(`Candidate (up) against reference (right), ${told}; dashed: where both are equal`, svg);
  }

  // Over depth

  function drawDepth() {
    const chosen = byId("depth-point").value;
    const rows = new Map();
    sites.forEach((site, i) => {
      if (site[STEP] !== step || site[LAYER] === null || (chosen !== "" && site[POINT] !== Number(chosen))) return;
      const row = rows.get(site[LAYER]) || { error: null, drift: null, floor: null, site: i };
      const largest = (name, x) => {
        if (x !== null && (row[name] === null || value(x) > row[name])) {
          row[name] = value(x);
          if (name === "error") row.site = i;
        }
      };
      largest("error", site[ERROR]);
      largest("drift", site[DRIFT]);
      largest("floor", site[FLOOR]);
      rows.set(site[LAYER], row);
    });
    byId("depth-chart").replaceChildren(rows.size ? curves([...rows]) : make("p", {}, "This point is in no layer."));
  }

  function curves(rows) {
    const wide = Math.min(2 * W, Math.max(340, byId("depth-chart").clientWidth));
    const svg = draw("svg", { viewBox: `0 0 ${wide} 240`, role: "img", "aria-label": "Local error and drift by layer" });
    const all = rows.flatMap(([, r]) => [r.error, r.drift, r.floor]).filter((x) => x !== null);
    const scale = decades(all, 10, 205);
    logAxis(svg, scale, wide);
    const x = (k) => X0 + 14 + (rows.length > 1 ? (k / (rows.length - 1)) * (wide - X0 - 28) : 0);
    const line = (name) => {
      const points = rows.flatMap(([, r], k) => (r[name] === null ? [] : [`${x(k)} ${scale.y(r[name])}`]));
      return points.length ? draw("path", { class: name, d: `M${points.join("L")}` }) : "";
    };
    svg.append(line("floor"), line("drift"), line("error"));
    rows.forEach(([layer, r], k) => {
      if (k % Math.ceil((rows.length * 46) / wide) === 0) svg.append(text(x(k), 222, String(layer)));
      if (r.error === null) return;
      const dot = draw("circle", { class: statusOf(sites[r.site]) === "diverges" ? "wrong" : "error", cx: x(k), cy: scale.y(r.error), r: 4 });
      const a = draw("a", { href: `#${encodeURIComponent(nameOf(sites[r.site]))}`, "aria-label": nameOf(sites[r.site]) }, dot);
      svg.append(tip(a, `${nameOf(sites[r.site])}: local error ${number(r.error)}, drift ${number(r.drift)}`));
    });
    svg.append(text(wide, 237, "layer", "end"));
    const chosen = byId("depth-point");
    const what = chosen.value === "" ? "the largest of all points" : chosen.selectedOptions[0].textContent;
    return figure(`Step ${step}, ${what}. Solid with dots: local error; long dashes: drift; short dashes: floor.`, svg);
  }

  function drawChoice() {
    byId("depth-point").append(make("option", { value: "" }, "the largest of all"));
    const inside = new Set(sites.filter((site) => site[LAYER] !== null).map((site) => site[POINT]));
    for (const point of inside) byId("depth-point").append(make("option", { value: point }, data.points[point]));
    byId("depth-point").addEventListener("change", drawDepth);
  }

  // Going about

  /** The browser tells of a new address later: who presses n twice would go one site on. */
  function open(i) {
    if (i === undefined) return;
    location.hash = `#${encodeURIComponent(nameOf(sites[i]))}`;
    visit();
  }

  /** The site that the address names. */
  function addressed() {
    try {
      return index.get(decodeURIComponent(location.hash.slice(1)));
    } catch {
      return undefined;
    }
  }

  /** Show the site that the address names, and bring it into view. */
  function visit() {
    const i = addressed();
    if (i === undefined) return;
    look(i);
    byId("site").focus({ preventScroll: true });
    byId("site").scrollTop = 0;
    byId("site").scrollIntoView({ block: "nearest" });
    if (byId("site").getBoundingClientRect().top > innerHeight / 2) byId("site").scrollIntoView({ block: "start" });
  }

  function move(from, right, down) {
    const rows = [...byId("grid").querySelectorAll("tr, .ends")]
      .map((row) => [...row.querySelectorAll(".cell")])
      .filter((row) => row.length);
    const y = rows.findIndex((row) => row.includes(from));
    const cells = rows[Math.min(rows.length - 1, Math.max(0, y + down))];
    const x = rows[y].indexOf(from) + right;
    const to = cells[Math.min(cells.length - 1, Math.max(0, x))];
    from.tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  }

  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.target.closest("select, input")) return;
    const at = event.target.closest("#grid .cell");
    if (at && ARROWS[event.key]) {
      event.preventDefault();
      move(at, ...ARROWS[event.key]);
    } else if (event.key === "n" || event.key === "p") {
      const [before, after] = around(shown);
      open(event.key === "n" ? after : before);
    } else if (event.key === "Escape") {
      const current = byId("grid").querySelector("[aria-current]");
      if (current) current.focus();
    }
  });
  addEventListener("hashchange", () => addressed() !== shown && visit());
  addEventListener("resize", () => step >= 0 && drawDepth());

  if (!sites.length) {
    byId("look").append(make("p", {}, "The verdict holds no sites."));
    return;
  }
  drawSteps();
  drawChoice();
  let start = data.first;
  if (start === null) {
    const size = (i) => (sites[i][ERROR] === null ? -1 : value(sites[i][ERROR]));
    start = sites.reduce((best, _, i) => (size(i) > size(best) ? i : best), 0);
  }
  look(start);
  visit();
})();
