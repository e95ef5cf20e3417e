//! Looks back: a connection that only reads, made anew where the file is another one.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, ToSql};

use crate::base::clock::Utc;
use crate::base::error::{Context, Kind, Result};
use crate::sink::history::Entry;
use crate::sink::history::table::{COLUMNS, entry};

/// For the writer, who is never long.
const BUSY: Duration = Duration::from_secs(2);

/// What is looked for; what is `None` or empty is not asked about.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Query {
    /// On which camera.
    pub camera: Option<String>,
    /// As the model wrote it.
    pub label: Option<String>,
    /// A zone that it has been in.
    pub zone: Option<String>,
    /// First seen at this moment or later.
    pub after: Option<Utc>,
    /// First seen before this moment.
    pub before: Option<Utc>,
    /// Only those that come behind this one: when it was first seen, and its id.
    pub behind: Option<(Utc, String)>,
    /// So many at most.
    pub limit: usize,
}

/// Objects, the newest first.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// The objects.
    pub entries: Vec<Entry>,
    /// Whether there are more behind them.
    pub more: bool,
}

/// Reads the file.
pub struct Reader {
    file: PathBuf,
    file_number: Arc<AtomicU64>,
    open: Option<(u64, Connection)>,
}

impl Reader {
    /// Of a file; whenever the number is another one, so is the file.
    pub(super) fn new(file: PathBuf, file_number: Arc<AtomicU64>) -> Self {
        Self { file, file_number, open: None }
    }

    /// Those that are looked for.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn find(&mut self, query: &Query) -> Result<Page> {
        let found = self.with(|db| find(db, query));
        Ok(found?.unwrap_or(Page { entries: Vec::new(), more: false }))
    }

    /// One object.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn get(&mut self, track_id: &str) -> Result<Option<Entry>> {
        let sql = format!("SELECT {COLUMNS} FROM objects WHERE track_id = ?1");
        self.with(|db| db.query_row(&sql, [track_id], entry).optional()).map(Option::flatten)
    }

    /// `None` where there is no file yet.
    fn with<T>(&mut self, ask: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<Option<T>> {
        let number = self.file_number.load(Ordering::Acquire);
        let failed = || format!("events.database {} cannot be read", self.file.display());
        let db = match self.open.take() {
            Some((of, db)) if of == number => db,
            _ if !self.file.exists() => return Ok(None),
            _ => {
                let db = Connection::open_with_flags(&self.file, OpenFlags::SQLITE_OPEN_READ_ONLY).context(Kind::Io, failed)?;
                db.busy_timeout(BUSY).context(Kind::Io, failed)?;
                db
            }
        };
        let answer = ask(&db).context(Kind::Io, failed)?;
        // One that failed is not used again.
        self.open = Some((number, db));
        Ok(Some(answer))
    }
}

/// A statement that grows; what is asked stands in parameters, never in the text.
struct Statement<'v> {
    sql: String,
    values: Vec<&'v dyn ToSql>,
}

impl<'v> Statement<'v> {
    fn add<T: ToSql>(&mut self, sql: &str, value: Option<&'v T>) {
        if let Some(value) = value {
            self.sql.push_str(sql);
            self.values.push(value);
        }
    }
}

fn find(db: &Connection, query: &Query) -> rusqlite::Result<Page> {
    let Query { camera, label, zone, after, before, behind, limit } = query;
    let [after, before, at] = [*after, *before, behind.as_ref().map(|(time, _)| *time)].map(|time| time.map(Utc::millis));
    let most = *limit as i64 + 1;
    let mut asked = Statement { sql: format!("SELECT {COLUMNS} FROM objects WHERE 1"), values: Vec::new() };
    asked.add(" AND camera = ?", camera.as_ref());
    asked.add(" AND label = ?", label.as_ref());
    asked.add(" AND EXISTS (SELECT 1 FROM json_each(objects.zones) WHERE json_each.value = ?)", zone.as_ref());
    asked.add(" AND start_ms >= ?", after.as_ref());
    asked.add(" AND start_ms < ?", before.as_ref());
    asked.add(" AND (start_ms, track_id) < (?", at.as_ref());
    asked.add(", ?)", behind.as_ref().map(|(_, id)| id));
    asked.add(" ORDER BY start_ms DESC, track_id DESC LIMIT ?", Some(&most));
    let mut statement = db.prepare(&asked.sql)?;
    let mut entries = statement.query_map(asked.values.as_slice(), entry)?.collect::<rusqlite::Result<Vec<Entry>>>()?;
    let more = entries.len() > *limit;
    entries.truncate(*limit);
    Ok(Page { entries, more })
}
