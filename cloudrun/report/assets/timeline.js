"use strict";
// Who did what when: a row for each unit, a bar for each attempt, and what of the rented time was not used.

const ROW_GAP = 6;
const MOST_UNITS = 200; // rows; more would be no picture any more

class Timeline {
  constructor() {
    this.box = h("div.timeline", null);
    this.legend = h("div.legend", null);
    this.note = h("p.note", null);
    this.element = h(
      "section",
      { "aria-label": "Timeline of the units" },
      h("div.heading", null, h("h2", null, "Machines")),
      this.legend,
      this.box,
      this.note,
    );
    this.units = DATA.units.length ? unitViews() : [];
  }

  show(rows) {
    this.element.hidden = !this.units.length;
    if (this.element.hidden) return;
    const drawn = this.units.slice(0, MOST_UNITS);
    const axis = squeezed(this.units, 0.02);
    const width = this.box.clientWidth || 600;
    const narrow = width < 560;
    const area = { left: this.gutter(drawn, narrow), right: 52, top: 4 };
    area.width = width - area.left - area.right;
    const lane = drawn.length > 40 ? 5 : drawn.length > 16 ? 8 : 12;
    let top = area.top;
    for (const unit of drawn) {
      unit.top = top;
      unit.lane = unit.lanes > 4 ? Math.max(2, Math.floor((lane * 3) / unit.lanes)) : lane;
      unit.height = unit.lane * unit.lanes;
      top += unit.height + (drawn.length > 40 ? 2 : ROW_GAP);
    }
    area.bottom = top + 4;
    const [canvas, context] = surface(width, area.bottom + 22, `Timeline of ${many(this.units.length, "unit")}`);
    const x = (time) => area.left + area.width * axis.place(time);
    const chosen = new Set(rows);
    timeGrid(context, area, axis, x);
    for (const unit of drawn) drawUnit(context, unit, x, area, narrow, chosen);
    replace(this.box, canvas);
    pointedBars(canvas, drawn, x);
    this.explain(drawn.length);
  }

  gutter(drawn, narrow) {
    const [, context] = surface(1, 1, "");
    const widths = drawn.map((unit) => context.measureText(shortId(unit, narrow)).width);
    return Math.min(170, Math.ceil(Math.max(...widths))) + 14;
  }

  explain(drawn) {
    const sum = (what) => this.units.reduce((total, unit) => total + unit[what], 0);
    const rented = sum("rented") || 1;
    const parts = [
      ["work", "working", sum("working")],
      ["starting", "starting", sum("starting")],
      ["waiting", "without work", sum("waiting")],
    ];
    const lost = sum("wasted");
    replace(
      this.legend,
      parts.map(([kind, text, seconds]) =>
        h("span", null, h("i", { "data-kind": kind }), `${text} `, h("b", null, percent(seconds / rented))),
      ),
      lost
        ? h(
            "span",
            null,
            h("i", { "data-kind": "failed" }),
            "of that on failed or lost attempts ",
            h("b", null, percent(lost / rented)),
          )
        : null,
    );
    const more = drawn < this.units.length ? ` The first ${drawn} are drawn.` : "";
    replace(
      this.note,
      `${many(this.units.length, "unit")} rented for ${duration(rented)} in all. The share beside each is the time in which it worked.${more}`,
    );
  }
}

/** Units with their attempts packed into lanes, and the seconds of their life by what they were spent on. */
function unitViews() {
  const tries = DATA.attempts;
  const views = DATA.units.map((unit) => ({ ...unit, bars: [], lanes: 1 }));
  tries.unit.forEach((at, index) => {
    const unit = views[at];
    const end =
      tries.end[index] ?? Math.max(tries.start[index], Math.min(DATA.made, unit.ended ?? unit.deadline ?? DATA.made));
    unit.bars.push({ index, start: tries.start[index], end, run: tries.run[index], state: wordOf(tries.state, index) });
  });
  for (const unit of views) {
    unit.bars.sort((a, b) => a.start - b.start);
    const last = unit.bars.reduce((most, bar) => Math.max(most, bar.end), unit.created);
    unit.until = Math.max(unit.ended ?? Math.min(DATA.made, unit.deadline ?? DATA.made), last);
    const free = [];
    for (const bar of unit.bars) {
      let lane = free.findIndex((until) => until <= bar.start + 0.001);
      if (lane < 0) lane = free.length;
      free[lane] = bar.end;
      bar.lane = Math.min(lane, 15);
    }
    unit.lanes = Math.max(1, Math.min(free.length, 16));
    Object.assign(unit, spent(unit));
  }
  return views.sort((a, b) => a.created - b.created);
}

/** Seconds of a unit's life in which nothing, and in which at least one attempt was on it. */
function spent(unit) {
  const rented = unit.until - unit.created;
  const first = unit.bars.length ? unit.bars[0].start : unit.until;
  const working = covered(unit.bars);
  const wasted = working - covered(unit.bars.filter((bar) => bar.state !== "failed" && bar.state !== "lost"));
  const starting = Math.max(0, first - unit.created);
  return { rented, first, working, starting, wasted, waiting: Math.max(0, rented - working - starting) };
}

function covered(bars) {
  let [sum, until] = [0, -Infinity];
  for (const bar of bars) {
    if (bar.end > until) {
      sum += bar.end - Math.max(bar.start, until);
      until = bar.end;
    }
  }
  return sum;
}

function timeGrid(context, area, axis, x) {
  const colours = palette();
  const began = axis.pieces[0].from;
  context.strokeStyle = colours.hair;
  context.fillStyle = colours.muted;
  context.textBaseline = "top";
  context.textAlign = "center";
  let free = -Infinity;
  for (const piece of axis.pieces) {
    const width = (piece.until - piece.from) * axis.scale * area.width;
    const alone = axis.pieces.length > 1;
    const marks = alone ? [piece.from - began] : timeTicks(0, piece.until - began, Math.max(2.5, width / 110));
    for (const mark of marks) {
      const at = Math.round(x(mark + began)) + 0.5;
      const words = alone ? moment(mark + began).slice(5) : elapsed(mark);
      const room = context.measureText(words).width;
      context.beginPath();
      context.moveTo(at, area.top);
      context.lineTo(at, area.bottom);
      context.stroke();
      if (at - room / 2 < free + 8) continue;
      context.fillText(words, Math.max(at, area.left), area.bottom + 6);
      free = at + room / 2;
    }
  }
}

function drawUnit(context, unit, x, area, narrow, chosen) {
  const colours = palette();
  const width = (from, until) => Math.max(1, x(until) - x(from));
  context.fillStyle = colours.soft;
  context.fillRect(x(unit.created), unit.top, width(unit.created, unit.until), unit.height);
  hatch(context, x(unit.created), unit.top, x(unit.first) - x(unit.created), unit.height, colours.muted);
  for (const bar of unit.bars) {
    const bad = bar.state === "failed" || bar.state === "lost" || bar.state === "cancelled";
    const [left, top, wide] = [x(bar.start), unit.top + bar.lane * unit.lane, width(bar.start, bar.end)];
    context.globalAlpha = bar.run < 0 || chosen.has(bar.run) ? 1 : 0.25;
    context.fillStyle = bar.run < 0 ? colours.other : bad ? colours.bad : colours.accent;
    context.fillRect(left, top, wide > 3 ? wide - 0.75 : wide, unit.lane > 3 ? unit.lane - 1 : unit.lane);
    if (bad && wide > 5) hatch(context, left, top, wide - 0.75, unit.lane - 1, colours.paper);
  }
  context.globalAlpha = 1;
  if (unit.height < 8) return;
  context.textBaseline = "middle";
  const middle = unit.top + unit.height / 2;
  context.textAlign = "right";
  context.fillStyle = colours.ink;
  context.fillText(fitted(context, shortId(unit, narrow), area.left - 12), area.left - 10, middle);
  context.fillStyle = colours.muted;
  context.fillText(percent(unit.working / (unit.rented || 1)), area.left + area.width + area.right - 4, middle);
}

const shortId = (unit, narrow) => (narrow && unit.id.length > 8 ? `…${unit.id.slice(-6)}` : unit.id);

function hatch(context, left, top, width, height, colour) {
  if (width < 2) return;
  context.save();
  context.beginPath();
  context.rect(left, top, width, height);
  context.clip();
  context.strokeStyle = colour;
  context.globalAlpha *= 0.6;
  context.lineWidth = 1;
  context.beginPath();
  for (let at = left - height; at < left + width; at += 4) {
    context.moveTo(at, top + height);
    context.lineTo(at + height, top);
  }
  context.stroke();
  context.restore();
}

function pointedBars(canvas, units, x) {
  const found = (event) => {
    const box = canvas.getBoundingClientRect();
    const [left, top] = [event.clientX - box.left, event.clientY - box.top];
    const unit = units.find((each) => top >= each.top && top < each.top + each.height);
    const lane = unit && Math.floor((top - unit.top) / unit.lane);
    return [unit, unit?.bars.find((bar) => bar.lane === lane && left >= x(bar.start) - 1 && left <= x(bar.end) + 1)];
  };
  canvas.addEventListener("pointermove", (event) => {
    const [unit, bar] = found(event);
    canvas.style.cursor = bar?.run >= 0 ? "pointer" : "";
    if (!unit) return tip(event, null);
    const rented = [
      unit.id,
      `${unit.type} in ${unit.region}`,
      `rented ${duration(unit.rented)}, worked ${percent(unit.working / (unit.rented || 1))}`,
    ];
    if (!bar) return tip(event, rented);
    const name = bar.run >= 0 ? runTip(bar.run) : ["another run"];
    return tip(event, [
      ...name,
      `attempt ${DATA.attempts.number[bar.index]} ${bar.state}, ${duration(bar.end - bar.start)}`,
    ]);
  });
  canvas.addEventListener("pointerleave", (event) => tip(event, null));
  canvas.addEventListener("click", (event) => {
    const [, bar] = found(event);
    if (bar?.run >= 0) location.hash = routeOf(bar.run);
  });
}
