// Settings: health of the station, and its users.
import { html, nothing } from '../lit-html.js';
import { get, ApiError } from '../api.js';
import { station } from '../feed.js';
import { count, t } from '../i18n.js';
import { page } from '../main.js';
import { problem, role } from '../words.js';

let health = null;
let users = null;
let trouble = '';
let logs = null;
let diagnosis = null;
let images = false;

export async function entered() {
  try {
    health = await get('health');
    users = page.is('admin') ? (await get('users')).users : null;
    trouble = '';
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    trouble = problem(error);
  }
  page.update();
}

const line = (name, ok, detail) => html`
  <tr><th scope="row">${name}</th><td><b data-ok=${ok}>${ok ? `✓ ${t('works')}` : `▲ ${t('does not work')}`}</b></td><td class="wrap">${detail}</td></tr>`;

function lines() {
  const facts = health.facts ?? {};
  return html`
    <table>
      <thead><tr><th>${t('What')}</th><th>${t('Health')}</th><th>${t('Detail')}</th></tr></thead>
      <tbody>
        ${line(t('Worker'), Boolean(facts.backend) && health.phase !== 'fault', facts.backend ? `${facts.model} · ${facts.backend} · ${t('bank version {version}', { version: facts.bank_version })}` : health.fault)}
        ${Object.entries(health.cameras).map(([name, one]) => line(t('Camera {name}', { name }), one.ok, one.name ?? one.detail))}
        ${Object.entries(health.sinks).map(([name, one]) => line(name, one.ok, `${one.detail ?? ''} ${one.backlog ? t('{count} wait', { count: count(one.backlog) }) : ''}`))}
        ${line(t('Records'), !health.unwritten, health.unwritten ? t('{count} wait for the disk', { count: count(health.unwritten) }) : t('all are on disk'))}
        ${line(t('Clock'), health.clock_synchronized !== false, health.clock_synchronized === false ? t('not synchronized: look at the time server') : t('synchronized'))}
      </tbody>
    </table>`;
}

const STEPS = {
  installed: () => t('Package and driver'), found: () => t('Found and connected'), settings: () => t('Settings written and read back'),
  image: () => t('Newest image'), connected: () => t('Connected'), delivered: () => t('Delivered'),
};

async function diagnose() {
  try { diagnosis = await get('diagnosis'); } catch (error) { page.say(problem(error), true); }
  page.update();
}

const step = (one) => html`<li data-ok=${one.ok ?? 'unknown'}><b>${one.ok === null ? '·' : one.ok ? '✓' : '▲'} ${STEPS[one.step]()}</b>
  <span>${one.ok === null ? t('not known') : one.ok ? t('works') : t('does not work')}</span> <small>${one.detail}</small></li>`;

const diagnosed = () => html`
  <section class="card"><h2>${t('Step by step')}</h2>
    <p class="small">${t('From the package to an image, and to the other side of a bus. Nothing is triggered: the line goes on.')}</p>
    <div class="row"><button class="plain" id="diagnose" ?disabled=${station.stale} @click=${diagnose}>${t('Diagnose')}</button></div>
    ${Object.entries(diagnosis?.cameras ?? {}).map(([name, steps]) => html`<h3>${t('Camera {name}', { name })}</h3><ol class="diagnosis">${steps.map(step)}</ol>`)}
    ${Object.entries(diagnosis?.sinks ?? {}).map(([name, steps]) => html`<h3>${name}</h3><ol class="diagnosis">${steps.map(step)}</ol>`)}
  </section>`;

async function add(event) {
  event.preventDefault();
  const form = event.target;
  const answer = await page.change('users', Object.fromEntries(new FormData(form)), t('The user is saved.'));
  if (answer) {
    users = answer.users;
    form.reset();
    page.update();
  }
}

async function remove(name) {
  page.close();
  const answer = await page.change(`users/${encodeURIComponent(name)}/remove`);
  if (answer) users = answer.users;
  page.update();
}

const removeDialog = (name) => () => html`
  <h2>${t('Remove {name}?', { name })}</h2><p>${t('Their sessions end at once.')}</p>
  <button class="big warn" @click=${() => remove(name)}>${t('Remove')}</button>
  <button class="big plain" @click=${page.close}>${t('Cancel')}</button>`;

const userList = () => html`
  <section class="card"><h2>${t('Users')}</h2>
    <table><tbody>${users.map((one) => html`
      <tr><th scope="row">${one.name}</th><td>${role(one.role)}</td>
        <td><button class="plain" @click=${() => page.open(removeDialog(one.name))}>${t('Remove')}</button></td></tr>`)}</tbody></table>
    <form class="row" @submit=${add}>
      <label>${t('Name')}<input name="name" required maxlength="60" autocomplete="off"></label>
      <label>${t('Password')}<input name="password" type="password" required minlength="8" autocomplete="new-password"></label>
      <label>${t('Role')}<select name="role">${['operator', 'viewer', 'setter', 'admin'].map((one) => html`<option value=${one}>${role(one)}</option>`)}</select></label>
      <button>${t('Save user')}</button>
    </form>
  </section>`;

async function readLogs() {
  try { logs = (await get('log')).logs; } catch (error) { page.say(problem(error), true); }
  page.update();
}

const support = () => html`
  <section class="card"><h2>${t('Support bundle')}</h2>
    <p class="small">${t('Everything that support asks for, without images and passwords.')}</p>
    <div class="row"><a class="button" id="bundle" href="/api/1/bundle${images ? '?images=true' : ''}" download>${t('Support bundle')}</a>
      <label class="check"><input type="checkbox" id="bundle-images" .checked=${images} @change=${(event) => { images = event.target.checked; page.update(); }}> ${t('with the images of the newest rejects')}</label></div>
    <h2>${t('Log')}</h2>
    <div class="row"><button class="plain" id="log" @click=${readLogs}>${t('The newest lines of the log')}</button></div>
    ${logs && !Object.keys(logs).length ? html`<p class="small">${t('The station writes its log to the terminal or the journal: set the key log in the station file to see it here.')}</p>` : nothing}
    ${Object.entries(logs ?? {}).map(([name, lines]) => html`<h3>${name}</h3><pre class="log" tabindex="0" aria-label=${name}>${lines.join('\n')}</pre>`)}
  </section>`;

const restartDialog = () => html`
  <h2>${t('Restart the worker?')}</h2><p>${t('No part is judged for some seconds, and the station is not ready.')}</p>
  <button class="big warn" @click=${async () => { await page.change('worker/restart'); page.close(); }}>${t('Restart')}</button>
  <button class="big plain" @click=${page.close}>${t('Cancel')}</button>`;

export function screen() {
  if (trouble) return html`<p class="empty problem">${trouble}</p>`;
  if (!health) return html`<p class="empty">${t('Health is read.')}</p>`;
  return html`
    <section class="list wide" tabindex="0" aria-label=${t('Settings')}>
      <section class="card"><h2>${t('Health')}</h2>${lines()}
        <div class="row"><button class="plain" @click=${entered}>${t('Look again')}</button>
        ${page.is('admin') ? html`<button class="plain" ?disabled=${station.stale} @click=${() => page.open(restartDialog)}>${t('Restart the worker')}</button>` : nothing}</div>
      </section>
      ${diagnosed()}
      ${page.is('admin') ? support() : nothing}
      ${users ? userList() : html`<p class="empty">${t('An administrator manages users.')}</p>`}
    </section>`;
}
