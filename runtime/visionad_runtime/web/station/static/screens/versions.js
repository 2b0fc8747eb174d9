// Versions of the line's bank: what changed in each, and one class of an older one brought back.
import { html, nothing } from '../lit-html.js';
import { get, ApiError } from '../api.js';
import { station } from '../feed.js';
import { count, dayAndClock, percent, score, t } from '../i18n.js';
import { page } from '../main.js';
import { problem } from '../words.js';

let found = null;
let trouble = '';

export async function entered() {
  try {
    found = await get('versions');
    trouble = '';
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    trouble = problem(error);
  }
  page.update();
}

async function older() {
  const shown = found;
  const more = await get(`versions?before=${shown.versions.at(-1).version}`);
  if (found === shown) found = { ...more, versions: [...shown.versions, ...more.versions] }; // else the list was read anew
  page.update();
}

const words = (one) => (one
  ? `${t('{parts} parts, threshold {limit}', { parts: count(one.parts), limit: score(one.threshold) })}${one.by_hand ? `, ${t('by hand, no guarantee')}` : ''}${one.rate === null ? '' : `, ${t('at most {rate} false rejects', { rate: percent(one.rate) })}`}${one.regions.length || one.ignored ? `, ${t('regions: {names}', { names: [...one.regions, one.ignored ? t('ignored areas') : ''].filter(Boolean).join(', ') })}` : ''}`
  : t('no such class'));

/** Classes that differ between a version and the one before it: name, before, after. */
function differences(index) {
  const now = found.versions[index].classes;
  const before = found.versions[index + 1]?.classes ?? {};
  return [...new Set([...Object.keys(before), ...Object.keys(now)])].sort()
    .filter((name) => JSON.stringify(before[name]) !== JSON.stringify(now[name])).map((name) => [name, before[name], now[name]]);
}

const then = (version, name) => found.versions.find((one) => one.version === version)?.classes[name];
const warning = (version, name) => (then(version, name)?.threshold === null ? html`
    <p class="alarm" data-level="bad" id="no-threshold"><strong>${t('In version {version}, {name} has no threshold: every part will be undecided until there is a new one.', { version, name })}</strong></p>` : nothing);

const backDialog = (version, name) => () => {
  const newest = found.versions[0];
  return html`
    <h2>${t('Bring {name} back as in version {version}?', { name, version })}</h2>
    <dl class="facts"><dt>${t('Now')}</dt><dd>${words(newest.classes[name])}</dd>
      <dt>${t('Then')}</dt><dd>${words(then(version, name))}</dd></dl>
    ${warning(version, name)}
    <p>${t('Parts, regions and threshold of then become a new version. Nothing is deleted.')}</p>
    <button class="big warn" id="confirm-back" @click=${async () => {
    page.close();
    const answer = await page.change(`versions/${version}/back?class=${encodeURIComponent(name)}`);
    if (answer) { page.say(t('Version {version} is live.', answer)); await page.again(); }
  }}>${t('Bring back')}</button>
    <button class="big plain" @click=${page.close}>${t('Cancel')}</button>`;
};

/** The list of versions. */
export function section() {
  if (trouble) return html`<p class="empty problem">${trouble}</p>`;
  if (!found) return html`<p class="empty">${t('The versions are read.')}</p>`;
  const [newest] = found.versions;
  return html`
    <div class="card"><h2>${t('Versions of the bank')}</h2>
      ${found.problems.map((one) => html`<p class="problem">${one}</p>`)}
      <table id="versions">
        <thead><tr><th class="number">${t('Version')}</th><th>${t('Time')}</th><th>${t('Change')}</th><th>${t('Class')}</th><th></th></tr></thead>
        <tbody>${found.versions.map((one, index) => html`
          <tr><td class="number">${one === newest ? '▶ ' : ''}${one.version}</td><td>${dayAndClock(one.time_utc)}</td><td class="wrap">${one.change}</td>
            <td class="wrap">${differences(index).map(([name, before, now]) => html`<details><summary>${name}</summary>${t('before')}: ${words(before)}<br>${t('after')}: ${words(now)}</details>`)}</td>
            <td>${one !== newest && page.is('setter') ? differences(index).filter(([, , now]) => now).map(([name, , now]) => (JSON.stringify(now) === JSON.stringify(newest.classes[name]) ? nothing : html`
              <button class="plain" ?disabled=${station.stale} data-back="${one.version} ${name}" @click=${() => page.open(backDialog(one.version, name))}>${t('Bring {name} back', { name })}</button>`)) : nothing}</td></tr>`)}</tbody>
      </table>
      ${found.versions.length === 1 ? html`<p class="small">${t('One version: nothing to bring back.')}</p>` : nothing}
      ${found.more ? html`<button class="plain" @click=${older}>${t('Older')}</button>` : nothing}
    </div>`;
}
