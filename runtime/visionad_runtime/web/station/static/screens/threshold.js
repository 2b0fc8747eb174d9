// Threshold: all consecutive parts are collected while the line runs; the price in parts stands beside the promise.
import { html, nothing, svg } from '../lit-html.js';
import * as draft from '../draft.js';
import { count, percent, score, t } from '../i18n.js';
import { draw } from '../images.js';
import { page } from '../main.js';

const { work } = draft;
const RATES = [0.05, 0.01, 0.001];
const BARS = 40;
let rate = 0.05;
let chosen = '';
let trial = '';
let typed = '';

const needed = () => Math.ceil(1 / rate - 1e-9) - 1;
const found = () => work.facts.collected.find((one) => one.pixels === chosen);
const byScore = () => [...work.facts.collected].sort((a, b) => b.score - a.score);

/** A typed number, with comma or point; NaN if it is none. */
const number = (text) => (/^\s*\d*[.,]?\d+\s*$/.test(text) ? Number(text.replace(',', '.')) : NaN);

function histogram() {
  const { facts } = work;
  const draftScores = facts.good_scores;
  const kept = facts.effect.scores;
  const line = facts.collected.filter((one) => !one.struck).map((one) => one.score);
  const all = [...draftScores, ...line, ...kept.map((one) => one.score), facts.threshold ?? 0].filter((value) => value > 0);
  if (!all.length) return html`<p class="small">${t('No scores yet.')}</p>`;
  const low = Math.min(...all) * 0.95;
  const high = Math.max(...all) * 1.05;
  const at = (value) => ((value - low) / (high - low)) * 400;
  const bars = (values) => {
    const bins = new Array(BARS).fill(0);
    for (const value of values) bins[Math.min(BARS - 1, Math.floor((at(value) / 400) * BARS))] += 1;
    return bins;
  };
  const rows = [['draft', bars(draftScores)], ['line', bars(line)], ['kept', bars(kept.filter((one) => one.was_good !== false).map((one) => one.score))], ['bad', bars(kept.filter((one) => one.was_good === false).map((one) => one.score))]];
  const most = Math.max(1, ...rows.flatMap(([, bins]) => bins));
  const tried = number(trial);
  return html`
    <svg class="histogram" viewBox="0 0 400 132" role="img" aria-label=${t('Scores of good parts, of collected parts and of kept parts, with the threshold')}>
      ${rows.map(([kind, bins], row) => bins.map((value, index) => (value ? svg`<rect class=${kind} x=${index * 10 + 0.5} width="9" y=${30 + row * 30 - (value / most) * 26} height=${(value / most) * 26}></rect>` : nothing)))}
      ${facts.threshold ? svg`<path class="limit" d="M${at(facts.threshold)} 0v124"></path>` : nothing}
      ${tried > 0 ? svg`<path class="trial" d="M${at(tried)} 0v124"></path>` : nothing}
    </svg>
    <p class="legend"><span class="draft">${t('draft')}</span> <span class="line">${t('collected')}</span> <span class="kept">${t('kept parts')}</span> <span class="bad">${t('confirmed bad')}</span></p>`;
}

function look() {
  const { facts } = work;
  const highest = byScore();
  if (!highest.length) return html`<p class="small">${t('Nothing is collected yet. All parts of the recipe are collected, also rejected ones: only then does the promise hold.')}</p>`;
  return html`
    <h3>${t('Look at the highest before it counts')}</h3>
    <ol class="chips">${highest.slice(0, 24).map((one) => html`
      <li><button class="plain" data-seen=${one.looked} data-struck=${Boolean(one.struck)} aria-pressed=${one.pixels === chosen} @click=${() => { chosen = one.pixels; page.update(); }}
        title="${one.name || one.part} ${one.struck}">${one.struck ? '✕' : one.looked ? '✓' : facts.look_first.includes(one.pixels) ? '◌' : ''} ${score(one.score)}</button></li>`)}</ol>`;
}

const told = (strike, reason) => draft.change(`/collected/${chosen}`, { strike, reason }, strike ? t('Struck out.') : t('Noted: it is good.'));

function judge() {
  const one = found();
  if (!one) return nothing;
  return html`
    <form class="card" @submit=${(event) => { event.preventDefault(); told(true, new FormData(event.target).get('reason')); }}>
      <p><b>${one.name || one.part}</b> · ${t('score {value}', { value: score(one.score) })} ${one.struck ? html`· <b>${t('struck out by {who}: {struck}', one)}</b>` : nothing}</p>
      <div class="view small-view"><canvas id="collected-image" role="img" aria-label=${t('Image of a collected part')}></canvas></div>
      <div class="row"><button type="button" class="plain" id="good-part" ?disabled=${work.busy} @click=${() => told(false, '')}>${t('It is good')}</button>
        <label>${t('Not good, because')}<input name="reason" id="strike-reason" required maxlength="500" autocomplete="off"></label>
        <button class="warn" ?disabled=${work.busy}>${t('Strike out')}</button></div>
    </form>`;
}

/** What the draft would have done with kept parts. */
export function effect() {
  const { facts } = work;
  const { effect: own, trying } = facts;
  const running = trying.waiting > 0;
  const limit = number(trial) > 0 ? number(trial) : facts.threshold;
  const rejected = (one) => limit !== null && one.score > limit;
  const tally = (test) => count(own.scores.filter(test).length);
  return html`
    <div class="card"><h2>${t('On the newest kept parts')}</h2>
      ${own.tried ? html`<p id="effect">${t('Of {tried} kept parts: {fewer} rejects fewer, {more} more.', {
    tried: count(own.tried), fewer: tally((one) => one.was === 'anomalous' && !rejected(one)), more: tally((one) => one.was === 'ok' && rejected(one)),
  })} ${t('Of {bad} confirmed bad: {caught} caught. Of {good} confirmed good: {false} rejected.', {
    bad: count(own.bad), caught: tally((one) => one.was_good === false && rejected(one)), good: count(own.good), false: tally((one) => one.was_good === true && rejected(one)),
  })}</p>` : html`<p class="small">${trying.planned && !running ? t('No kept image of this class: the archive keeps them.') : t('Try the draft on parts whose images were kept, before it goes live.')}</p>`}
      ${trying.unreadable ? html`<p class="problem">${t('{count} images could not be read.', { count: count(trying.unreadable) })}</p>` : nothing}
      <div class="row">
        <button class="plain" id="try" ?disabled=${running || work.busy || !page.is('setter') || !facts.parts.length} @click=${() => draft.change('/effect')}>${running ? t('{waiting} of {planned} wait …', { waiting: count(trying.waiting), planned: count(trying.planned) }) : t('Try on kept parts')}</button>
        ${own.tried ? html`<label>${t('What if the threshold were')}<input id="trial" inputmode="decimal" .value=${trial} placeholder=${score(facts.threshold)} @input=${(event) => { trial = event.target.value; page.update(); }}></label>` : nothing}
      </div>
    </div>`;
}

async function typeThreshold(event) {
  event.preventDefault();
  const fields = new FormData(event.target);
  const value = number(fields.get('value'));
  if (!(value > 0)) return;
  if (await draft.change('/threshold/by-hand', { value, reason: fields.get('reason') }, t('The draft has this threshold.'))) { typed = ''; event.target.reset(); page.update(); }
}

// Typed by an administrator, who reads in words what it means before it counts.
function byHand() {
  const { facts } = work;
  if (!page.is('admin') || !facts.good_scores.length) return nothing;
  const value = number(typed);
  const above = facts.good_scores.filter((one) => one > value).length;
  return html`
    <form class="card" id="by-hand" @submit=${typeThreshold}><h2>${t('By hand, no guarantee')}</h2>
      <label>${t('Threshold')}<input name="value" id="typed" required inputmode="decimal" autocomplete="off" placeholder=${score(facts.threshold)} .value=${typed} @input=${(event) => { typed = event.target.value; page.update(); }}></label>
      <label>${t('Because')}<input name="reason" id="typed-reason" required maxlength="500" autocomplete="off"></label>
      <p>${value > 0 ? t('Parts with scores above {value} are rejected: {above} of {parts} good parts.', { value: score(value), above: count(above), parts: count(facts.good_scores.length) }) : t('Type a number, with comma or point.')}</p>
      <button class="warn" id="use-typed" ?disabled=${work.busy || !(value > 0)}>${t('Use it by hand')}</button>
    </form>`;
}

export function screen(mayTeach) {
  const { facts } = work;
  const enough = facts.counted >= needed();
  return html`
    <section class="list wide two" tabindex="0" aria-label=${t('Threshold')}>
      <div class="card">
        <div class="row">
          <label>${t('Tolerated false rejects')}<select id="rate" @change=${(event) => { rate = Number(event.target.value); page.update(); }}>${RATES.map((one) => html`<option value=${one} ?selected=${one === rate}>${percent(one)}</option>`)}</select></label>
          <p>${t('needs {needed} good parts', { needed: count(needed()) })} · <b id="collected">${t('collected {counted}, {struck} struck out', { counted: count(facts.counted), struck: count(facts.collected.length - facts.counted) })}</b>
            ${facts.without_image ? t('{count} without an image', { count: count(facts.without_image) }) : ''}</p>
        </div>
        <progress max=${needed()} value=${Math.min(needed(), facts.counted)} aria-label=${t('Collected parts')}></progress>
        ${facts.why_ended ? html`<p class="problem">${t('Collecting ended: {why}', { why: t(facts.why_ended) })}</p>` : nothing}
        ${histogram()}
        <p><b>${t('Threshold of the draft: {value}', { value: score(facts.threshold) })}</b></p>
        ${facts.by_hand ? html`<p id="by-hand-note" class="alarm" data-level="bad"><strong>${t('By hand, no guarantee')}</strong> ${facts.by_hand.who}: ${facts.by_hand.reason}</p>` : nothing}
        ${facts.promise ? html`<p id="promise">${t('On average at most {rate} false rejects; for this set, 95 % sure: at most {bound}. For parts like these, in this light.', { rate: percent(facts.promise.rate), bound: percent(facts.promise.bound) })}</p>` : nothing}
      </div>
      <div class="card">${look()}${judge()}</div>
      ${effect()}
      ${byHand()}
    </section>
    <footer class="actions">
      ${facts.collecting ? html`<button class="big warn" id="collect" ?disabled=${!mayTeach || work.busy} @click=${() => draft.change('/collect', { on: false })}>${t('Stop collecting')}</button>`
    : html`<button class="big" id="collect" ?disabled=${!mayTeach || work.busy || !facts.parts.length} @click=${() => draft.change('/collect', { on: true })}>${facts.collected.length ? t('Collect anew') : t('Collect parts')}</button>`}
      <button class="big plain" id="use" ?disabled=${!mayTeach || work.busy || !enough} @click=${() => draft.change('/threshold', { max_false_reject: rate }, t('The draft has this threshold.'))}>${t('Use this threshold')}</button>
      <a class="button big" href="#/teach?${new URLSearchParams({ class: work.name, step: 'live' })}">${t('Next: put live')}</a>
    </footer>`;
}

export function drawn() {
  const canvas = document.getElementById('collected-image');
  const one = canvas && found();
  if (!one) return;
  const shown = draft.image(one.pixels);
  draw(canvas, shown?.images[0] ?? null, shown?.regions ?? [], { heat: true, outline: true });
}

export function key(event) {
  const all = byScore().map((one) => one.pixels);
  if (event.key === 'ArrowRight' || event.key === 'ArrowLeft') {
    chosen = all[Math.max(0, Math.min(all.length - 1, all.indexOf(chosen) + (event.key === 'ArrowRight' ? 1 : -1)))] ?? '';
    page.update();
  } else if (event.key === 's' && found()) document.getElementById('strike-reason')?.focus();
  else if (event.key === 'g' && found()) told(false, '');
  else return false;
  return true;
}
