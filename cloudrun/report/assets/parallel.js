"use strict";
// Parallel coordinates: each run a line through its parameters to its score; drag along an axis to keep a part of it.

const MOST_LINES = 1500;
const MOST_AXES = 10;
const PARALLEL_PX = 320;

class Parallel {
  constructor(filtered) {
    this.filtered = filtered; // called when a part of an axis was chosen
    this.kept = new Map(); // by axis: [low, high] from 0 to 1, and how to place a run
    this.box = h("div.parallel", null);
    this.clear = h("button.quiet", { type: "button", hidden: true, onclick: () => this.forget() }, "Show all again");
    this.note = h("p.note", null);
    this.element = h(
      "section",
      { "aria-label": "Parallel coordinates" },
      h("div.heading", null, h("h2", null, "Combinations"), this.clear),
      this.box,
      this.note,
    );
  }

  /** Whether the run lies within every chosen part. */
  holds(run) {
    for (const [axis, [low, high]] of this.kept) {
      const place = axis.place(run);
      if (!(place >= low && place <= high)) return false;
    }
    return true;
  }

  forget() {
    this.kept.clear();
    this.filtered();
  }

  show(rows) {
    const axes = (this.axes ??= this.makeAxes());
    this.element.hidden = axes.length < 3 || !STATE.ranked.length;
    if (this.element.hidden) return;
    this.clear.hidden = !this.kept.size;
    const width = Math.max(this.box.clientWidth || 600, axes.length * 92);
    const [canvas, context] = surface(width, PARALLEL_PX, "Each run as a line through its parameters to its score");
    this.area = { top: 40, height: PARALLEL_PX - 52 };
    axes.forEach((axis, at) => (axis.x = 26 + ((width - 130) * at) / (axes.length - 1)));
    this.lines(context, axes, new Set(rows));
    for (const axis of axes) this.axis(context, axis, (width - 130) / (axes.length - 1));
    replace(this.box, canvas);
    this.listen(canvas, axes);
    const shown = Math.min(MOST_LINES, STATE.ranked.length);
    const thin =
      shown < STATE.ranked.length
        ? ` ${GROUPED.format(shown)} of ${GROUPED.format(STATE.ranked.length)} runs are drawn.`
        : "";
    replace(
      this.note,
      `Blue is the best tenth; within a value, better runs are higher. Drag along an axis to keep a part of it.${thin}`,
    );
  }

  reset() {
    this.axes = null;
    this.kept.clear();
  }

  makeAxes() {
    const fit = VARYING.filter((param) => param.isNumber || param.levels.length <= MOST_LEVELS).slice(0, MOST_AXES);
    const axes = fit.map((param) => {
      const scale = scaleOf(param);
      const place = (run) => {
        const rank = STATE.rank[run] ? 1 - STATE.rank[run] / STATE.ranked.length : 0.5;
        return scale.place(run) + scale.band * 0.62 * (rank - 0.5);
      };
      return { name: param.name, place, marks: scale.marks };
    });
    const { low, high } = scoreRange(STATE.ranked);
    const flip = STATE.metric.minimize;
    const at = (score) => (flip ? (high - score) / (high - low) : (score - low) / (high - low));
    const values = ticks(low, high, 5);
    const texts = tickTexts(values);
    const marks = values.map((value, index) => [at(value), texts[index]]);
    axes.push({
      name: STATE.metric.name,
      place: (run) => Math.max(0, Math.min(1, at(scoreOf(run)))),
      marks,
      isScore: true,
    });
    return axes;
  }

  y(place) {
    return this.area.top + this.area.height * (1 - place);
  }

  lines(context, axes, chosen) {
    const colours = palette();
    const bestOnes = Math.ceil([...chosen].filter((run) => STATE.rank[run]).length / 10);
    const ranked = STATE.ranked.filter((run) => chosen.has(run));
    const best = new Set(ranked.slice(0, bestOnes));
    const drawn = sample(STATE.ranked, MOST_LINES, Math.min(bestOnes, 150)).reverse();
    const dense = drawn.length > 400;
    this.places = [];
    for (const kind of ["left", "kept", "best"]) {
      for (const run of drawn) {
        const mine = !chosen.has(run) ? "left" : best.has(run) ? "best" : "kept";
        if (mine !== kind) continue;
        context.strokeStyle = kind === "best" ? colours.accent : kind === "kept" ? colours.dot : colours.hair;
        context.globalAlpha = kind === "best" ? (dense ? 0.35 : 0.85) : kind === "kept" ? (dense ? 0.14 : 0.5) : 0.5;
        context.lineWidth = kind === "best" ? 1.4 : 1;
        this.line(context, axes, run);
      }
    }
    context.globalAlpha = 1;
    this.places = drawn.filter((run) => chosen.has(run));
  }

  line(context, axes, run) {
    context.beginPath();
    let before = null;
    for (const axis of axes) {
      const place = axis.place(run);
      if (Number.isNaN(place)) {
        before = null;
        continue;
      }
      const [x, y] = [axis.x, this.y(place)];
      if (before) context.bezierCurveTo((before[0] + x) / 2, before[1], (before[0] + x) / 2, y, x, y);
      else context.moveTo(x, y);
      before = [x, y];
    }
    context.stroke();
  }

  axis(context, axis, room) {
    const colours = palette();
    context.strokeStyle = colours.muted;
    context.globalAlpha = 0.55;
    context.beginPath();
    context.moveTo(axis.x, this.area.top);
    context.lineTo(axis.x, this.area.top + this.area.height);
    context.stroke();
    context.globalAlpha = 1;
    if (this.kept.has(axis)) {
      const [low, high] = this.kept.get(axis);
      context.fillStyle = colours.accent;
      context.fillRect(axis.x - 3, this.y(high), 6, this.y(low) - this.y(high));
    }
    context.textBaseline = "middle";
    context.textAlign = "left";
    context.font = `600 ${palette().font}`;
    context.fillStyle = colours.ink;
    context.fillText(fitted(context, axis.name, Math.max(60, room - 12)), axis.x - 4, 16);
    context.font = palette().font;
    context.lineWidth = 4;
    context.lineJoin = "round";
    context.strokeStyle = colours.paper;
    context.fillStyle = axis.isScore ? colours.muted : colours.ink;
    const step = Math.ceil(axis.marks.length / 14);
    axis.marks.forEach(([place, text], at) => {
      if (at % step) return;
      const words = fitted(context, text, axis.isScore ? 84 : Math.max(40, room * 0.7));
      context.strokeText(words, axis.x + 8, this.y(place));
      context.fillText(words, axis.x + 8, this.y(place));
    });
    context.lineWidth = 1;
  }

  listen(canvas, axes) {
    let from = null;
    const where = (event) => {
      const box = canvas.getBoundingClientRect();
      const axis = axes.find((each) => Math.abs(each.x - (event.clientX - box.left)) < 14);
      const place = 1 - (event.clientY - box.top - this.area.top) / this.area.height;
      return [axis, Math.max(-0.02, Math.min(1.02, place))];
    };
    canvas.addEventListener("pointerdown", (event) => {
      const [axis, place] = where(event);
      if (!axis) return;
      from = [axis, place];
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      canvas.style.cursor = from || where(event)[0] ? "ns-resize" : "";
    });
    canvas.addEventListener("pointerup", (event) => {
      if (!from) return;
      const [axis, begun] = from;
      const [, place] = where(event);
      from = null;
      if (Math.abs(place - begun) < 0.01) this.kept.delete(axis);
      else this.kept.set(axis, [Math.min(place, begun), Math.max(place, begun)]);
      this.filtered();
    });
  }
}
