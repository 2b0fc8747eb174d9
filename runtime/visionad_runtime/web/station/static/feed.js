// The station's events. Nothing old is shown as current: without a beat everything is forgotten.
import { parsed } from './images.js';

const STALE_MS = 1500;
const USED_MS = 10000; // between two tellings that a person uses the page
const RETRY_MS = [250, 500, 1000, 2000];

/**
 * What is known of the station.
 *
 * stale: no beat came for 1.5 s, or none yet. Then nothing else counts.
 */
export const station = {
  stale: true, connected: false, loggedOut: false, hello: null, user: null, state: {}, counts: null, strip: [], now: null, lastNews: null,
  outcome: null,
};

let socket = null;
let timer = null;
let attempts = 0;
let changed = () => {};
let onOutcome = () => {};
const cover = document.getElementById('cover');

export function start(onChange, onPart) {
  changed = onChange;
  onOutcome = onPart;
  connect();
  document.addEventListener('visibilitychange', () => {
    forget();
    subscribe();
  });
  addEventListener('pageshow', (event) => { if (event.persisted) { forget(); reconnect(); } });
}

export function reconnect() {
  clearTimeout(timer);
  attempts = 0;
  const old = socket;
  socket = null;
  old?.close();
  connect();
}

function connect() {
  const own = new WebSocket(`${location.protocol === 'https:' ? 'wss' : 'ws'}://${location.host}/ws`);
  own.binaryType = 'arraybuffer';
  socket = own;
  own.onopen = () => { station.connected = true; };
  own.onmessage = (message) => { if (own === socket) receive(message.data); };
  own.onclose = (event) => {
    if (own !== socket) return;
    station.connected = false;
    forget();
    station.loggedOut = event.code === 4401;
    if (station.loggedOut) { changed(); return; }
    timer = setTimeout(connect, RETRY_MS[Math.min(attempts, RETRY_MS.length - 1)]);
    attempts += 1;
  };
}

function tell(message) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
}

function subscribe() {
  tell({ send: 'subscribe', names: document.visibilityState === 'visible' ? ['parts'] : [] });
}

export const shown = () => tell({ send: 'shown' });

/** A person's hand is on the page: the session goes on. What the page asks by itself does not renew it. */
export function used() {
  if (Date.now() < used.told + USED_MS) return;
  used.told = Date.now();
  tell({ send: 'used' });
}
used.told = 0;

/** Ask for a live image of a camera; `live.take` gets it, or why there is none. */
export const look = (camera, name, n) => tell({ send: 'look', camera, class: name, n });
export const live = { take() {} };

// Forget what was shown: the verdict is not known any more.
function forget() {
  clearTimeout(forget.timer);
  station.stale = true;
  station.outcome = null;
  cover.hidden = true; // this code runs, so the screen says OFFLINE itself
  changed();
}

function beat(event) {
  station.now = event.now;
  station.lastNews = event.now;
  const wasStale = station.stale;
  station.stale = false;
  clearTimeout(forget.timer);
  forget.timer = setTimeout(forget, STALE_MS);
  // The compositor fades the cover in, even while this code hangs. Each beat begins the animation anew.
  cover.hidden = false;
  cover.classList.toggle('again');
  if (wasStale) subscribe();
  tell({ send: 'alive', n: event.seq });
  changed();
}

async function receive(data) {
  if (typeof data !== 'string') {
    const part = await parsed(data);
    if (part.event === 'frame') live.take(part);
    else if (!station.stale && document.visibilityState === 'visible') onOutcome(part);
    else shown();
    return;
  }
  const event = JSON.parse(data);
  if (event.event === 'beat') beat(event);
  else if (event.event === 'hello') {
    if (station.hello && station.hello.boot !== event.boot) {
      location.reload(); // another start of the station: its files may be new, and nothing of the old one counts
      return;
    }
    attempts = 0;
    station.hello = event;
    station.user = event.user;
    station.loggedOut = false;
    changed();
  } else if (event.event === 'state') {
    station.state = event;
    if (event.alive) changed();
    else forget(); // the worker does not answer: the next beat comes when it does
  }
  else if (event.event === 'counts') { station.counts = event; changed(); }
  else if (event.event === 'user') { station.user = event; changed(); }
  else if (event.event === 'no_frame') live.take(event);
  else if (event.event === 'strip') strip(event.parts);
  else if (event.event === 'part') strip([event]);
}

// Parts by number: what was read from the records and what came meanwhile may overlap.
function strip(parts) {
  const byId = new Map([...station.strip, ...parts].map((one) => [one.id, one]));
  station.strip = [...byId.values()].sort((a, b) => a.id - b.id).slice(-40);
  changed();
}
