"use strict";
// The columns that the report carries, and how their values are written.

const DATA = JSON.parse(document.getElementById("data").textContent);
const COUNT = DATA.count;
const RUNS = DATA.runs;
const GROUPED = new Intl.NumberFormat("en-US", { maximumFractionDigits: 6 });
const ALL = Array.from({ length: COUNT }, (_, run) => run);

const wordOf = (pool, at) => (pool.at[at] < 0 ? null : pool.words[pool.at[at]]);
const stateOf = (run) => wordOf(RUNS.state, run);
const nameOf = (run) => wordOf(RUNS.name, run) ?? RUNS.id[run];
const NAMESAKES = RUNS.name.words.map(() => 0); // how many runs have each name
for (const at of RUNS.name.at) if (at >= 0) NAMESAKES[at] += 1;
/** What tells a run from the others: its name, or its id where others have that name, too. */
const labelOf = (run) => (NAMESAKES[RUNS.name.at[run]] === 1 ? nameOf(run) : RUNS.id[run]);
const tookOf = (run) => DATA.timings.total[run] || null;

/** A score or parameter as numbers (NaN: none, or not a number) and as words (null: none). */
function column(source, extra) {
  const pooled = source.pool;
  return {
    name: source.name,
    minimize: source.minimize,
    isNumber: !pooled,
    number: pooled ? () => NaN : (run) => (source.values[run] === null ? NaN : Number(source.values[run])),
    word: pooled
      ? (run) => wordOf(pooled, run)
      : (run) => (source.values[run] === null ? null : plain(Number(source.values[run]))),
    ...extra,
  };
}

const PARAMS = DATA.params.map((source) => column(source));
const SCORES = DATA.scores.map((source) => column(source));
for (const param of PARAMS) {
  param.levels = levels(param);
}
const VARYING = PARAMS.filter((param) => param.levels.length > 1);
const CONSTANT = PARAMS.filter((param) => param.levels.length === 1);

/** The distinct values of a parameter in their order, as words. */
function levels(param) {
  const seen = new Map();
  for (const run of ALL) {
    const word = param.word(run);
    if (word !== null && !seen.has(word)) seen.set(word, param.number(run));
  }
  const words = [...seen.keys()];
  return param.isNumber ? words.sort((a, b) => seen.get(a) - seen.get(b)) : words.sort(collate);
}

function collate(a, b) {
  return a.localeCompare(b, "en", { numeric: true });
}

// -- what the reader has chosen

const STATE = {
  metric: SCORES.find((score) => score.name === DATA.metric) ?? SCORES[0] ?? null,
  rows: ALL, // the runs that the filter lets through, in the ledger's order
  rank: new Int32Array(COUNT), // from 1; 0 for a run without a rank
  ranked: [], // runs with a rank, best first
  place: new Int32Array(COUNT), // of every run, where they are listed by rank: those without one come last
};

/** Succeeded runs with a finite score, best first, the older first among equals; those whose score is none that can be
 *  compared come behind them, then all others. The order is that of `plan.ranking.rank_key`. */
function rankRuns() {
  const score = STATE.metric;
  const scored = score ? ALL.filter((run) => stateOf(run) === "succeeded" && score.word(run) !== null) : [];
  const sign = score?.minimize ? 1 : -1;
  const older = (a, b) => (RUNS.id[a] < RUNS.id[b] ? -1 : 1);
  const able = scored.filter((run) => Number.isFinite(score.number(run)));
  able.sort((a, b) => sign * (score.number(a) - score.number(b)) || older(a, b));
  const others = scored.filter((run) => !Number.isFinite(score.number(run))).sort(older);
  STATE.ranked = able;
  STATE.rank.fill(0);
  able.forEach((run, position) => (STATE.rank[run] = position + 1));
  [...new Set([...able, ...others, ...ALL])].forEach((run, position) => (STATE.place[run] = position));
}

const scoreOf = (run) => STATE.metric.number(run);
const better = (a, b) => (STATE.metric.minimize ? a < b : a > b);

// -- numbers for people

/** A number as short as it can be said without loss, but for grouping. */
function plain(value) {
  if (!Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  if (size >= 1e15 || (size !== 0 && size < 1e-5)) return value.toExponential().replace("e+", "e");
  return size >= 10000 ? GROUPED.format(value) : String(value);
}

/** How many decimals tell the scores of these runs apart: a thousandth of their middle spread. */
function decimalsFor(values) {
  const sorted = values.filter(Number.isFinite).sort((a, b) => a - b);
  if (!sorted.length) return 3;
  if (sorted.every(Number.isInteger)) return 0;
  const spread = quantile(sorted, 0.9) - quantile(sorted, 0.1) || Math.abs(sorted[0]) / 10 || 1;
  return Math.min(8, Math.max(0, 3 - Math.ceil(Math.log10(spread))));
}

function quantile(sorted, share) {
  return sorted[Math.round((sorted.length - 1) * share)];
}

const FIXED = Array.from(
  { length: 9 },
  (_, digits) => new Intl.NumberFormat("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits }),
);

function fixed(value, decimals) {
  if (!Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  if (size >= 1e9 || (size !== 0 && size < 10 ** -decimals))
    return value.toExponential(3).replace("e+", "e").replace(/^-/, "−");
  return FIXED[decimals].format(value).replace("-", "−");
}

/** "0.8 s", "12 s", "3 min 20 s", "4 h", "2 d 3 h". */
function duration(seconds) {
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  if (Math.round(seconds) < 60) return `${Math.round(seconds)} s`;
  if (Math.round(seconds) < 3600) return twoUnits(Math.round(seconds), 60, "min", "s");
  if (Math.round(seconds / 60) < 1440) return twoUnits(Math.round(seconds / 60), 60, "h", "min");
  return twoUnits(Math.round(seconds / 3600), 24, "d", "h");
}

function twoUnits(count, smallPerLarge, large, small) {
  const rest = count % smallPerLarge;
  return `${Math.floor(count / smallPerLarge)} ${large}${rest ? ` ${rest} ${small}` : ""}`;
}

function dollars(usd) {
  if (usd === 0) return "$0";
  return usd >= 1 ? `$${FIXED[2].format(usd)}` : `$${usd.toPrecision(2)}`;
}

function bytes(size) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  while (size >= 999.5 && at < units.length - 1) {
    size /= 1000;
    at += 1;
  }
  return `${at && size < 9.95 ? size.toFixed(1) : Math.round(size)} ${units[at]}`;
}

function percent(share) {
  return share > 0 && share < 0.01 ? "< 1 %" : `${Math.round(share * 100)} %`;
}

/** A moment of the report in UTC: "2026-03-01 12:04". */
function moment(seconds) {
  return new Date((DATA.began + seconds) * 1000).toISOString().slice(0, 16).replace("T", " ");
}

const many = (count, one, more = `${one}s`) => `${GROUPED.format(count)} ${count === 1 ? one : more}`;
