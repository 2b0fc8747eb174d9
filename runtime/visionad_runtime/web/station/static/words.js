// Words for what the station reports by codes.
import { t } from './i18n.js';

/** The evaluation of a part: word, shape and colour tell it, each alone. Words have at most 10 letters. */
export const verdict = (evaluation) => ({
  1: { word: t('OK'), shape: 'ok' },
  2: { word: t('REJECT'), shape: 'reject' },
  3: { word: t('UNDECIDED'), shape: 'undecided' },
})[evaluation] ?? { word: t('NO PART'), shape: 'none' };

export const reason = (code) => ({
  none: '',
  anomalous: t('It differs from the good parts.'),
  'no class': t('It is like no class of the recipe.'),
  'no threshold': t('The class has no threshold yet: no part can be decided.'),
  deadline: t('The result did not come in time.'),
  camera: t('The camera gave no image.'),
  stale: t('The image was older than the part.'),
  light: t('The light is not that of the good parts.'),
  position: t('The part does not lie in its place.'),
  code: t('The code in the image is not the part’s.'),
  internal: t('The part could not be judged; the log says why.'),
  review: t('It is between the two limits: look at it.'),
})[code] ?? code;

export const phase = (state) => {
  if (!state.phase) return t('Not known');
  if (state.phase === 'fault') return t('Fault');
  if (state.phase === 'starting') return t('Starting');
  if (state.phase === 'stopping' || state.phase === 'off') return t('Stopped');
  if (state.phase === 'idle') return t('No recipe');
  if (state.phase === 'preparing') return t('Preparing');
  return state.ready || state.phase === 'busy' || state.phase === 'valid' ? t('Running') : t('Waiting');
};

export const role = (name) => ({
  operator: t('Operator'), viewer: t('Viewer'), setter: t('Setter'), admin: t('Administrator'),
})[name] ?? name;

const ERRORS = {
  no_session: () => t('Log in first.'),
  password: () => t('Name or password are wrong.'),
  panel_token: () => t('The panel’s token was used already: read it again from its file.'),
  first_code: () => t('The code is wrong, or there is a user already.'),
  too_often: (values) => t('Tried too often: try again in {seconds} s.', values),
  role_missing: (values) => t('Your role may not do that; it takes: {needs}.', { needs: (values.needs ?? []).map(role).join(', ') }),
  plc_control: () => t('The PLC has control: take control first.'),
  busy: () => t('A part is in hand: try again.'),
  not_ready: () => t('The station is not ready.'),
  no_archive: () => t('The station file has no archive.'),
  user_name: () => t('A name has 1 to 60 signs and no /; panel, station, . and .. are no names.'),
  last_admin: () => t('The last administrator stays: add another one first.'),
  short_password: (values) => t('The password needs {least} signs or more.', values),
  still_fault: () => t('The cause of the fault is not gone.'),
  unavailable: () => t('The station does not answer: try again.'),
  being_done: () => t('It is being done already.'),
  changed: (values) => t('{who} changed the draft meanwhile: look at it, and try again.', values),
  live_changed: () => t('The line’s class was changed since: discard this draft and begin anew.'),
  no_draft: () => t('There is no draft of this class: begin one.'),
  image_gone: (values) => (values.frame ? t('The frame is gone: take again.') : t('The image of this part is not kept any more: take another part.')),
  not_in_memory: () => t('The image of this part is not in memory any more: it cannot be kept.'),
  not_kept: () => t('The image could not be kept: the archive cannot be written.'),
  key_reused: () => t('This request was sent before with other values: load the page again.'),
  line_trigger: () => t('The camera waits for the PLC’s trigger: take control to see live images.'),
  own_trigger: () => t('The camera takes an image at its own trigger only: look at the newest part.'),
  no_frame: () => t('The camera gives no image: Settings says why.'),
  undecided: () => t('A part stands out: say why it is good, or take it out.'),
  not_looked: () => t('Look at the highest parts first.'),
  no_parts: () => t('Take a good part first.'),
  no_threshold: () => t('There is no threshold yet: take a second good part.'),
};

/** An error of the API in the reader's language; its English text where there is no translation. */
export const problem = (error) => ERRORS[error.code]?.(error.values ?? {}) ?? error.message;
