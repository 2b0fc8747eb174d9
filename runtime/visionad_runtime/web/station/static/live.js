// Live images of a camera, without a part: asked for one by one, at most five a second, while somebody looks. They carry no outline.
import { live as feed, look, station } from './feed.js';
import { count, percent, t } from './i18n.js';
import { page } from './main.js';
import { problem } from './words.js';

const PAUSE_MS = 180; // between two questions; the server lets five a second through
const AGAIN_MS = 1000; // after a refusal
const LOST_MS = 6000; // a question that is not answered in this time is asked again
const FROZEN_S = 2;
const FADING = 0.995; // the best sharpness is forgotten slowly: the scene may be another one

/** frame: the image on the screen; trouble: why there is none. */
export const live = { frame: null, trouble: '' };
let wanted = () => null;
let shown = () => {}; // draws a frame's image on the screen's canvas
let of = ''; // what the frame was asked for
let asked = 0; // when the question on its way was asked; 0: there is none
let number = 0; // of the question: an answer to another one would look younger than it is
let due = 0;
let best = 0;
let timer = null;
let wasFrozen = false;

/** The age of the frame in seconds, at most: the way here is counted. */
const age = () => live.frame.age_s + (performance.now() - live.frame.asked) / 1000;
export const frozen = () => Boolean(live.frame) && age() > FROZEN_S;

/** Show live images as long as a function returns what to look at: { camera, name } of the class; null ends it. Another one draws them. */
export function follow(what, show) {
  wanted = what;
  shown = show;
  timer ??= setInterval(tick, 100);
  tick();
}

function forget() {
  live.frame = null;
  live.trouble = of = '';
  best = due = asked = 0;
  wasFrozen = false;
}

function tick() {
  const what = document.visibilityState === 'visible' && !station.stale ? wanted() : null;
  const key = what ? `${what.camera} ${what.name}` : '';
  if (key !== of) {
    if (live.frame || live.trouble) page.update(); // what the screen says of it goes too
    forget();
  }
  of = key;
  if (!what) {
    clearInterval(timer);
    timer = null;
    return;
  }
  const now = performance.now();
  if (asked ? now > asked + LOST_MS : now >= due) {
    asked = now;
    number += 1;
    look(what.camera, what.name, number);
  }
  paint();
}

feed.take = (event) => {
  if (!timer || !asked || event.n !== number) return; // nobody looks any more, or at something else
  const since = asked;
  const now = performance.now();
  asked = 0;
  due = Math.max(now, since + PAUSE_MS);
  const before = [Boolean(live.frame), live.trouble];
  if (event.images?.[0].bitmap) { // what cannot be seen is not taken
    live.frame = { ...event, asked: since, camera: event.images[0].camera };
    live.trouble = '';
    best = Math.max(best * FADING, event.sharpness);
  } else {
    due = now + (event.code === 'busy' ? PAUSE_MS : AGAIN_MS);
    if (event.code !== 'busy') live.trouble = problem({ code: event.code ?? 'no_frame', values: event.values, message: event.error });
  }
  if (before[0] !== Boolean(live.frame) || before[1] !== live.trouble) page.update();
  else paint(true);
  setTimeout(() => { if (timer) tick(); }, Math.max(0, due - now));
};

/** Draw the frame and say how old it is. The screen's template leaves these places empty. */
export function paint(isNew = false) {
  const canvas = document.querySelector('#teach-image, #region-image');
  const caption = document.getElementById('live-caption');
  if (!canvas || !caption || !live.frame) return;
  if (isNew || canvas.dataset.frame !== String(live.frame.frame)) {
    shown(canvas, live.frame.images[0]);
    canvas.dataset.frame = live.frame.frame;
  }
  const values = { camera: live.frame.camera, age: count(Math.round(age() * 10) / 10) };
  const now = frozen();
  caption.textContent = now ? t('camera {camera} · frozen, no new image comes · {age} s old', values) : t('camera {camera} · live · {age} s old', values);
  const bar = document.getElementById('sharpness');
  if (bar) {
    bar.value = best ? live.frame.sharpness / best : 0;
    bar.title = t('{share} of the sharpest image so far', { share: percent(bar.value) });
  }
  if (now !== wasFrozen) {
    wasFrozen = now;
    page.update();
  }
}
