// The draft of a class, as the server holds it. Each change names the version that it was made on; another one is refused.
import { ApiError, bytes, get, post, send } from './api.js';
import { parsed } from './images.js';
import { page } from './main.js';
import { problem } from './words.js';

const POLL_MS = 1000;

/** What is known: `facts` of the draft, `list` of all drafts and classes, `busy` while something is encoded. */
export const work = { name: '', facts: null, list: null, trouble: '', busy: false };

const images = new Map();
let timer = null;

let changes = 0; // that were answered: what was read before one is older than its answer

const at = (path, name = work.name) => `draft${path}?class=${encodeURIComponent(name)}`;

function took(facts, name) {
  if (work.name !== name) return; // another draft is shown by now
  work.facts = facts;
  work.trouble = '';
  clearTimeout(timer);
  if (facts.collecting || facts.trying.waiting) timer = setTimeout(refresh, POLL_MS);
  page.update();
}

/** Read the drafts, and the one of a class. */
export async function open(name) {
  work.name = name;
  work.facts = null;
  images.clear();
  try {
    if (name) took(await get(at('', name)), name);
    else work.list = await get('drafts');
    if (work.name === name) work.trouble = '';
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (work.name === name) work.trouble = problem(error);
  }
  page.update();
}

/** Read the draft again, such as while parts are collected. */
export async function refresh() {
  clearTimeout(timer);
  const { name } = work;
  if (!name || !location.hash.startsWith('#/teach')) return;
  const before = changes;
  try {
    const facts = await get(at('', name));
    if (changes === before) took(facts, name);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (work.name !== name) return;
    work.trouble = problem(error);
    page.update();
  }
}

async function doing(act) {
  if (work.busy) return null;
  work.busy = true;
  page.update();
  try {
    return await act();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    page.say(problem(error), true);
    if (error.status === 412) await refresh();
    return null;
  } finally {
    work.busy = false;
    page.update();
  }
}

/** Change the draft. Returns what the station answers, or null. */
export async function change(path, body = {}, done = '') {
  const { name } = work;
  return doing(async () => {
    const answer = await post(at(path, name), { version: work.facts?.version, ...body });
    changes += 1;
    if (answer.parts) took(answer, name);
    if (done) page.say(done);
    return answer;
  });
}

/** Begin a draft of a class, or go on with the one that there is. */
export async function begin(name) {
  return doing(() => post(`draft?class=${encodeURIComponent(name)}`));
}

/** Take image files as good parts, one after the other. */
export async function files(list) {
  const { name } = work;
  for (const file of list) {
    if (work.name !== name || !work.facts) return; // another draft is shown by now: it gets none of these files
    const answer = await doing(() => send(`${at('/files', name)}&version=${work.facts.version}&name=${encodeURIComponent(file.name)}`, file));
    if (!answer) return;
    changes += 1;
    took(answer, name);
  }
}

/** What regions would inspect. */
export const raster = (regions) => post(at('/raster'), { regions });

// What decides a score of the draft: images of other parts or regions are looked at anew.
const scoredWith = () => `${work.facts?.parts.map((part) => part.support).join()} ${JSON.stringify(work.facts?.regions)}`;

/** The image of a part with heat and regions; it is fetched once. Returns null until it is there. */
export function image(which) {
  if (!which) return null;
  const key = `${work.name} ${which} ${scoredWith()}`;
  if (!images.has(key)) {
    images.set(key, null);
    bytes(`${at(`/images/${which}`)}`).then(parsed).then((found) => { images.set(key, found); page.update(); }, (error) => {
      images.set(key, { images: [], regions: [], trouble: error instanceof ApiError ? problem(error) : String(error) });
      setTimeout(() => images.delete(key), 3000); // then it is asked for again
      page.update();
    });
  }
  return images.get(key);
}
