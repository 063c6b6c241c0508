"use strict";
// One run's page: what it was given, what came of it, where its time went, and the end of what it printed.

const PHASES = ["launch", "boot", "provision", "ship", "run", "pull", "terminate"];

function runPage(run) {
  const id = RUNS.id[run];
  const near = (step) => (STATE.rank[run] ? STATE.ranked[STATE.rank[run] - 1 + step] : undefined);
  const [previous, next] = [near(-1), near(1)];
  const name = nameOf(run);
  const broken = stateOf(run) === "failed" || stateOf(run) === "lost"; // then its log is what one comes for
  return h(
    "main.run",
    null,
    h(
      "nav.crumbs",
      { "aria-label": "Runs" },
      h("a", { href: "#/" }, "← All runs"),
      h(
        "span",
        null,
        previous !== undefined ? h("a", { href: routeOf(previous), rel: "prev" }, "Better") : null,
        next !== undefined ? h("a", { href: routeOf(next), rel: "next" }, "Worse") : null,
      ),
    ),
    h(
      "header",
      null,
      h("h1", { tabIndex: -1 }, h("bdi", null, name)),
      h(
        "p.sub",
        null,
        name === id ? null : h("code", null, id),
        stateMark(stateOf(run)),
        `${moment(RUNS.created[run])} UTC`,
      ),
    ),
    headlineOf(run),
    causeOf(run),
    broken ? logsOf(run, ["stderr", "stdout"]) : null,
    h(
      "div.cards",
      null,
      facts(
        "Parameters",
        PARAMS.map((param) => [param.name, param.word(run)]),
      ),
      facts(
        "Scores",
        SCORES.map((score) => [score.name, score.word(run)]),
      ),
      facts("Where", whereOf(run)),
      facts("Made with", passportOf(run)),
    ),
    timeOf(run),
    attemptsOf(run),
    filesOf(run),
    broken ? null : logsOf(run, ["stdout", "stderr"]),
  );
}

function headlineOf(run) {
  const score = STATE.metric;
  const value = score?.word(run);
  const cells = [];
  if (value) {
    const decimals = Number.isInteger(scoreOf(run)) ? 0 : Math.max(4, decimalsFor(STATE.ranked.map(scoreOf)));
    cells.push([score.name, fixed(scoreOf(run), decimals), null, "score"]);
  }
  if (STATE.rank[run])
    cells.push(["rank", `${GROUPED.format(STATE.rank[run])}`, `of ${GROUPED.format(STATE.ranked.length)}`]);
  if (tookOf(run)) cells.push(["time", duration(tookOf(run))]);
  if (RUNS.cost[run] !== null) cells.push(["cost, its share", dollars(RUNS.cost[run])]);
  return figures(cells);
}

/** Large numbers in a row, each under its name: [name, value, smaller words, what kind]. */
function figures(cells) {
  return cells.length
    ? h(
        "dl.figures",
        null,
        cells.map(([name, value, more, kind]) =>
          h(
            "div",
            { "data-figure": kind },
            h("dt", null, h("bdi", null, name)),
            h("dd", null, value, more ? h("small", null, " ", more) : null),
          ),
        ),
      )
    : null;
}

function causeOf(run) {
  const [detail, reason, code] = [wordOf(RUNS.detail, run), wordOf(RUNS.reason, run), RUNS.exit_code[run]];
  if (stateOf(run) === "succeeded" || (!detail && !reason)) return null;
  const words = [reason?.replaceAll("_", " "), code ? `exit code ${code}` : null].filter(Boolean).join(", ");
  return h(
    "p.cause",
    null,
    h("strong", null, words),
    detail && words ? ": " : null,
    detail ? h("bdi", null, detail) : null,
  );
}

function facts(title, pairs) {
  const known = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  if (!known.length) return null;
  return h(
    "section",
    null,
    h("h2", null, title),
    h(
      "dl",
      null,
      known.map(([name, value]) =>
        h("div", null, h("dt", null, h("bdi", null, name)), h("dd", null, h("bdi", null, value))),
      ),
    ),
  );
}

function whereOf(run) {
  const usage = RUNS.usage[run];
  return [
    ["unit", wordOf(RUNS.instance, run)],
    ["type", wordOf(RUNS.type, run)],
    ["region", wordOf(RUNS.region, run)],
    ["CPU", usage ? duration(usage[0]) : null],
    ["memory, at most", usage?.[1] ? bytes(usage[1]) : null],
    ["written", usage?.[2] ? bytes(usage[2]) : null],
  ];
}

function passportOf(run) {
  const rows = JSON.parse(wordOf(RUNS.passport, run) ?? "[]");
  const digests = ["code", "data", "environment"].map((each) => [`${each} digest`, wordOf(RUNS[each], run)]);
  return [["script", wordOf(RUNS.script, run)], ...rows, ...digests];
}

function timeOf(run) {
  const phases = PHASES.map((phase) => [phase, DATA.timings[phase][run]]).filter(([, seconds]) => seconds > 0);
  if (!phases.length) return null;
  const spentOn = phases.reduce((sum, [, seconds]) => sum + seconds, 0);
  const total = Math.max(spentOn, DATA.timings.total[run]);
  if (total - spentOn > total * 0.005) phases.push(["other", total - spentOn]);
  const grow = (element, seconds) => {
    element.style.flexGrow = seconds / total;
    return element;
  };
  const bar = h(
    "div.phases",
    { role: "img", "aria-label": "Time by phase" },
    phases.map(([phase, seconds]) =>
      grow(h("span", { "data-phase": phase, title: `${phase} ${duration(seconds)}` }), seconds),
    ),
  );
  const rows = phases.map(([phase, seconds]) =>
    h("li", null, h("i", { "data-phase": phase }), `${phase} `, h("b", null, duration(seconds))),
  );
  return h("section", null, h("h2", null, "Time"), bar, h("ul.phase-list", null, rows));
}

function attemptsOf(run) {
  const tries = DATA.attempts;
  const mine = tries.run
    .flatMap((each, at) => (each === run ? [at] : []))
    .sort((a, b) => tries.number[a] - tries.number[b]);
  if (mine.length < 2) return null;
  const row = (at) => [
    String(tries.number[at]),
    stateMark(wordOf(tries.state, at)),
    wordOf(tries.reason, at)?.replaceAll("_", " ") ?? "",
    DATA.units[tries.unit[at]].id,
    `${moment(tries.start[at])}`,
    tries.end[at] === null ? "" : duration(tries.end[at] - tries.start[at]),
  ];
  return h(
    "section",
    null,
    h("h2", null, "Attempts"),
    plainTable(["#", "state", "reason", "unit", "began (UTC)", "time"], mine.map(row)),
  );
}

function filesOf(run) {
  const files = RUNS.files[run];
  if (!files.length) return null;
  const more = RUNS.file_count[run] - files.length;
  const rows = files.map(([path, size, digest]) => [h("bdi", null, path), bytes(size), h("code", null, digest)]);
  return h(
    "section",
    null,
    h("h2", null, "Files"),
    plainTable(["path", "size", "SHA-256"], rows),
    more > 0 ? h("p.note", null, `and ${many(more, "file")} more: cloudrun show ${RUNS.id[run]}`) : null,
  );
}

function plainTable(names, rows) {
  return h(
    "div.wide",
    null,
    h(
      "table.plain",
      null,
      h(
        "thead",
        null,
        h(
          "tr",
          null,
          names.map((name) => h("th", { scope: "col" }, name)),
        ),
      ),
      h(
        "tbody",
        null,
        rows.map((cells) =>
          h(
            "tr",
            null,
            cells.map((cell) => h("td", null, cell)),
          ),
        ),
      ),
    ),
  );
}

function logsOf(run, streams) {
  const logs = DATA.logs[run];
  const whole = `cloudrun show ${RUNS.id[run]} --log --lines 0`;
  if (!logs || !Object.keys(logs).length) {
    const kept = RUNS.file_count[run] > 0 && !logs;
    return h(
      "section",
      null,
      h("h2", null, "Log"),
      h("p.note", null, kept ? `Left out to keep this file small: ${whole}` : "Nothing it printed is home."),
    );
  }
  const silent = streams.filter((name) => logs[name] === "");
  const printed = streams.filter((name) => logs[name]);
  const stream = (name) => [
    h("h3", null, name),
    h("pre", { tabIndex: 0, "aria-label": `End of ${name}`, dir: "ltr" }, logs[name]),
  ];
  return h(
    "section",
    null,
    h("h2", null, "Log"),
    printed.map(stream),
    h(
      "p.note",
      null,
      silent.length ? `Nothing on ${silent.join(" and ")}. ` : null,
      printed.length ? `These are the last lines; all of them: ${whole}` : null,
    ),
  );
}
