"use strict";
// The ranking: a table of any length of which only the rows in sight are elements.

const ROW_PX = 30;
const SPARE_ROWS = 10; // above and below what is in sight
const PRINTED_ROWS = 40;
const MOST_COLUMNS = 12; // of scores, and of parameters

class Ranking {
  constructor() {
    this.sortKey = "rank";
    this.ascending = true;
    this.rows = [];
    this.first = -1;
    this.body = h("tbody", null);
    this.head = h("thead", null);
    this.columnGroup = h("colgroup", null);
    this.table = h(
      "table",
      null,
      h("caption.hidden", null, "Runs, best first"),
      this.columnGroup,
      this.head,
      this.body,
    );
    this.element = h(
      "div.scroller",
      {
        tabIndex: 0,
        role: "region",
        "aria-label": "Ranking",
        onscroll: () => this.draw(),
        onkeydown: (event) => this.key(event),
      },
      this.table,
    );
  }

  /** Anew for another metric. */
  setup() {
    this.columns = tableColumns();
    if (!this.columns.some((each) => each.key === this.sortKey)) [this.sortKey, this.ascending] = ["rank", true];
    replace(
      this.columnGroup,
      this.columns.map((each) => sized(h("col", null), each.width)),
      h("col", null),
    );
    this.table.style.minWidth = `${this.columns.reduce((sum, each) => sum + each.width, 0)}px`;
    this.headers();
  }

  headers() {
    const cells = this.columns.map((each) => {
      const sorted = each.key === this.sortKey ? (this.ascending ? "ascending" : "descending") : null;
      const arrow = h("span.arrow", { "aria-hidden": "true" }, sorted ? (this.ascending ? "▲" : "▼") : "");
      const button = h(
        "button",
        { type: "button", title: `Sort by ${each.title}`, onclick: () => this.sortBy(each) },
        each.kind.startsWith("number") ? [arrow, h("bdi", null, each.title)] : [h("bdi", null, each.title), arrow],
      );
      return h(`th.${each.kind}`, { scope: "col", "aria-sort": sorted, "data-key": each.key }, button);
    });
    replace(this.head, h("tr", { "aria-rowindex": 1 }, cells, h("th.rest", { "aria-hidden": "true" })));
  }

  sortBy(column) {
    this.ascending = this.sortKey === column.key ? !this.ascending : (column.ascending ?? true);
    this.sortKey = column.key;
    this.headers();
    this.head.querySelector(`[data-key="${CSS.escape(column.key)}"] button`)?.focus();
    this.show(STATE.rows);
  }

  show(rows) {
    const column = this.columns.find((each) => each.key === this.sortKey);
    const sign = this.ascending ? 1 : -1;
    const values = new Map(rows.map((run) => [run, column.sort(run)]));
    const missing = (value) => value === null || Number.isNaN(value);
    this.rows = [...rows].sort((a, b) => {
      const [x, y] = [values.get(a), values.get(b)];
      const place = STATE.place[a] - STATE.place[b];
      if (missing(x) || missing(y)) return missing(x) - missing(y) || place; // what has none comes last either way
      return sign * (typeof x === "string" ? collate(x, y) : x - y) || place;
    });
    this.table.setAttribute("aria-rowcount", this.rows.length + 1);
    this.first = -1;
    this.element.scrollTop = 0;
    this.draw();
  }

  draw() {
    const inSight = Math.ceil((this.element.clientHeight || 500) / ROW_PX);
    const first = Math.max(
      0,
      Math.min(Math.floor(this.element.scrollTop / ROW_PX) - SPARE_ROWS, this.rows.length - inSight - SPARE_ROWS),
    );
    const last = Math.min(this.rows.length, first + inSight + 2 * SPARE_ROWS);
    if (this.isPrinting || (first === this.first && last === this.last)) return;
    const focused = this.body.contains(document.activeElement) ? document.activeElement.closest("tr").dataset.at : null;
    [this.first, this.last] = [first, last];
    this.fill(first, last);
    if (focused !== null) this.body.querySelector(`tr[data-at="${focused}"] a`)?.focus({ preventScroll: true });
  }

  fill(first, last) {
    const rows = this.rows.slice(first, last).map((run, offset) => this.row(run, first + offset));
    const span = { colspan: this.columns.length + 1 };
    const space = (count) =>
      count > 0 ? h("tr.space", { "aria-hidden": "true" }, tall(h("td", span), count * ROW_PX)) : null;
    const none = this.rows.length ? null : h("tr", null, h("td.none", span, "No run fits the filter."));
    replace(this.body, space(first), rows, space(this.rows.length - last), none);
  }

  row(run, at) {
    const cells = this.columns.map((each) => h(`td.${each.kind}`, null, each.cell(run)));
    const marks = {
      "data-at": at,
      "aria-rowindex": at + 2,
      "data-state": stateOf(run),
      onclick: (event) => this.clicked(event, run),
    };
    return h(STATE.rank[run] === 1 ? "tr.best" : "tr", marks, cells, h("td", null));
  }

  clicked(event, run) {
    if (!event.target.closest("a") && !getSelection().toString()) location.hash = routeOf(run);
  }

  /** Arrows, Page Up and Down, Home and End move from row to row; Enter follows the link as everywhere. */
  key(event) {
    const page = Math.floor(this.element.clientHeight / ROW_PX) - 2;
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[
      event.key
    ];
    if (step === undefined || !this.rows.length || event.target.closest("thead")) return;
    event.preventDefault();
    const row = document.activeElement.closest("tbody tr");
    const at = Math.max(
      0,
      Math.min(this.rows.length - 1, row ? Number(row.dataset.at) + step : step > 0 && step < Infinity ? 0 : step),
    );
    const top = at * ROW_PX;
    if (top < this.element.scrollTop) this.element.scrollTop = top;
    const room = this.element.clientHeight - 2 * ROW_PX; // less the header
    if (top > this.element.scrollTop + room) this.element.scrollTop = top - room;
    this.draw();
    this.body.querySelector(`tr[data-at="${at}"] a`)?.focus({ preventScroll: true });
  }

  /** On paper there is nothing to scroll: the first rows, all of them elements. */
  print(on) {
    this.first = -1;
    this.isPrinting = false;
    this.draw();
    this.isPrinting = on;
    if (!on) return;
    const more = this.rows.length - PRINTED_ROWS;
    const note =
      more > 0
        ? h("tr", null, h("td.none", { colspan: this.columns.length + 1 }, `and ${many(more, "run")} more`))
        : null;
    replace(
      this.body,
      this.rows.slice(0, PRINTED_ROWS).map((run, at) => this.row(run, at)),
      note,
    );
  }
}

function tableColumns() {
  const metric = STATE.metric;
  const columns = [
    {
      key: "rank",
      title: "#",
      kind: "number",
      sort: (run) => STATE.rank[run] || null,
      text: (run) => (STATE.rank[run] ? String(STATE.rank[run]) : "–"),
    },
    {
      key: "run",
      title: "run",
      kind: "run",
      sort: (run) => labelOf(run),
      text: labelOf,
      cell: (run) => runLink(run, h("bdi", { title: nameOf(run) }, labelOf(run))),
    },
    {
      key: "state",
      title: "state",
      kind: "text",
      sort: stateOf,
      text: (run) => `○ ${stateOf(run)}`,
      cell: (run) => stateMark(stateOf(run)),
    },
  ];
  if (metric) columns.push(scoreColumn(metric, true));
  for (const score of SCORES.filter((each) => each !== metric).slice(0, MOST_COLUMNS))
    columns.push(scoreColumn(score, false));
  for (const param of VARYING.slice(0, MOST_COLUMNS)) {
    const kind = param.isNumber ? "number" : "text";
    columns.push({
      key: `p:${param.name}`,
      title: param.name,
      kind,
      sort: param.isNumber ? param.number : param.word,
      text: (run) => param.word(run) ?? "",
    });
  }
  columns.push({
    key: "time",
    title: "time",
    kind: "number",
    sort: (run) => tookOf(run),
    text: (run) => (tookOf(run) ? duration(tookOf(run)) : ""),
  });
  if (RUNS.cost.some((usd) => usd !== null)) {
    columns.push({
      key: "cost",
      title: "cost",
      kind: "number",
      sort: (run) => RUNS.cost[run],
      text: (run) => (RUNS.cost[run] === null ? "" : dollars(RUNS.cost[run])),
    });
    if (metric && !metric.minimize) {
      const value = (run) => (RUNS.cost[run] > 0 ? scoreOf(run) / RUNS.cost[run] : NaN);
      const text = (run) => (Number.isFinite(value(run)) ? plain(Number(value(run).toPrecision(3))) : "");
      columns.push({
        key: "per-dollar",
        title: `${metric.name} per $`,
        kind: "number",
        sort: value,
        text,
        ascending: false,
      });
    }
  }
  for (const each of columns) {
    each.cell ??= (run) => h("bdi", null, each.text(run));
    each.width = widthOf(each);
  }
  return columns;
}

function scoreColumn(score, isMetric) {
  const decimals = decimalsFor(ALL.map(score.number));
  const text = (run) => (score.word(run) === null ? "" : fixed(score.number(run), decimals));
  const column = {
    key: `s:${score.name}`,
    title: score.name,
    kind: isMetric ? "number.metric" : "number",
    sort: score.number,
    text,
    ascending: Boolean(score.minimize),
  };
  if (!isMetric) return column;
  const { low, high } = scoreRange(STATE.ranked);
  const share = (run) =>
    Math.max(
      0,
      Math.min(1, score.minimize ? (high - scoreOf(run)) / (high - low) : (scoreOf(run) - low) / (high - low)),
    );
  column.cell = (run) => [
    sized(h("span.gauge", { "aria-hidden": "true" }), STATE.rank[run] ? Math.round(44 * share(run)) : 0),
    h("span", { title: score.word(run) ?? "" }, text(run)),
  ];
  column.extra = 54;
  return column;
}

/** Wide enough for the column's longest text, within reason. */
function widthOf(column) {
  let longest = "";
  for (const run of ALL) {
    const text = column.text(run);
    if (text.length > longest.length) longest = text;
  }
  const [, context] = surface(1, 1, "");
  context.font = `13px ${getComputedStyle(document.documentElement).getPropertyValue("--sans")}`;
  const widest = Math.max(
    context.measureText(longest).width + (column.extra ?? 0),
    context.measureText(column.title).width + 12,
  );
  return Math.ceil(Math.min(240, widest)) + 21;
}

function sized(element, width) {
  element.style.width = `${width}px`;
  return element;
}

function tall(element, height) {
  element.style.height = `${height}px`;
  return element;
}
