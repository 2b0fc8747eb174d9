// The page of `visionad serve`: inspect images by hand, teach good parts, and look at what this page has inspected.
import { html, nothing, render } from './lit-html.js';
import { clock, count, firstLanguage, language, LANGUAGES, percent, score, setLanguage, t } from './i18n.js';
import { bitmap } from './images.js';
import { verdict } from './words.js';

const KEPT = 100;
const EVALUATIONS = { ok: 1, anomalous: 2 };
const app = document.getElementById('app');
let health = null;
let classes = {};
let done = [];
let chosen = null;
let given = '';
let busy = 0;
let notice = '';
let mayTeach = true;

async function ask(path, options) {
  const answer = await fetch(path, options).catch(() => null);
  if (!answer) throw new Error(t('The service does not answer: is it running?'));
  if (answer.ok || (path === '/health' && answer.status === 503)) return answer;
  const found = await answer.json().catch(() => ({}));
  const error = new Error(found.error ?? answer.statusText);
  error.status = answer.status;
  throw error;
}

async function look() {
  try {
    health = await (await ask('/health')).json();
    classes = (await (await ask('/classes')).json()).classes;
    notice = '';
  } catch (error) { notice = error.message; }
  draw();
}

const query = () => (given ? `?class=${encodeURIComponent(given)}` : '');
const send = (path, file) => ask(path, { method: 'POST', headers: { 'content-type': file.type || 'application/octet-stream' }, body: file });

/** Inspect files, one after the other: the newest result is shown. */
async function inspect(files) {
  for (const file of files) {
    busy += 1;
    draw();
    const one = { name: file.name, file, at: new Date().toISOString(), result: null, overlay: null, trouble: '' };
    try {
      one.result = await (await send(`/inspect${query()}`, file)).json();
      one.overlay = await bitmap(await (await send(`/overlay${query()}`, file)).arrayBuffer(), 'image/png');
    } catch (error) { one.trouble = error.message; }
    done = [one, ...done].slice(0, KEPT);
    chosen = one;
    busy -= 1;
    draw();
  }
}

async function teach(event) {
  event.preventDefault();
  const name = new FormData(event.target).get('class').trim();
  busy += 1;
  draw();
  try {
    const answer = await (await send(`/classes/${encodeURIComponent(name)}`, chosen.file)).json();
    notice = t('{name} has one more good part: bank version {version}.', { name, version: answer.bank_version });
    await look();
    notice = t('{name} has one more good part: bank version {version}.', { name, version: answer.bank_version });
  } catch (error) {
    if (error.status === 403) mayTeach = false;
    notice = error.message;
  }
  busy -= 1;
  draw();
}

const shape = (name) => html`<svg class="shape" viewBox="0 0 100 100" aria-hidden="true"><use href="/static/shapes.svg#${name}"></use></svg>`;
const said = (one) => (one.trouble ? { word: t('ERROR'), shape: 'fault' } : verdict(EVALUATIONS[one.result.verdict] ?? 3));

function banner() {
  if (!chosen) return html`<section class="banner" data-kind="none">${shape('none')}<strong>${t('NO PART')}</strong><p><span>${t('Choose an image, or drop it here.')}</span></p></section>`;
  const { word, shape: name } = said(chosen);
  const { result } = chosen;
  return html`<section class="banner" data-kind=${name} aria-label=${t('Verdict')}>${shape(name)}<strong id="verdict">${word}</strong>
    <p><span class="first">${chosen.name}</span>${result ? html`<span>${t('Class')} ${result.class ?? '–'} · ${result.verdict}</span>
      <span>${t('Score')} ${score(result.score)} · ${t('limit')} ${score(result.threshold)}</span>` : html`<span>${chosen.trouble}</span>`}</p></section>`;
}

function facts() {
  const { result } = chosen ?? {};
  return html`
    <section class="side" tabindex="0" aria-label=${t('Inspected in this page')}>
      ${result?.promise ? html`<p>${t('Promise: of good parts at most {rate} are rejected, from {normals} good parts', { rate: percent(result.promise.guaranteed), normals: count(result.promise.normals) })}</p>` : nothing}
      ${chosen && mayTeach ? html`<form class="card row" @submit=${teach}>
        <label>${t('Good part of class')}<input name="class" id="class" list="classes" required maxlength="100" autocomplete="off" .value=${given || result?.class || ''}></label>
        <datalist id="classes">${Object.keys(classes).map((name) => html`<option value=${name}></option>`)}</datalist>
        <button id="teach" ?disabled=${busy > 0}>${t('Teach it as good')}</button></form>` : nothing}
      <h2>${t('Inspected in this page')}</h2>
      ${done.length ? html`<table><tbody>${done.map((one) => {
    const { word, shape: name } = said(one);
    return html`<tr data-kind=${name} aria-selected=${one === chosen} @click=${() => { chosen = one; draw(); }}><td>${clock(one.at)}</td>
      <th scope="row"><button class="link" @click=${() => { chosen = one; draw(); }}>${one.name}</button></th><td>${shape(name)} ${word}</td><td class="number">${score(one.result?.score)}</td></tr>`;
  })}</tbody></table>` : html`<p class="small">${t('Nothing yet. The list is this page’s own and ends with it; the journal of the service has everything.')}</p>`}
    </section>`;
}

function draw() {
  document.title = t('Inspect images · VisionAD');
  render(html`
    <header>
      <p class="state" data-working=${Boolean(health?.ready)}><strong>${health ? (health.ready ? t('Running') : t('Waiting')) : t('Not known')}</strong></p>
      <p class="where"><strong>VisionAD</strong><span>${health ? `${health.backend} · ${t('bank version {version}', { version: health.bank_version })}` : ''}</span></p>
      <label class="language end"><span class="hidden">${t('Language')}</span><select @change=${async (event) => { await setLanguage(event.target.value); draw(); }}>
        ${Object.entries(LANGUAGES).filter(([one]) => one !== 'pseudo').map(([one, text]) => html`<option value=${one} ?selected=${one === language} lang=${one}>${text}</option>`)}</select></label>
    </header>
    <main data-screen="service" @dragover=${(event) => event.preventDefault()} @drop=${(event) => { event.preventDefault(); inspect(event.dataTransfer.files); }}>
      ${banner()}
      <section class="view" aria-label=${t('Image')}><canvas id="overlay" role="img" aria-label=${chosen ? t('Image of part {part}', { part: chosen.name }) : t('No image')}></canvas>
        ${chosen?.overlay ? nothing : html`<p class="missing">${chosen?.trouble ?? t('Choose an image, or drop it here.')}</p>`}</section>
      ${facts()}
      <footer class="actions">
        <label class="big file">${busy ? t('The image is inspected …') : t('Inspect images')}<input id="files" type="file" accept="image/*" multiple @change=${(event) => inspect([...event.target.files]).then(() => { event.target.value = ''; })}></label>
        <label class="choice">${t('Class')}<select id="given" @change=${(event) => { given = event.target.value; draw(); }}>
          <option value="" ?selected=${!given}>${t('found by itself')}</option>${Object.entries(classes).map(([name, one]) => html`<option value=${name} ?selected=${given === name}>${name} (${count(one.shots)})</option>`)}</select></label>
        <button class="big plain" ?disabled=${!chosen || busy > 0} @click=${() => inspect([chosen.file])}>${t('Inspect again')}</button>
      </footer>
    </main>
    <p id="notice" role="status" ?hidden=${!notice}>${notice}</p>`, app);
  const canvas = document.getElementById('overlay');
  const image = chosen?.overlay;
  canvas.width = image?.width ?? 1;
  canvas.height = image?.height ?? 1;
  canvas.dataset.drawn = image ? chosen.name : '';
  if (image) canvas.getContext('2d').drawImage(image, 0, 0);
}

await setLanguage(firstLanguage());
await look();
setInterval(look, 10000);
