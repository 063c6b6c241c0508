"use strict";
// The page: an overview and each run's own, by what follows # in the address.

const PAGE = document.getElementById("page");

class Overview {
  constructor() {
    this.text = "";
    this.ranking = new Ranking();
    this.progress = new Progress();
    this.scatter = new Scatter();
    this.parallel = new Parallel(() => this.filter());
    this.timeline = new Timeline();
    this.head = h("div.lead", null);
    this.count = h("span.count", { role: "status" });
    this.input = h("input", {
      type: "search",
      id: "filter",
      placeholder: "Filter: words, or alpha>=0.01 state=failed",
      autocomplete: "off",
      spellcheck: false,
      "aria-label": "Filter the runs",
      oninput: () => this.typed(),
    });
    this.metric = h("span.metric-choice", null);
    const bar = h("div.bar", { role: "search" }, this.input, this.metric, this.count);
    const ranking = h(
      "section.ranking",
      { id: "ranking", tabIndex: -1 },
      h("h2.hidden", null, "Ranking"),
      this.ranking.element,
    );
    this.element = h(
      "main.overview",
      null,
      header(),
      this.head,
      bar,
      ranking,
      this.scatter.element,
      this.parallel.element,
      this.timeline.element,
      footer(),
    );
    this.choose(STATE.metric);
  }

  /** Rank by another score. */
  choose(metric) {
    STATE.metric = metric;
    rankRuns();
    this.parallel.reset();
    this.ranking.setup();
    const options = SCORES.map((score) => h("option", { value: score.name, selected: score === metric }, score.name));
    const select = h(
      "select",
      { id: "metric", onchange: (event) => this.choose(SCORES[event.target.selectedIndex]) },
      options,
    );
    const way = metric?.minimize ? "smaller is better" : "bigger is better";
    replace(
      this.metric,
      SCORES.length > 1 ? [h("label", { htmlFor: "metric" }, "Rank by "), select] : null,
      metric ? h("span.way", null, way) : null,
    );
    replace(this.head, best(), metric ? this.progress.element : null);
    this.filter();
  }

  typed() {
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => {
      this.text = this.input.value;
      this.filter();
    }, 80);
  }

  filter() {
    const all = conditions(this.text);
    const brushed = this.parallel.kept.size > 0;
    STATE.rows =
      all.length || brushed
        ? ALL.filter((run) => all.every((holds) => holds(run)) && (!brushed || this.parallel.holds(run)))
        : ALL;
    const some = STATE.rows.length < COUNT;
    replace(this.count, some ? `${GROUPED.format(STATE.rows.length)} of ${many(COUNT, "run")}` : many(COUNT, "run"));
    this.ranking.show(STATE.rows);
    this.charts();
  }

  /** Drawn when the browser has shown the table. */
  charts() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.draw());
  }

  draw() {
    if (!this.element.isConnected || this.element.hidden) return;
    if (STATE.metric) {
      this.progress.show(STATE.rows);
      this.scatter.show(STATE.rows);
      this.parallel.show(STATE.rows);
    } else {
      this.scatter.element.hidden = this.parallel.element.hidden = true;
    }
    this.timeline.show(STATE.rows);
    this.ranking.first = -1;
    this.ranking.draw();
  }
}

function header() {
  const counts = new Map();
  for (const run of ALL) counts.set(stateOf(run), (counts.get(stateOf(run)) ?? 0) + 1);
  const order = [...counts].sort((a, b) => b[1] - a[1]);
  const ended = ALL.reduce((most, run) => Math.max(most, RUNS.ended[run] ?? RUNS.created[run]), 0);
  const began = ALL.reduce((least, run) => Math.min(least, RUNS.created[run]), Infinity);
  const until = moment(ended).startsWith(moment(began).slice(0, 10)) ? moment(ended).slice(11) : moment(ended);
  const rented = DATA.units.length ? unitViews().reduce((sum, unit) => sum + unit.rented, 0) : 0;
  const states = order.map(([state, count]) => h("span.tally", null, stateMark(state), ` ${GROUPED.format(count)}`));
  const cells = [
    ["runs", GROUPED.format(COUNT), DATA.cut ? "newest" : null],
    ["from first to last", duration(ended - began)],
    rented ? [many(DATA.units.length, "machine"), duration(rented), "rented"] : null,
    DATA.bill ? ["machines cost", DATA.bill[0], null] : null,
  ].filter(Boolean);
  return h(
    "header.top",
    null,
    h(
      "div",
      null,
      h("h1", null, h("bdi", null, DATA.title)),
      h("p.sub", null, `${moment(began)} to ${until} UTC`),
      DATA.bill ? h("p.sub", null, `cost: ${DATA.bill[1]}`) : null,
      h("p.tallies", null, states),
    ),
    figures(cells),
  );
}

/** The best run, and what it was made with. */
function best() {
  const run = STATE.ranked[0];
  if (run === undefined)
    return h("section.champion", null, h("h2", null, "Best run"), h("p.none", null, "No run has a score yet."));
  const score = STATE.metric;
  const shown = (VARYING.length ? VARYING : PARAMS).slice(0, 10).filter((param) => param.word(run) !== null);
  return h(
    "section.champion",
    { "aria-label": "Best run" },
    h("h2", null, "Best ", h("bdi", null, score.name)),
    h("p.score", null, runLink(run, fixed(scoreOf(run), decimalsFor(STATE.ranked.map(scoreOf))))),
    h("p.sub", null, runLink(run)),
    h(
      "dl",
      null,
      shown.map((param) =>
        h("div", null, h("dt", null, h("bdi", null, param.name)), h("dd", null, h("bdi", null, param.word(run)))),
      ),
    ),
  );
}

function footer() {
  const scripts = RUNS.script.words.length === 1 ? [["script", RUNS.script.words[0]]] : [];
  const same = [...scripts, ...CONSTANT.filter(() => COUNT > 1).map((param) => [param.name, param.levels[0]])];
  return h(
    "footer",
    null,
    same.length
      ? h(
          "p",
          null,
          "The same in all runs: ",
          same.flatMap(([name, value], at) => [
            at ? ", " : "",
            h("bdi", null, `${name} `),
            h("b", null, h("bdi", null, value)),
          ]),
          ".",
        )
      : null,
    h("p", null, `Made by cloudrun report, ${moment(DATA.made)} UTC. `, keys()),
  );
}

function keys() {
  const key = (name) => h("kbd", null, name);
  return h(
    "span.keys",
    null,
    key("/"),
    " filters, ",
    key("↑"),
    " ",
    key("↓"),
    " go through the ranking, ",
    key("Esc"),
    " comes back from a run.",
  );
}

// -- which page

const RUN_BY_ID = new Map(RUNS.id.map((id, run) => [id, run]));
const OVERVIEW = new Overview();
let _left = 0; // where the overview was scrolled to

function routed() {
  tip(null, null);
  const match = /^#\/run\/(.+)$/.exec(location.hash);
  const run = match ? RUN_BY_ID.get(decoded(match[1])) : undefined;
  const shown = PAGE.firstElementChild;
  if (run === undefined) {
    if (shown === OVERVIEW.element) return;
    replace(PAGE, OVERVIEW.element);
    OVERVIEW.charts();
    scrollTo(0, _left);
    document.title = `${DATA.title} · cloudrun report`;
    return;
  }
  if (shown === OVERVIEW.element) _left = scrollY;
  const page = runPage(run);
  replace(PAGE, page);
  scrollTo(0, 0);
  page.querySelector("h1").focus({ preventScroll: true });
  document.title = `${nameOf(run)} · ${DATA.title}`;
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

addEventListener("hashchange", routed);
addEventListener("keydown", (event) => {
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (event.key === "/" && !typing && OVERVIEW.element.isConnected) {
    event.preventDefault();
    OVERVIEW.input.focus();
  } else if (event.key === "Escape" && !OVERVIEW.element.isConnected) location.hash = "#/";
});

// -- what the charts depend on

function repaint() {
  forgetPalette();
  OVERVIEW.draw();
}

let _width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth !== _width) OVERVIEW.charts();
  _width = innerWidth;
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
addEventListener("beforeprint", () => {
  document.documentElement.dataset.print = "";
  repaint();
  OVERVIEW.ranking.print(true);
});
addEventListener("afterprint", () => {
  delete document.documentElement.dataset.print;
  OVERVIEW.ranking.print(false);
  repaint();
});

routed();
