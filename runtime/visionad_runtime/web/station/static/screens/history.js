// History: find parts, and say what was right. The filter is part of the address, so a link can be sent.
import { html, nothing } from '../lit-html.js';
import { bytes, get, post, ApiError } from '../api.js';
import * as draft from '../draft.js';
import { station } from '../feed.js';
import { clock, count, dayAndClock, percent, score, t } from '../i18n.js';
import { bitmap, draw, parsed } from '../images.js';
import { page } from '../main.js';
import * as words from '../words.js';

let list = null;
let trouble = '';
let loading = false;
let slow = false;
let chosen = null;
let wanted = 0; // number of the part to show: an answer about another one comes too late
let image = null;
let imageNote = '';
let show = { heat: false, outline: true };
let newestSeen = 0;
let replaying = false;

const filter = () => new URLSearchParams(location.hash.split('?')[1] ?? '');

function go(changes) {
  const found = filter();
  for (const [name, value] of Object.entries(changes)) {
    if (value) found.set(name, value);
    else found.delete(name);
  }
  location.hash = `#/history?${found}`;
}

/** The address changed: read the list, and the part that it names. */
export async function entered() {
  const address = location.hash;
  const found = filter();
  const id = Number(found.get('id'));
  found.delete('id');
  const query = found.toString();
  if (entered.query !== query || !list || Date.now() > entered.at + 2000) {
    entered.query = query;
    entered.at = Date.now();
    await read(query);
    if (location.hash !== address) return;
  }
  if (id && (wanted !== id || !chosen)) await choose(id);
  else if (!id && list?.records.length) await choose(list.records[0].id);
}

async function read(query) {
  loading = true;
  setTimeout(() => { slow = loading; page.update(); }, 300);
  let answer = null;
  let why = '';
  try {
    answer = await get(`records?${query}`);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    why = words.problem(error);
  }
  if (entered.query !== query) return; // another list is read by now
  if (answer) {
    list = answer;
    newestSeen = Math.max(newestSeen, list.records[0]?.id ?? 0);
  }
  trouble = why;
  loading = slow = false;
  page.update();
}

// Until the part is there, the one before stays whole: its verdict, outlines and image are of one part.
async function choose(id) {
  wanted = id;
  let part = null;
  let note = t('The image is fetched.');
  page.update();
  try {
    part = await get(`records/${id}`);
  } catch (error) {
    note = words.problem(error);
  }
  if (wanted !== id) return;
  chosen = part;
  image = null;
  imageNote = note;
  page.update();
  if (part) await fetchImage(part);
}

// Whether the part that is shown is the one that was chosen: only then it may be reviewed.
const isShown = () => Boolean(chosen) && chosen.id === wanted;

// The newest parts are in the station's memory, with their heat; older ones in the archive, if they were kept.
async function fetchImage(part) {
  const found = await inMemory(part) ?? await inArchive(part);
  if (chosen?.id !== part.id) return;
  image = found;
  imageNote = found ? '' : t('The image of this part was not kept.');
  page.update();
}

async function inMemory({ id, camera }) {
  try {
    const { images } = await parsed(await bytes(`records/${id}/images`));
    return images.find((one) => one.camera === camera) ?? images[0] ?? null;
  } catch { return null; /* not any more */ }
}

async function inArchive({ id, camera, archived_cameras: cameras }) {
  const place = cameras.indexOf(camera);
  if (place < 0) return null;
  try {
    const own = await bitmap(await bytes(`records/${id}/archived/${place}`), 'image/png');
    return { camera, width: own.width, height: own.height, crop: null, bitmap: own, heat: null };
  } catch { return null; }
}

const option = (value, text, now) => html`<option value=${value} ?selected=${value === now}>${text}</option>`;

function filters() {
  const now = filter();
  const at = (name) => now.get(name) ?? '';
  return html`
    <form class="filters" @submit=${(event) => { event.preventDefault(); go({ part: new FormData(event.target).get('part'), id: '', before: '' }); }}>
      <label>${t('Verdict')}<select @change=${(event) => go({ verdict: event.target.value, id: '', before: '' })}>
        ${option('', t('all'), at('verdict'))}${option('not_ok', t('not ok'), at('verdict'))}${option('reject', t('reject'), at('verdict'))}
        ${option('undecided', t('undecided'), at('verdict'))}${option('ok', t('ok'), at('verdict'))}</select></label>
      <label>${t('Review')}<select @change=${(event) => go({ review: event.target.value, id: '', before: '' })}>
        ${option('', t('all'), at('review'))}${option('none', t('not reviewed'), at('review'))}${option('good', t('was good'), at('review'))}
        ${option('bad', t('was bad'), at('review'))}</select></label>
      <label>${t('Recipe')}<select @change=${(event) => go({ recipe: event.target.value, id: '', before: '' })}>
        ${option('', t('all'), at('recipe'))}${(station.hello?.recipes ?? []).map((one) => option(String(one.number), `${one.number} ${one.name}`, at('recipe')))}</select></label>
      <label>${t('Part begins with')}<input name="part" id="filter-part" .value=${at('part')}></label>
      <button>${t('Find')}</button>
      <a class="button" href="/api/1/export.csv?${csvQuery(now)}" download>${t('CSV')}</a>
      <output>${list ? t('{count} found', { count: count(list.total) }) : ''}</output>
    </form>`;
}

function csvQuery(now) {
  const found = new URLSearchParams(now);
  found.delete('id');
  found.delete('before');
  found.set('separator', document.documentElement.lang === 'de' ? ';' : ',');
  return found.toString();
}

const reviewWord = (good) => (good === null ? '–' : good ? t('was good') : t('was bad'));

function row(one) {
  const { word, shape } = words.verdict(one.evaluation);
  return html`
    <tr data-kind=${shape} aria-selected=${wanted === one.id} @click=${() => go({ id: one.id })}>
      <td>${clock(one.time_utc)}</td><th scope="row"><a href="#/history?${withId(one.id)}">${one.part || one.id}</a></th>
      <td><svg class="shape" viewBox="0 0 100 100" aria-hidden="true"><use href="/static/shapes.svg#${shape}"></use></svg> ${word}</td>
      <td class="number">${score(one.score)}</td><td>${one.recipe}</td><td>v${one.bank_version}</td><td>${reviewWord(one.was_good)}</td>
    </tr>`;
}

function withId(id) {
  const found = filter();
  found.set('id', id);
  return found;
}

function table() {
  if (trouble) return html`<p class="empty problem">${trouble}</p>`;
  if (!list) return html`<p class="empty">${slow ? t('The parts are read.') : ''}</p>`;
  if (list.empty) return html`<p class="empty">${t('Nothing is recorded yet: the first part appears here.')}</p>`;
  if (!list.records.length) return html`<p class="empty">${t('Nothing fits the filter.')} <a href="#/history">${t('Clear the filter')}</a></p>`;
  return html`
    ${newer()}
    <table>
      <thead><tr><th>${t('Time')}</th><th>${t('Part')}</th><th>${t('Verdict')}</th><th class="number">${t('Score')}</th><th>${t('Recipe')}</th><th>${t('Version')}</th><th>${t('Review')}</th></tr></thead>
      <tbody>${list.records.map(row)}</tbody>
    </table>
    ${list.more ? html`<button class="plain" @click=${() => go({ before: list.records.at(-1).id, id: '' })}>${t('Older')}</button>` : nothing}
    ${filter().get('before') ? html`<button class="plain" @click=${() => go({ before: '', id: '' })}>${t('Newest')}</button>` : nothing}`;
}

// New parts are announced, never pushed under the finger.
function newer() {
  const fresh = station.strip.filter((one) => one.id > newestSeen).length;
  return fresh && !filter().get('before')
    ? html`<button class="plain" @click=${() => read(entered.query)}>${t('{count} newer', { count: fresh })}</button>` : nothing;
}

function detail() {
  if (!chosen) return html`<section class="detail"><p class="empty">${imageNote || t('Choose a part.')}</p></section>`;
  const { word, shape } = words.verdict(chosen.evaluation);
  const own = chosen.cameras[chosen.camera] ?? {};
  return html`
    <section class="detail" aria-label=${t('Part {part}', { part: chosen.part || chosen.id })}>
      <h2><svg class="shape" data-kind=${shape} viewBox="0 0 100 100" aria-hidden="true"><use href="/static/shapes.svg#${shape}"></use></svg>
        ${chosen.part || chosen.id} · ${word}</h2>
      <p class="small">${dayAndClock(chosen.time_utc)} · ${words.reason(chosen.reason)} ${own.error ?? ''}</p>
      <div class="view" data-off=${!image}><canvas id="evidence" role="img" aria-label=${t('Image of part {part}', { part: chosen.part || chosen.id })}></canvas>
        ${image ? nothing : html`<p class="missing">${imageNote}</p>`}</div>
      <div class="row">
        <button class="plain" aria-pressed=${show.outline} @click=${() => { show.outline = !show.outline; page.update(); }}>${t('Outline')}</button>
        <button class="plain" aria-pressed=${show.heat} ?disabled=${!image?.heat} @click=${() => { show.heat = !show.heat; page.update(); }}>${t('Heat')}</button>
        <button class="plain" id="replay" ?disabled=${station.stale || replaying || !chosen.archived.length || !isShown()} @click=${replay}>${replaying ? t('It is computed again …') : t('Replay')}</button>
        <span class="small">${t('score {score} · limit then {limit} · version {version}', { score: score(chosen.score), limit: score(chosen.threshold), version: chosen.bank_version })}</span>
      </div>
      <p class="small">${promise(own)}</p>
      ${chosen.reviews.map((one) => html`<p class="small">${dayAndClock(one.time_utc)} · ${one.who}: <b>${reviewWord(one.was_good)}</b> ${one.note}</p>`)}
      <div class="row">
        <button class="big plain" id="good" aria-pressed=${chosen.was_good === true} ?disabled=${station.stale || !isShown()} @click=${() => review(true)}><kbd>G</kbd> ${t('was good')}</button>
        <button class="big plain" id="bad" aria-pressed=${chosen.was_good === false} ?disabled=${station.stale || !isShown()} @click=${() => review(false)}><kbd>B</kbd> ${t('was bad')}</button>
        ${page.is('setter') && chosen.class ? html`<button class="big plain" id="add-to-draft" ?disabled=${station.stale || draft.work.busy || !isShown()} @click=${addToDraft}>${t('Teach it as good')}</button>` : nothing}
        <button class="big plain" @click=${next}>${t('Next not reviewed')}</button>
      </div>
      <p class="small">${t('A review changes no limit and no good part. It is counted, and kept in the audit.')}</p>
    </section>`;
}

const promise = (own) => (own.promise
  ? t('Promise: of good parts at most {rate} are rejected, from {normals} good parts', {
    rate: percent(own.promise.guaranteed), normals: count(own.promise.normals),
  }) : own.promise === null && own.threshold !== null ? t('Limit by hand: no guarantee.') : '');

// Compute the part again with the bank version of then: the same bits, or the first stage that differs.
async function replay() {
  const { id, part } = chosen;
  replaying = true;
  page.update();
  const answer = await page.change(`records/${id}/replay`);
  replaying = false;
  const [differs] = Object.values(answer?.cameras ?? {}).filter((one) => !one.same);
  if (differs) page.say(`${part || id}: ${t('It differs at {stage}: expected {expected}, got {got}.', differs)}`, true);
  else if (answer) page.say(`${part || id}: ${t('Computed again with the version of then: every bit is the same.')}`);
  page.update();
}

// Into the draft of the part's class, with the pixels that were judged.
async function addToDraft() {
  const { id, camera, part } = chosen;
  const name = chosen.class;
  if (!await draft.begin(name)) return;
  await draft.open(name);
  if (draft.work.name !== name) return; // another draft was opened meanwhile
  if (await draft.change('/parts', { record: id, camera }, t('Part {part} is taken.', { part: part || id }))) {
    location.hash = `#/teach?${new URLSearchParams({ class: name, step: 'parts' })}`;
  }
}

async function review(good) {
  if (!isShown()) return;
  const { id } = chosen;
  try {
    await post(`records/${id}/review`, { good, note: '' });
    const found = await get(`records/${id}`);
    if (chosen?.id === id) chosen = found; // else another part is shown by now
    if (list) list.records = list.records.map((one) => (one.id === id ? { ...one, was_good: found.was_good } : one));
    if (!good && found.evaluation === 1) page.say(t('Noted: {part} was bad, and it passed. More good parts cannot mend that: look at threshold and regions under Teach.', { part: found.part || id }), true);
    else page.say(good ? t('Noted: {part} was good.', { part: found.part || id }) : t('Noted: {part} was bad.', { part: found.part || id }));
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    page.say(words.problem(error), true);
  }
}

function next() {
  const at = list.records.findIndex((one) => one.id === wanted);
  const found = [...list.records.slice(at + 1), ...list.records.slice(0, at)].find((one) => one.was_good === null);
  if (found) go({ id: found.id });
  else page.say(t('All parts of this list are reviewed.'));
}

export const screen = () => html`${filters()}<section class="list" aria-label=${t('Parts')} tabindex="0">${table()}</section>${detail()}`;

export function drawn() {
  const canvas = document.getElementById('evidence');
  if (canvas) draw(canvas, image, chosen?.cameras[chosen.camera]?.regions ?? [], show);
}

export function key(event) {
  if (event.key === '/') document.getElementById('filter-part')?.focus();
  else if (event.key === 'g' && chosen) review(true);
  else if (event.key === 'b' && chosen) review(false);
  else if (event.key === 'ArrowDown' || event.key === 'ArrowUp') {
    const at = list?.records.findIndex((one) => one.id === wanted) ?? -1;
    const found = list?.records[at + (event.key === 'ArrowDown' ? 1 : -1)];
    if (found) go({ id: found.id });
  } else return false;
  return true;
}
