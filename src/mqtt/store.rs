//! Records on disk: one redb file in the state folder, with a table for each class. Damaged, it is moved aside and a new one
//! begun.
//!
//! redb has checksums on its pages and looks at them when it opens a file, if asked to; not when it reads one later. So each
//! record has a checksum of its own.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use redb::{Builder, Database, ReadableDatabase, ReadableTable, Table, TableDefinition, TableHandle};

use crate::base::clock::Utc;
use crate::base::error::{Context, Error, Kind, Result};
use crate::mqtt::outbox::{Class, Lane, Record, Spilled, Why};

/// Number → a packed record; a table for each class.
const TABLES: [TableDefinition<u64, &[u8]>; 2] = [TableDefinition::new("events"), TableDefinition::new("detections")];

/// As it was at first: number → when it was put there (milliseconds since 1970), topic, payload.
const OLD: TableDefinition<u64, (i64, &str, &[u8])> = TableDefinition::new("records");

/// What is known of the file itself.
const ABOUT: TableDefinition<&str, u128> = TableDefinition::new("about");

/// In `ABOUT`: what tells this file from any other.
const ID: &str = "id";

/// Of a packed record: checksum (4), when it was put there (8), length of the topic (2); topic and payload follow.
const PREFIX: usize = 14;

/// What is counted where nobody can tell whose it was.
const NOBODY: &str = "-/unknown/-";

/// The file's name in the state folder.
pub const FILE: &str = "outbox.redb";

/// redb's page cache; a gibibyte by default.
const CACHE: usize = 4 << 20;

/// Records that are read back at once.
const LOAD_RECORDS: usize = 256;
const LOAD_BYTES: usize = 1 << 20;

/// Records of the old kind that are rewritten at once.
const REWRITE: usize = 4096;

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

/// What one transaction saves and deletes of a class.
#[derive(Default)]
pub struct Batch {
    /// To save.
    pub records: Vec<Record>,
    /// To delete, by number.
    pub deletes: Vec<u64>,
}

/// What was read back.
pub struct Loaded {
    /// The oldest first.
    pub records: Vec<Record>,
    /// Numbers of records that did not come back as they were put there.
    pub damaged: Vec<u64>,
    /// What is left to read.
    pub left: Option<Spilled>,
}

/// The open file.
pub struct Store {
    path: PathBuf,
    database: Database,
    id: u128,
    tables: [Held; 2],
}

/// What a table holds, and how it is numbered: a record's number on disk and this make its number in memory, so that what a
/// start finds is older than whatever it has in memory by then.
#[derive(Clone, Copy, Default)]
struct Held {
    found: Option<Spilled>,
    records: usize,
    bytes: usize,
    shift: u64,
}

impl Held {
    fn on_disk(&self, number: u64) -> u64 {
        number.wrapping_sub(self.shift)
    }

    fn in_memory(&self, number: u64) -> u64 {
        number.wrapping_add(self.shift)
    }
}

impl Store {
    /// Opens or makes the file in `folder`.
    ///
    /// # Errors
    /// When the folder or the file cannot be used: no right to, no room, or another process has it. One that is damaged is
    /// no error: it is moved aside, with a line in the log.
    pub fn open(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).context(Kind::Io, || format!("{} cannot be made", folder.display()))?;
        let path = folder.join(FILE);
        let damage = match attempt(&path) {
            Ok(store) => return Ok(store),
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

    /// What tells this file from any other, also after a new start.
    pub fn id(&self) -> u128 {
        self.id
    }

    /// Numbers what was found of a class up to `floor`, and says what it is; later records are numbered from behind it.
    pub fn place(&mut self, class: Class, floor: u64) -> Option<Spilled> {
        let held = &mut self.tables[class as usize];
        held.shift = floor.wrapping_sub(held.found.map_or(0, |found| found.last));
        let found = held.found?;
        Some(Spilled { first: held.in_memory(found.first), last: floor, ..found })
    }

    /// How each class is numbered.
    pub fn shifts(&self) -> [u64; 2] {
        self.tables.map(|held| held.shift)
    }

    /// Numbers each class as it was before, while the same file was open.
    pub fn replace(&mut self, shifts: [u64; 2]) {
        self.tables.iter_mut().zip(shifts).for_each(|(held, shift)| held.shift = shift);
    }

    /// Saves and deletes in one transaction that is on disk when this returns, and keeps within `bounds`: of each class the
    /// oldest go first, and are counted. Returns the newest number of each that went so.
    ///
    /// # Errors
    /// When the disk does not take it; nothing of it is then saved.
    pub fn commit(&mut self, batches: [&Batch; 2], bounds: [Bounds; 2], now: Utc, lanes: Lanes<'_>) -> Result<[Option<u64>; 2]> {
        let name = self.path.display().to_string();
        guarded(&name, || {
            let write = self.database.begin_write()?;
            let mut tables = self.tables;
            let mut pruned = HashMap::new();
            let mut newest = [None; 2];
            for (class, held) in tables.iter_mut().enumerate() {
                let mut table = write.open_table(TABLES[class])?;
                save(&mut table, held, batches[class])?;
                newest[class] = prune(&mut table, held, bounds[class], now, &mut pruned)?;
            }
            write.commit()?;
            self.tables = tables;
            for ((topic, why), count) in pruned {
                let lane = lanes(&topic);
                (0..count).for_each(|_| lane.drop_one(why));
            }
            Ok(newest)
        })
    }

    /// Reads the oldest of `wanted` back, some at a time.
    ///
    /// # Errors
    /// When the disk does not give them.
    pub fn load(&self, class: Class, wanted: Spilled, lanes: Lanes<'_>) -> Result<Loaded> {
        let held = &self.tables[class as usize];
        guarded(&self.path.display().to_string(), || {
            let read = self.database.begin_read()?;
            let table = read.open_table(TABLES[class as usize])?;
            let mut loaded = Loaded { records: Vec::new(), damaged: Vec::new(), left: None };
            let (mut count, mut bytes) = (0, 0);
            for entry in table.range(held.on_disk(wanted.first)..=held.on_disk(wanted.last))? {
                let (key, value) = entry?;
                let number = held.in_memory(key.value());
                if count == LOAD_RECORDS || bytes >= LOAD_BYTES {
                    let (records, bytes) = (wanted.records.saturating_sub(count), wanted.bytes.saturating_sub(bytes));
                    loaded.left = Some(Spilled { first: number, last: wanted.last, records, bytes });
                    break;
                }
                count += 1;
                bytes += size(value.value());
                match unpack(key.value(), value.value()) {
                    Some((at, topic, payload)) => loaded.records.push(Record::kept(number, at, lanes(topic), payload.into())),
                    None => {
                        lanes(NOBODY).drop_one(Why::Damaged);
                        loaded.damaged.push(number);
                    }
                }
            }
            Ok(loaded)
        })
    }

    /// Lets go of a file that failed, whatever the library thinks of it.
    pub fn abandon(self) {
        catch_unwind(AssertUnwindSafe(|| drop(self))).ok();
    }
}

fn save(table: &mut Table<'_, u64, &'static [u8]>, held: &mut Held, batch: &Batch) -> Result<(), redb::Error> {
    for record in &batch.records {
        let number = held.on_disk(record.number);
        let packed = pack(number, record.at, &record.lane.topic, &record.payload);
        // It may be there already, where an earlier transaction seemed to fail.
        let before = table.insert(number, packed.as_slice())?.map(|before| size(before.value()));
        held.records += usize::from(before.is_none());
        held.bytes = (held.bytes + size(&packed)).saturating_sub(before.unwrap_or(0));
    }
    for number in &batch.deletes {
        if let Some(value) = table.remove(held.on_disk(*number))? {
            held.records = held.records.saturating_sub(1);
            held.bytes = held.bytes.saturating_sub(size(value.value()));
        }
    }
    Ok(())
}

/// Deletes the oldest until the table is within its bounds; counts them by topic. Returns the newest number that went.
fn prune(
    table: &mut Table<'_, u64, &'static [u8]>,
    held: &mut Held,
    bounds: Bounds,
    now: Utc,
    pruned: &mut HashMap<(Arc<str>, Why), usize>,
) -> Result<Option<u64>, redb::Error> {
    let oldest = now.millis() - i64::try_from(bounds.age.as_millis()).unwrap_or(i64::MAX);
    let mut newest = None;
    loop {
        let full = held.records > bounds.records || held.bytes > bounds.bytes;
        let Some((number, size, topic, why)) = table.first()?.and_then(|(key, value)| {
            let (topic, why) = match unpack(key.value(), value.value()) {
                None => (NOBODY, Why::Damaged),
                Some((_, topic, _)) if full => (topic, Why::Full),
                Some((at, topic, _)) if at.millis() < oldest => (topic, Why::Old),
                Some(_) => return None,
            };
            Some((key.value(), size(value.value()), Arc::from(topic), why))
        }) else {
            return Ok(newest);
        };
        table.remove(number)?;
        held.records = held.records.saturating_sub(1);
        held.bytes = held.bytes.saturating_sub(size);
        *pruned.entry((topic, why)).or_default() += 1;
        newest = Some(held.in_memory(number));
    }
}

fn pack(number: u64, at: Utc, topic: &str, payload: &[u8]) -> Vec<u8> {
    // A topic is no longer than the protocol allows, which is what two bytes hold.
    let length = u16::try_from(topic.len()).unwrap_or(u16::MAX);
    let topic = &topic.as_bytes()[..usize::from(length)];
    let mut packed = [&[0; 4][..], &at.millis().to_le_bytes(), &length.to_le_bytes(), topic, payload].concat();
    let sum = checksum(number, &packed);
    packed[..4].copy_from_slice(&sum.to_le_bytes());
    packed
}

/// When it was put there, topic and payload; `None`: it is not as it was put there.
fn unpack(number: u64, packed: &[u8]) -> Option<(Utc, &str, &[u8])> {
    let (sum, rest) = packed.split_first_chunk::<4>()?;
    if checksum(number, packed) != u32::from_le_bytes(*sum) {
        return None;
    }
    let (at, rest) = rest.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<2>()?;
    let (topic, payload) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
    Some((Utc::from_millis(i64::from_le_bytes(*at)), std::str::from_utf8(topic).ok()?, payload))
}

fn checksum(number: u64, packed: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&number.to_le_bytes());
    hasher.update(packed.get(4..).unwrap_or_default());
    hasher.finalize()
}

/// Bytes of topic and payload.
fn size(packed: &[u8]) -> usize {
    packed.len().saturating_sub(PREFIX)
}

enum Failure {
    Unusable(Error),
    Damaged(String),
}

fn attempt(path: &Path) -> Result<Store, Failure> {
    // A file cut short in the middle of a page may make the library panic.
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let mut builder = Builder::new();
        builder.set_cache_size(CACHE).set_check_integrity_on_open(true);
        let database = builder.create(path).map_err(|error| sort(path, error.into()))?;
        let (id, tables) = survey(&database).map_err(|error| sort(path, error))?;
        Ok(Store { path: path.to_owned(), database, id, tables })
    }));
    let store = opened.unwrap_or_else(|_| Err(Failure::Damaged("the library gave it up".to_owned())))?;
    tracing::debug!("{} holds {} events and {} detections", path.display(), store.tables[0].records, store.tables[1].records);
    Ok(store)
}

/// What a file is and holds; makes what it lacks.
fn survey(database: &Database) -> Result<(u128, [Held; 2]), redb::Error> {
    let names: Vec<String> = database.begin_read()?.list_tables()?.map(|table| table.name().to_owned()).collect();
    if names.iter().any(|name| name == OLD.name()) {
        while rewrite(database)? {}
    }
    if !names.iter().any(|name| name == ABOUT.name()) {
        let write = database.begin_write()?;
        write.open_table(ABOUT)?.insert(ID, uuid::Uuid::new_v4().as_u128())?;
        for table in TABLES {
            write.open_table(table)?;
        }
        write.commit()?;
    }
    let read = database.begin_read()?;
    let id = read.open_table(ABOUT)?.get(ID)?.map_or(0, |id| id.value());
    let mut tables = [Held::default(); 2];
    for (held, table) in tables.iter_mut().zip(TABLES) {
        let table = read.open_table(table)?;
        for entry in table.iter()? {
            let (key, value) = entry?;
            let spilled = held.found.get_or_insert(Spilled { first: key.value(), last: 0, records: 0, bytes: 0 });
            (spilled.last, spilled.records) = (key.value(), spilled.records + 1);
            spilled.bytes += size(value.value());
        }
        (held.records, held.bytes) = held.found.map_or((0, 0), |found| (found.records, found.bytes));
    }
    Ok((id, tables))
}

/// Rewrites some of the records of the old kind, the oldest first; `false`: that was the last of them.
fn rewrite(database: &Database) -> Result<bool, redb::Error> {
    let write = database.begin_write()?;
    let mut rewritten = 0;
    {
        let mut old = write.open_table(OLD)?;
        let mut new = [write.open_table(TABLES[0])?, write.open_table(TABLES[1])?];
        while rewritten < REWRITE {
            let Some((number, value)) = old.pop_first()? else { break };
            let ((at, topic, payload), number) = (value.value(), number.value());
            let packed = pack(number, Utc::from_millis(at), topic, payload);
            new[Class::of(topic) as usize].insert(number, packed.as_slice())?;
            rewritten += 1;
        }
    }
    if rewritten == 0 {
        write.delete_table(OLD)?;
    }
    write.commit()?;
    Ok(rewritten > 0)
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
        redb::Error::PreviousIo => unusable("cannot be used: the disk failed while it was opened".to_owned()),
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
mod tests;
