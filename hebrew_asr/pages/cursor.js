// A cursor that reads all charts of the page at the same step; the page is whole without it.
// Each legend entry carries its points as [step, label, text].
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
