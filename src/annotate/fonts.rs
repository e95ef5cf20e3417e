//! The fonts that a label is drawn with: the embedded one, and for letters that it lacks those of the system.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use ab_glyph::{Font, FontArc, FontRef, FontVec, PxScale, ScaleFont, VariableFont};
use fontdb::{Database, FaceInfo, ID, Source, Stretch, Style};

use crate::base::error::{Context, Kind, Result};
use crate::base::sync;

/// DejaVu Sans 2.37; its licence stands beside it.
const FONT: &[u8] = include_bytes!("font/DejaVuSans.ttf");

/// So many of the system's fonts are held in memory at most, and none that is larger.
const MOST_FACES: usize = 8;
const MOST_BYTES: u64 = 64 * 1024 * 1024;

/// Where systems keep their fonts; those that begin with `~` are the user's.
const FOLDERS: [&str; 7] = [
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
    "/System/Library/Fonts",
    "/Library/Fonts",
    "~/Library/Fonts",
];

/// A font, and how to draw it so that its letters fit the embedded one's.
pub(super) struct Face {
    pub font: FontArc,
    /// To be multiplied with the height of the text.
    stretch: f32,
}

impl Face {
    fn new(font: FontArc, em: f32) -> Self {
        // Text is as high as from the font's ascent to its descent, which fonts have in all sizes: letters are alike by the em.
        let own = font.units_per_em().map_or(em, |units| font.height_unscaled() / units);
        Self { stretch: own / em, font }
    }

    /// For text of `height` pixels.
    pub(super) fn scale(&self, height: f32) -> PxScale {
        PxScale::from(height * self.stretch)
    }

    /// From the top of a text to the line it stands on, pixels.
    pub(super) fn ascent(&self, height: f32) -> f32 {
        self.font.as_scaled(self.scale(height)).ascent()
    }
}

/// All of them, searched for when a letter first needs it.
pub(super) struct Fonts {
    own: Arc<Face>,
    folders: Vec<PathBuf>,
    system: OnceLock<Mutex<System>>,
}

/// The fonts of the system, best first, and what was found out about them.
struct System {
    files: Database,
    ranked: Vec<ID>,
    loaded: Vec<(ID, Arc<Face>)>,
    /// Of letters that were looked for. There are not more than Unicode has.
    found: HashMap<char, Option<Arc<Face>>>,
}

/// Where the fonts of this system are.
pub(super) fn folders() -> Vec<PathBuf> {
    let home = std::env::home_dir();
    let folder = |name: &&str| match name.strip_prefix("~/") {
        Some(below) => home.as_ref().map(|home| home.join(below)),
        None => Some(PathBuf::from(name)),
    };
    FOLDERS.iter().filter_map(folder).collect()
}

impl Fonts {
    /// The embedded font, and those in `folders` once they are needed.
    pub(super) fn new(folders: Vec<PathBuf>) -> Result<Self> {
        let font = FontRef::try_from_slice(FONT).context(Kind::Internal, || "the embedded font cannot be read")?;
        let font = FontArc::new(font);
        let em = font.units_per_em().map_or(1.0, |units| font.height_unscaled() / units);
        Ok(Self { own: Arc::new(Face::new(font, em)), folders, system: OnceLock::new() })
    }

    /// The embedded font.
    pub(super) fn own(&self) -> &Arc<Face> {
        &self.own
    }

    /// A font that has a letter: the embedded one, `last` if it does, else the best of the system's.
    pub(super) fn with(&self, c: char, last: Option<&Arc<Face>>) -> Option<Arc<Face>> {
        if c.is_ascii() || has(&self.own.font, c) {
            return Some(self.own.clone());
        }
        if let Some(last) = last.filter(|last| has(&last.font, c)) {
            return Some(last.clone());
        }
        if self.folders.is_empty() {
            return None;
        }
        let system = self.system.get_or_init(|| Mutex::new(System::search(&self.folders)));
        let em = self.own.font.units_per_em().map_or(1.0, |units| self.own.font.height_unscaled() / units);
        sync::lock(system).with(c, em)
    }
}

impl System {
    fn search(folders: &[PathBuf]) -> Self {
        let mut files = Database::new();
        folders.iter().for_each(|folder| files.load_fonts_dir(folder));
        let mut ranked: Vec<&FaceInfo> = files.faces().collect();
        ranked.sort_by_cached_key(|face| rank(face));
        let ranked = ranked.iter().map(|face| face.id).collect();
        Self { ranked, files, loaded: Vec::new(), found: HashMap::new() }
    }

    fn with(&mut self, c: char, em: f32) -> Option<Arc<Face>> {
        if let Some(found) = self.found.get(&c) {
            return found.clone();
        }
        let loaded = self.loaded.iter().find(|(_, face)| has(&face.font, c)).map(|(_, face)| face.clone());
        let found = loaded.or_else(|| self.load(c, em));
        self.found.insert(c, found.clone());
        found
    }

    /// Loads the best font that has a letter.
    fn load(&mut self, c: char, em: f32) -> Option<Arc<Face>> {
        if self.loaded.len() == MOST_FACES {
            return None;
        }
        let holds = |data: &[u8], index: u32| FontRef::try_from_slice_and_index(data, index).is_ok_and(|font| has(&font, c));
        let holding = self.ranked.iter().filter(|id| self.files.with_face_data(**id, holds) == Some(true));
        let (id, font) = holding.copied().find_map(|id| Some((id, open(self.files.face(id)?)?)))?;
        let face = Arc::new(Face::new(FontArc::new(font), em));
        self.loaded.push((id, face.clone()));
        Some(face)
    }
}

/// Plain faces before bold and slanted ones, those without serifs before others. Collections keep the order of their own.
fn rank(face: &FaceInfo) -> impl Ord + use<> {
    let name = face.families.first().map(|(name, _)| name.clone()).unwrap_or_default();
    let path = path(face).map(Path::to_path_buf);
    let plain = face.style == Style::Normal && face.stretch == Stretch::Normal;
    (!plain, name.contains("Serif"), face.monospaced || name.contains("Mono"), face.weight.0.abs_diff(400), path, face.index)
}

fn path(face: &FaceInfo) -> Option<&Path> {
    match &face.source {
        Source::File(path) | Source::SharedFile(path, _) => Some(path),
        Source::Binary(_) => None,
    }
}

/// Read, not mapped: a font that is overwritten in place would end the process.
fn open(face: &FaceInfo) -> Option<FontVec> {
    let path = path(face)?;
    if fs::metadata(path).ok()?.len() > MOST_BYTES {
        return None;
    }
    let mut font = FontVec::try_from_vec_and_index(fs::read(path).ok()?, face.index).ok()?;
    // What a font of all weights begins with may be the thinnest.
    font.set_variation(b"wght", 400.0);
    Some(font)
}

/// Whether a font draws something for a letter. Those of coloured emoji have an entry for each and no outline.
pub(super) fn has(font: &impl Font, c: char) -> bool {
    let id = font.glyph_id(c);
    id.0 != 0 && font.outline(id).is_some()
}
