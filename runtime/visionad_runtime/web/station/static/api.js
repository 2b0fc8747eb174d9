// Requests to the station. Each change carries a key, so that one that is sent twice is done once.

export class ApiError extends Error {
  constructor(status, code, message, values) {
    super(message);
    this.status = status;
    this.code = code;
    this.values = values;
  }
}

async function answered(response) {
  if (response.ok) return response;
  const found = await response.json().catch(() => ({}));
  throw new ApiError(response.status, found.code ?? 'request', found.error ?? response.statusText, found.values ?? {});
}

async function asked(path, options) {
  try {
    return await answered(await fetch(`/api/1/${path}`, { ...options, signal: AbortSignal.timeout(options?.method === 'POST' ? 45000 : 15000) }));
  } catch (error) {
    if (error instanceof ApiError) throw error;
    throw new ApiError(0, 'unavailable', 'the station does not answer', {});
  }
}

export const get = async (path) => (await asked(path)).json();
export const bytes = async (path) => (await asked(path)).arrayBuffer();

export const post = async (path, body = {}, key = crypto.randomUUID()) => (await asked(path, {
  method: 'POST',
  headers: { 'content-type': 'application/json', 'idempotency-key': key },
  body: JSON.stringify(body),
})).json();

/** Send a file. */
export const send = async (path, file, key = crypto.randomUUID()) => (await asked(path, {
  method: 'POST',
  headers: { 'content-type': file.type || 'application/octet-stream', 'idempotency-key': key },
  body: file,
})).json();
