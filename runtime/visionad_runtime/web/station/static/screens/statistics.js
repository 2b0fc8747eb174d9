// Statistics of shifts: counts, false rejects from reviewed parts alone, places, and times.
import { html, nothing, svg } from '../lit-html.js';
import { get, ApiError } from '../api.js';
import { station } from '../feed.js';
import { count, dayAndClock, percent, t } from '../i18n.js';
import { page } from '../main.js';
import { problem, reason } from '../words.js';

const PERIODS = { shift: () => t('This shift'), day: () => t('24 hours'), week: () => t('7 days') };
const HOURS = { day: 24, week: 168 };
let found = null;
let trouble = '';
let query = ''; // of what is shown and can be downloaded; empty until the station's time is known
let of = ''; // the period of what is shown
let waits = false;

const period = () => {
  const name = new URLSearchParams(location.hash.split('?')[1] ?? '').get('period');
  return Object.hasOwn(PERIODS, name) ? name : 'shift';
};

/** Read the statistics of the period. The station says what time it is and when its shift began. */
export async function entered() {
  const name = period();
  waits = !station.now || (name === 'shift' && !station.counts);
  if (of !== name) found = null;
  of = name;
  trouble = query = '';
  if (waits) return;
  const now = new Date(station.now);
  const start = name === 'shift' ? new Date(station.counts.since) : new Date(now - HOURS[name] * 3600e3);
  const own = new URLSearchParams({ from: start.toISOString(), to: new Date(+now + 1000).toISOString() }).toString();
  query = own;
  let answer = null;
  let why = '';
  try {
    answer = await get(`statistics?${own}`);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    why = problem(error);
  }
  if (query !== own) return; // another time was chosen meanwhile
  found = answer;
  trouble = why;
  page.update();
}

export function drawn() {
  if (waits && station.now && (period() !== 'shift' || station.counts)) entered();
}

const share = (one) => (one.reviewed
  ? t('{cases} of {reviewed} reviewed: {rate} (95 %: {low} to {high})', {
    cases: count(one.cases), reviewed: count(one.reviewed), rate: percent(one.cases / one.reviewed), low: percent(one.low), high: percent(one.high),
  })
  : t('none was reviewed: not known'));

// Bars of shares of a whole, readable as a table beside them.
const bars = (total) => {
  const parts = [['ok', total.ok], ['undecided', total.review + undecided(total)], ['reject', total.anomalous]];
  let at = 0;
  return html`<svg class="shares" viewBox="0 0 1000 20" preserveAspectRatio="none" aria-hidden="true">${parts.map(([kind, n]) => {
    const width = total.parts ? (1000 * n) / total.parts : 0;
    const x = at;
    at += width;
    return svg`<rect class=${kind} x=${x} width=${width} height="20"></rect>`;
  })}</svg>`;
};

const undecided = (total) => Object.values(total.not_decidable).reduce((sum, n) => sum + n, 0);

function rows(name, counts, missed) {
  return html`
    <tr><th scope="row">${name}</th><td class="number">${count(counts.parts)}</td><td class="number">${count(counts.ok)}</td>
      <td class="number">${count(counts.anomalous)}</td><td class="number">${count(counts.review)}</td><td class="number">${count(undecided(counts))}</td>
      <td class="number">${count(counts.late)}</td><td class="number">${missed === null ? '' : count(missed)}</td></tr>`;
}

function shift(one) {
  const { total } = one;
  const names = found.recipes;
  const most = total.regions[0]?.count ?? 1;
  return html`
    <section class="card"><h2>${t('Shift')} <b>${one.shift}</b> · ${dayAndClock(one.from)} – ${dayAndClock(one.to)}</h2>
      ${bars(total)}
      <table>
        <thead><tr><th>${t('Recipe')}</th><th class="number">${t('Parts')}</th><th class="number">${t('OK')}</th><th class="number">${t('Reject')}</th><th class="number">${t('To be looked at')}</th><th class="number">${t('Undecided')}</th><th class="number">${t('Late')}</th><th class="number">${t('Missed')}</th></tr></thead>
        <tbody>${Object.entries(one.recipes).map(([number, counts]) => rows(`${number} ${names[number] ?? ''}`, counts, null))}${rows(t('all'), total, one.missed)}</tbody>
      </table>
      <dl class="facts">
        <dt>${t('Rejects that were good')}</dt><dd>${share(total.false_rejects)}</dd>
        <dt>${t('OK parts that were bad')}</dt><dd>${share(total.missed_defects)}</dd>
        ${total.latency_ms ? html`<dt>${t('Time to the result')}</dt><dd>${Object.entries(total.latency_ms).map(([name, ms]) => `${name} ${count(Math.round(ms))} ms`).join(' · ')}</dd>` : nothing}
        ${Object.entries(total.not_decidable).map(([code, n]) => html`<dt>${t('Undecided')}: ${count(n)}</dt><dd>${reason(code)}</dd>`)}
      </dl>
      ${total.regions.length ? html`<h2>${t('Where parts differ')}</h2><table class="places"><tbody>${total.regions.map((place) => html`
        <tr><th scope="row">${place.place}</th><td class="number">${count(place.count)}</td><td><svg class="shares" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true"><rect class="reject" width=${(100 * place.count) / most} height="10"></rect></svg></td></tr>`)}</tbody></table>` : nothing}
    </section>`;
}

export function screen() {
  return html`
    <div class="filters">
      <label>${t('Time')}<select @change=${(event) => { location.hash = `#/statistics?period=${event.target.value}`; }}>
        ${Object.entries(PERIODS).map(([name, text]) => html`<option value=${name} ?selected=${name === period()}>${text()}</option>`)}</select></label>
      <button class="plain" @click=${entered}>${t('Look again')}</button>
      ${query ? html`<a class="button" href="/api/1/report.html?${query}" download>${t('Report to print')}</a>
      <a class="button" href="/api/1/export.csv?${query}&separator=${document.documentElement.lang === 'de' ? ';' : ','}" download>${t('CSV')}</a>` : nothing}
    </div>
    <section class="list wide" aria-label=${t('Statistics')} tabindex="0">
      ${trouble ? html`<p class="empty problem">${trouble}</p>` : nothing}
      ${!found && !trouble ? html`<p class="empty">${t('Parts are counted.')}</p>` : nothing}
      ${found && !found.shifts.length ? html`<p class="empty">${t('Nothing happened in this time.')}</p>` : nothing}
      ${[...(found?.shifts ?? [])].reverse().map(shift)}
    </section>`;
}
