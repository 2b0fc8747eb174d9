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

const at = (path) => `draft${path}?class=${encodeURIComponent(work.name)}`;

function took(facts) {
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
    if (name) took(await get(at('')));
    else work.list = await get('drafts');
    work.trouble = '';
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    work.trouble = problem(error);
  }
  page.update();
}

/** Read the draft again, such as while parts are collected. */
export async function refresh() {
  clearTimeout(timer);
  if (!work.name || !location.hash.startsWith('#/teach')) return;
  try {
    took(await get(at('')));
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
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
  return doing(async () => {
    const answer = await post(at(path), { version: work.facts?.version, ...body });
    if (answer.parts) took(answer);
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
  for (const file of list) {
    const answer = await doing(() => send(`${at('/files')}&version=${work.facts.version}&name=${encodeURIComponent(file.name)}`, file));
    if (!answer) return;
    took(answer);
  }
}

/** What regions would inspect. */
export const raster = (regions) => post(at('/raster'), { regions });

// What decides a score of the draft: images of other parts or regions are looked at anew.
const scoredWith = () => `${work.facts?.parts.map((part) => part.support).join()} ${JSON.stringify(work.facts?.regions)}`;

/** The image of a part with heat and regions; it is fetched once. Returns null until it is there. */
export function image(which) {
  if (!which) return null;
  const key = `${which} ${scoredWith()}`;
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
