"""The tables of ``results.sqlite``. Other programs may read them; docs/matrices.md says what is in them."""

from __future__ import annotations

from typing import Final

FORMAT: Final = 1
"""The file's ``user_version``. A file of another one is neither read nor written."""

APPLICATION: Final = 0x5553444D
"""Its ``application_id``, which says that it is ours: ``USDM``."""

TABLES: Final = """
CREATE TABLE facts (
    name TEXT PRIMARY KEY,                -- title, matrix, axes, not_run, known, day, notes, comparison
    value TEXT NOT NULL                   -- JSON
);
CREATE TABLE sessions (                   -- one for each start of the program
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    started TEXT NOT NULL,                -- ISO 8601, UTC
    argv TEXT NOT NULL,                   -- JSON
    host TEXT NOT NULL,                   -- JSON
    executor TEXT NOT NULL,
    jobs INTEGER NOT NULL,
    seconds REAL NOT NULL DEFAULT 0,      -- by a clock that does not jump; as of the last result
    ended TEXT NOT NULL DEFAULT '',       -- done, interrupted or failed; empty: killed, or it still runs
    notes TEXT NOT NULL DEFAULT '[]'      -- JSON
);
CREATE TABLE planned (                    -- the cells of the matrix as it was at the last start
    position INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    scenario TEXT NOT NULL,
    point TEXT NOT NULL,                  -- JSON: the axes that the matrix names
    labels TEXT NOT NULL,                 -- JSON: every axis
    fingerprint TEXT NOT NULL,
    note TEXT NOT NULL
);
CREATE TABLE results (                    -- one row for each attempt; never changed
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    session INTEGER NOT NULL REFERENCES sessions (number),
    name TEXT NOT NULL,
    attempt INTEGER NOT NULL,             -- from 1
    scenario TEXT NOT NULL,
    qemu TEXT, kernel TEXT, viommu TEXT, cmdline TEXT, implementation TEXT, model TEXT, hugepages TEXT, vcpus TEXT,
    outcome TEXT NOT NULL,
    failure_class TEXT,
    message TEXT NOT NULL,
    seconds REAL NOT NULL,
    steps_seconds REAL,
    start TEXT NOT NULL,
    folder TEXT NOT NULL,                 -- below the qualification's folder
    fingerprint TEXT NOT NULL,
    made_of TEXT NOT NULL,                -- JSON: the fingerprint's parts
    harness TEXT, qemu_version TEXT, qemu_build TEXT, kernel_release TEXT, image_key TEXT, payload TEXT, template TEXT,
    accelerator TEXT, oracle TEXT,
    result BLOB NOT NULL                  -- the whole CellResult: JSON, compressed by zlib
);
CREATE INDEX results_by_name ON results (name, number);
"""
