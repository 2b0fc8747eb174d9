// Images of parts: the message of a part, and its drawing. Verdict, image and outline come together and are drawn together.

/** Read a binary message: length of the header, header as JSON, then JPEG and heat of each camera. */
export async function parsed(data) {
  const length = new DataView(data).getUint32(0);
  const part = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  let place = 4 + length;
  const blobs = part.lengths.map((size) => {
    const blob = data.slice(place, place + size);
    place += size;
    return blob;
  });
  part.images = await Promise.all(part.images.map(async (image, index) => ({
    ...image,
    bitmap: await bitmap(blobs[2 * index], 'image/jpeg'),
    heat: await bitmap(blobs[2 * index + 1], 'image/png'),
  })));
  return part;
}

export async function bitmap(bytes, type) {
  if (!bytes || !bytes.byteLength) return null;
  return createImageBitmap(new Blob([bytes], { type })).catch(() => null);
}

const heats = new WeakMap();

// Gray levels become a colour whose strength grows with them: clear where the part is good.
function coloured(heat) {
  if (!heats.has(heat)) {
    const canvas = new OffscreenCanvas(heat.width, heat.height);
    const context = canvas.getContext('2d', { willReadFrequently: true });
    context.drawImage(heat, 0, 0);
    const pixels = context.getImageData(0, 0, heat.width, heat.height);
    for (let i = 0; i < pixels.data.length; i += 4) {
      const level = pixels.data[i];
      pixels.data[i] = 255;
      pixels.data[i + 1] = Math.max(0, 230 - level);
      pixels.data[i + 2] = 0;
      pixels.data[i + 3] = Math.min(190, level * 1.2);
    }
    context.putImageData(pixels, 0, 0);
    heats.set(heat, canvas);
  }
  return heats.get(heat);
}

/**
 * Draw a camera's image with the outlines of its regions.
 *
 * @param canvas target; its size follows its box
 * @param image of a part, or null
 * @param regions with polygons in pixels of the original
 * @param show {heat, outline}
 */
export function draw(canvas, image, regions, show) {
  const box = canvas.getBoundingClientRect();
  const ratio = Math.min(devicePixelRatio || 1, 2);
  canvas.width = Math.max(1, Math.round(box.width * ratio));
  canvas.height = Math.max(1, Math.round(box.height * ratio));
  const context = canvas.getContext('2d');
  context.fillStyle = '#12161c';
  context.fillRect(0, 0, canvas.width, canvas.height);
  canvas.dataset.drawn = '';
  if (!image?.bitmap) return;
  const scale = Math.min(canvas.width / image.width, canvas.height / image.height);
  const left = (canvas.width - image.width * scale) / 2;
  const top = (canvas.height - image.height * scale) / 2;
  context.imageSmoothingEnabled = scale < 4;
  context.drawImage(image.bitmap, left, top, image.width * scale, image.height * scale);
  const [x, y, width, height] = image.crop ?? [0, 0, image.width, image.height];
  if (show.heat && image.heat) {
    context.drawImage(coloured(image.heat), left + x * scale, top + y * scale, width * scale, height * scale);
  }
  if (image.crop) {
    context.setLineDash([2 * ratio, 6 * ratio]);
    stroke(context, () => context.rect(left + x * scale, top + y * scale, width * scale, height * scale), ratio, '#ffffffb0', 1.5);
    context.setLineDash([]);
  }
  if (show.outline) {
    for (const region of regions) {
      stroke(context, () => {
        region.polygon.forEach(([px, py], index) => {
          context[index ? 'lineTo' : 'moveTo'](left + px * scale, top + py * scale);
        });
        context.closePath();
      }, ratio, '#ffffff', 3);
    }
  }
  canvas.dataset.drawn = `${left},${top},${scale}`;
}

function stroke(context, path, ratio, colour, width) {
  for (const [style, size] of [['#000000d0', width + 3], [colour, width]]) {
    context.beginPath();
    path();
    context.lineWidth = size * ratio;
    context.strokeStyle = style;
    context.lineJoin = 'round';
    context.stroke();
  }
}
