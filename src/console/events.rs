//! `/api/v1/events`: what was seen, its pictures and its clips. Files are those that a row names, and only in the folders that the
//! configuration has for them: nothing of an address becomes a path.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Path as Named, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use crate::base::clock::Utc;
use crate::base::error::Error;
use crate::base::sync;
use crate::console::api::{Json, Said};
use crate::console::assets::holds;
use crate::console::range::{self, Part};
use crate::console::reply::Refusal;
use crate::console::{Back, Desk, wire};
use crate::sink::history::{Entry, Query};

/// Objects of an answer: by default, and at most.
const USUAL: usize = 50;
const MOST: usize = 200;

/// What is read of a file at a time.
const CHUNK: u64 = 256 << 10;

/// Objects, the newest first.
pub async fn list(State(desk): State<Desk>, RawQuery(query): RawQuery) -> Said {
    let query = read(query.as_deref().unwrap_or_default())?;
    let back = desk.screens.back.clone();
    let found = ask(&desk, move |reader| {
        let page = reader.find(&query)?;
        let events: Vec<Value> = page.entries.iter().map(|entry| wire::object(entry, back.files(entry))).collect();
        let last = page.entries.last().filter(|_| page.more);
        let next = last.map(|entry| format!("{}~{}", entry.start.millis(), entry.track_id));
        Ok(json!({"events": events, "next": next}))
    });
    Ok(Json(found.await?))
}

/// One object.
pub async fn one(State(desk): State<Desk>, Named(id): Named<String>) -> Said {
    let back = desk.screens.back.clone();
    let found = ask(&desk, move |reader| Ok(reader.get(&id)?.map(|entry| wire::object(&entry, back.files(&entry)))));
    found.await?.map(Json).ok_or(UNKNOWN)
}

const UNKNOWN: Refusal = Refusal::fixed(StatusCode::NOT_FOUND, "there is no such object");

/// The picture of an object.
pub async fn snapshot(State(desk): State<Desk>, Named(id): Named<String>, headers: HeaderMap) -> Result<Response, Refusal> {
    file(desk, id, headers, "image/jpeg", Back::snapshot).await
}

/// The clip of an object.
pub async fn clip(State(desk): State<Desk>, Named(id): Named<String>, headers: HeaderMap) -> Result<Response, Refusal> {
    file(desk, id, headers, "video/mp4", Back::clip).await
}

/// Asks the history in the thread that may wait for the disk.
async fn ask<T: Send + 'static>(
    desk: &Desk,
    what: impl FnOnce(&mut crate::sink::history::Reader) -> Result<T, Error> + Send + 'static,
) -> Result<T, Refusal> {
    let off = "the history of objects is off; events.database in the configuration turns it on";
    let reader = desk.reader.clone().ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, off))?;
    let found = desk.disk.run(move || what(&mut sync::lock(&reader))).await?;
    found.map_err(|error| {
        tracing::debug!("{}", error.chain());
        Refusal::soon("the history of objects cannot be read at the moment")
    })
}

fn read(query: &str) -> Result<Query, Refusal> {
    let wrong = |sentence: &str| Refusal::new(StatusCode::BAD_REQUEST, sentence.to_owned());
    let mut read = Query { limit: USUAL, ..Query::default() };
    for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        let value = decoded(value).ok_or_else(|| wrong("the query is no text in UTF-8"))?;
        if value.is_empty() {
            continue;
        }
        let time = |value: &str| {
            // What was a plus sign of a time zone before it was read.
            let time = Utc::from_rfc3339(&value.replace(' ', "+"));
            time.ok_or_else(|| wrong(&format!("{key} is no time; must be as 2026-11-23T14:03:07Z")))
        };
        match key {
            "camera" => read.camera = Some(value),
            "label" => read.label = Some(value),
            "zone" => read.zone = Some(value),
            "after" => read.after = Some(time(&value)?),
            "before" => read.before = Some(time(&value)?),
            "limit" => {
                let limit = value.parse().ok().filter(|limit| (1..=MOST).contains(limit));
                read.limit = limit.ok_or_else(|| wrong(&format!("limit must be in 1..={MOST}")))?;
            }
            "cursor" => {
                let cursor = value.split_once('~').and_then(|(time, id)| Some((Utc::from_millis(time.parse().ok()?), id.to_owned())));
                read.behind = Some(cursor.ok_or_else(|| wrong("cursor is none; must be next of an earlier answer"))?);
            }
            _ => {}
        }
    }
    Ok(read)
}

/// A value of a query or a form, as browsers write them; `None` where it is no text.
pub fn decoded(value: &str) -> Option<String> {
    let spaced = value.replace('+', " ");
    Some(percent_decode_str(&spaced).decode_utf8().ok()?.into_owned())
}

/// A file that is there, as it was when it was opened. One that is still being written is a whole one up to there.
struct Kept {
    file: File,
    length: u64,
    tag: String,
}

impl Kept {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::Error::other("it is no file"));
        }
        let at = meta.modified().map_or(0, |at| Utc::from(at).millis());
        Ok(Self { file, length: meta.len(), tag: format!("\"{:x}-{at:x}\"", meta.len()) })
    }
}

async fn file(
    desk: Desk,
    id: String,
    headers: HeaderMap,
    media: &'static str,
    path: fn(&Back, &Entry) -> Option<PathBuf>,
) -> Result<Response, Refusal> {
    // A picture is small; a clip may take as long as somebody looks at it.
    let place = match media {
        "video/mp4" => {
            Some(desk.streams.clone().try_acquire_owned().map_err(|_| Refusal::soon("there are too many viewers; try it later"))?)
        }
        _ => None,
    };
    let back = desk.screens.back.clone();
    let kept = ask(&desk, move |reader| {
        let entry = reader.get(&id)?;
        // One that is gone meanwhile is as one that never was.
        Ok(entry.map(|entry| path(&back, &entry).and_then(|path| Kept::open(&path).ok())))
    });
    let gone = || Refusal::new(StatusCode::NOT_FOUND, "this object has no such file, or has it no longer");
    let Kept { file, length, tag } = kept.await?.ok_or(UNKNOWN)?.ok_or_else(gone)?;
    let said = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let dressed = [(header::ETAG, tag.clone()), (header::CACHE_CONTROL, "private, no-cache".to_owned())];
    if holds(&headers, &tag) {
        return Ok((StatusCode::NOT_MODIFIED, dressed).into_response());
    }
    // A part of another file than the client holds parts of would be of no use to it.
    let same = said(header::IF_RANGE).is_none_or(|held| held == tag);
    let ranges = (header::ACCEPT_RANGES, "bytes".to_owned());
    let (status, bytes, more) = match range::part(said(header::RANGE).filter(|_| same), length) {
        Part::All => (StatusCode::OK, 0..length, None),
        Part::Some(part) => {
            let of = format!("bytes {}-{}/{length}", part.start(), part.end());
            (StatusCode::PARTIAL_CONTENT, *part.start()..part.end() + 1, Some((header::CONTENT_RANGE, of)))
        }
        Part::None => {
            let of = [(header::CONTENT_RANGE, format!("bytes */{length}"))];
            let refusal = Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, format!("the file has {length} bytes"));
            return Ok((of, refusal).into_response());
        }
    };
    let size = bytes.end - bytes.start;
    let (file, disk) = (Arc::new(file), desk.disk.clone());
    let chunks = stream::unfold((bytes.start, file, disk, place), move |(at, file, disk, place)| async move {
        let most = CHUNK.min(bytes.end.saturating_sub(at));
        if most == 0 {
            return None;
        }
        let source = file.clone();
        let chunk =
            disk.run(move || chunk(&source, at, most as usize)).await.map_err(|refusal| io::Error::other(refusal.sentence().to_owned()));
        let chunk = chunk.and_then(|read| read);
        let next = chunk.as_ref().map_or(bytes.end, |chunk| at + chunk.len() as u64);
        Some((chunk, (next, file, disk, place)))
    });
    let about = [(header::CONTENT_TYPE, media.to_owned()), (header::CONTENT_LENGTH, size.to_string()), ranges];
    let mut response = (status, dressed, about, Body::from_stream(chunks)).into_response();
    if let Some((name, of)) = more {
        response.headers_mut().extend(of.parse().ok().map(|of| (name, of)));
    }
    Ok(response)
}

fn chunk(file: &File, at: u64, length: usize) -> io::Result<Bytes> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_and_what_is_wrong_in_it_told() {
        let query = read("camera=street&label=traffic+light&zone=a%26b&after=2026-11-23T14:03:07Z&before=2026-11-23T15:03:08%2B01:00&limit=200&cursor=17~x~y&other=1&camera2").unwrap();
        let text = |text: &str| Some(text.to_owned());
        let expected = Query {
            camera: text("street"),
            label: text("traffic light"),
            zone: text("a&b"),
            after: Some(Utc::from_millis(1_795_442_587_000)),
            before: Some(Utc::from_millis(1_795_442_588_000)),
            behind: Some((Utc::from_millis(17), "x~y".to_owned())),
            limit: 200,
        };
        assert_eq!(query, expected);
        assert_eq!(read("camera=&limit=&after=").unwrap(), Query { limit: USUAL, ..Query::default() });
        for wrong in ["limit=0", "limit=201", "limit=x", "after=yesterday", "cursor=1", "cursor=x~y", "label=%ff"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
