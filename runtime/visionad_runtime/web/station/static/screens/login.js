// Log in: by name and password, as the panel by its token, or as the first user by the code that the station printed.
import { html } from '../lit-html.js';
import { post, ApiError } from '../api.js';
import { reconnect } from '../feed.js';
import { t } from '../i18n.js';
import { page } from '../main.js';
import { problem } from '../words.js';

let first = false;
let trouble = '';
let busy = false;

/** Log in as the panel if the address says so, and forget the token. */
export async function fromAddress() {
  const token = /^#panel=(.+)$/.exec(location.hash)?.[1];
  if (!token) return;
  history.replaceState(null, '', '/');
  try { await post('login', { panel: token }); } catch (error) { trouble = problem(error); }
}

async function submit(event) {
  event.preventDefault();
  if (busy) return;
  busy = true;
  page.update();
  try {
    await post('login', Object.fromEntries(new FormData(event.target)));
    trouble = '';
    page.close();
    reconnect();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    trouble = problem(error);
  } finally {
    busy = false;
    page.update();
  }
}

export const form = () => html`
  <form @submit=${submit}>
    ${first ? html`<label>${t('Code from the station’s log')}<input name="code" autocomplete="one-time-code" required></label>` : ''}
    <label>${t('Name')}<input name="name" autocomplete="username" required></label>
    <label>${t('Password')}<input name="password" type="password" autocomplete=${first ? 'new-password' : 'current-password'} required></label>
    <p class="problem" role="alert">${trouble}</p>
    <button class="big" ?disabled=${busy}>${first ? t('Make the first administrator') : t('Log in')}</button>
  </form>`;

export const screen = () => html`
  <main class="login">
    <h1>VisionAD</h1>
    ${form()}
    <button class="link" @click=${() => { first = !first; trouble = ''; page.update(); }}>
      ${first ? t('There is a user already') : t('First start: make the first user')}</button>
  </main>`;
