// The page: one screen at a time, chosen by the address, drawn anew whenever something changes.
import { html, nothing, render } from './lit-html.js';
import { ApiError, post } from './api.js';
import { reconnect, start, station, used } from './feed.js';
import { clock, firstLanguage, language, LANGUAGES, setLanguage, setZone, t } from './i18n.js';
import * as run from './screens/run.js';
import * as login from './screens/login.js';
import { phase, problem, role } from './words.js';

// The first screen comes with the page; each other one when it is first opened.
const ORDER = ['run', 'history', 'teach', 'statistics', 'audit', 'settings'];
const SCREENS = { run };
const NAMES = { run: () => t('Run'), history: () => t('History'), teach: () => t('Teach'), statistics: () => t('Statistics'), audit: () => t('Changes'), settings: () => t('Settings') };
const app = document.getElementById('app');
const cover = document.getElementById('cover');
let notice = null;
let dialog = null;
let queued = false;
let keysOn = true;

/** What a screen may use of the page. */
export const page = {
  /** Draw again, with all changes of this moment at once. */
  update() {
    if (queued) return;
    queued = true;
    queueMicrotask(() => { queued = false; draw(); });
  },
  /** Say something in one line; a problem stays until the next one. */
  say(text, isProblem = false) {
    notice = { text, isProblem };
    page.update();
    clearTimeout(page.sayTimer);
    if (!isProblem) page.sayTimer = setTimeout(() => { notice = null; page.update(); }, 4000);
  },
  /** Do a change; say what was wrong with it. Returns what the station answers, or null. */
  async change(path, body, done = '') {
    try {
      const answer = await post(path, body);
      if (done) page.say(done);
      else if (notice?.isProblem) notice = null;
      return answer;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (error.code === 'no_session') reconnect();
      page.say(problem(error), true);
      return null;
    } finally { page.update(); }
  },
  open(content) { dialog = content; page.update(); queueMicrotask(() => document.querySelector('dialog')?.showModal()); },
  close() { dialog = null; page.update(); },
  /** Read what the screen shows again. */
  again() { return SCREENS[screenName()]?.entered?.(); },
  /** Whether the user has one of some roles. */
  is: (...roles) => roles.includes(station.user?.role),
};

export const screenName = () => {
  const name = location.hash.slice(2).split('?')[0];
  return ORDER.includes(name) ? name : 'run';
};

/** Load the screen that the address names, and tell it that it is entered. */
async function enter() {
  const name = screenName();
  if (!SCREENS[name]) {
    try {
      SCREENS[name] = await import(`./screens/${name}.js`);
    } catch {
      page.say(t('The screen could not be loaded: load the page again.'), true);
      return;
    }
  }
  if (name === screenName()) {
    SCREENS[name].entered?.();
    draw();
  }
}

function header(name) {
  const { hello, state, user } = station;
  const recipe = hello?.recipes.find((one) => one.number === state.recipe);
  const working = !station.stale && (state.ready || ['busy', 'valid'].includes(state.phase));
  return html`
    <header>
      <p class="state" data-working=${working}>
        <svg viewBox="0 0 24 24" aria-hidden="true"><use href="/static/shapes.svg#${working ? 'run' : 'pause'}"></use></svg>
        <strong id="phase">${station.stale ? t('Not known') : phase(state)}</strong>
      </p>
      <p class="where"><strong>${hello?.station ?? ''}</strong>
        <span>${station.stale ? '' : recipe ? t('Recipe {number} {name}', recipe) : t('No recipe')}</span></p>
      ${!station.stale && state.simulated ? html`<p class="badge">${t('Simulated')}</p>` : nothing}
      ${!station.stale && state.control === 'page' ? html`<p class="badge">${t('Control: page')}</p>` : nothing}
      ${!station.stale && state.check_due ? html`<p class="badge">${t('Golden part due')}</p>` : nothing}
      <nav aria-label=${t('Screens')}>
        ${ORDER.map((one, index) => html`
          <a href="#/${one}" aria-current=${one === name ? 'page' : 'false'} title=${t('Key {key}', { key: index + 1 })}>${NAMES[one]()}</a>`)}
      </nav>
      <label class="language"><span class="hidden">${t('Language')}</span>
        <select @change=${(event) => choose(event.target.value)}>
          ${Object.entries(LANGUAGES).filter(([one]) => one !== 'pseudo' || language === 'pseudo').map(([one, text]) => html`
            <option value=${one} ?selected=${one === language} lang=${one === 'pseudo' ? 'en' : one}>${text}</option>`)}
        </select></label>
      <button class="user" @click=${() => page.open(userDialog)}>${user?.name === 'panel' ? t('Panel') : user?.name ?? ''}<small>${role(user?.role)}</small></button>
      <time id="clock">${station.now && !station.stale ? clock(station.now) : '--:--:--'}</time>
    </header>`;
}

const userDialog = () => html`
  <h2>${station.user?.name} · ${role(station.user?.role)}</h2>
  ${station.user?.panel && station.user.name === 'panel' ? login.form() : html`
    <button class="big" @click=${async () => { await page.change('logout'); page.close(); reconnect(); }}>${t('Log out')}</button>`}
  <label class="check"><input type="checkbox" .checked=${keysOn} @change=${(event) => { keysOn = event.target.checked; }}>
    ${t('Keys: 1–6 screens, Enter seen, R recipe, K keep, H heat, G good, B bad, ? help')}</label>
  <button class="big plain" @click=${page.close}>${t('Close')}</button>`;

async function choose(name) {
  await setLanguage(name);
  words();
  page.update();
}

function words() {
  cover.querySelector('strong').textContent = t('OFFLINE');
  cover.querySelector('span').textContent = t('What was shown here is not known any more.');
}

function draw() {
  if (station.loggedOut) {
    document.title = `${t('Log in')} · VisionAD`;
    render(login.screen(), app);
    return;
  }
  setZone(station.hello?.shifts.zone);
  const name = screenName();
  document.title = `${NAMES[name]()} · ${station.hello?.station ?? 'VisionAD'}`;
  document.documentElement.dataset.stale = station.stale;
  cover.dataset.screen = name;
  render(html`
    ${header(name)}
    <main data-screen=${name}>${SCREENS[name]?.screen() ?? html`<p class="empty">${t('The screen is loaded.')}</p>`}</main>
    <p id="notice" role="status" ?hidden=${!notice} data-problem=${Boolean(notice?.isProblem)}>${notice?.text}</p>
    ${dialog ? html`<dialog @close=${page.close} @cancel=${page.close}>${dialog()}</dialog>` : nothing}`, app);
  SCREENS[name]?.drawn?.();
}

addEventListener('hashchange', enter);
for (const hand of ['pointerdown', 'wheel', 'keydown']) addEventListener(hand, used, { passive: true });
addEventListener('resize', () => page.update());
addEventListener('keydown', (event) => {
  if (event.target.closest('input, textarea, select, dialog') || event.ctrlKey || event.metaKey || event.altKey || !keysOn) return;
  const index = '123456'.indexOf(event.key);
  if (index >= 0) location.hash = `#/${ORDER[index]}`;
  else if (event.key === '?') page.open(userDialog);
  else if (!SCREENS[screenName()]?.key?.(event)) return;
  event.preventDefault();
});

await setLanguage(new URLSearchParams(location.search).get('language') ?? firstLanguage());
words();
await login.fromAddress();
enter();
start(() => page.update(), run.onPart);
page.update();
