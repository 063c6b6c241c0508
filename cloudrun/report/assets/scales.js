"use strict";
// From values to places on a chart, and the round numbers beside it.

const FEW = 12; // that many distinct values or fewer get a place of their own, evenly spread

/** Round numbers between two, about as many as asked for. */
function ticks(low, high, about) {
  if (!(high > low)) return [low];
  const raw = (high - low) / about;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((each) => each >= raw * 0.999);
  const result = [];
  for (let at = Math.ceil(low / step); at * step <= high + step * 1e-9; at += 1) result.push(at * step);
  return result;
}

/** Numbers beside an axis, all with as many decimals as their distance needs. */
function tickTexts(values) {
  if (values.length < 2) return values.map((value) => plain(Number(value.toPrecision(4))));
  const step = Math.abs(values[1] - values[0]);
  const largest = Math.max(...values.map(Math.abs));
  if (largest >= 1e7 || step < 1e-6) return values.map((value) => plain(Number(value.toPrecision(6))));
  const decimals = [0, 1, 2, 3, 4, 5, 6, 7].find(
    (each) => Math.abs(step * 10 ** each - Math.round(step * 10 ** each)) < 1e-6,
  );
  return values.map((value) => fixed(Math.abs(value) < step / 1e6 ? 0 : value, decimals ?? 7));
}

const TIME_STEPS = [
  1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 432000, 864000,
];

function timeTicks(low, high, about) {
  const raw = (high - low) / about;
  if (raw < 1) return ticks(low, high, about);
  const step = TIME_STEPS.find((each) => each >= raw) ?? Math.ceil(raw / 864000) * 864000;
  const result = [];
  for (let at = Math.ceil(low / step) * step; at <= high; at += step) result.push(at);
  return result;
}

/** "0", "90 s", "5 min", "1 h 30": a place on an axis of time. */
function elapsed(seconds) {
  if (seconds === 0) return "0";
  if (seconds < 60) return `${Number(seconds.toFixed(2))} s`;
  if (seconds < 3600)
    return seconds % 60
      ? `${Math.floor(seconds / 60)}:${String(Math.round(seconds % 60)).padStart(2, "0")} min`
      : `${seconds / 60} min`;
  if (seconds < 86400 * 2)
    return seconds % 3600
      ? `${Math.floor(seconds / 3600)}:${String(Math.round((seconds % 3600) / 60)).padStart(2, "0")} h`
      : `${seconds / 3600} h`;
  return `${Number((seconds / 86400).toFixed(1))} d`;
}

/** The scores worth showing: a few that are worse than everything else by far do not press the rest together. */
function scoreRange(runs) {
  const sorted = runs
    .map(scoreOf)
    .filter(Number.isFinite)
    .sort((a, b) => a - b);
  if (!sorted.length) return { low: 0, high: 1, beyond: 0 };
  let [low, high] = [sorted[0], sorted[sorted.length - 1]];
  const [q10, q90] = [quantile(sorted, 0.1), quantile(sorted, 0.9)];
  const middle = q90 - q10;
  if (STATE.metric.minimize && high - q90 > 3 * middle && middle > 0) high = q90 + middle / 2;
  if (!STATE.metric.minimize && q10 - low > 3 * middle && middle > 0) low = q10 - middle / 2;
  const beyond = sorted.filter((value) => value < low || value > high).length;
  const margin = (high - low) * 0.06 || Math.abs(high) * 0.05 || 0.5;
  return { low: low - margin, high: high + margin, beyond };
}

/** Where a parameter's values go on an axis from 0 to 1, and its marks as [place, text]. */
function scaleOf(param) {
  param.scale ??= paramScale(param);
  return param.scale;
}

function paramScale(param) {
  if (param.levels.length <= FEW || !param.isNumber) {
    const place = new Map(param.levels.map((word, at) => [word, (at + 0.5) / param.levels.length]));
    return {
      ordinal: true,
      band: 1 / param.levels.length,
      place: (run) => place.get(param.word(run)) ?? NaN,
      marks: param.levels.map((word) => [place.get(word), word]),
    };
  }
  const numbers = ALL.map(param.number).filter(Number.isFinite);
  const [low, high] = [numbers.reduce((a, b) => Math.min(a, b)), numbers.reduce((a, b) => Math.max(a, b))];
  if (low > 0 && high / low >= 50) {
    const [a, b] = [Math.log10(low), Math.log10(high)];
    const at = (value) => 0.03 + (0.94 * (Math.log10(value) - a)) / (b - a);
    const every = Math.ceil((b - a) / 5);
    const powers = Array.from({ length: Math.floor(b) - Math.ceil(a) + 1 }, (_, i) => Math.ceil(a) + i).filter(
      (power) => power % every === 0,
    );
    return {
      ordinal: false,
      band: 0,
      place: (run) => at(param.number(run)),
      marks: powers.map((power) => [at(10 ** power), plain(Number(`1e${power}`))]),
    };
  }
  const at = (value) => 0.03 + (0.94 * (value - low)) / (high - low);
  return {
    ordinal: false,
    band: 0,
    place: (run) => at(param.number(run)),
    marks: ticks(low, high, 4).map((value) => [at(value), plain(Number(value.toPrecision(12)))]),
  };
}

/** The part of the scores' variation that goes with the parameter: adjusted eta squared, 0 to 1. */
function explained(param, runs) {
  const groups = new Map();
  const sorted =
    param.levels.length > FEW && param.isNumber ? [...runs].sort((a, b) => param.number(a) - param.number(b)) : null;
  (sorted ?? runs).forEach((run, at) => {
    const key = sorted ? Math.floor((at * 8) / sorted.length) : param.word(run);
    const group = groups.get(key) ?? groups.set(key, []).get(key);
    group.push(scoreOf(run));
  });
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const overall = mean(runs.map(scoreOf));
  const total = runs.reduce((sum, run) => sum + (scoreOf(run) - overall) ** 2, 0);
  const between = [...groups.values()].reduce((sum, group) => sum + group.length * (mean(group) - overall) ** 2, 0);
  const freedom = runs.length - groups.size;
  if (!(total > 0) || freedom < 1) return 0;
  return Math.max(0, (between - (groups.size - 1) * ((total - between) / freedom)) / total);
}

/** Time from 0 to 1 without the long stretches in which nothing lived; `widest` is what may be left of one. */
function squeezed(beings, widest) {
  const lives = beings.map((each) => [each.created, each.until]).sort((a, b) => a[0] - b[0]);
  const stretches = [];
  for (const [from, until] of lives) {
    const last = stretches[stretches.length - 1];
    if (last && from <= last[1]) last[1] = Math.max(last[1], until);
    else stretches.push([from, until]);
  }
  const lived = stretches.reduce((sum, [from, until]) => sum + until - from, 0) || 1;
  const pieces = [];
  for (const [from, until] of stretches) {
    const last = pieces[pieces.length - 1];
    if (last && from - last.until < lived * 0.1) last.until = until;
    else pieces.push({ from, until });
  }
  const gap = pieces.length > 1 ? Math.min(widest, 0.3 / (pieces.length - 1)) : 0;
  const scale = (1 - gap * (pieces.length - 1)) / (pieces.reduce((sum, each) => sum + each.until - each.from, 0) || 1);
  let at = 0;
  for (const piece of pieces) {
    piece.at = at;
    at += (piece.until - piece.from) * scale + gap;
  }
  const place = (time) => {
    const piece = pieces.findLast((each) => each.from <= time) ?? pieces[0];
    return piece.at + (Math.max(piece.from, Math.min(time, piece.until)) - piece.from) * scale;
  };
  return { place, pieces, scale };
}
