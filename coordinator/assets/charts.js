// Curves of a job, or of two beside each other: one cursor over all of them, a range that can be
// drawn with the mouse, and all choices in the URL.
'use strict';
(() => {
  const root = document.getElementById('charts');
  if (!root || typeof uPlot === 'undefined') return;
  const { job, other } = root.dataset;
  const query = new URLSearchParams(location.search);
  const choice = {
    x: query.get('x') === 'time' ? 'time' : 'step',
    log: query.get('log') === '1',
    smooth: Math.min(0.99, Math.max(0, Number(query.get('smooth') || 0.6))) || 0,
    from: Number(query.get('from')) || null,
    to: Number(query.get('to')) || null,
  };
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colours = () => ['--accent', '--c2', '--c1', '--c3', '--c4', '--c5', '--c6', '--c7'].map(style);

  // An average that forgets, as long as nothing is missing: a gap stays one, and sparse values stay
  // sparse.
  const smoothed = (values, weight) => {
    let last = null;
    return values.map((value) => {
      if (value === null) { last = null; return null; }
      last = last === null ? value : last * weight + value * (1 - weight);
      return last;
    });
  };
  const digits = (value) => {
    if (value === null || value === undefined) return '–';
    const size = Math.abs(value);
    if (size !== 0 && (size < 0.001 || size >= 1e6)) return value.toExponential(2);
    return value.toLocaleString('en', { maximumSignificantDigits: 5 });
  };
  const hours = (s) => (s < 120 ? `${Math.round(s)} s` : s < 7200 ? `${Math.round(s / 60)} min`
    : `${(s / 3600).toFixed(1)} h`);
  const canvasAlpha = (colour, hex) => (colour.startsWith('#') ? colour + hex : colour);

  const remember = () => {
    const now = new URLSearchParams(location.search);
    const set = (name, value) => (value ? now.set(name, value) : now.delete(name));
    set('x', choice.x === 'time' && 'time');
    set('log', choice.log && '1');
    set('smooth', choice.smooth !== 0.6 && String(choice.smooth));
    set('from', choice.from && String(choice.from));
    set('to', choice.to && String(choice.to));
    const text = now.toString();
    history.replaceState(null, '', (text ? `?${text}` : location.pathname) + location.hash);
  };

  // What each figure shows: names of series, or what their names begin with.
  const figures = other
    ? [{ title: 'loss', names: ['loss'], main: true }]
    : [
      { title: 'loss', names: ['loss', 'validation'], main: true },
      { title: 'terms of the loss', begin: ['loss ', 'validation '] },
      { title: 'step time', begin: ['seconds '], stacked: true, unit: 's' },
      { title: 'gradient norm', names: ['gradient norm'], logs: true },
      { title: 'learning rate', names: ['learning rate'] },
      { title: 'samples/s', names: ['samples/s'] },
      { title: 'loss scale', names: ['loss scale'], logs: true },
      { title: 'device memory', names: ['device memory'], scale: 1 / 2 ** 30, unit: 'GiB' },
      { title: 'evaluation scores', scores: true },
    ];
  // In the order in which a step does them.
  const PHASES = ['data', 'forward', 'backward', 'communication', 'optimizer', 'checkpoint', 'validation']
    .map((it) => `seconds ${it}`);
  // There is no half a step.
  const WHOLE = [1, 2, 5].flatMap((it) => [...Array(9).keys()].map((at) => it * 10 ** at)).sort((a, b) => a - b);
  let data = [];
  let plots = [];

  const sync = uPlot.sync('curves');
  const element = (tag, attributes = {}, ...children) => {
    const it = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) it.setAttribute(name, value);
    it.append(...children);
    return it;
  };

  // Controls, made once.
  const options = element('div', { class: 'options', role: 'group', 'aria-label': 'How curves are drawn' });
  const check = (text, checked, change) => {
    const box = element('input', { type: 'checkbox' });
    box.checked = checked;
    box.addEventListener('change', () => { change(box.checked); remember(); draw(); });
    return element('label', {}, box, ` ${text}`);
  };
  const range = element('input', { type: 'range', min: '0', max: '0.99', step: '0.01' });
  range.value = String(choice.smooth);
  const shown = element('output', {}, choice.smooth.toFixed(2));
  range.addEventListener('input', () => {
    choice.smooth = Number(range.value);
    shown.textContent = choice.smooth.toFixed(2);
    remember();
    draw();
  });
  const whole = element('button', { type: 'button' }, 'whole range');
  whole.addEventListener('click', () => { choice.from = choice.to = null; remember(); load(); });
  options.append(
    element('label', {}, 'smoothing ', range, ' ', shown),
    check('logarithmic', choice.log, (it) => { choice.log = it; }),
    check('by training time', choice.x === 'time', (it) => { choice.x = it ? 'time' : 'step'; }),
    whole,
    element('span', { class: 'none' }, 'drag over a curve to look closer'),
  );

  const lines = (figure) => {
    // Columns on one x: the job's own steps; another job's are joined.
    const found = [];
    data.forEach((set, at) => {
      const x = choice.x === 'time' ? set.seconds : set.steps;
      if (figure.scores) {
        for (const [name, points] of Object.entries(set.scores)) {
          const at_step = (step) => {
            const index = set.steps.findIndex((it) => it >= step);
            return choice.x === 'time' ? set.seconds[index < 0 ? set.seconds.length - 1 : index] : step;
          };
          found.push({ name, x: points.map((it) => at_step(it[0])), mean: points.map((it) => it[1]), dots: true });
        }
        return;
      }
      const order = (name) => { const at = PHASES.indexOf(name); return at < 0 ? PHASES.length : at; };
      const all = Object.entries(set.series).sort(([a], [b]) => order(a) - order(b));
      for (const [name, series] of all) {
        // The scale has a figure of its own.
        const begin = name !== 'loss scale' && (figure.begin || []).find((it) => name.startsWith(it));
        if (!begin && !(figure.names || []).includes(name)) continue;
        if (figure.stacked && series.mean.every((it) => !it)) continue;
        const text = data.length > 1 ? set.job : begin && !begin.startsWith('validation') ? name.slice(begin.length) : name;
        const scaled = (values) => values && values.map((it) => (it === null ? null : it * (figure.scale || 1)));
        const sparse = series.mean.filter((it) => it !== null).length * 2 < series.mean.length;
        found.push({
          name: text, x, at, sparse,
          mean: scaled(series.mean), min: scaled(series.min), max: scaled(series.max),
        });
      }
    });
    return found;
  };

  const make = (figure) => {
    const found = lines(figure);
    if (found.length === 0) return null;
    const palette = colours();
    const key = element('span', { class: 'key-row' });
    const box = element('div');
    const node = element('figure', { class: 'plot' },
      element('figcaption', {}, figure.title + (figure.unit ? ` (${figure.unit})` : ''), key), box);
    const columns = [];
    const series = [{}];
    const bands = [];
    const smooth = figure.main || figure.logs || figure.names ? choice.smooth : 0;
    const isLog = choice.log && !figure.stacked && !figure.scores && found.every((it) => it.mean.every((v) => v === null || v > 0));
    // A line over gaps where there are few values; a stack is summed from below.
    let below = null;
    const tables = found.map((it, at) => {
      const colour = palette[at % palette.length];
      const spans = it.sparse || it.dots;
      const table = [it.x];
      if (figure.stacked) {
        const sum = it.mean.map((value, i) => (value || 0) + (below ? below[i] : 0));
        below = sum;
        table.push(sum);
        series.push({ label: it.name, stroke: colour, width: 1, fill: canvasAlpha(colour, '55'), points: { show: false } });
        return table;
      }
      if (it.min) {
        table.push(it.max, it.min);
        const upper = series.length;
        series.push({ label: '', stroke: 'transparent', points: { show: false } });
        series.push({ label: '', stroke: 'transparent', points: { show: false } });
        bands.push({ series: [upper, upper + 1], fill: canvasAlpha(colour, '22') });
      } else if (smooth && !spans) {
        table.push(it.mean);
        series.push({ label: '', stroke: canvasAlpha(colour, '44'), width: 1, points: { show: false } });
      }
      table.push(smooth && !spans ? smoothed(it.mean, smooth) : it.mean);
      series.push({ label: it.name, stroke: colour, width: 1.6, spanGaps: spans, points: { show: spans, size: 5 } });
      return table;
    });
    if (figure.stacked) {
      // The last sum is the largest: it is drawn first.
      for (let at = series.length - 1; at > 1; at -= 1) bands.push({ series: [at, at - 1] });
    }
    const joined = uPlot.join(tables, tables.map((table) => table.map(() => 2)));
    // Without the nulls that joining adds between points of the other job.
    const height = figure.main ? 260 : 150;
    const values = [];
    series.forEach((it, at) => {
      if (!it.label) return;
      const value = element('b');
      values.push([at, value]);
      const mark = element('i');
      mark.style.background = it.stroke;
      if (found.length > 1 || figure.main) key.append(element('span', {}, mark, it.label, ' ', value));
      else key.append(element('span', {}, value));
    });
    const show = (plot) => {
      const index = plot.cursor.idx;
      for (const [at, value] of values) {
        const column = plot.data[at];
        let i = index === null || index === undefined ? column.length - 1 : index;
        while (i > 0 && (column[i] === null || column[i] === undefined)) i -= 1;
        const under = figure.stacked && at > 1 ? plot.data[at - 1][i] : 0;
        value.textContent = digits(column[i] === undefined ? null : column[i] - under);
      }
    };
    const grid = { stroke: style('--line'), width: 1 };
    const axis = { stroke: style('--soft'), grid, ticks: { show: false }, font: '11px system-ui, sans-serif' };
    const plot = new uPlot({
      width: Math.max(200, box.clientWidth || 400), height,
      series, bands,
      legend: { show: false },
      cursor: { sync: { key: sync.key }, drag: { x: true, y: false, setScale: false }, points: { size: 6 } },
      scales: { x: { time: false }, y: isLog ? { distr: 3 } : {} },
      axes: [
        { ...axis, size: 26, ...(choice.x === 'step' ? { incrs: WHOLE } : {}), values: (_, ticks) => ticks.map((it) => (choice.x === 'time' ? hours(it) : it.toLocaleString('en'))) },
        { ...axis, size: 58, values: (_, ticks) => ticks.map((it) => (it === null ? '' : digits(it))) },
      ],
      hooks: {
        setCursor: [show],
        ready: [show],
        setSelect: [(it) => {
          if (it.select.width < 8) return;
          const left = it.posToVal(it.select.left, 'x');
          const right = it.posToVal(it.select.left + it.select.width, 'x');
          it.setSelect({ width: 0, height: 0, left: 0, top: 0 }, false);
          zoom(left, right);
        }],
      },
    }, joined, box);
    const canvas = box.querySelector('canvas');
    canvas.setAttribute('role', 'img');
    canvas.setAttribute('aria-label', `${figure.title}: ${found.map((it) => it.name).join(', ')}`);
    plots.push([plot, box, height]);
    return node;
  };

  const zoom = (left, right) => {
    const [set] = data;
    if (choice.x === 'time') {
      const at = (time) => set.steps[Math.max(0, set.seconds.findIndex((it) => it >= time))] || set.steps[0];
      [choice.from, choice.to] = [at(left), at(right)];
    } else {
      [choice.from, choice.to] = [Math.max(1, Math.floor(left)), Math.max(1, Math.ceil(right))];
    }
    remember();
    load();
  };

  const draw = () => {
    if (data.length === 0 || data[0].steps.length === 0) return;
    for (const [plot] of plots) plot.destroy();
    plots = [];
    const active = options.contains(document.activeElement) ? document.activeElement : null;
    const nodes = [];
    for (const figure of figures) {
      const node = make(figure);
      if (node) nodes.push(node);
    }
    root.replaceChildren(options, ...nodes);
    if (active) active.focus();
    whole.hidden = !choice.from && !choice.to;
    fit();
  };
  const fit = () => {
    for (const [plot, box, height] of plots) {
      const width = box.clientWidth;
      if (width > 0 && width !== plot.width) plot.setSize({ width, height });
    }
  };

  // The step under the cursor is told to whoever shows something of it, and the other way round.
  const step_at = (x) => {
    if (choice.x !== 'time') return x;
    const [set] = data;
    const at = set.seconds.findIndex((it) => it >= x);
    return set.steps[at < 0 ? set.steps.length - 1 : at];
  };
  // After uPlot has moved its cursor, which it does with the same event.
  root.addEventListener('mousemove', (event) => {
    if (other || plots.length === 0 || !event.target.closest('.u-over')) return;
    const [plot] = plots.find(([, box]) => box.contains(event.target)) || plots[0];
    const { idx } = plot.cursor;
    if (idx !== null && idx !== undefined) {
      document.dispatchEvent(new CustomEvent('cursor', { detail: step_at(plot.data[0][idx]) }));
    }
  });
  document.addEventListener('look-at', ({ detail }) => {
    if (data.length === 0) return;
    const [set] = data;
    const found = set.steps.findIndex((it) => it >= detail);
    const at = found < 0 ? set.steps.length - 1 : found;
    const x = choice.x === 'time' ? set.seconds[at] : set.steps[at];
    for (const [plot] of plots) plot.setCursor({ left: plot.valToPos(x, 'x'), top: 0 });
  });

  // Nothing is drawn anew under a mouse that is drawing a range.
  let dragging = null;
  root.addEventListener('mousedown', (event) => { if (event.target.closest('.u-over')) dragging = []; }, true);
  addEventListener('mouseup', () => setTimeout(() => {
    const waiting = dragging || [];
    dragging = null;
    for (const done of waiting) done();
  }));

  // Why there is no curve.
  const trouble = element('p', { class: 'empty', role: 'status' });
  let busy = false;
  let again = false;
  const load = async () => {
    if (busy) { again = true; return; }
    busy = true;
    try {
      const range = new URLSearchParams();
      if (choice.from) range.set('from', choice.from);
      if (choice.to) range.set('to', choice.to);
      const get = async (name) => {
        const answer = await fetch(`/api/jobs/${encodeURIComponent(name)}/steps?${range}`);
        if (answer.ok) return answer.json();
        const { error } = await answer.json().catch(() => ({ error: answer.statusText }));
        trouble.textContent = error;
        return null;
      };
      trouble.textContent = '';
      const sets = await Promise.all([job, other].filter(Boolean).map(get));
      data = sets.filter(Boolean);
      if (dragging) await new Promise((done) => { dragging.push(done); });
      draw();
      if (trouble.textContent) {
        if (!options.isConnected) root.prepend(options);
        whole.hidden = !choice.from && !choice.to;
        options.after(trouble);
      } else trouble.remove();
      root.dataset.read = data.map((it) => it.read).join(' ');
      // Old steps are read part by part.
      if (data.some((it) => !it.complete)) again = true;
    } finally {
      busy = false;
      if (again) { again = false; setTimeout(load, 300); }
    }
  };

  // New steps: the server says in a part of the page that there are some.
  let newest = '';
  let timer = null;
  const look = () => {
    const mark = document.querySelector('#curve-state [data-newest]');
    if (!mark || mark.dataset.newest === newest) return;
    const first = newest === '';
    newest = mark.dataset.newest;
    if (first || timer || choice.to) return;
    timer = setTimeout(() => { timer = null; load(); }, 2000);
  };
  document.addEventListener('part', (event) => { if (event.detail === 'curve-state') look(); });
  addEventListener('resize', fit);
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw);
  look();
  load();
})();
