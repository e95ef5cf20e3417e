//! Records on disk: one redb file in the state folder. Damaged, it is moved aside and a new one begun.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use redb::{Builder, Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::base::clock::Utc;
use crate::base::error::{Context, Error, Kind, Result};
use crate::mqtt::outbox::{Lane, Record, Spilled, Why};

/// Number → when it was put there (milliseconds since 1970), topic, payload.
const RECORDS: TableDefinition<u64, (i64, &str, &[u8])> = TableDefinition::new("records");

/// The file's name in the state folder.
pub const FILE: &str = "outbox.redb";

/// redb's page cache; a gibibyte by default.
const CACHE: usize = 4 << 20;

/// Records that are read back at once.
const LOAD_RECORDS: usize = 256;
const LOAD_BYTES: usize = 1 << 20;

/// How much may wait on disk.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Records.
    pub records: usize,
    /// Bytes of topics and payloads.
    pub bytes: usize,
    /// None older than this.
    pub age: Duration,
}

/// Finds the lane of a topic.
pub type Lanes<'l> = &'l dyn Fn(&str) -> Arc<Lane>;

/// The open file.
pub struct Store {
    path: PathBuf,
    database: Database,
    /// What it holds.
    records: usize,
    bytes: usize,
}

impl Store {
    /// Opens or makes the file in `folder`, and says what it holds.
    ///
    /// # Errors
    /// When the folder or the file cannot be used: no right to, no room, or another process has it. One that is damaged is
    /// no error: it is moved aside, with a line in the log.
    pub fn open(folder: &Path) -> Result<(Self, Option<Spilled>)> {
        std::fs::create_dir_all(folder).context(Kind::Io, || format!("{} cannot be made", folder.display()))?;
        let path = folder.join(FILE);
        let damage = match attempt(&path) {
            Ok(opened) => return Ok(opened),
            Err(Failure::Unusable(error)) => return Err(error),
            Err(Failure::Damaged(damage)) => damage,
        };
        let aside = folder.join(format!("{FILE}.damaged-{}", Utc::now().compact()));
        std::fs::rename(&path, &aside).context(Kind::Io, || format!("{} is damaged and cannot be moved aside", path.display()))?;
        tracing::error!("{} is damaged ({damage}); it is kept as {}, and a new one is begun", path.display(), aside.display());
        attempt(&path).map_err(|failure| match failure {
            Failure::Unusable(error) => error,
            Failure::Damaged(damage) => Error::new(Kind::Io, format!("{} cannot be made: {damage}", path.display())),
        })
    }

    /// Saves and deletes in one transaction that is on disk when this returns, and keeps within `bounds`: the oldest go
    /// first, and are counted. Returns the newest number that went so.
    ///
    /// # Errors
    /// When the disk does not take it; nothing of it is then saved.
    pub fn commit(&mut self, records: &[Record], deletes: &[u64], bounds: Bounds, now: Utc, lanes: Lanes<'_>) -> Result<Option<u64>> {
        let name = self.path.display().to_string();
        guarded(&name, || {
            let write = self.database.begin_write()?;
            let (mut count, mut bytes) = (self.records, self.bytes);
            let mut pruned: HashMap<Arc<str>, [usize; 2]> = HashMap::new();
            let mut newest = None;
            {
                let mut table = write.open_table(RECORDS)?;
                for record in records {
                    // It may be there already, where an earlier transaction seemed to fail.
                    let before = table.insert(record.number, (record.at.millis(), record.lane.topic.as_str(), &*record.payload))?;
                    (count, bytes) = (count + usize::from(before.is_none()), bytes + record.lane.topic.len() + record.payload.len());
                    bytes -= before.map_or(0, |before| size(before.value()));
                }
                for number in deletes {
                    if let Some(value) = table.remove(number)? {
                        (count, bytes) = (count - 1, bytes.saturating_sub(size(value.value())));
                    }
                }
                let oldest = now.millis() - i64::try_from(bounds.age.as_millis()).unwrap_or(i64::MAX);
                loop {
                    let Some((number, at, topic, size)) = table.first()?.map(|(key, value)| {
                        let (at, topic, _) = value.value();
                        (key.value(), at, Arc::<str>::from(topic), size(value.value()))
                    }) else {
                        break;
                    };
                    let full = count > bounds.records || bytes > bounds.bytes;
                    if !full && at >= oldest {
                        break;
                    }
                    table.remove(number)?;
                    (count, bytes) = (count - 1, bytes.saturating_sub(size));
                    pruned.entry(topic).or_default()[usize::from(!full)] += 1;
                    newest = Some(number);
                }
            }
            write.commit()?;
            (self.records, self.bytes) = (count, bytes);
            for (topic, [full, old]) in pruned {
                let lane = lanes(&topic);
                (0..full).for_each(|_| lane.drop_one(Why::Full));
                (0..old).for_each(|_| lane.drop_one(Why::Old));
            }
            Ok(newest)
        })
    }

    /// Reads the oldest of `wanted` back, some at a time; with them comes what is left.
    ///
    /// # Errors
    /// When the disk does not give them.
    pub fn load(&self, wanted: Spilled, lanes: Lanes<'_>) -> Result<(Vec<Record>, Option<Spilled>)> {
        guarded(&self.path.display().to_string(), || {
            let read = self.database.begin_read()?;
            let table = read.open_table(RECORDS)?;
            let (mut records, mut bytes) = (Vec::new(), 0);
            let mut left = None;
            for entry in table.range(wanted.first..=wanted.last)? {
                let (key, value) = entry?;
                if records.len() == LOAD_RECORDS || bytes >= LOAD_BYTES {
                    let (records, bytes) = (wanted.records.saturating_sub(records.len()), wanted.bytes.saturating_sub(bytes));
                    left = Some(Spilled { first: key.value(), last: wanted.last, records, bytes });
                    break;
                }
                let (at, topic, payload) = value.value();
                bytes += size(value.value());
                records.push(Record::kept(key.value(), Utc::from_millis(at), lanes(topic), payload.into()));
            }
            Ok((records, left))
        })
    }
}

fn size((_, topic, payload): (i64, &str, &[u8])) -> usize {
    topic.len() + payload.len()
}

enum Failure {
    Unusable(Error),
    Damaged(String),
}

fn attempt(path: &Path) -> Result<(Store, Option<Spilled>), Failure> {
    let name = path.display();
    // A file cut short in the middle of a page may make the library panic.
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let database = Builder::new().set_cache_size(CACHE).create(path).map_err(|error| sort(path, error.into()))?;
        let found = survey(&database).map_err(|error| sort(path, error))?;
        Ok((database, found))
    }));
    let (database, found) = opened.unwrap_or_else(|_| Err(Failure::Damaged("the library gave it up".to_owned())))?;
    let (records, bytes) = found.map_or((0, 0), |found| (found.records, found.bytes));
    tracing::debug!("{name} holds {records} records");
    Ok((Store { path: path.to_owned(), database, records, bytes }, found))
}

/// What a file holds; makes the table.
fn survey(database: &Database) -> Result<Option<Spilled>, redb::Error> {
    let write = database.begin_write()?;
    let mut found: Option<Spilled> = None;
    {
        let table = write.open_table(RECORDS)?;
        for entry in table.iter()? {
            let (key, value) = entry?;
            let spilled = found.get_or_insert(Spilled { first: key.value(), last: 0, records: 0, bytes: 0 });
            (spilled.last, spilled.records) = (key.value(), spilled.records + 1);
            spilled.bytes += size(value.value());
        }
    }
    write.commit()?;
    Ok(found)
}

/// Whether it is the file's fault, or the disk's.
fn sort(path: &Path, error: redb::Error) -> Failure {
    let name = path.display();
    let unusable = |why: String| Failure::Unusable(Error::new(Kind::Io, format!("{name} {why}")));
    match &error {
        redb::Error::DatabaseAlreadyOpen => unusable("is in use by another process; two daemons take two state folders".to_owned()),
        redb::Error::Io(cause) if !matches!(cause.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof | ErrorKind::InvalidInput) => {
            unusable(format!("cannot be used: {cause}"))
        }
        _ => Failure::Damaged(error.to_string()),
    }
}

/// Runs `work`; what the library complains of, or panics about, is an error with the file's name.
fn guarded<T>(name: &str, work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.context(Kind::Io, || format!("{name} cannot be used")),
        Err(_) => Err(Error::new(Kind::Io, format!("{name} cannot be used: the library gave it up"))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;
    use crate::base::metrics::Metrics;

    const BOUNDS: Bounds = Bounds { records: 100, bytes: 1 << 20, age: Duration::from_secs(3600) };

    fn lane(topic: &str) -> Arc<Lane> {
        Arc::new(Lane::new(topic.to_owned(), "a", &Metrics::new()))
    }

    fn record(number: u64, at: i64, lane: &Arc<Lane>) -> Record {
        Record::kept(number, Utc::from_millis(at), lane.clone(), number.to_string().into_bytes().into())
    }

    #[test]
    fn what_is_committed_is_there_after_a_new_start() {
        let folder = tempfile::tempdir().unwrap();
        let (lane, now) = (lane("P/a/detections"), Utc::now());
        let (mut store, found) = Store::open(folder.path()).unwrap();
        assert_eq!(found, None);
        let records: Vec<Record> = (1..=600).map(|number| record(number, now.millis(), &lane)).collect();
        let bounds = Bounds { records: 1000, ..BOUNDS };
        assert_eq!(store.commit(&records, &[], bounds, now, &|_| lane.clone()).unwrap(), None);
        store.commit(&[], &[1, 3], bounds, now, &|_| lane.clone()).unwrap();
        assert!(Store::open(folder.path()).err().unwrap().chain().contains("in use by another process"));
        drop(store);
        let (store, found) = Store::open(folder.path()).unwrap();
        let found = found.unwrap();
        assert_eq!((found.first, found.last, found.records), (2, 600, 598));
        let (mut seen, mut left) = (Vec::new(), Some(found));
        while let Some(wanted) = left {
            let (records, rest) = store.load(wanted, &|topic| super::tests::lane(topic)).unwrap();
            assert!(records.len() <= LOAD_RECORDS && records.iter().all(|record| record.lane.topic == "P/a/detections"));
            assert!(records.iter().all(|record| *record.payload == *record.number.to_string().as_bytes()));
            seen.extend(records.iter().map(|record| record.number));
            left = rest;
        }
        assert_eq!(seen, [2].into_iter().chain(4..=600).collect::<Vec<u64>>());
    }

    #[test]
    fn the_oldest_go_first_by_number_bytes_and_age_and_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let (lane, now) = (lane("t"), Utc::from_millis(10_000_000));
        let (mut store, _) = Store::open(folder.path()).unwrap();
        let records: Vec<Record> = (1..=9).map(|number| record(number, number as i64 * 1_000_000, &lane)).collect();
        let commit = |store: &mut Store, records: &[Record], bounds| store.commit(records, &[], bounds, now, &|_| lane.clone()).unwrap();
        let age = Duration::from_secs(7000);
        assert_eq!(commit(&mut store, &records, Bounds { age, ..BOUNDS }), Some(2));
        assert_eq!(commit(&mut store, &[], Bounds { records: 5, age, ..BOUNDS }), Some(4));
        assert_eq!(commit(&mut store, &[], Bounds { bytes: 6, age, ..BOUNDS }), Some(6));
        assert_eq!((store.records, store.bytes, lane.dropped.get()), (3, 6, 6));
    }

    #[test]
    fn a_folder_that_cannot_be_used_is_a_sentence() {
        let error = Store::open(Path::new("/proc/nowhere")).err().unwrap().chain();
        assert!(error.starts_with("/proc/nowhere cannot be made: "), "{error}");
    }

    /// At every cut the daemon must start, with what is left or with a new file.
    #[test]
    fn a_file_cut_short_anywhere_is_opened_or_moved_aside() {
        let folder = tempfile::tempdir().unwrap();
        let (lane, now) = (lane("t"), Utc::now());
        let (mut store, _) = Store::open(folder.path()).unwrap();
        let records: Vec<Record> = (1..=50).map(|number| record(number, now.millis(), &lane)).collect();
        store.commit(&records, &[], BOUNDS, now, &|_| lane.clone()).unwrap();
        drop(store);
        let bytes = std::fs::read(folder.path().join(FILE)).unwrap();
        let step = if std::env::var_os("PALISADE_SOAK").is_some() { 512 } else { 512 * 61 };
        let mut aside = 0;
        for length in (0..bytes.len()).step_by(step).chain([1, 511, 4095, 4097]) {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join(FILE), &bytes[..length]).unwrap();
            let (mut store, found) = Store::open(folder.path()).unwrap_or_else(|error| panic!("{length}: {}", error.chain()));
            assert!(found.is_none_or(|found| found.records <= 50), "{length}");
            store.commit(&[record(100, now.millis(), &lane)], &[], BOUNDS, now, &|_| lane.clone()).unwrap();
            aside += std::fs::read_dir(folder.path()).unwrap().count() - 1;
        }
        assert!(aside > 0, "no cut was ever noticed");
    }
}
