// Words, numbers and times in the reader's language. English texts are the keys; catalogues translate them.

export const LANGUAGES = { en: 'English', de: 'Deutsch', zh: '中文', pseudo: 'Pseudo' };
let catalogue = {};
let zone = 'UTC';
export let language = 'en';

/** Load a catalogue. An unknown language is English. */
export async function setLanguage(name) {
  const own = Object.hasOwn(LANGUAGES, name) ? name : 'en';
  language = own;
  const found = own === 'en' || own === 'pseudo' ? {} : await (await fetch(`/static/i18n/${own}.json`)).json();
  if (language !== own) return; // another one was chosen meanwhile
  catalogue = found;
  document.documentElement.lang = language === 'pseudo' ? 'en' : language;
  try { localStorage.setItem('language', language); } catch { /* private mode */ }
}

/** Return the language that was chosen last, or the browser's. */
export function firstLanguage() {
  let kept = null;
  try { kept = localStorage.getItem('language'); } catch { /* private mode */ }
  return kept || navigator.languages.map((one) => one.slice(0, 2)).find((one) => one in LANGUAGES) || 'en';
}

/** Translate a text; {name} is replaced by a value. */
export function t(text, values = {}) {
  const found = language === 'pseudo' ? lengthen(text) : catalogue[text] ?? text;
  return found.replace(/\{(\w+)\}/g, (_, name) => values[name] ?? '');
}

// 40 % longer, with signs that many fonts lack: shows texts that are not translated, and those that overflow.
function lengthen(text) {
  const kept = text.replace(/[aeou](?![^{]*\})/g, (sign) => ({ a: 'á', e: 'é', o: 'ö', u: 'ü' })[sign]);
  return `${kept}${'·'.repeat(Math.ceil(text.length * 0.4))}`;
}

/** The station's time zone: shifts and records are read in it. */
export function setZone(name) { zone = name || 'UTC'; }

const locale = () => (language === 'pseudo' ? 'en' : language);
const formats = new Map();

function time(options) {
  const key = JSON.stringify([locale(), zone, options]);
  if (!formats.has(key)) formats.set(key, new Intl.DateTimeFormat(locale(), { timeZone: zone, hourCycle: 'h23', ...options }));
  return formats.get(key);
}

export const clock = (moment) => time({ hour: '2-digit', minute: '2-digit', second: '2-digit' }).format(new Date(moment));
export const dayAndClock = (moment) => time({
  month: 'short', day: 'numeric', hour: '2-digit', minute: '2-digit', second: '2-digit', timeZoneName: 'short',
}).format(new Date(moment));
export const hour = (moment) => time({ hour: '2-digit', minute: '2-digit' }).format(new Date(moment));

/** A score or a limit, with three digits. The full precision is in the records. */
export const score = (value) => (value === null || value === undefined ? '–'
  : new Intl.NumberFormat(locale(), { maximumSignificantDigits: 3, minimumSignificantDigits: 3 }).format(value));
export const count = (value) => new Intl.NumberFormat(locale()).format(value ?? 0);
export const percent = (value) => new Intl.NumberFormat(locale(), { style: 'percent', maximumFractionDigits: 1 }).format(value);
