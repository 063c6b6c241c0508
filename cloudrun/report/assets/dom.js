"use strict";
// Elements, made of text only; the palette as the style sheet has it; what floats beside the pointer.

const SYMBOLS = { succeeded: "●", failed: "✕", lost: "◇", cancelled: "–" };
const isOver = (state) => state in SYMBOLS;

/** `h("a.link", {href: "#/"}, "text", element, ...)`: properties, `on…` listeners, `aria-`, `data-` and `role` too. */
function h(tag, properties, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(properties ?? {})) {
    if (value === null || value === undefined) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key.includes("-") || key === "role" || key === "colspan" || key === "scope")
      element.setAttribute(key, value);
    else element[key] = value;
  }
  element.append(...present(children));
  return element;
}

function present(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
}

function replace(element, ...children) {
  element.replaceChildren(...present(children));
}

function stateMark(state) {
  return h(
    "span.state",
    { "data-state": state },
    h("span.symbol", { "aria-hidden": "true" }, SYMBOLS[state] ?? "○"),
    state,
  );
}

const runLink = (run, text) => h("a", { href: routeOf(run) }, text ?? labelOf(run));
const routeOf = (run) => `#/run/${encodeURIComponent(RUNS.id[run])}`;

let _palette = null;

/** The colours of the style sheet, by name, for what is drawn on a canvas. */
function palette() {
  if (_palette) return _palette;
  const style = getComputedStyle(document.documentElement);
  _palette = {};
  for (const name of ["paper", "ink", "muted", "hair", "accent", "soft", "dot", "bad", "other"]) {
    _palette[name] = style.getPropertyValue(`--${name}`).trim();
  }
  _palette.font = `11px ${style.getPropertyValue("--sans")}`;
  return _palette;
}

function forgetPalette() {
  _palette = null;
}

/** A canvas of that many CSS pixels, and its context scaled to the screen's. */
function surface(width, height, label) {
  const ratio = Math.min(3, Math.max(2, window.devicePixelRatio || 1));
  const canvas = h("canvas", {
    width: Math.round(width * ratio),
    height: Math.round(height * ratio),
    role: "img",
    "aria-label": label,
  });
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  context.font = palette().font;
  return [canvas, context];
}

const TIP = document.getElementById("tip");

/** Show lines of text beside the pointer, or nothing. */
function tip(event, lines) {
  TIP.hidden = !lines;
  if (!lines) return;
  replace(
    TIP,
    lines.map((line, at) => h(at ? "div" : "strong", null, line)),
  );
  const box = TIP.getBoundingClientRect();
  const left = event.clientX + 14 + box.width > innerWidth ? event.clientX - box.width - 14 : event.clientX + 14;
  TIP.style.left = `${Math.max(4, left)}px`;
  TIP.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - box.height - 4))}px`;
}

function runTip(run) {
  const lines = [nameOf(run) === RUNS.id[run] ? RUNS.id[run] : `${nameOf(run)} · ${RUNS.id[run]}`];
  if (STATE.metric && STATE.metric.word(run) !== null) {
    const rank = STATE.rank[run] ? ` · rank ${GROUPED.format(STATE.rank[run])}` : "";
    lines.push(`${STATE.metric.name} ${STATE.metric.word(run)}${rank}`);
  } else lines.push(stateOf(run));
  const params = VARYING.slice(0, 8).filter((param) => param.word(run) !== null);
  return [...lines, ...params.map((param) => `${param.name} = ${param.word(run)}`)];
}

/** Buttons of which one is pressed. */
function choice(label, options, chosen, choose) {
  return h(
    "span.choice",
    { role: "group", "aria-label": label },
    options.map(([value, text]) =>
      h("button", { type: "button", "aria-pressed": String(value === chosen), onclick: () => choose(value) }, text),
    ),
  );
}

/** A copy of a list, or of an evenly spread part of one that is too long to draw. `first` keeps that many from its beginning. */
function sample(list, most, first = 0) {
  if (list.length <= most) return [...list];
  const step = (list.length - first) / (most - first);
  return [
    ...list.slice(0, first),
    ...Array.from({ length: most - first }, (_, at) => list[Math.floor(first + at * step)]),
  ];
}
