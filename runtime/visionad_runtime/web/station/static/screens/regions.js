// Regions: inspect here, ignore there. What is shown is the raster of patches that the station uses, not the line that was drawn.
import { html, nothing } from '../lit-html.js';
import { ApiError } from '../api.js';
import * as draft from '../draft.js';
import { station } from '../feed.js';
import { count, percent, t } from '../i18n.js';
import { frozen, live as looking } from '../live.js';
import { page } from '../main.js';
import { problem } from '../words.js';

const { work } = draft;
const REACH = 24; // CSS pixels within which a tap chooses a point
const SLIP = 6; // CSS pixels that a finger moves in a tap
const LENS = 56; // radius of the magnifier in CSS pixels
let spec = null; // { image_size, rois: [{ name, box | polygon, grid }], ignore: [polygon], mask }
let of = ''; // what the station has; the drawing begins from it
let drawing = null; // { kind: 'inspect' | 'ignore', shape: 'polygon' | 'rectangle', points }
let chosen = null; // { list: 'rois' | 'ignore', index, point }
let past = [];
let future = [];
let found = null;
let trouble = '';
let place = { left: 0, top: 0, scale: 1 };
let picked = 'part'; // what is shown: a taught part, or what the camera sees now
let held = null; // { at, client, point }: where a finger or button came down, and the point that lies there
let finger = null; // where it is now, in pixels of the image

/** Whether the screen shows what the camera sees. */
export const seesLive = () => picked === 'live' && page.is('setter');
const liveImage = () => looking.frame?.images[0] ?? null;
// An image of another size would lie about where a region is.
const fits = (image) => image.width === spec.image_size[0] && image.height === spec.image_size[1];

const copy = (value) => JSON.parse(JSON.stringify(value));

/** Begin from what the draft has. */
export function entered() {
  const { facts } = work;
  if (!facts?.image_size) return;
  const held = `${work.name} ${JSON.stringify(facts.regions)}`;
  if (spec && of === held) { look(); return; }
  of = held;
  spec = { image_size: facts.image_size, rois: [], ignore: [], mask: null, ...copy(facts.regions ?? {}) };
  for (const roi of spec.rois) if (roi.polygon) delete roi.box;
  drawing = chosen = null;
  past = [];
  future = [];
  look();
}

const given = () => (spec.rois.length || spec.ignore.length || spec.mask ? spec : null);
// Ask the station for the raster; the newest question counts.
async function look() {
  const own = look.last = Symbol('raster');
  try {
    const answer = await draft.raster(given());
    if (look.last !== own) return;
    found = answer;
    trouble = '';
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (look.last !== own) return;
    trouble = problem(error);
  }
  page.update();
}

function edit(act) {
  past.push(copy(spec));
  future = [];
  act();
  look();
  page.update();
}

function step(from, to) {
  if (!from.length) return;
  to.push(copy(spec));
  spec = from.pop();
  chosen = drawing = null;
  look();
  page.update();
}

const inside = ([x, y]) => [Math.max(0, Math.min(spec.image_size[0] - 1, Math.round(x))), Math.max(0, Math.min(spec.image_size[1] - 1, Math.round(y)))];
const corners = ([x, y, width, height]) => [[x, y], [x + width - 1, y], [x + width - 1, y + height - 1], [x, y + height - 1]];
const outline = (list, index) => (list === 'ignore' ? spec.ignore[index] : spec.rois[index].polygon ?? corners(spec.rois[index].box));
// The outline while a point of it is dragged.
function preview(list, index) {
  const { list: of_, index: at, point } = held?.point ?? {};
  if (!finger || of_ !== list || at !== index) return outline(list, index);
  const own = spec;
  spec = copy(spec);
  movePoint(list, index, point, finger);
  const points = outline(list, index);
  spec = own;
  return points;
}
const shapes = () => [...spec.rois.map((_, index) => ['rois', index]), ...spec.ignore.map((_, index) => ['ignore', index])];

function boxOf(points) {
  const xs = points.map(([x]) => x);
  const ys = points.map(([, y]) => y);
  return [Math.min(...xs), Math.min(...ys), Math.max(...xs) - Math.min(...xs) + 1, Math.max(...ys) - Math.min(...ys) + 1];
}

function freeName() {
  const names = new Set(spec.rois.map((roi) => roi.name));
  let number = 1;
  while (names.has(`region-${number}`)) number += 1;
  return `region-${number}`;
}

/** Close the shape that is being drawn. */
function finish() {
  const { kind, shape, points } = drawing;
  if (points.length < (shape === 'rectangle' ? 2 : 3)) return;
  edit(() => {
    if (kind === 'ignore') {
      spec.ignore.push(shape === 'rectangle' ? corners(boxOf(points)) : points);
      chosen = { list: 'ignore', index: spec.ignore.length - 1, point: 0 };
    } else {
      spec.rois.push({ name: freeName(), ...(shape === 'rectangle' ? { box: boxOf(points) } : { polygon: points }), grid: [1, 1], overlap: 0.2 });
      chosen = { list: 'rois', index: spec.rois.length - 1, point: 0 };
    }
    drawing = null;
  });
}

function movePoint(list, index, point, to) {
  const next = inside(to);
  const roi = spec.rois[index];
  if (list === 'rois' && roi.box) {
    const own = corners(roi.box);
    roi.box = boxOf([next, own[(point + 2) % 4]]);
  } else outline(list, index)[point] = next;
}

function moveChosen(across, down) {
  if (!chosen) return;
  const [x, y] = outline(chosen.list, chosen.index)[chosen.point];
  edit(() => movePoint(chosen.list, chosen.index, chosen.point, [x + across, y + down]));
}

function remove() {
  if (!chosen) return;
  edit(() => {
    const points = chosen.list === 'ignore' ? spec.ignore[chosen.index] : spec.rois[chosen.index].polygon;
    if (points && points.length > 3) {
      points.splice(chosen.point, 1);
      chosen.point = Math.min(chosen.point, points.length - 1);
    } else {
      spec[chosen.list].splice(chosen.index, 1);
      chosen = null;
    }
  });
}

const removeShape = () => edit(() => { spec[chosen.list].splice(chosen.index, 1); chosen = null; });

function pixelAt(event) {
  const box = event.target.getBoundingClientRect();
  const ratio = event.target.width / box.width;
  return [((event.clientX - box.left) * ratio - place.left) / place.scale, ((event.clientY - box.top) * ratio - place.top) / place.scale];
}

function pointNear(at) {
  let best = null;
  for (const [list, index] of shapes()) {
    outline(list, index).forEach(([x, y], point) => {
      const distance = Math.hypot(x - at[0], y - at[1]) * place.scale;
      if (distance < REACH && distance < (best?.distance ?? Infinity)) best = { list, index, point, distance };
    });
  }
  return best && { list: best.list, index: best.index, point: best.point };
}

// A tap sets a point of what is being drawn, chooses a point, or moves the chosen one; a drag moves the point that it began at. The same
// by mouse, pen and finger, and a magnifier shows what lies under the finger until it is lifted.
function press(event) {
  if (!spec) return;
  const at = pixelAt(event);
  held = { client: [event.clientX, event.clientY], point: drawing ? null : pointNear(at) };
  finger = event.pointerType === 'mouse' ? null : at;
  if (finger) drawn();
}

function slide(event) {
  if (!held || !event.buttons) return;
  finger = pixelAt(event);
  drawn();
}

function lift() {
  if (finger) { finger = null; drawn(); }
}

function tap(event) {
  if (!spec) return;
  const at = pixelAt(event);
  const { client = [event.clientX, event.clientY], point = null } = held ?? {};
  const dragged = Math.hypot(event.clientX - client[0], event.clientY - client[1]) > SLIP;
  held = finger = null;
  if (drawing) {
    const [first] = drawing.points;
    const near = first && Math.hypot(first[0] - at[0], first[1] - at[1]) * place.scale < REACH;
    if (drawing.shape === 'polygon' && drawing.points.length > 2 && near) { finish(); return; }
    drawing.points.push(inside(at));
    if (drawing.shape === 'rectangle' && drawing.points.length === 2) finish();
    page.update();
    return;
  }
  const other = dragged ? null : pointNear(at);
  if (dragged && point) chosen = point;
  if (other) chosen = other;
  else if (chosen) edit(() => movePoint(chosen.list, chosen.index, chosen.point, at));
  page.update();
}

const begin = (kind, shape) => { drawing = { kind, shape, points: [] }; chosen = null; page.update(); };

function numbers() {
  if (!chosen) return html`<p class="small">${t('Tap a point to choose it. Tap elsewhere, use the arrow keys, or type its numbers to move it.')}</p>`;
  const { list, index } = chosen;
  const roi = list === 'rois' ? spec.rois[index] : null;
  const set = (point, axis) => (event) => {
    const value = Number(event.target.value);
    if (!Number.isFinite(value)) return;
    const to = [...outline(list, index)[point]];
    to[axis] = value;
    edit(() => movePoint(list, index, point, to));
  };
  const grid = (place_) => (event) => edit(() => { roi.grid[place_] = Math.max(1, Math.min(16, Math.round(Number(event.target.value)) || 1)); });
  return html`
    <h3>${roi ? t('Inspect: {name}', roi) : t('Ignore {number}', { number: index + 1 })}</h3>
    <table class="points"><tbody>${outline(list, index).map(([x, y], point) => html`
      <tr aria-selected=${point === chosen.point}><th scope="row"><button class="link" @click=${() => { chosen.point = point; page.update(); }}>${t('Point {number}', { number: point + 1 })}</button></th>
        <td><label class="inline">x<input type="number" data-point="${point}x" .value=${String(x)} @change=${set(point, 0)}></label></td>
        <td><label class="inline">y<input type="number" data-point="${point}y" .value=${String(y)} @change=${set(point, 1)}></label></td></tr>`)}</tbody></table>
    ${roi ? html`<div class="row"><label>${t('Rows of tiles')}<input type="number" id="rows" min="1" max="16" .value=${String(roi.grid[0])} @change=${grid(0)}></label>
      <label>${t('Columns of tiles')}<input type="number" id="columns" min="1" max="16" .value=${String(roi.grid[1])} @change=${grid(1)}></label></div>
      <p class="small">${t('Tiles show small defects larger. They take as many times longer as there are tiles.')}</p>` : nothing}
    <div class="row"><button class="plain" @click=${remove}>${t('Remove the point')}</button><button class="plain" @click=${removeShape}>${t('Remove the region')}</button></div>`;
}

async function use() {
  const answer = await draft.change('/regions', { regions: given() }, t('The draft has these regions.'));
  if (answer) entered();
}

// Below the image: what is shown. Regions are the same on both.
function sight() {
  const { frame, trouble: why } = looking;
  const image = liveImage();
  return html`<div class="sight">
    <div class="row" role="group" aria-label=${t('What is shown')}>
      <button class="plain" id="see-taught" aria-pressed=${!seesLive()} @click=${() => { picked = 'part'; page.update(); }}>${t('Taught part')}</button>
      <button class="plain" id="see-live" aria-pressed=${seesLive()} @click=${() => { picked = 'live'; page.update(); }}>${t('Live')}</button></div>
    ${seesLive() && frame ? html`<b id="live-caption"></b>` : nothing}
    ${seesLive() && image && !fits(image) ? html`<span class="problem">${t('The camera’s image has {width} × {height} pixels, the taught part has {own}: it is not shown.', { width: image.width, height: image.height, own: spec.image_size.join(' × ') })}</span>` : nothing}
    ${seesLive() && why ? html`<span>${why}</span>` : nothing}
  </div>`;
}

export function screen(mayTeach, cameras) {
  if (!work.facts.parts.length) return html`<p class="empty">${t('Take a good part first: regions are drawn on its image.')}</p>`;
  if (!spec) entered();
  const share = found?.share ?? 1;
  return html`
    <section class="view" data-off=${seesLive() && (!looking.frame || station.stale)} data-frozen=${Boolean(seesLive() && frozen())} aria-label=${t('Image')}>
      <p class="caption">${drawing ? (drawing.shape === 'rectangle' ? t('Tap two opposite corners.') : t('Tap the corners; tap the first one again, or press Enter, to close.')) : t('Gray: not inspected')}</p>
      <canvas id="region-image" role="application" tabindex="0" aria-label=${t('Image with regions')}
        @click=${tap} @pointerdown=${press} @pointermove=${slide} @pointerup=${lift} @pointercancel=${() => { held = null; lift(); }} @pointerleave=${lift}></canvas>
      ${page.is('setter') ? sight() : nothing}
    </section>
    <section class="side" aria-label=${t('Regions')} tabindex="0">
      ${seesLive() ? cameras : nothing}
      <div class="row">
        <button class="plain" id="inspect-rectangle" aria-pressed=${drawing?.kind === 'inspect' && drawing.shape === 'rectangle'} @click=${() => begin('inspect', 'rectangle')}>${t('Inspect: rectangle')}</button>
        <button class="plain" id="inspect-polygon" aria-pressed=${drawing?.kind === 'inspect' && drawing.shape === 'polygon'} @click=${() => begin('inspect', 'polygon')}>${t('Inspect: polygon')}</button>
        <button class="plain" id="ignore-rectangle" aria-pressed=${drawing?.kind === 'ignore' && drawing.shape === 'rectangle'} @click=${() => begin('ignore', 'rectangle')}>${t('Ignore: rectangle')}</button>
        <button class="plain" id="ignore-polygon" aria-pressed=${drawing?.kind === 'ignore' && drawing.shape === 'polygon'} @click=${() => begin('ignore', 'polygon')}>${t('Ignore: polygon')}</button>
        <button class="plain" ?disabled=${!past.length} @click=${() => step(past, future)}>${t('Undo')}</button>
        <button class="plain" ?disabled=${!future.length} @click=${() => step(future, past)}>${t('Redo')}</button>
        ${drawing ? html`<button id="finish" @click=${finish}>${t('Close the shape')}</button>` : nothing}
      </div>
      <p id="share">${found ? t('Inspected: {share} of the image, {inspected} of {cells} patches', { share: percent(share), inspected: count(found.inspected), cells: count(found.cells) }) : ''}</p>
      ${found && share < 0.05 ? html`<p class="problem">${t('Less than 5 % of the image is inspected.')}</p>` : nothing}
      ${found?.hidden.length ? html`<p class="problem" id="hidden-defects">▲ ${t('Called bad, and not found again with these regions:')}
        ${found.hidden.map((one) => html` <a href="#/history?id=${one.part}">${one.name || one.part}</a>`)}</p>` : nothing}
      ${trouble ? html`<p class="problem">${trouble}</p>` : nothing}
      <ul class="chips">${shapes().map(([list, index]) => html`<li><button class="plain" aria-pressed=${chosen?.list === list && chosen.index === index} @click=${() => { chosen = { list, index, point: 0 }; page.update(); }}>
        ${list === 'rois' ? `${spec.rois[index].name} ${spec.rois[index].grid.join(' × ') === '1 × 1' ? '' : spec.rois[index].grid.join(' × ')}` : t('Ignore {number}', { number: index + 1 })}</button></li>`)}</ul>
      ${numbers()}
      <p class="small">${t('Other regions drop the threshold from collected parts: all scores change.')}</p>
    </section>
    <footer class="actions">
      <button class="big" id="use-regions" ?disabled=${!mayTeach || work.busy || Boolean(trouble) || Boolean(drawing)} @click=${use}>${work.busy ? t('The parts are encoded anew …') : t('Use these regions')}</button>
      <button class="big plain" @click=${() => edit(() => { spec.rois = []; spec.ignore = []; spec.mask = null; chosen = drawing = null; })}>${t('Inspect everything')}</button>
      <a class="button big" href="#/teach?${new URLSearchParams({ class: work.name, step: 'threshold' })}">${t('Next: threshold')}</a>
    </footer>`;
}

export function drawn() {
  const canvas = document.getElementById('region-image');
  if (!canvas || !spec) return;
  const newest = seesLive() && !station.stale ? liveImage() : null;
  const image = seesLive() ? newest && fits(newest) && newest : draft.image(work.facts.parts[0]?.support)?.images[0];
  const box = canvas.getBoundingClientRect();
  const ratio = Math.min(devicePixelRatio || 1, 2);
  canvas.width = Math.max(1, Math.round(box.width * ratio));
  canvas.height = Math.max(1, Math.round(box.height * ratio));
  const [width, height] = spec.image_size;
  const scale = Math.min(canvas.width / width, canvas.height / height) * 0.96;
  place = { left: (canvas.width - width * scale) / 2, top: (canvas.height - height * scale) / 2, scale };
  canvas.dataset.place = `${place.left / ratio},${place.top / ratio},${place.scale / ratio}`;
  const context = canvas.getContext('2d');
  context.fillStyle = '#12161c';
  context.fillRect(0, 0, canvas.width, canvas.height);
  if (image?.bitmap) context.drawImage(image.bitmap, place.left, place.top, width * scale, height * scale);
  if (found) context.drawImage(veil(canvas), 0, 0);
  for (const one of found?.hidden ?? []) stroke(context, one.polygon, true, '#ff7a70', null, ratio, true);
  for (const [list, index] of shapes()) stroke(context, preview(list, index), true, list === 'ignore' ? '#ffb000' : '#ffffff', chosen?.list === list && chosen.index === index ? chosen.point : null, ratio);
  if (drawing) stroke(context, drawing.points, false, '#5fd0ff', drawing.points.length - 1, ratio);
  if (finger) magnify(canvas, context, ratio);
}

// What lies under the finger, three times as large, above it; below it where there is no room.
function magnify(canvas, context, ratio) {
  const x = place.left + finger[0] * place.scale;
  const y = place.top + finger[1] * place.scale;
  const radius = LENS * ratio;
  const reach = radius / 3;
  const lens = new OffscreenCanvas(2 * radius, 2 * radius);
  lens.getContext('2d').drawImage(canvas, x - reach, y - reach, 2 * reach, 2 * reach, 0, 0, 2 * radius, 2 * radius);
  const middle = [Math.max(radius, Math.min(canvas.width - radius, x)), y - 2 * radius > 0 ? y - 1.6 * radius : y + 1.6 * radius];
  context.save();
  context.beginPath();
  context.arc(...middle, radius, 0, 7);
  context.fillStyle = '#12161c';
  context.fill();
  context.clip();
  context.drawImage(lens, middle[0] - radius, middle[1] - radius);
  context.restore();
  context.lineWidth = 2 * ratio;
  context.strokeStyle = '#fff';
  context.beginPath();
  context.arc(...middle, radius, 0, 7);
  context.moveTo(middle[0] - radius / 4, middle[1]);
  context.lineTo(middle[0] + radius / 4, middle[1]);
  context.moveTo(middle[0], middle[1] - radius / 4);
  context.lineTo(middle[0], middle[1] + radius / 4);
  context.stroke();
}

// Gray over everything but the patches that are scored.
function veil(canvas) {
  const cover = new OffscreenCanvas(canvas.width, canvas.height);
  const context = cover.getContext('2d');
  context.fillStyle = '#3c4652c8';
  context.fillRect(place.left, place.top, spec.image_size[0] * place.scale, spec.image_size[1] * place.scale);
  context.globalCompositeOperation = 'destination-out';
  context.fillStyle = '#000';
  for (const tile of found.tiles) {
    const [x, y, width, height] = tile.crop;
    const across = width / tile.side;
    const down = height / tile.side;
    for (let row = 0; row < tile.side; row += 1) {
      for (let column = 0; column < tile.side; column += 1) {
        if (tile.ignored[row * tile.side + column] === '1') continue;
        context.fillRect(place.left + (x + column * across) * place.scale, place.top + (y + row * down) * place.scale, across * place.scale + 0.6, down * place.scale + 0.6);
      }
    }
  }
  return cover;
}

function stroke(context, points, closed, colour, marked, ratio, bare = false) {
  for (const [style, size] of [['#000000d0', 6], [colour, 3]]) {
    context.beginPath();
    points.forEach(([x, y], index) => context[index ? 'lineTo' : 'moveTo'](place.left + x * place.scale, place.top + y * place.scale));
    if (closed) context.closePath();
    context.lineWidth = size * ratio;
    context.strokeStyle = style;
    context.stroke();
  }
  if (bare) return;
  points.forEach(([x, y], index) => {
    context.beginPath();
    context.arc(place.left + x * place.scale, place.top + y * place.scale, (index === marked ? 10 : 6) * ratio, 0, 7);
    context.fillStyle = index === marked ? '#5fd0ff' : colour;
    context.strokeStyle = '#000';
    context.lineWidth = 2 * ratio;
    context.fill();
    context.stroke();
  });
}

export function key(event) {
  if (!spec) return false;
  const size = event.shiftKey ? 10 : 1;
  const moves = { ArrowLeft: [-size, 0], ArrowRight: [size, 0], ArrowUp: [0, -size], ArrowDown: [0, size] };
  if (moves[event.key] && chosen) moveChosen(...moves[event.key]);
  else if (event.key === 'Enter' && drawing) finish();
  else if (event.key === 'Escape') { drawing = chosen = null; page.update(); } else if (event.key === 'Delete') remove();
  else if (event.key === 'n' && chosen) { chosen.point = (chosen.point + 1) % outline(chosen.list, chosen.index).length; page.update(); } else return false;
  return true;
}
