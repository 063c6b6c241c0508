"use strict";
// What is typed above the ranking: words that must occur, and comparisons such as alpha>=0.01 or state=failed.

const TOKEN = /(-?)([^\s"<>=!]+)(<=|>=|!=|=|<|>)(?:"([^"]*)"?|(\S*))|(-?)(?:"([^"]*)"?|(\S+))/g;

/** Columns that a comparison may name: parameters, scores, and a few of the run's own. */
function filterColumns() {
  const own = [
    { name: "state", isNumber: false, number: () => NaN, word: stateOf },
    { name: "name", isNumber: false, number: () => NaN, word: nameOf },
    { name: "reason", isNumber: false, number: () => NaN, word: (run) => wordOf(RUNS.reason, run) },
    { name: "unit", isNumber: false, number: () => NaN, word: (run) => wordOf(RUNS.instance, run) },
    {
      name: "rank",
      isNumber: true,
      number: (run) => STATE.rank[run] || NaN,
      word: (run) => String(STATE.rank[run] || ""),
    },
    { name: "time", isNumber: true, number: (run) => tookOf(run) ?? NaN, word: (run) => String(tookOf(run) ?? "") },
    {
      name: "cost",
      isNumber: true,
      number: (run) => RUNS.cost[run] ?? NaN,
      word: (run) => String(RUNS.cost[run] ?? ""),
    },
  ];
  return new Map([...own, ...SCORES, ...PARAMS].map((each) => [each.name.toLowerCase(), each]));
}

const FILTER_COLUMNS = filterColumns();
const _haystacks = [];

function haystack(run) {
  if (_haystacks[run] === undefined) {
    const own = [RUNS.script, RUNS.state, RUNS.reason, RUNS.detail, RUNS.instance].map((pool) => wordOf(pool, run));
    const params = PARAMS.map((param) => (param.word(run) === null ? "" : `${param.name}=${param.word(run)}`));
    _haystacks[run] = [RUNS.id[run], nameOf(run), ...own, ...params].join("\n").toLowerCase();
  }
  return _haystacks[run];
}

/** The text as a list of conditions on a run; all must hold. */
function conditions(text) {
  const found = [];
  for (const match of text.matchAll(TOKEN)) {
    const [whole, minus, name, operator, quoted, bare, minusWord, quotedWord, bareWord] = match;
    const named = name && FILTER_COLUMNS.get(name.toLowerCase());
    if (named) {
      const holds = comparison(named, operator, (quoted ?? bare).toLowerCase());
      found.push(minus ? (run) => !holds(run) : holds);
      continue;
    }
    const negated = minus || minusWord;
    const word = (name ? whole.slice(minus.length) : (quotedWord ?? bareWord)).toLowerCase();
    if (word) found.push((run) => haystack(run).includes(word) !== Boolean(negated));
  }
  return found;
}

function comparison(named, operator, text) {
  const wanted = Number(text.replaceAll(",", "").replaceAll("−", "-"));
  if (named.isNumber && text !== "" && !Number.isNaN(wanted)) {
    const holds = {
      "=": (a) => a === wanted,
      "!=": (a) => a !== wanted,
      "<": (a) => a < wanted,
      ">": (a) => a > wanted,
      "<=": (a) => a <= wanted,
      ">=": (a) => a >= wanted,
    }[operator];
    return (run) => holds(named.number(run));
  }
  const word = (run) => (named.word(run) ?? "").toLowerCase();
  if (operator === "!=") return (run) => word(run) !== text;
  if (operator === "=") return (run) => word(run) === text;
  return (run) => (operator[0] === "<" ? collate(word(run), text) < 0 : collate(word(run), text) > 0);
}
