// Looks at the coordinator's pages in a real browser, as tests/tests/cluster_web.rs asks:
//
//   node pages.mjs check URL JOBS [OUT] every check; asks for faults on stdout, and goes on when
//                                       they have been caused; then `shoot`, if there is a folder
//   node pages.mjs screens URL JOBS     only both themes and 400 pixels, which ask for nothing
//   node pages.mjs shoot URL JOBS OUT   a picture of every screen: light and dark, wide and narrow
//
// BROWSER is the folder that deploy/setup/test_tools.py fills. JOBS is JSON: ids by what they do.
import { createRequire } from 'node:module';
import { readFileSync, mkdirSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { join } from 'node:path';

const [, , mode, url, jobsText, out] = process.argv;
const jobs = JSON.parse(jobsText);
const home = process.env.BROWSER;
const { chromium } = createRequire(import.meta.url)(join(home, 'package'));
const axe = readFileSync(join(home, 'axe.min.js'), 'utf8');

const screens = {
  now: '/',
  jobs: '/jobs',
  job: `/jobs/${jobs.running}`,
  checkpoints: `/jobs/${jobs.running}?tab=checkpoints`,
  ledger: `/jobs/${jobs.running}?tab=ledger`,
  toml: `/jobs/${jobs.running}?tab=toml`,
  waiting: `/jobs/${jobs.waiting}`,
  failed: `/jobs/${jobs.failed}`,
  workers: '/workers',
  worker: '/workers/w1',
  events: '/events',
  usage: '/usage?by=job',
  compare: `/compare?a=${jobs.failed}&b=${jobs.running}`,
  twin: `/jobs/${jobs.twins[0]}`,
  twins: `/compare?a=${jobs.twins[0]}&b=${jobs.twins[1]}`,
  evaluation: `/jobs/${jobs.evaluation}/evaluation`,
  images: `/jobs/${jobs.evaluation}`,
  missing: '/jobs/none-77',
  strange: `/jobs/${encodeURIComponent(`none-77"'><img src=x onerror=alert(1)>`)}`,
};

const problems = [];
const wrong = (text) => { problems.push(text); console.log(`WRONG ${text}`); };
const check = (is, text) => { if (!is) wrong(text); };

const browser = await chromium.launch({
  executablePath: join(home, 'chromium'),
  args: ['--no-sandbox', '--disable-quic', '--disable-background-networking'],
});

// A page whose errors are problems of the test.
const open = async (options) => {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  page.setDefaultTimeout(120000);
  page.on('console', (it) => {
    const { url: of } = it.location();
    if (it.type() === 'error' && !of.includes('none-77')) wrong(`console of ${page.url()}: ${it.text()}`);
  });
  page.on('pageerror', (error) => wrong(`script of ${page.url()}: ${error}`));
  page.on('dialog', (dialog) => { wrong(`${page.url()} runs a script of somebody else`); dialog.dismiss(); });
  return page;
};
const visit = async (page, path) => {
  await page.goto(url + path);
  // Curves, and the first answer of the live connection.
  if (await page.$('#charts')) await page.waitForSelector('#charts[data-read] canvas');
};

// What a colour-blind, a blind or a hurried reader could not use.
const accessible = async (page, name) => {
  const found = await page.evaluate(async (source) => {
    if (!window.axe) (0, eval)(source);
    const { violations } = await window.axe.run(document, { resultTypes: ['violations'] });
    return violations.map((it) => `${it.id} at ${it.nodes.map((node) => `${node.target} (${(node.any[0] || {}).message || it.help})`).slice(0, 3).join('; ')}`);
  }, axe);
  for (const it of found) wrong(`${name}: ${it}`);
};

// Where the first plot is. In one look: new steps replace it at any time.
const firstPlot = (page) => page.evaluate(() => {
  const plot = document.querySelector('.u-over');
  plot.scrollIntoView({ block: 'center' });
  const { x, y, width, height } = plot.getBoundingClientRect();
  return { x, y, width, height };
});

const checkScreens = async () => {
  for (const colorScheme of ['light', 'dark']) {
    // axe comes from outside, which the pages forbid.
    const page = await open({ colorScheme, bypassCSP: true, viewport: { width: 1280, height: 800 } });
    for (const [name, path] of Object.entries(screens)) {
      await visit(page, path);
      await accessible(page, `${name}, ${colorScheme}`);
    }
    await page.context().close();
  }
  console.log('ok: no screen has violations in either theme');
  const page = await open({ viewport: { width: 400, height: 800 } });
  for (const [name, path] of Object.entries(screens)) {
    await visit(page, path);
    const width = await page.evaluate(() => document.documentElement.scrollWidth);
    check(width <= 400, `${name} is ${width} pixels wide in 400`);
    check(await page.evaluate(() => [...document.images].every((it) => it.src.startsWith(`${location.origin}/jobs/`))), `${name} has an image of somebody else`);
  }
  await page.context().close();
  console.log('ok: every screen fits into 400 pixels');
};

const checkContent = async () => {
  const page = await open({ viewport: { width: 1280, height: 900 } });
  const text = (selector) => page.locator(selector).first().innerText();
  await visit(page, '/');
  check((await text('#running')).includes(jobs.running), 'Now shows the running job');
  const queue = await text('#queue');
  check(queue.includes(jobs.waiting) && /worker/.test(queue), `Now says why the other waits: ${queue}`);
  check((await text('#attention')).includes(jobs.failed), 'Now shows what failed');
  check((await page.locator('#workers .q-job').count()) === 2, 'Now shows who has the devices');
  await visit(page, `/jobs/${jobs.running}`);
  const head = await text('#head');
  check(/training/i.test(head), `the job says what it does: ${head}`);
  check((await page.locator('#charts canvas').count()) >= 4, 'the job has curves');
  const label = await text('.facts');
  check(label.includes('<b>"bold"</b>'), `a label is shown as it was written: ${label}`);
  // All state is in the address.
  await page.locator('.options input[type=checkbox]').first().check();
  await page.locator('.options input[type=range]').focus();
  await page.keyboard.press('ArrowRight');
  const query = new URL(page.url()).searchParams;
  check(query.get('log') === '1' && query.get('smooth') === '0.61', `choices are in ${page.url()}`);
  // A part of a curve.
  const over = await firstPlot(page);
  await page.mouse.move(over.x + over.width * 0.3, over.y + 40);
  await page.mouse.down();
  await page.mouse.move(over.x + over.width * 0.6, over.y + 40, { steps: 4 });
  await page.mouse.up();
  await page.waitForFunction(() => new URLSearchParams(location.search).has('from'));
  await page.locator('button', { hasText: 'whole range' }).click();
  check(!new URL(page.url()).searchParams.has('from'), 'the whole range is back');
  // Tabs are links, and the log stays under each of them.
  await page.locator('.tabs a', { hasText: 'job.toml' }).click();
  await page.waitForSelector('.toml .changed');
  check((await page.locator('#tail').count()) === 1, 'the log is under the tab');
  await page.context().close();
  console.log('ok: content, choices and tabs');
};

// Images are there and are images.
const allImages = async (page, selector) => {
  await page.waitForFunction((it) => {
    const images = [...document.querySelectorAll(`${it} img`)];
    images.forEach((image) => { image.loading = 'eager'; });
    return images.length > 0 && images.every((image) => image.complete && image.naturalWidth > 0);
  }, selector);
  return page.locator(`${selector} img`).count();
};

const checkEvaluation = async () => {
  const page = await open({ viewport: { width: 1280, height: 900 } });
  const text = (selector) => page.locator(selector).first().innerText();
  const [a, b] = jobs.twins;
  // A slider over the steps with samples, tied to the cursor of the curves.
  await visit(page, `/jobs/${a}`);
  const slider = page.locator('#sample-slider');
  await slider.waitFor();
  check((await slider.getAttribute('max')) === '1' && (await slider.inputValue()) === '1', 'the newest samples are shown');
  await allImages(page, '#gallery');
  const newest = await page.locator('#gallery img').first().getAttribute('src');
  await slider.focus();
  await page.keyboard.press('ArrowLeft');
  await page.waitForFunction(() => document.querySelector('#gallery').dataset.step === '96');
  const older = await page.locator('#gallery img').first().getAttribute('src');
  check(older !== newest, `samples of step 96 are others: ${older}`);
  check(new URL(page.url()).searchParams.get('sample') === '96', `the step is in ${page.url()}`);
  const prompt = await text('#gallery');
  check(prompt.includes('<b>"bold"</b>'), `a prompt is shown as it was written: ${prompt}`);
  const over = await firstPlot(page);
  await page.mouse.move(over.x + over.width * 0.9, over.y + 40);
  await page.mouse.move(over.x + over.width - 2, over.y + 44);
  await page.waitForFunction(() => document.querySelector('#gallery').dataset.step === '192');
  check(!new URL(page.url()).searchParams.has('sample'), 'the newest needs no step in the address');
  await page.mouse.move(over.x + over.width * 0.6, over.y + 44);
  await page.waitForFunction(() => document.querySelector('#gallery').dataset.step === '96');
  await page.reload();
  await page.waitForSelector('#charts[data-read] canvas');
  check((await slider.inputValue()) === '0', 'an address with a step shows that step');
  // Twins.
  await visit(page, `/compare?a=${a}&b=${b}`);
  const twins = await text('main');
  check(/twin-[ab]-\d+ has the lower loss|no difference is shown/i.test(twins) && /\(95 %, 192 steps\)/.test(twins), `the paired difference has an interval: ${twins}`);
  check(twins.includes('train.learning_rate'), 'what was set differently is named');
  check((await allImages(page, '.pairs')) === 12, 'six images of each stand side by side');
  await visit(page, `/compare?a=${a}&b=${jobs.failed}`);
  check((await text('main')).includes('Not paired'), 'others are not paired, and why');
  // Scores.
  await visit(page, `/jobs/${jobs.evaluation}`);
  await page.locator('a', { hasText: 'Scores with intervals' }).click();
  await page.waitForSelector('.scores');
  const scores = await text('.scores');
  check(/CLIP-I/.test(scores) && /-?0\.\d{4} to -?0\.\d{4}/.test(scores), `scores have intervals: ${scores}`);
  check((await page.locator('.scatter circle').count()) >= 1, 'models are in a plot');
  // Of six images, none is both.
  check((await allImages(page, '#extremes')) === 6, 'the best and worst images are shown');
  check((await allImages(page, '#characters')) === 6, 'each character has its images');
  await page.locator('nav a', { hasText: 'out-of-domain' }).first().click();
  await page.waitForFunction(() => new URLSearchParams(location.search).get('part') === 'out-of-domain');
  check((await allImages(page, '#characters')) === 4, 'a part has its own characters');
  // A worker's day and its doctor.
  await visit(page, '/workers/w1');
  check((await page.locator('.day .d-job').count()) >= 1, 'the day of a worker shows its jobs');
  const doctor = await text('section[aria-labelledby=doctor-title]');
  check(/1 of 2 checks failed/.test(doctor) && doctor.includes('<b>"bold"</b>'), `the doctor's findings: ${doctor}`);
  await page.context().close();
  console.log('ok: samples, twins, scores and workers');
};

const checkKeyboard = async () => {
  const page = await open({ viewport: { width: 1280, height: 900 } });
  await visit(page, '/');
  await page.keyboard.press('Tab');
  check(await page.evaluate(() => document.activeElement.className === 'skip'), 'the first stop skips the navigation');
  await page.keyboard.press('Enter');
  check(await page.evaluate(() => location.hash === '#main'), 'it leads to the content');
  const seen = new Set();
  for (let at = 0; at < 40; at += 1) {
    await page.keyboard.press('Tab');
    const stop = await page.evaluate(() => {
      const it = document.activeElement;
      const style = getComputedStyle(it);
      return { what: it.getAttribute('href') || it.getAttribute('aria-label') || it.tagName, seen: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) > 0, body: it === document.body };
    });
    if (stop.body) break;
    check(stop.seen, `the focus on ${stop.what} is not visible`);
    seen.add(stop.what);
  }
  check([...seen].some((it) => it === `/jobs/${jobs.running}`), `jobs are reached: ${[...seen]}`);
  await page.context().close();
  console.log('ok: the keyboard reaches everything');
};

const checkWithoutScripts = async () => {
  const page = await open({ javaScriptEnabled: false });
  await page.goto(`${url}/jobs/${jobs.running}`);
  check((await page.locator('#charts polyline').count()) > 0, 'a curve is drawn without scripts');
  await page.goto(`${url}/jobs/${jobs.running}?tab=logs&q=${encodeURIComponent('no such line')}`);
  check((await page.locator('#log').innerText()).includes('No line'), 'logs are searched without scripts');
  await page.context().close();
  console.log('ok: without scripts');
};

// Whoever started this causes what is asked for.
const input = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const cause = async (what) => { console.log(`CAUSE ${what}`); await input.next(); };

const checkLive = async () => {
  const now = await open({});
  await visit(now, '/');
  await now.waitForSelector('#link.live');
  const job = await open({});
  await visit(job, `/jobs/${jobs.running}`);
  await job.waitForSelector('#link.live');
  await job.evaluate(() => { window.same = true; });
  const step = (page) => page.locator('.figures dd').first().innerText();
  const before = await step(job);
  await job.waitForFunction((old) => document.querySelector('.figures dd').innerText !== old, before);
  await cause('incident');
  await job.waitForSelector('#incidents li');
  check(await job.evaluate(() => window.same === true), 'the page was not loaded again');
  await job.locator('#incidents li a').first().click();
  await job.waitForSelector('.story');
  screens.incident = new URL(job.url()).pathname;
  const story = await job.locator('main').innerText();
  check(/rank \d/.test(story) && /device-seconds|no generation/.test(story), `the incident is told: ${story}`);
  await cause('job');
  await now.waitForFunction((it) => document.querySelector('#queue').innerText.includes(it), 'newcomer-');
  await now.context().close();
  await job.context().close();
  console.log('ok: what happens appears');
};

// A rank that hangs: the page of its incident is one more screen.
const stuck = async () => {
  const page = await open({});
  await visit(page, `/jobs/${jobs.running}`);
  const incidents = page.locator('#incidents li a');
  const before = await incidents.count();
  await cause('stuck');
  await page.waitForFunction((count) => count < document.querySelectorAll('#incidents li a').length, before);
  await incidents.first().click();
  await page.waitForSelector('.story');
  screens.stuck = new URL(page.url()).pathname;
  await page.context().close();
};

const shoot = async () => {
  mkdirSync(out, { recursive: true });
  for (const colorScheme of ['light', 'dark']) {
    for (const [size, width] of [['wide', 1360], ['narrow', 400]]) {
      const page = await open({ colorScheme, viewport: { width, height: 900 } });
      for (const [name, path] of Object.entries(screens)) {
        await visit(page, path);
        await page.waitForTimeout(1200);
        await page.screenshot({ path: join(out, `${name}-${colorScheme}-${size}.png`), fullPage: true });
      }
      await page.context().close();
    }
  }
};

if (jobs.incident) screens.incident = jobs.incident;
if (mode === 'shoot') {
  await shoot();
} else if (mode === 'screens') {
  await checkScreens();
} else {
  await checkContent();
  await checkEvaluation();
  await checkKeyboard();
  await checkWithoutScripts();
  await checkLive();
  await checkScreens();
  if (out) {
    await stuck();
    await shoot();
  }
}
await browser.close();
console.log(problems.length === 0 ? 'DONE' : `FAILED ${problems.length}`);
process.exit(problems.length === 0 ? 0 : 1);
