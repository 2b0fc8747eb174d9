// Teach: a class is prepared as a draft, beside the line, and put live as one version.
import { html, nothing } from '../lit-html.js';
import * as draft from '../draft.js';
import { station } from '../feed.js';
import { clock, count, percent, score, t } from '../i18n.js';
import { draw } from '../images.js';
import { follow, frozen, live as looking, paint } from '../live.js';
import { page } from '../main.js';
import { verdict } from '../words.js';
import * as regions from './regions.js';
import * as threshold from './threshold.js';

const { work } = draft;
const STEPS = { parts: () => t('Parts'), regions: () => t('Regions'), threshold: () => t('Threshold'), live: () => t('Put live') };
let chosen = '';
let camera = ''; // whose image is shown and taken, if there are several
let picked = ''; // what is shown: 'live' or 'part'; empty: see below

const address = () => new URLSearchParams(location.hash.split('?')[1] ?? '');
const step = () => (Object.hasOwn(STEPS, address().get('step')) ? address().get('step') : 'parts');
const mayTeach = () => page.is('setter') && !station.stale;

function go(name, where = 'parts') {
  location.hash = name ? `#/teach?${new URLSearchParams({ class: name, step: where })}` : '#/teach';
}

/** The address changed: read the draft that it names. */
export async function entered() {
  const name = address().get('class') ?? '';
  chosen = '';
  if (name !== work.name || !name || !work.facts) await draft.open(name);
  else await draft.refresh();
  if (work.name === name && step() === 'regions') regions.entered();
}

async function begin(name) {
  if (name && await draft.begin(name)) go(name);
}

function start() {
  const { drafts, classes } = work.list ?? { drafts: [], classes: {} };
  const begun = new Set(drafts.map((one) => one.class));
  return html`
    <section class="list wide" tabindex="0" aria-label=${t('Teach')}>
      <div class="card"><h2>${t('Drafts')}</h2>
        ${drafts.length ? html`<ul class="choices">${drafts.map((one) => html`<li><button class="big plain" @click=${() => go(one.class)}>
          ${one.class} · ${t('last change by {who}', one)}</button></li>`)}</ul>` : html`<p>${t('No draft: begin one below. The line goes on meanwhile.')}</p>`}
      </div>
      <div class="card"><h2>${t('Classes of the line')}</h2>
        <ul class="choices">${Object.entries(classes).filter(([name]) => !begun.has(name)).map(([name, parts]) => html`
          <li><button class="big plain" ?disabled=${!mayTeach() || work.busy} @click=${() => begin(name)}>${t('Change {name} ({parts} good parts)', { name, parts: count(parts) })}</button></li>`)}</ul>
        <form class="row" @submit=${(event) => { event.preventDefault(); begin(new FormData(event.target).get('name').trim()); }}>
          <label>${t('New class')}<input name="name" id="new-class" required maxlength="100" autocomplete="off"></label>
          <button ?disabled=${!mayTeach() || work.busy}>${t('Begin')}</button>
        </form>
        ${page.is('setter') ? nothing : html`<p class="small">${t('A setter teaches. You may look.')}</p>`}
      </div>
    </section>`;
}

function heading(facts) {
  const now = step();
  return html`
    <div class="steps">
      <h2>${t('Teach {name} · draft, not live', { name: work.name })}</h2>
      <nav aria-label=${t('Steps')}>${Object.entries(STEPS).map(([name, word], index) => html`
        <a href="#/teach?${new URLSearchParams({ class: work.name, step: name })}" aria-current=${name === now ? 'step' : 'false'}>${index + 1} ${word()}</a>`)}</nav>
      <p class="small">${facts.live_changed ? html`<b class="problem">${t('The line’s class was changed since: discard this draft and begin anew.')}</b>`
    : facts.is_new ? t('The line does not know this class yet.') : t('Live now: version {version}, unchanged.', { version: facts.live_version })}</p>
      <a class="button" href="#/teach">${t('All drafts')}</a>
    </div>`;
}

// -- step 1: parts ---------------------------------------------------------------------------------------------------

const one = () => work.facts?.parts.find((part) => part.support === chosen);

// Of a path only the file's name: the folder says nothing to a setter.
const origin = (source) => (/^([a-zA-Z]:)?[\\/]/.test(source) ? source.split(/[\\/]/).pop() : source);

function partCard(part, index) {
  return html`
    <li data-out=${part.stands_out && !part.decided} aria-current=${part.support === chosen}>
      <button class="plain part" @click=${() => { chosen = part.support === chosen ? '' : part.support; page.update(); }}>
        <canvas class="thumb" data-which=${part.support} aria-hidden="true"></canvas>
        <span>${t('Part {number}', { number: index + 1 })} ${part.stands_out ? '▲' : '✓'} <b>${score(part.score)}</b>
          <small>${part.stands_out ? (part.decided ? t('stands out, kept: {reason}', part.decided) : t('stands out: decide')) : part.score === null ? t('nothing to compare with yet') : t('like the others')}</small>
          <small>${origin(part.source)}</small></span>
      </button>
    </li>`;
}

const takeOut = (support) => { chosen = ''; draft.change(`/parts/${support}/remove`, {}, t('The part is out of the draft.')); };

async function keep(support, reason) {
  if (await draft.change(`/parts/${support}/decide`, { reason }, t('Noted.')) && chosen === support) chosen = '';
  page.update();
}

function decide(part) {
  return html`
    <form class="card" @submit=${(event) => { event.preventDefault(); keep(part.support, new FormData(event.target).get('reason')); }}>
      ${part.stands_out ? html`<p><b>▲ ${t('This part differs from the others by {ratio} times.', { ratio: score(part.ratio) })}</b> ${t('Look at the outline: a defect that is taught as good hides all its like.')}</p>
        <label>${t('It is good, because')}<input name="reason" id="reason" required maxlength="500" autocomplete="off"></label>
        <div class="row"><button class="plain" ?disabled=${!mayTeach() || work.busy}>${t('It is good')}</button>
          <button type="button" class="warn" id="take-out" ?disabled=${!mayTeach() || work.busy} @click=${() => takeOut(part.support)}>${t('Take it out')}</button></div>`
    : html`<div class="row"><button type="button" class="plain" id="take-out" ?disabled=${!mayTeach() || work.busy} @click=${() => takeOut(part.support)}>${t('Take it out')}</button></div>`}
    </form>`;
}

// What is shown and taken. On a line that runs, a part as it was inspected; else what lies under the camera now.
const seesLive = () => page.is('setter') && (picked || (station.state.control === 'page' || !station.outcome ? 'live' : 'part')) === 'live';
const show = (what) => { picked = what; chosen = ''; page.update(); };

// The image of the newest part that the screen shows, and that is taken.
const newest = () => station.outcome?.images.find((image) => image.camera === camera) ?? station.outcome?.images[0] ?? null;

// The camera that is looked at.
const atCamera = () => {
  const names = Object.keys(station.state.cameras ?? {});
  return names.includes(camera) ? camera : names[0];
};
const isFollowed = () => (step() === 'parts' ? !chosen && seesLive() : step() === 'regions' && regions.seesLive());
const toFollow = () => (location.hash.startsWith('#/teach') && work.facts && isFollowed() && atCamera() ? { camera: atCamera(), name: work.name } : null);

function cameras(live = seesLive()) {
  const names = live ? Object.keys(station.state.cameras ?? {}) : (station.outcome?.images ?? []).map((image) => image.camera);
  const now = live ? atCamera() : newest()?.camera;
  return names.length < 2 ? nothing : html`<div class="row" role="group" aria-label=${t('Camera')}>${names.map((name) => html`
    <button class="plain" aria-pressed=${name === now} @click=${() => { camera = name; chosen = ''; page.update(); }}>${name}</button>`)}</div>`;
}

const mayTake = () => (seesLive() ? Boolean(looking.frame) && !frozen() && !chosen : Boolean(station.outcome));

function take() {
  const { outcome } = station;
  if (!mayTake()) return;
  if (seesLive()) draft.change('/parts', { frame: looking.frame.frame }, t('The live image is taken.'));
  else draft.change('/parts', { record: outcome.id, camera: newest()?.camera ?? outcome.camera ?? '' }, t('Part {part} is taken.', { part: outcome.part || outcome.id }));
}

// Below the image: what is shown, and what a person needs to set up light and lens.
function sight() {
  const { frame, trouble } = looking;
  return html`<div class="sight">
    <div class="row" role="group" aria-label=${t('What is shown')}>
      <button class="plain" id="see-live" aria-pressed=${seesLive()} @click=${() => show('live')}>${t('Live')}</button>
      <button class="plain" id="see-part" aria-pressed=${!seesLive()} @click=${() => show('part')}>${t('Newest part')}</button></div>
    ${seesLive() && frame && !chosen ? html`
      <label class="inline">${t('Sharpness')}<progress id="sharpness" max="1"></progress></label>
      ${frame.light === null ? nothing : html`<span id="light" data-ok=${frame.light}>${frame.light ? t('light as for the good parts') : t('▲ light not as for the good parts')}</span>`}
      ${trouble ? html`<span>${trouble}</span>` : nothing}` : nothing}
  </div>`;
}

function view(taught) {
  const { outcome } = station;
  const live = seesLive();
  const there = taught || (live ? looking.frame : outcome);
  const shown = taught ? draft.image(taught.support) : null;
  const label = taught ? t('Image of a taught part') : live ? t('Live image') : t('Image of the newest part');
  const caption = taught ? t('Taught part: where it differs from the others') : !there ? '\u00a0' : live ? html`<b id="live-caption"></b>`
    : html`<b id="teach-part">${outcome.part || outcome.id}</b> · ${clock(outcome.at)} · <b>${verdict(outcome.evaluation).word}</b> ${outcome.images.length > 1 ? newest().camera : ''}`;
  return html`
    <section class="view" data-off=${!there || station.stale} data-frozen=${Boolean(live && !taught && frozen())} aria-label=${t('Image')}>
      <p class="caption">${caption}</p>
      <canvas id="teach-image" role="img" aria-label=${label}></canvas>
      ${page.is('setter') ? sight() : nothing}
      ${there ? nothing : html`<p class="missing">${t('Put a good part under the camera: its image appears here.')} ${live ? looking.trouble : ''}</p>`}
      ${shown?.trouble ? html`<p class="missing">${shown.trouble}</p>` : nothing}
    </section>`;
}

function parts() {
  const { facts } = work;
  const { state } = station;
  const full = facts.parts.length >= 8;
  const taught = one();
  return html`
    ${view(taught)}
    <section class="side" aria-label=${t('Good parts')} tabindex="0">
      ${cameras()}
      <h2>${t('{parts} of 1 to 8 good parts', { parts: count(facts.parts.length) })}</h2>
      <ol class="parts">${facts.parts.map(partCard)}</ol>
      ${facts.parts.length === 1 ? html`<p class="small">${t('One part cannot be compared with anything: take a second one.')}</p>` : nothing}
      ${taught ? decide(taught) : nothing}
      <p>${promise(facts)}</p>
    </section>
    <footer class="actions">
      <button class="big" id="take" ?disabled=${!mayTeach() || !mayTake() || full || work.busy} @click=${take}>${work.busy ? t('The part is encoded …') : t('Take this part')}</button>
      <label class="big plain file" aria-disabled=${!mayTeach() || full}>${t('From files')}<input id="files" type="file" accept="image/*" multiple ?disabled=${!mayTeach() || full || work.busy}
        @change=${(event) => draft.files([...event.target.files]).then(() => { event.target.value = ''; })}></label>
      ${state.control === 'page' ? html`<button class="big plain" ?disabled=${station.stale || !state.ready} @click=${() => page.change('trigger')}>${t('Inspect')}</button>` : html`
        <a class="button big" href="#/history">${t('From history')}</a>`}
      <button class="big plain" ?disabled=${!facts.parts.length} @click=${() => go(work.name, 'regions')}>${t('Next: regions')}</button>
    </footer>`;
}

/** The promise of a draft in words. */
export const promise = (facts) => (facts.promise
  ? t('{normals} good parts: on average at most {rate} false rejects.', { normals: count(facts.promise.normals), rate: percent(facts.promise.rate) })
  : facts.by_hand ? t('Limit by hand: no guarantee.') : facts.parts.length ? t('No promise yet: it takes two good parts.') : '');

// -- step 4: put live --------------------------------------------------------------------------------------------------

const liveDialog = () => html`
  <h2>${t('Put {name} live?', { name: work.name })}</h2>
  <p>${t('From the next part on, the line judges with these parts, regions and threshold. The present ones can be brought back under Changes.')}</p>
  <button class="big warn" id="confirm-live" @click=${putLive}>${t('Put live')}</button>
  <button class="big plain" @click=${page.close}>${t('Cancel')}</button>`;

async function putLive() {
  page.close();
  const answer = await draft.change('/live');
  if (!answer) return;
  page.say(t('Version {version} is live.', answer));
  go('');
}

const discardDialog = () => html`
  <h2>${t('Discard the draft of {name}?', { name: work.name })}</h2><p>${t('The line keeps what it has.')}</p>
  <button class="big warn" @click=${async () => { page.close(); if (await draft.change('/discard', {}, t('The draft is discarded.'))) go(''); }}>${t('Discard')}</button>
  <button class="big plain" @click=${page.close}>${t('Cancel')}</button>`;

function blocking(facts) {
  const found = [];
  if (!facts.parts.length) found.push(t('Take a good part.'));
  else if (facts.threshold === null) found.push(t('Take a second good part, or collect parts: there is no threshold yet.'));
  const open = facts.parts.filter((part) => part.stands_out && !part.decided).length;
  if (open) found.push(t('Decide on the parts that stand out: {count}', { count: count(open) }));
  if (facts.live_changed) found.push(t('The line’s class was changed since: discard this draft and begin anew.'));
  return found;
}

function live() {
  const { facts } = work;
  const stop = blocking(facts);
  return html`
    <section class="list wide" tabindex="0" aria-label=${t('Put live')}>
      <div class="card"><h2>${t('What goes live')}</h2>
        <ol class="parts large">${facts.parts.map((part, index) => html`<li><canvas class="thumb" data-which=${part.support} role="img" aria-label=${t('Part {number}', { number: index + 1 })}></canvas>
          <small>${t('Part {number}', { number: index + 1 })} ${part.decided ? t('stands out, kept: {reason}', part.decided) : ''}</small></li>`)}</ol>
        <dl class="facts">
          <dt>${t('Threshold')}</dt><dd>${score(facts.threshold)}</dd>
          <dt>${t('Promise')}</dt><dd>${promise(facts)} ${facts.promise ? t('For this set, 95 % sure: at most {bound}.', { bound: percent(facts.promise.bound) }) : ''}</dd>
          <dt>${t('Regions')}</dt><dd>${facts.regions ? t('{rois} to inspect, {ignored} to ignore', { rois: facts.regions.rois?.length || t('whole image'), ignored: count(facts.regions.ignore?.length ?? 0) }) : t('whole image')}</dd>
        </dl>
      </div>
      ${threshold.effect()}
      ${facts.pinned.length ? html`<p class="alarm" data-level="bad">${t('Recipes {recipes} name a bank version in the station file: they keep it.', { recipes: facts.pinned.join(', ') })}</p>` : nothing}
      ${stop.map((text) => html`<p class="alarm" data-level="bad"><strong>${text}</strong></p>`)}
    </section>
    <footer class="actions">
      <button class="big" id="live" ?disabled=${!mayTeach() || stop.length > 0 || work.busy} @click=${() => page.open(liveDialog)}>${t('Put live')}</button>
      <button class="big plain" ?disabled=${!mayTeach() || work.busy} @click=${() => page.open(discardDialog)}>${t('Discard the draft')}</button>
    </footer>`;
}

export function screen() {
  if (!address().get('class')) {
    return work.trouble ? html`<p class="empty problem">${work.trouble}</p>` : work.list ? start() : html`<p class="empty">${t('The drafts are read.')}</p>`;
  }
  if (!work.facts) return html`<p class="empty ${work.trouble ? 'problem' : ''}">${work.trouble || t('The draft is opened: the model is loaded.')} <a href="#/teach">${t('All drafts')}</a></p>`;
  const body = { parts, regions: () => regions.screen(mayTeach(), cameras(regions.seesLive())), threshold: () => threshold.screen(mayTeach()), live }[step()];
  return html`${heading(work.facts)}${body()}`;
}

export function drawn() {
  for (const canvas of document.querySelectorAll('canvas.thumb')) {
    const found = draft.image(canvas.dataset.which);
    draw(canvas, found?.images[0] ?? null, found?.regions ?? [], { heat: false, outline: true });
  }
  const canvas = document.getElementById('teach-image');
  if (canvas) {
    const looked = one();
    const found = looked ? draft.image(looked.support) : null;
    if (looked) draw(canvas, found?.images[0] ?? null, found?.regions ?? [], { heat: true, outline: true });
    else draw(canvas, station.stale || seesLive() ? null : newest(), [], { heat: false, outline: false });
    canvas.dataset.part = looked || seesLive() ? '' : station.outcome?.id ?? '';
    canvas.dataset.frame = '';
    if (toFollow()) { follow(toFollow, (on, image) => draw(on, image, [], { heat: false, outline: false })); paint(true); }
  }
  if (step() === 'regions') {
    regions.drawn();
    if (toFollow()) { follow(toFollow, regions.drawn); paint(); }
  }
  if (step() === 'threshold') threshold.drawn();
}

export function key(event) {
  if (!work.facts) return false;
  if (step() === 'regions') return regions.key(event);
  if (step() === 'parts' && event.key === ' ' && !event.target.closest('button, a') && mayTeach()) take();
  else if (step() === 'parts' && (event.key === 'ArrowDown' || event.key === 'ArrowUp')) {
    const all = work.facts.parts.map((part) => part.support);
    chosen = all[Math.max(0, Math.min(all.length - 1, all.indexOf(chosen) + (event.key === 'ArrowDown' ? 1 : -1)))] ?? '';
    page.update();
  } else if (step() === 'parts' && event.key === 'Delete' && chosen && mayTeach()) takeOut(chosen);
  else if (step() === 'threshold') return threshold.key(event);
  else return false;
  return true;
}
