// Which part the banner shows. Nobody reads ten verdicts a second, and flicker harms (WCAG 2.3.1): the word changes at most twice a
// second, and a part that is not ok stays for two seconds. Those that came meanwhile are counted; the strip shows every part.

export const CHANGE_MS = 500;
export const HOLD_MS = 2000;

/** Decides when the next part may be shown. */
export class Banner {
  constructor(show, now = () => performance.now(), later = (work, ms) => setTimeout(work, ms)) {
    this.show = show;
    this.now = now;
    this.later = later;
    this.clear();
  }

  clear() {
    this.current = null;
    this.waiting = null;
    this.shownAt = -Infinity;
    this.changedAt = -Infinity;
  }

  /** A part came with its image; it is shown now or later. One that comes again has its image now: it stays as long as before. */
  put(part) {
    if (part.id === this.current?.id) {
      this.current = part;
      this.show(part);
      return;
    }
    this.waiting = part;
    this.look();
  }

  /** Milliseconds until the part that waits may be shown. */
  wait() {
    if (!this.current) return 0;
    const now = this.now();
    const hold = this.current.evaluation === 1 ? 0 : this.shownAt + HOLD_MS - now;
    const change = this.waiting.evaluation === this.current.evaluation ? 0 : this.changedAt + CHANGE_MS - now;
    return Math.max(0, hold, change);
  }

  look() {
    if (!this.waiting) return;
    const wait = this.wait();
    if (wait > 0) {
      this.later(() => this.look(), wait);
      return;
    }
    const part = this.waiting;
    this.waiting = null;
    if (this.current?.evaluation !== part.evaluation) this.changedAt = this.now();
    this.shownAt = this.now();
    this.current = part;
    this.show(part);
  }
}
