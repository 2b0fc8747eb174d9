// Run: is it running, what was the last part, what is wrong and where.
import { html, nothing, svg } from '../lit-html.js';
import { Banner } from '../banner.js';
import { shown, station } from '../feed.js';
import { clock, count, hour, score, t } from '../i18n.js';
import { draw } from '../images.js';
import { page } from '../main.js';
import * as words from '../words.js';

let heat = false;
let said = 0;
let spoken = '';
let urgent = '';

const banner = new Banner((part) => {
  if (station.outcome?.id !== part.id) speak(part);
  station.outcome = part;
  page.update();
  requestAnimationFrame(() => requestAnimationFrame(shown));
});

/** A part came with its image. */
export const onPart = (part) => banner.put(part);

// A screen reader must survive a fast line: ok at most every 5 s, what is not ok at once.
function speak(part) {
  const text = `${part.part || part.id}: ${words.verdict(part.evaluation).word}`;
  if (part.evaluation !== 1) urgent = text;
  else if (Date.now() > said + 5000) { said = Date.now(); spoken = text; }
}

const shape = (name) => html`<svg class="shape" viewBox="0 0 100 100" aria-hidden="true"><use href="/static/shapes.svg#${name}"></use></svg>`;

function bannerFacts() {
  const { state, stale, outcome, hello } = station;
  if (stale) return { kind: 'offline', word: t('OFFLINE'), shape: 'offline', lines: offlineLines() };
  if (state.phase === 'fault') return { kind: 'fault', word: t('FAULT'), shape: 'fault', lines: [state.fault, t('Mend the cause, then clear the fault.')] };
  if (!outcome) return { kind: 'none', word: t('NO PART'), shape: 'none', lines: [t('No part since the start at {time}.', { time: clock(hello.started) })] };
  const verdict = words.verdict(outcome.evaluation);
  const seconds = Math.max(0, Math.round((Date.parse(station.now) - Date.parse(outcome.at)) / 1000));
  const others = station.strip.filter((one) => one.id > outcome.id && one.evaluation !== 1).length;
  return {
    kind: verdict.shape,
    word: verdict.word,
    shape: verdict.shape,
    lines: [
      t('Part {part}', { part: outcome.part || outcome.id }),
      seconds < 100 ? t('{seconds} s ago', { seconds }) : clock(outcome.at),
      others ? t('+{others} more', { others }) : '',
    ],
  };
}

function offlineLines() {
  const { connected, lastNews, state } = station;
  const last = lastNews ? t('Last news {time}', { time: clock(lastNews) }) : t('Waiting for the station');
  if (!connected) return [last, t('No connection to the station.')];
  if (state.phase === 'starting') return [t('The station starts: it opens cameras and model.')];
  if (state.phase === 'fault') return [last, state.fault];
  return [last, t('The station does not judge parts now.')];
}

const why = (outcome) => [words.reason(outcome.reason), outcome.error].filter(Boolean).join(' ');

function meter(outcome) {
  if (outcome?.score === null || outcome?.score === undefined || !outcome.threshold) return nothing;
  const width = Math.min(1, outcome.score / (2 * outcome.threshold)) * 300;
  const text = t('Score {score}, limit {limit}', { score: score(outcome.score), limit: score(outcome.threshold) });
  return html`
    <svg class="meter" viewBox="0 0 300 26" preserveAspectRatio="none" role="img" aria-label=${text}>
      <rect class="track" width="300" height="26"></rect>
      <rect class="value" data-over=${outcome.score > outcome.threshold} width=${width} height="26"></rect>
      ${svg`<path d="M150 0v26" class="limit"></path>`}
    </svg>`;
}

function facts() {
  const { outcome, counts, strip } = station;
  return html`
    <section class="numbers" aria-label=${t('Numbers')}>
      <div class="card">
        <h2>${t('Score')} <b>${score(outcome?.score)}</b> · ${t('limit')} <b>${score(outcome?.threshold)}</b></h2>
        ${meter(outcome)}
      </div>
      <div class="card">
        <ol class="strip" aria-label=${t('Last parts')}>${strip.slice(-12).map((one) => {
    const { word, shape: name } = words.verdict(one.evaluation);
    return html`<li data-kind=${name} title="${one.part || one.id} ${word}"><a href="#/history?id=${one.id}">${shape(name)}<span class="hidden">${one.part || one.id} ${word}</span></a></li>`;
  })}</ol>
      </div>
      <div class="card">
        <h2>${counts ? t('Shift since {time}', { time: hour(counts.since) }) : t('Shift')}</h2>
        <dl class="counts">
          <div><dt>${t('OK')}</dt><dd id="count-ok">${count(counts?.ok)}</dd></div>
          <div><dt>${t('Reject')}</dt><dd id="count-reject">${count(counts?.reject)}</dd></div>
          <div><dt>${t('Undecided')}</dt><dd id="count-undecided">${count(counts?.undecided)}</dd></div>
          <div><dt>${t('Missed')}</dt><dd id="count-missed">${count(counts?.missed)}</dd></div>
          <div><dt>${t('Late')}</dt><dd id="count-late">${count(counts?.late)}</dd></div>
        </dl>
      </div>
      <div class="alarms">${alarms()}</div>
    </section>`;
}

function alarms() {
  const { state } = station;
  const unseen = state.unseen?.count ?? 0;
  return html`
    ${unseen ? html`<p class="alarm" data-level="bad"><strong>${t('Not ok, not seen: {count}', { count: count(unseen) })}</strong></p>` : nothing}
    ${(state.alarms ?? []).map((alarm) => html`
      <p class="alarm"><strong>${t(alarm.meaning || alarm.code)}</strong><span>${t(alarm.remedy)}</span><small>${alarm.text}</small></p>`)}`;
}

export function screen() {
  const { stale, outcome, state } = station;
  if (stale) {
    banner.clear();
    spoken = '';
    urgent = t('OFFLINE');
  }
  const facing = bannerFacts();
  const visible = !stale && outcome && state.phase !== 'fault';
  return html`
    <section class="banner" data-kind=${facing.kind} aria-label=${t('Verdict')}>
      ${shape(facing.shape)}<strong id="verdict">${facing.word}</strong>
      <p>${facing.lines.filter(Boolean).map((line, index) => html`<span class=${index ? '' : 'first'}>${line}</span>`)}</p>
    </section>
    <section class="view" data-off=${!visible} aria-label=${t('Image')}>
      <p class="caption">${visible ? html`<b id="part">${outcome.part || outcome.id}</b> · ${clock(outcome.at)} · ${why(outcome) || t('no difference')}` : '\u00a0'}</p>
      <canvas id="image" role="img" aria-label=${visible ? t('Image of part {part}', { part: outcome.part || outcome.id }) : t('No image')}></canvas>
      <div class="others" ?hidden=${!visible || outcome.images.length < 2}></div>
      ${visible && !outcome.images.length ? html`<p class="missing">${t('No image of this part')}</p>` : nothing}
      ${stale ? html`<p class="missing">${station.lastNews ? clock(station.lastNews) : t('Waiting for the station')}</p>` : nothing}
    </section>
    ${stale ? html`<section class="numbers off" aria-hidden="true"></section>` : facts()}
    ${actions()}
    <p class="hidden" aria-live="polite">${spoken}</p>
    <p class="hidden" aria-live="assertive">${urgent}</p>`;
}

function actions() {
  const { stale, state, outcome, hello } = station;
  const hands = page.is('operator', 'setter', 'admin');
  const unseen = state.unseen?.count ?? 0;
  return html`
    <footer class="actions">
      ${state.phase === 'fault' ? html`<button class="big warn" ?disabled=${stale || !hands} @click=${() => page.change('fault/clear')}>${t('Clear fault')}</button>` : html`
        <button class="big" id="seen" ?disabled=${stale || !hands || !unseen} @click=${seen}>✓ ${t('Seen')}${unseen ? html` <b>(${count(unseen)})</b>` : nothing}</button>`}
      <button class="big plain" id="recipe" ?disabled=${stale || !hands} @click=${() => page.open(recipeDialog)}>${t('Change recipe')}</button>
      <button class="big plain" ?disabled=${stale || !hands || !outcome || !hello?.archive} @click=${keep}>${t('Keep image')}</button>
      <button class="big plain" aria-pressed=${heat} ?disabled=${stale} @click=${toggle}>${t('Heat')}</button>
      <button class="big plain" id="control" ?disabled=${stale || !hands} @click=${() => page.open(controlDialog)}>${state.control === 'page' ? t('Hand back') : t('Take control')}</button>
      ${state.control === 'page' ? html`<button class="big" id="trigger" ?disabled=${stale || !hands || !state.ready} @click=${() => page.change('trigger')}>${t('Inspect')}</button>` : nothing}
    </footer>`;
}

const seen = () => page.change('seen', { id: station.state.unseen.last });
const keep = () => page.change(`records/${station.outcome.id}/keep`, {}, t('The image is kept.'));
function toggle() { heat = !heat; page.update(); }

const recipeDialog = () => {
  const { hello, state } = station;
  const mine = state.control === 'page';
  return html`
    <h2>${t('Change recipe')}</h2>
    ${mine ? nothing : html`<p class="problem">${t('The PLC has control: take control first.')}</p>`}
    <ul class="choices">${hello.recipes.map((one) => html`
      <li><button class="big plain" ?disabled=${!mine || station.stale || state.recipe === one.number} @click=${async () => {
    if (await page.change('recipe', { number: one.number })) page.close();
  }}>${one.number} · ${one.name} ${state.recipe === one.number ? t('(now)') : ''}</button></li>`)}</ul>
    <button class="big" @click=${page.close}>${t('Close')}</button>`;
};

const controlDialog = () => {
  const mine = station.state.control === 'page';
  return html`
    <h2>${mine ? t('Hand control back to the PLC?') : t('Take control from the PLC?')}</h2>
    <p>${mine ? t('The PLC triggers again.') : t('The PLC’s triggers are missed until control is handed back: its parts are not inspected.')}</p>
    <button class="big warn" @click=${async () => { if (await page.change('control', { to: mine ? 'line' : 'page' })) page.close(); }}>
      ${mine ? t('Hand back') : t('Take control')}</button>
    <button class="big plain" @click=${page.close}>${t('Cancel')}</button>`;
};

/** Draw the images of what the screen says, in the same frame. */
export function drawn() {
  const { outcome, stale, state } = station;
  const canvas = document.getElementById('image');
  const visible = !stale && outcome && state.phase !== 'fault';
  const images = visible ? [...outcome.images].sort((a, b) => (b.camera === outcome.camera) - (a.camera === outcome.camera)) : [];
  draw(canvas, images[0] ?? null, visible ? outcome.regions[images[0]?.camera] ?? [] : [], { heat, outline: true });
  canvas.dataset.part = visible ? outcome.id : '';
  const box = document.querySelector('.others');
  const rest = images.slice(1);
  while (box.childElementCount > rest.length) box.lastElementChild.remove();
  while (box.childElementCount < rest.length) box.append(document.createElement('canvas'));
  rest.forEach((image, index) => draw(box.children[index], image, outcome.regions[image.camera] ?? [], { heat, outline: true }));
}

export function key(event) {
  const hands = page.is('operator', 'setter', 'admin');
  if (station.stale || !hands) return false;
  if (event.key === 'Enter' && !event.target.closest('button, a')) {
    if (station.state.phase !== 'fault' && station.state.unseen?.count) seen();
    return true;
  }
  if (event.key === 'r') page.open(recipeDialog);
  else if (event.key === 'k' && station.outcome) keep();
  else if (event.key === 'h') toggle();
  else return false;
  return true;
}
