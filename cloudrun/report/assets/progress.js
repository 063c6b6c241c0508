"use strict";
// The best score so far, over time or over dollars.

const PROGRESS_DOTS = 3000;

class Progress {
  constructor() {
    this.over = "time";
    this.hasCost = RUNS.cost.some((usd) => usd);
    this.box = h("div.plot", null);
    this.switch = h("span", null);
    this.note = h("p.note", null);
    this.element = h(
      "section.progress",
      { "aria-label": "Progress of the best score" },
      h("div.heading", null, h("h2", null, "Progress"), this.switch),
      this.box,
      this.note,
    );
  }

  show(rows) {
    this.plot?.destroy();
    replace(
      this.switch,
      this.hasCost
        ? choice(
            "Over",
            [
              ["time", "time"],
              ["dollars", "dollars"],
            ],
            this.over,
            (over) => ((this.over = over), this.show(STATE.rows)),
          )
        : null,
    );
    const ended = rows.filter((run) => RUNS.ended[run] !== null).sort((a, b) => RUNS.ended[a] - RUNS.ended[b]);
    const points = this.points(ended);
    if (!points.some((each) => each.best)) {
      replace(this.box, h("p.none", null, "No score yet."));
      replace(this.note);
      return;
    }
    replace(this.box);
    this.draw(thinned(points));
    const improvements = points.filter((each) => each.improves);
    const last = improvements[improvements.length - 1];
    const when = this.over === "time" ? `after ${duration(last.x)}` : `after ${dollars(last.x)}`;
    const steps = improvements.length - 1;
    const moved = STATE.metric.minimize ? "fell" : "rose";
    const cut = this.isCut ? " Stretches without any run are left out." : "";
    const told = steps ? `It ${moved} ${many(steps, "time")}, last ${when}.` : "The first was the best.";
    replace(this.note, `Each dot is a run where it ended; the line is the best so far. ${told}${cut}`);
  }

  /** Ended runs with the place where they ended; `best` is the score of the best so far. */
  points(ended) {
    let [spent, best] = [0, null];
    const time = ended.length ? workingTime(ended) : null;
    this.isCut = this.over === "time" && time?.pieces.length > 1;
    return ended.map((run) => {
      spent += RUNS.cost[run] ?? 0;
      const score = STATE.rank[run] ? scoreOf(run) : null;
      const improves = score !== null && (best === null || better(score, best));
      if (improves) best = score;
      return { run, x: this.over === "time" ? time.place(RUNS.ended[run]) / time.scale : spent, score, best, improves };
    });
  }

  draw(points) {
    const colours = palette();
    const range = scoreRange(points.filter((each) => each.score !== null).map((each) => each.run));
    const last = points[points.length - 1];
    const decimals = decimalsFor(points.map((each) => each.score ?? NaN));
    const width = this.box.clientWidth || 600;
    const axis = {
      stroke: colours.muted,
      font: colours.font,
      ticks: { show: false },
      grid: { stroke: colours.hair, width: 1 },
    };
    const isTime = this.over === "time";
    const options = {
      width,
      height: 230,
      padding: [14, 66, 0, 0],
      legend: { show: false },
      cursor: { x: false, y: false, drag: { x: false, y: false }, points: { show: false } },
      scales: { x: { time: false, range: [0, last.x || 1] }, y: { range: [range.low, range.high] } },
      axes: [
        {
          ...axis,
          grid: { show: false },
          size: 30,
          gap: 6,
          splits: (_, __, low, high) => (isTime ? timeTicks : ticks)(low, high, width / 110),
          values: (_, splits) => splits.map(isTime ? elapsed : (usd) => (usd ? `$${Number(usd.toPrecision(6))}` : "0")),
        },
        {
          ...axis,
          size: 58,
          gap: 6,
          splits: (_, __, low, high) => ticks(low, high, 5),
          values: (_, splits) => tickTexts(splits),
        },
      ],
      series: [
        {},
        { paths: () => null, points: { show: true, size: points.length > 500 ? 3 : 5, width: 0, fill: colours.dot } },
        {
          stroke: colours.accent,
          width: 2,
          spanGaps: true,
          paths: uPlot.paths.stepped({ align: 1 }),
          points: { show: false },
        },
      ],
      hooks: { draw: [(plot) => annotate(plot, points, decimals)] },
    };
    const data = [points.map((each) => each.x), points.map((each) => each.score), points.map((each) => each.best)];
    this.plot = new uPlot(options, data, this.box);
    this.plot.root.setAttribute("role", "img");
    this.plot.root.setAttribute("aria-label", `Best ${STATE.metric.name} so far: ${fixed(last.best, decimals)}`);
    const places = () =>
      points
        .filter((each) => each.score !== null)
        .map((each) => [this.plot.valToPos(each.x, "x"), this.plot.valToPos(each.score, "y"), each.run]);
    pointed(this.plot.over, places);
  }
}

/** Time of those runs, less the long stretches in which there was none. */
function workingTime(runs) {
  return squeezed(
    runs.map((run) => ({ created: RUNS.created[run], until: RUNS.ended[run] })),
    0,
  );
}

/** The best score beside the line's end, and a mark on the ground for each run that failed. */
function annotate(plot, points, decimals) {
  const { ctx: context, bbox: box } = plot;
  const ratio = box.width / plot.over.clientWidth;
  const colours = palette();
  const last = points[points.length - 1];
  context.save();
  context.font = `600 ${12 * ratio}px ${colours.font.slice(colours.font.indexOf(" ") + 1)}`;
  context.fillStyle = colours.accent;
  context.textAlign = "left";
  context.textBaseline = "middle";
  context.fillText(fixed(last.best, decimals), box.left + box.width + 7 * ratio, plot.valToPos(last.best, "y", true));
  context.strokeStyle = colours.bad;
  context.lineWidth = 1.25 * ratio;
  context.beginPath();
  for (const each of points) {
    if (stateOf(each.run) !== "failed" && stateOf(each.run) !== "lost") continue;
    cross(context, plot.valToPos(each.x, "x", true), box.top + box.height - 5 * ratio, 2.5 * ratio);
  }
  context.stroke();
  context.restore();
}

function cross(context, x, y, arm) {
  context.moveTo(x - arm, y - arm);
  context.lineTo(x + arm, y + arm);
  context.moveTo(x + arm, y - arm);
  context.lineTo(x - arm, y + arm);
}

/** Few enough points to draw: every improvement, the last, and a part of the rest. */
function thinned(points) {
  if (points.length <= PROGRESS_DOTS) return points;
  const step = points.length / PROGRESS_DOTS;
  let next = 0;
  return points.filter((each, at) => {
    if (at >= next) {
      next += step;
      return true;
    }
    return each.improves || at === points.length - 1;
  });
}

/** What a run is on pointing at its dot, its page on a click. `places` gives [x, y, run] in the element's pixels. */
function pointed(element, places) {
  let known = null;
  const nearest = (event) => {
    known ??= places();
    const box = element.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    let [found, least] = [null, 12 ** 2];
    for (const [left, top, run] of known) {
      const distance = (left - x) ** 2 + (top - y) ** 2;
      if (distance < least) [found, least] = [run, distance];
    }
    return found;
  };
  element.addEventListener("pointermove", (event) => {
    const run = nearest(event);
    element.style.cursor = run === null ? "" : "pointer";
    tip(event, run === null ? null : runTip(run));
  });
  element.addEventListener("pointerleave", (event) => tip(event, null));
  element.addEventListener("click", (event) => {
    const run = nearest(event);
    if (run !== null) location.hash = routeOf(run);
  });
}
