"use strict";
// The score against each parameter: one small chart for each, what matters most first.

const SCATTER_DOTS = 3000;
const MOST_LEVELS = 24; // a text with more distinct values than this names runs and does not group them
const MOST_PANELS = 12;
const PANEL_PX = 190;

class Scatter {
  constructor() {
    this.grid = h("div.panels", null);
    this.note = h("p.note", null);
    this.element = h(
      "section",
      { "aria-label": "Score against each parameter" },
      h("div.heading", null, h("h2", null, "Parameters")),
      this.grid,
      this.note,
    );
  }

  show(rows) {
    const runs = rows.filter((run) => STATE.rank[run]);
    const fit = VARYING.filter((param) => param.isNumber || param.levels.length <= MOST_LEVELS);
    this.element.hidden = !fit.length || !runs.length;
    if (this.element.hidden) return;
    const effects = fit.map((param) => [
      param,
      explained(
        param,
        runs.filter((run) => param.word(run) !== null),
      ),
    ]);
    effects.sort((a, b) => b[1] - a[1]);
    const range = scoreRange(runs);
    const best = runs.reduce((a, b) => (STATE.rank[a] < STATE.rank[b] ? a : b));
    const dots = sample(runs, SCATTER_DOTS);
    if (!dots.includes(best)) dots.push(best);
    const width = this.panelWidth(effects.length);
    replace(
      this.grid,
      effects.slice(0, MOST_PANELS).map(([param, effect]) => panel(param, effect, runs, dots, best, range, width)),
    );
    const beyond = range.beyond ? ` ${many(range.beyond, "run is", "runs are")} worse than these charts show.` : "";
    const thin =
      dots.length < runs.length
        ? ` ${GROUPED.format(dots.length)} of ${GROUPED.format(runs.length)} runs are drawn.`
        : "";
    replace(
      this.note,
      `${STATE.metric.name} of each run; the ring is the best one, bars and lines are medians. The share of the variation that goes with a parameter is adjusted η².${beyond}${thin}`,
    );
  }

  panelWidth(count) {
    const room = this.grid.clientWidth || 600;
    const even = count <= 4 ? count : emptyPlaces(count, 4) <= emptyPlaces(count, 3) ? 4 : 3;
    const across = Math.max(1, Math.min(Math.floor((room + 28) / 268), even));
    this.grid.style.gridTemplateColumns = `repeat(${across}, minmax(0, 1fr))`;
    return Math.min(520, Math.floor((room - 28 * (across - 1)) / across));
  }
}

const emptyPlaces = (count, across) => (across - (count % across)) % across;

function panel(param, effect, runs, dots, best, range, width) {
  const scale = scaleOf(param);
  const [canvas, context] = surface(width, PANEL_PX, `${STATE.metric.name} against ${param.name}`);
  const colours = palette();
  const box = { left: 42, top: 8, width: width - 46, height: PANEL_PX - 34 };
  const x = (run) => box.left + box.width * (scale.place(run) + scale.band * 0.56 * (scatter(run) - 0.5));
  const y = (score) => box.top + box.height * (1 - (score - range.low) / (range.high - range.low));
  axes(context, box, range, y, scale);
  const seen = dots.filter(
    (run) => Number.isFinite(scale.place(run)) && scoreOf(run) >= range.low && scoreOf(run) <= range.high,
  );
  const radius = seen.length > 800 ? 1.1 : 2;
  context.globalAlpha = seen.length > 800 ? 0.5 : 0.75;
  context.fillStyle = colours.dot;
  for (const run of seen) disc(context, x(run), y(scoreOf(run)), radius);
  context.globalAlpha = 1;
  context.strokeStyle = colours.accent;
  context.lineWidth = 2;
  context.beginPath();
  context.save();
  context.rect(box.left, box.top, box.width, box.height);
  context.clip();
  context.beginPath();
  medians(runs, scale).forEach(([place, median], at) => {
    const middle = box.left + box.width * place;
    if (scale.ordinal) {
      const half = Math.min(16, box.width * scale.band * 0.34);
      context.moveTo(middle - half, y(median));
      context.lineTo(middle + half, y(median));
    } else if (at) context.lineTo(middle, y(median));
    else context.moveTo(middle, y(median));
  });
  context.stroke();
  context.restore();
  context.lineWidth = 1.75;
  if (Number.isFinite(scale.place(best))) {
    context.beginPath();
    context.arc(x(best), y(scoreOf(best)), 4.5, 0, 7);
    context.stroke();
  }
  pointed(canvas, () => seen.map((run) => [x(run), y(scoreOf(run)), run]));
  return h(
    "figure",
    null,
    h("figcaption", null, h("bdi", null, param.name), h("span.effect", null, `${percent(effect)} of the variation`)),
    canvas,
  );
}

/** A fixed place from 0 to 1 within a run's band, so that dots of one value lie beside each other. */
function scatter(run) {
  return ((run * 2654435761) % 4294967296) / 4294967296;
}

function disc(context, x, y, radius) {
  context.beginPath();
  context.arc(x, y, radius, 0, 7);
  context.fill();
}

function axes(context, box, range, y, scale) {
  const colours = palette();
  context.strokeStyle = colours.hair;
  context.fillStyle = colours.muted;
  context.lineWidth = 1;
  context.textAlign = "right";
  context.textBaseline = "middle";
  const values = ticks(range.low, range.high, 4);
  const texts = tickTexts(values);
  values.forEach((value, at) => {
    context.beginPath();
    context.moveTo(box.left, Math.round(y(value)) + 0.5);
    context.lineTo(box.left + box.width, Math.round(y(value)) + 0.5);
    context.stroke();
    context.fillText(texts[at], box.left - 6, y(value));
  });
  context.textAlign = "center";
  context.textBaseline = "top";
  const room = (box.width / scale.marks.length) * (scale.marks.length > 6 ? 2 : 1) - 6;
  scale.marks.forEach(([place, text], at) => {
    if (scale.marks.length > 6 && at % Math.ceil(scale.marks.length / 6)) return;
    context.fillText(fitted(context, text, room), box.left + box.width * place, box.top + box.height + 8);
  });
}

/** The text, shortened to that many pixels. */
function fitted(context, text, room) {
  if (context.measureText(text).width <= room) return text;
  let kept = text;
  while (kept.length > 1 && context.measureText(`${kept}…`).width > room) kept = kept.slice(0, -1);
  return `${kept}…`;
}

/** [place, median score] of each level, or of ten equal parts of the runs along the axis. */
function medians(runs, scale) {
  const placed = runs.map((run) => [scale.place(run), scoreOf(run)]).filter(([place]) => Number.isFinite(place));
  placed.sort((a, b) => a[0] - b[0]);
  const groups = new Map();
  placed.forEach((pair, at) => {
    const key = scale.ordinal ? pair[0] : Math.floor((at * 10) / placed.length);
    (groups.get(key) ?? groups.set(key, []).get(key)).push(pair);
  });
  const middle = (values) =>
    quantile(
      values.sort((a, b) => a - b),
      0.5,
    );
  return [...groups.values()].map((group) => [
    middle(group.map((pair) => pair[0])),
    middle(group.map((pair) => pair[1])),
  ]);
}
