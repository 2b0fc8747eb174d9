"""Tables of the records, and the steps from each version to the next."""

from __future__ import annotations

SCHEMA_VERSION = 2
SCHEMA = """
CREATE TABLE parts (
  id INTEGER PRIMARY KEY,
  time_utc TEXT NOT NULL,
  sequence INTEGER NOT NULL,
  part TEXT NOT NULL,
  recipe INTEGER NOT NULL,
  evaluation INTEGER NOT NULL,
  reason TEXT NOT NULL,
  latency_ms REAL,
  bank_version INTEGER,
  score REAL,
  threshold REAL,
  simulated INTEGER NOT NULL DEFAULT 0,
  recipe_digest TEXT NOT NULL DEFAULT '',
  alarms TEXT NOT NULL DEFAULT '[]',
  cameras TEXT NOT NULL DEFAULT '{}',
  late TEXT,
  archived TEXT,
  delivery INTEGER UNIQUE
);
CREATE INDEX parts_time ON parts (time_utc);
CREATE TABLE events (id INTEGER PRIMARY KEY, time_utc TEXT NOT NULL, code TEXT NOT NULL, text TEXT NOT NULL);
CREATE TABLE audit (
  id INTEGER PRIMARY KEY,
  time_utc TEXT NOT NULL,
  who TEXT NOT NULL,
  what TEXT NOT NULL,
  old TEXT NOT NULL,
  new TEXT NOT NULL,
  previous TEXT NOT NULL,
  hash TEXT NOT NULL
);
CREATE TABLE cursors (sink TEXT PRIMARY KEY, delivery INTEGER NOT NULL);
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
MIGRATIONS = {
    2: """
CREATE TABLE reviews (
  id INTEGER PRIMARY KEY,
  part INTEGER NOT NULL,
  who TEXT NOT NULL,
  was_good INTEGER NOT NULL,
  time_utc TEXT NOT NULL,
  note TEXT NOT NULL DEFAULT ''
);
CREATE INDEX reviews_part ON reviews (part);
CREATE INDEX events_time ON events (time_utc);
""",
}
"""Version → statements that make it from the version before. A new database runs the first schema and all of them."""
