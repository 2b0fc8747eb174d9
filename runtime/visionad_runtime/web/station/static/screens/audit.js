// Changes: versions of the bank; and who changed what, and whether the chain of entries is whole.
import { html } from '../lit-html.js';
import { get, ApiError } from '../api.js';
import { dayAndClock, t } from '../i18n.js';
import { page } from '../main.js';
import { problem } from '../words.js';
import * as versions from './versions.js';

let found = null;
let trouble = '';

export async function entered() {
  versions.entered();
  try {
    found = await get('audit');
    trouble = '';
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    trouble = problem(error);
  }
  page.update();
}

const text = (value) => (value === null || value === undefined ? '–' : typeof value === 'object' ? JSON.stringify(value) : String(value));

export function screen() {
  if (trouble) return html`<p class="empty problem">${trouble}</p>`;
  if (!found) return html`<p class="empty">${t('The audit is read.')}</p>`;
  return html`
    <section class="list wide" aria-label=${t('Changes')} tabindex="0">
      ${versions.section()}
      <div class="card"><h2>${t('Audit')}</h2>
      ${found.problems.length ? html`<div class="alarm" data-level="bad"><strong>${t('The chain of the audit is broken:')}</strong>
        ${found.problems.map((one) => html`<span>${one}</span>`)}</div>` : html`<p class="fine">✓ ${t('The chain is whole.')}</p>`}
      <table>
        <thead><tr><th>#</th><th>${t('Time')}</th><th>${t('Who')}</th><th>${t('What')}</th><th>${t('Before')}</th><th>${t('After')}</th></tr></thead>
        <tbody>${found.entries.map((one) => html`
          <tr><td class="number">${one.id}</td><td>${dayAndClock(one.time_utc)}</td><td>${one.who}</td><td>${t(one.what)}</td><td class="wrap">${text(one.old)}</td><td class="wrap">${text(one.new)}</td></tr>`)}</tbody>
      </table></div>
    </section>`;
}
