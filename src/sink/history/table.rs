//! The table of objects, from the side of its one writer.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, Row, params};

use crate::base::clock::Utc;
use crate::sink::history::Entry;
use crate::types::Box01;

/// The version of the table, in the file's `user_version`.
const VERSION: i64 = 1;

/// For another one who writes, such as a person with a shell.
const BUSY: Duration = Duration::from_secs(2);

/// Rows that are removed in one transaction.
const CHUNK: usize = 1000;

const CREATE: &str = "
    CREATE TABLE objects (
        track_id TEXT PRIMARY KEY,
        camera TEXT NOT NULL,
        label TEXT NOT NULL,
        start_ms INTEGER NOT NULL,
        seen_ms INTEGER NOT NULL,
        ended INTEGER NOT NULL,
        score REAL NOT NULL,
        top_score REAL NOT NULL,
        zones TEXT NOT NULL,
        stationary INTEGER NOT NULL,
        y_min REAL NOT NULL, x_min REAL NOT NULL, y_max REAL NOT NULL, x_max REAL NOT NULL,
        reason TEXT NOT NULL,
        snapshot TEXT,
        clip TEXT
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX by_time ON objects (start_ms, track_id);
    CREATE INDEX by_camera ON objects (camera, start_ms, track_id);
    CREATE INDEX open ON objects (ended) WHERE ended = 0;
    PRAGMA user_version = 1;
";

const UPSERT: &str = "
    INSERT INTO objects VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)
    ON CONFLICT (track_id) DO UPDATE SET
        seen_ms = excluded.seen_ms, ended = excluded.ended, score = excluded.score, top_score = excluded.top_score,
        zones = excluded.zones, stationary = excluded.stationary, y_min = excluded.y_min, x_min = excluded.x_min,
        y_max = excluded.y_max, x_max = excluded.x_max, reason = excluded.reason,
        snapshot = COALESCE(excluded.snapshot, snapshot), clip = COALESCE(clip, excluded.clip)
";

/// The columns in the order of `entry`.
pub const COLUMNS: &str = "track_id, camera, label, start_ms, seen_ms, ended, score, top_score, zones, stationary, y_min, x_min, y_max, x_max, reason, snapshot, clip";

/// Why something was not done.
#[derive(Debug)]
pub enum Fault {
    /// The file is none of SQLite's, or broken.
    Damaged(String),
    /// Anything else: it may go later.
    Other(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged(why) | Self::Other(why) => f.write_str(why),
        }
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damaged(error.to_string()),
            _ => Self::Other(error.to_string()),
        }
    }
}

/// An open file.
pub struct Table(Connection);

impl Table {
    /// Opens the file, which is made where there is none, and looks whether it is whole.
    ///
    /// # Errors
    /// When it cannot be made or read, is damaged, or is of a newer version.
    pub fn open(file: &Path) -> Result<Self, Fault> {
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder).map_err(|error| Fault::Other(error.to_string()))?;
        }
        let db = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
        db.busy_timeout(BUSY)?;
        let whole: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if whole != "ok" {
            return Err(Fault::Damaged(whole));
        }
        let version: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if version > VERSION {
            return Err(Fault::Other(format!("it is of version {version}, and this palisade knows {VERSION}")));
        }
        if version == 0 {
            // Before the first table: later it would take a copy of the whole file.
            db.execute_batch("PRAGMA auto_vacuum = INCREMENTAL")?;
            db.execute_batch(&format!("BEGIN IMMEDIATE; {CREATE} COMMIT;"))?;
        }
        let _mode: String = db.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
        // What was committed outlives the process; a power cut may cost the last seconds, and never the file.
        db.execute_batch("PRAGMA synchronous = NORMAL; PRAGMA journal_size_limit = 4194304")?;
        Ok(Self(db))
    }

    /// What was there when an earlier run ended is gone since it was last seen.
    pub fn close_all(&mut self) -> Result<(), Fault> {
        self.0.execute("UPDATE objects SET ended = 1 WHERE ended = 0", [])?;
        Ok(())
    }

    /// Writes rows, all or none.
    pub fn write(&mut self, entries: &[&Entry]) -> Result<(), Fault> {
        let transaction = self.0.transaction()?;
        {
            let mut row = transaction.prepare(UPSERT)?;
            for entry in entries {
                let Box01 { y_min, x_min, y_max, x_max } = entry.box01;
                let zones = serde_json::to_string(&entry.zones).unwrap_or_default();
                row.execute(params![
                    entry.track_id,
                    entry.camera,
                    entry.label,
                    entry.start.millis(),
                    entry.seen.millis(),
                    entry.ended,
                    entry.score,
                    entry.top_score,
                    zones,
                    entry.stationary,
                    y_min,
                    x_min,
                    y_max,
                    x_max,
                    entry.reason,
                    entry.snapshot,
                    entry.clip,
                ])?;
            }
        }
        Ok(transaction.commit()?)
    }

    /// Removes the rows of objects that are gone and began before a moment; returns how many they were.
    pub fn remove_before(&mut self, time: Utc) -> Result<u64, Fault> {
        let mut removed = 0;
        loop {
            let old = "SELECT track_id FROM objects WHERE start_ms < ?1 AND ended = 1 ORDER BY start_ms LIMIT ?2";
            let chunk = self.0.execute(&format!("DELETE FROM objects WHERE track_id IN ({old})"), params![time.millis(), CHUNK as i64])?;
            removed += chunk as u64;
            if chunk < CHUNK {
                break;
            }
        }
        if removed > 0 {
            // A page a step.
            let mut vacuum = self.0.prepare("PRAGMA incremental_vacuum")?;
            let mut pages = vacuum.query([])?;
            while pages.next()?.is_some() {}
        }
        Ok(removed)
    }
}

/// A row of `COLUMNS`.
pub fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    let zones: String = row.get(8)?;
    Ok(Entry {
        track_id: row.get(0)?,
        camera: row.get(1)?,
        label: row.get(2)?,
        start: Utc::from_millis(row.get(3)?),
        seen: Utc::from_millis(row.get(4)?),
        ended: row.get(5)?,
        score: row.get(6)?,
        top_score: row.get(7)?,
        zones: serde_json::from_str(&zones).unwrap_or_default(),
        stationary: row.get(9)?,
        box01: Box01 { y_min: row.get(10)?, x_min: row.get(11)?, y_max: row.get(12)?, x_max: row.get(13)? },
        reason: row.get(14)?,
        snapshot: row.get(15)?,
        clip: row.get(16)?,
    })
}
