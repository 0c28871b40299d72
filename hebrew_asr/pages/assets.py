"""The page's style sheet, and its one script: a cursor that reads all charts at the same step."""

from __future__ import annotations

# c1 to c6 follow Okabe and Ito, "Color Universal Design" (2008), which any color vision tells apart; those for paper
# are darkened until text in them reads well.
STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fcfcfa; --card: #fff; --ink: #191d22; --soft: #5a646f; --rule: #dfe2e5; --band: #f1f2f0;
  --c1: #0072b2; --c2: #d55e00; --c3: #00865f; --c4: #a8478a; --c5: #a87400; --c6: #3a94cc;
  --substituted: #fde7d9; --deleted: #dcecf7; --inserted: #f5e2ef; --good: #00704f; --warn: #a84a00;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", Arial, sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --card: #1b1f23; --ink: #e8eaec; --soft: #9ba5af; --rule: #333a41; --band: #21262b;
    --c1: #56b4e9; --c2: #ff8f4d; --c3: #35c79b; --c4: #e59ac8; --c5: #e6b53c; --c6: #a3d4f2;
    --substituted: #4d2f16; --deleted: #153a54; --inserted: #482a40; --good: #35c79b; --warn: #ffa365;
  }
}
.c1 { --c: var(--c1) } .c2 { --c: var(--c2) } .c3 { --c: var(--c3) }
.c4 { --c: var(--c4) } .c5 { --c: var(--c5) } .c6 { --c: var(--c6) }

* { box-sizing: border-box }
html {
  background: var(--paper); color: var(--ink); font: 16px/1.5 var(--sans); -webkit-text-size-adjust: 100%;
  print-color-adjust: exact; -webkit-print-color-adjust: exact;
}
body { margin: 0 }
main { max-width: 1160px; margin: 0 auto; padding: 40px 28px 80px }
section { margin-top: 60px }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 22px; letter-spacing: -.01em; overflow-wrap: anywhere }
h2 { font-size: 22px; line-height: 1.25; margin: 0 0 6px }
h3 { font-size: 15px; line-height: 1.35; margin: 0; font-weight: 650 }
h3 span { font-weight: 400; color: var(--soft) }
section > h3 { margin-top: 26px }
p { margin: 0; max-width: 88ch }
small, .note { color: var(--soft); font-size: 14px }
.defs { position: absolute }
.warn { color: var(--warn) }

/* headline */
.eyebrow { color: var(--soft); font-size: 13px; letter-spacing: .08em; text-transform: uppercase; margin-bottom: 4px }
.state {
  font-size: 13px; font-weight: 500; letter-spacing: 0; white-space: nowrap; vertical-align: .35em; margin-left: 6px;
  color: var(--good); border: 1px solid currentColor; border-radius: 99px; padding: 2px 10px;
}
.state.unfinished { color: var(--warn) }
.rates { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 22px; font-variant-numeric: tabular-nums }
.rates b {
  display: block; font-size: clamp(34px, 7vw, 60px); line-height: 1.1; font-weight: 650; letter-spacing: -.025em;
  white-space: nowrap;
}
.rates span { color: var(--soft); font-size: 14px }
.rates .name { font-size: clamp(20px, 3vw, 26px); color: var(--soft); font-weight: 500 }
.rates .arrow { font-size: clamp(26px, 5vw, 42px); color: var(--soft) }
.rates .last b { color: var(--c1) }
.lead { margin-top: 12px; font-size: 17px }
.tiles {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(168px, 1fr)); gap: 1px; margin: 28px 0 0;
  background: var(--card); border: 1px solid var(--rule); border-radius: 8px; overflow: hidden;
}
.tiles div { box-shadow: 0 0 0 1px var(--rule); padding: 12px 16px }
.tiles dt { color: var(--soft); font-size: 13px }
.tiles dd { margin: 0; font-size: 20px; font-weight: 600; line-height: 1.3; font-variant-numeric: tabular-nums }
.tiles small { display: block; font-weight: 400; font-size: 13px; margin-top: 2px }
.checks { list-style: none; margin: 24px 0 0; padding: 0; display: grid; gap: 4px; font-size: 15px }
.checks li { position: relative; padding-left: 26px; max-width: 100ch; color: inherit }
.checks li::before { content: "✓"; position: absolute; left: 2px; color: var(--good); font-weight: 700 }
.checks .warn::before { content: "!"; left: 6px; color: var(--warn) }

/* proof of phase */
.cards, .charts { display: grid; gap: 20px; margin-top: 18px }
.cards { grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)) }
.card, .chart {
  background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 16px 18px; margin: 0;
  min-width: 0;
}
.card .title { color: var(--soft); font-size: 14px }
.weights { display: block; margin: 14px 0 12px; border-radius: 3px }
.bar { fill: var(--c) }
#hatch path { stroke: var(--soft); stroke-width: 1; opacity: .55 }
.groups { list-style: none; margin: 12px 0; padding: 0; display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: 14px }
.groups span { color: var(--soft); font-variant-numeric: tabular-nums }
.swatch { width: 12px; height: 12px; margin-right: 6px }

/* tables */
table { border-collapse: collapse; font-size: 15px }
th { font-weight: 500; color: var(--soft); text-align: left; font-size: 13px }
td, th { padding: 5px 14px 5px 0; vertical-align: baseline }
tbody tr { border-top: 1px solid var(--rule) }
.number, .figures td { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.figures, .evaluations { width: 100% }
.figures th { font-size: 15px; color: var(--ink) }
.figures td:last-child { color: var(--good); font-weight: 700; padding-right: 0; width: 1.5em }

/* charts: three rows each, shared along a row of the grid so that axes line up */
.charts { grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)) }
.chart { display: grid; grid-row: span 3; grid-template-rows: subgrid; row-gap: 6px }
.chart > svg { display: block; width: 100%; max-width: 680px; height: auto; overflow: visible; touch-action: pan-y }
.chart > .note { font-size: 13px; min-height: 1px }
.heading { display: flex; justify-content: space-between; align-items: baseline; gap: 16px }
.at { color: var(--soft); font-size: 13px; white-space: nowrap; font-variant-numeric: tabular-nums }
.at { min-width: 10em; text-align: right }
figcaption ul { list-style: none; margin: 4px 0 0; padding: 0; display: flex; flex-wrap: wrap; gap: 0 16px }
figcaption li { font-size: 13px }
figcaption b { display: inline-block; font-weight: 600; font-variant-numeric: tabular-nums }
.key { width: 22px; height: 12px; vertical-align: -1px; margin-right: 4px }
svg text { font: 12px var(--sans); fill: var(--soft); font-variant-numeric: tabular-nums }
svg .phase { fill: var(--ink) }
.line { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; stroke-linecap: round }
.range { fill: var(--c); opacity: .2 }
.dot { fill: var(--c); stroke: var(--c); stroke-width: 1.5 }
.hollow { fill: var(--card) }
.grid { stroke: var(--rule) }
.axis { stroke: var(--soft) }
.band { fill: var(--band) }
.switch { stroke: var(--ink); stroke-width: 1.2; stroke-dasharray: 4 3 }
.level { stroke: var(--ink); stroke-width: 1.4; stroke-dasharray: 1 3 }
.checkpoint { fill: var(--soft) }
.beyond { fill: var(--c) }
svg .value { fill: var(--c); font-weight: 600 }
.cursor { stroke: var(--ink); opacity: 0 }

/* speech */
[lang=he] {
  font-family: "Noto Sans Hebrew", "Arial Hebrew", "Segoe UI", system-ui, "Liberation Sans", Arial, sans-serif;
  font-size: 17px;
}
.substitute { background: var(--substituted) }
.delete { background: var(--deleted) }
.insert { background: var(--inserted) }
.keys { margin: 10px 0 0; font-size: 14px; display: flex; gap: 18px }
.keys span { padding: 0 6px; border-radius: 4px }
.pair.substitute .heard, .keys .substitute, .line .substitute { text-decoration: underline 2px var(--c2) }
.pair.insert .heard, .keys .insert, .line .insert { text-decoration: underline dotted 2px var(--c4) }
.pair.delete .said, .keys .delete { text-decoration: line-through 2px var(--c1) }
.pair .heard, .keys span, .line .word { text-underline-offset: 4px }
.samples { width: 100%; margin-top: 6px }
.samples td { padding-top: 9px; padding-bottom: 9px; vertical-align: top }
.samples td:last-child, .samples th:last-child { padding-right: 0; text-align: right }
.samples .raw { text-align: left }
.tally { white-space: nowrap; font-variant-numeric: tabular-nums; width: 1%; min-width: 190px }
.tally small { display: block; font-size: 12px; max-width: 30ch; white-space: normal; overflow-wrap: anywhere }
.aligned { display: flex; flex-wrap: wrap; gap: 6px 4px; line-height: 1.45 }
.pair { display: inline-flex; flex-direction: column; text-align: center; padding: 0 5px; border-radius: 4px }
.pair { min-width: 1.4em; max-width: 100%; padding-bottom: 2px; overflow-wrap: anywhere }
.pair .heard { color: var(--soft) }
.pair.substitute .heard, .pair.insert .heard { color: var(--ink); font-weight: 600 }
.more { color: var(--soft); font-size: 14px; align-self: center }
.raw { font-size: 13px; color: var(--soft); overflow-wrap: anywhere; max-width: none; margin-top: 6px }
.story {
  width: 100%; margin-top: 22px; background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  border-collapse: separate; border-spacing: 0; overflow: hidden;
}
.story caption { padding: 0 2px 6px; text-align: right }
.story caption div { display: flex; justify-content: space-between; align-items: baseline; gap: 16px }
.story caption small { white-space: nowrap }
.story caption .line { font-weight: 650; font-size: 19px }
.story th, .story td { padding: 5px 16px; border-top: 1px solid var(--rule) }
.story thead th { border-top: 0 }
.story .number, .confusions .number { width: 1% }
.story td:last-child, .story th:last-child { text-align: right }
.line, .group { overflow-wrap: anywhere }
.line .word { padding: 0 3px; border-radius: 3px }
.line .substitute, .line .insert { color: var(--soft) }
.line .delete { display: inline-block; min-width: 1.6em; line-height: 1 }
.confusions {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); gap: 26px 36px; margin-top: 18px;
  align-items: start;
}
.confusions table { margin-top: 4px; width: 100% }
.confusions td { padding-top: 3px; padding-bottom: 3px }

/* folded */
details { margin-top: 14px; border: 1px solid var(--rule); border-radius: 8px; background: var(--card) }
summary { padding: 10px 16px; cursor: pointer; font-weight: 550 }
.scroll { overflow-x: auto; padding: 0 16px 14px }
pre { margin: 0; padding: 4px 16px 16px; overflow-x: auto; font: 13px/1.5 var(--mono) }

@media (max-width: 1100px) { svg text { font-size: 14px } }
@media (max-width: 640px) {
  main { padding: 24px 16px 60px }
  section { margin-top: 44px }
  h1 { font-size: 25px }
  .chart { padding: 12px 10px }
  svg text { font-size: 16px }
  .rates .name { width: 100% }
  .rates span { display: block; max-width: 15ch; line-height: 1.35 }
  .tiles { grid-template-columns: 1fr 1fr }
  .samples, .samples tbody, .samples tr, .samples td { display: block }
  .samples thead { display: none }
  .samples td { padding: 6px 0 }
  .samples .tally { width: auto; min-width: 0; padding-bottom: 0 }
  .tally small { display: inline; margin-left: 8px }
  .story th, .story td { padding: 5px 8px }
  .story caption div { flex-wrap: wrap-reverse }
  .story caption .line { width: 100% }
}
@media print {
  @page { margin: 14mm }
  html { font-size: 12px; background: none }
  main { max-width: none; padding: 0 }
  section { margin-top: 28px }
  .card, .chart, .story, .samples tr, .confusions > div { break-inside: avoid }
  h2, h3 { break-after: avoid }
  p { break-inside: avoid }
  .cards, .charts { grid-template-columns: 1fr 1fr; gap: 10px }
  .tiles { grid-template-columns: repeat(5, 1fr) }
  .tiles dd { font-size: 16px }
  section > .note, .keys { break-after: avoid }
  details:not([open]), .folded { display: none }
}
"""

# Each legend entry carries its points as [step, label, text]. The page is whole without this.
SCRIPT = """
const charts = [...document.querySelectorAll('.chart')].map(figure => ({
  svg: figure.querySelector(':scope > svg'),
  cursor: figure.querySelector('.cursor'),
  at: figure.querySelector('.at'),
  low: +figure.dataset.low, high: +figure.dataset.high, steps: +figure.dataset.steps, width: +figure.dataset.width,
  lines: [...figure.querySelectorAll('[data-read]')].map(entry => {
    const value = entry.querySelector('b');
    return {points: JSON.parse(entry.dataset.read), value, last: value.textContent};
  }),
}));
const nearest = (points, step) => points.reduce((best, point) =>
  Math.abs(point[0] - step) < Math.abs(best[0] - step) ? point : best);
const show = step => charts.forEach(chart => {
  const here = nearest(chart.lines.flatMap(line => line.points), step);
  const x = chart.low + (chart.high - chart.low) * here[0] / chart.steps;
  chart.cursor.setAttribute('x1', x);
  chart.cursor.setAttribute('x2', x);
  chart.cursor.style.opacity = 0.5;
  chart.at.textContent = here[1];
  chart.lines.forEach(line => {
    const point = line.points.find(point => point[0] === here[0]);
    line.value.textContent = point ? point[2] : '–';
  });
});
const hide = () => charts.forEach(chart => {
  chart.cursor.style.opacity = 0;
  chart.at.textContent = 'last';
  chart.lines.forEach(line => { line.value.textContent = line.last; });
});
charts.forEach(chart => {
  chart.svg.addEventListener('pointermove', event => {
    const box = chart.svg.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * chart.width;
    show((x - chart.low) / (chart.high - chart.low) * chart.steps);
  });
  chart.svg.addEventListener('pointerleave', hide);
});
"""
