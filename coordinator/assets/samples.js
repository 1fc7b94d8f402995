// Samples of a training job by step: a slider that moves the cursor of the curves, and that follows
// it. Without scripts the steps are links.
'use strict';
(() => {
  const section = document.getElementById('images');
  const list = document.getElementById('sample-steps');
  const gallery = document.getElementById('gallery');
  const charts = document.getElementById('charts');
  if (!section || !list || !gallery || !charts) return;
  const { job } = charts.dataset;
  const KEPT = 64;

  const slider = document.createElement('input');
  slider.type = 'range';
  slider.id = 'sample-slider';
  slider.min = '0';
  slider.step = '1';
  const shown = document.createElement('output');
  const label = document.createElement('label');
  label.append('step ', slider, ' ', shown);
  const row = document.createElement('p');
  row.className = 'slider';
  row.append(label);

  let steps = [];
  const answers = new Map();
  const chosen = () => Number(new URLSearchParams(location.search).get('sample')) || null;

  const name = (at) => {
    shown.textContent = steps[at].toLocaleString('en');
    slider.setAttribute('aria-valuetext', `step ${steps[at]}`);
  };
  const remember = (at) => {
    const query = new URLSearchParams(location.search);
    query.delete('images');
    // The newest is what an address without a step shows.
    if (at === steps.length - 1) query.delete('sample'); else query.set('sample', String(steps[at]));
    const text = query.toString();
    history.replaceState(null, '', (text ? `?${text}` : location.pathname) + location.hash);
  };

  const put = (step, answer) => {
    const items = answer.images.map(({ url, text }) => {
      const image = new Image();
      image.src = url;
      image.alt = text;
      image.width = 256;
      image.height = 256;
      const link = document.createElement('a');
      link.href = url;
      link.append(image);
      const caption = document.createElement('span');
      caption.textContent = text;
      const item = document.createElement('li');
      item.append(link, caption);
      return item;
    });
    gallery.replaceChildren(...items);
    gallery.dataset.step = String(step);
    document.getElementById('gallery-pages').replaceChildren();
    const of = document.createElement('a');
    of.href = answer.url || '';
    of.textContent = answer.job || '';
    document.getElementById('images-shown').replaceChildren(answer.shown, ' of ', of);
  };
  let wanted = null;
  let timer = null;
  const load = async (step) => {
    if (!answers.has(step)) {
      const answer = await fetch(`/api/jobs/${encodeURIComponent(job)}/samples?sample=${step}`);
      if (!answer.ok) return;
      if (answers.size >= KEPT) answers.delete(answers.keys().next().value);
      answers.set(step, await answer.json());
    }
    // The slider may have moved on.
    if (wanted === step) put(step, answers.get(step));
  };
  const show = (at) => {
    const step = steps[at];
    name(at);
    if (wanted === step) return;
    wanted = step;
    remember(at);
    clearTimeout(timer);
    if (answers.has(step)) load(step); else timer = setTimeout(load, 120, step);
  };

  slider.addEventListener('input', () => {
    const at = Number(slider.value);
    show(at);
    document.dispatchEvent(new CustomEvent('look-at', { detail: steps[at] }));
  });
  // The samples before the cursor are of the weights that it points at.
  document.addEventListener('cursor', ({ detail }) => {
    if (steps.length < 2) return;
    let at = 0;
    while (at + 1 < steps.length && steps[at + 1] <= detail) at += 1;
    slider.value = String(at);
    show(at);
  });

  const read = () => {
    const found = [...list.querySelectorAll('a[data-step]')].map((it) => Number(it.dataset.step));
    const newest = wanted === null ? chosen() === null : wanted === steps[steps.length - 1];
    const grew = steps.length > 0 && found.length > steps.length;
    steps = found;
    if (steps.length === 0) return;
    section.classList.toggle('sliding', steps.length > 1);
    if (steps.length > 1 && !row.isConnected) list.before(row);
    slider.max = String(steps.length - 1);
    const step = wanted === null ? chosen() : wanted;
    const at = newest || !steps.includes(step) ? steps.length - 1 : steps.indexOf(step);
    slider.value = String(at);
    name(at);
    if (wanted === null) wanted = steps[at];
    if (grew && newest) show(at);
  };
  document.addEventListener('part', ({ detail }) => { if (detail === 'sample-steps') read(); });
  read();
})();
