//! One picture through the model and no daemon: `detect` for people and scripts, `probe` for comparing implementations.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use image::RgbImage;
use serde_json::{Value, json};

use crate::annotate::Annotator;
use crate::base::error::{Context, Error, Kind, Result};
use crate::base::picture::read_image;
use crate::model::{self, HubOptions, Limits, LoadOptions, PaliGemma, Question, Session};
use crate::mqtt::payload;
use crate::types::{Answer, Device, Dtype, MinScore, ModelSource, Prompt};

/// What `palisade detect` is asked to do.
pub struct DetectArgs {
    /// What is asked.
    pub prompt: Prompt,
    /// A folder or hub id.
    pub model: ModelSource,
    /// What computes.
    pub device: Device,
    /// The weights' type in memory.
    pub dtype: Dtype,
    /// The answer's bound in tokens.
    pub max_new_tokens: usize,
    /// Detections below it are dropped and reported.
    pub min_score: MinScore,
    /// One JSON object a picture instead of text.
    pub json: bool,
    /// Where the annotated picture goes; for several pictures, a folder.
    pub annotate: Option<PathBuf>,
    /// The pictures.
    pub images: Vec<PathBuf>,
}

/// A model as named on the command line: a folder that is there, else `owner/name[@revision]`.
///
/// # Errors
/// When it is neither.
pub fn model_source(text: &str) -> Result<ModelSource> {
    if Path::new(text).is_dir() {
        return Ok(ModelSource::Folder(text.into()));
    }
    ModelSource::from_hub_name(text)
        .map_err(|_| Error::new(Kind::Input, format!("model {text:?} is neither a folder here nor of the form owner/name[@revision]")))
}

/// Looks at each picture. One that fails is told on standard error and does not stop the others; returns how many did.
///
/// # Errors
/// When the model cannot be loaded, or the output cannot be written.
pub fn detect(args: &DetectArgs) -> Result<usize> {
    let several = args.images.len() > 1;
    if let Some(file) = args.annotate.as_ref().filter(|_| !several)
        && image::ImageFormat::from_path(file).is_err()
    {
        return Err(Error::new(Kind::Input, format!("--annotate {}: must end in .png, .jpg, .webp, .gif or .bmp", file.display())));
    }
    if let Some(folder) = args.annotate.as_ref().filter(|_| several) {
        std::fs::create_dir_all(folder)
            .context(Kind::Io, || format!("--annotate {} cannot be made a folder for several pictures", folder.display()))?;
    }
    let model = load(&args.model, args.device, args.dtype)?;
    let mut looker =
        Looker { session: model.session(), annotator: Annotator::new()?, model: model.name(), args, drawn: BTreeSet::new(), several };
    let mut failed = 0;
    for image in &args.images {
        if let Err(error) = looker.look(image) {
            failed += 1;
            eprintln!("palisade: {}", error.chain());
        }
    }
    Ok(failed)
}

struct Looker<'a> {
    session: Session,
    annotator: Annotator,
    model: &'a str,
    args: &'a DetectArgs,
    /// Names of annotated pictures: two pictures of one name must not become one file.
    drawn: BTreeSet<String>,
    several: bool,
}

impl Looker<'_> {
    /// Prints the answer, then draws: an answer is not lost because its picture cannot be written.
    fn look(&mut self, path: &Path) -> Result<()> {
        let image = read_image(path)?;
        let limits = Limits { max_new_tokens: self.args.max_new_tokens, min_score: self.args.min_score.clone(), suppress: Vec::new() };
        let begin = Instant::now();
        let answer = self
            .session
            .answer(&Question { image: &image, prompt: self.args.prompt.text(), draft: &[] }, &limits)
            .context(Kind::Input, || path.display().to_string())?;
        let millis = begin.elapsed().as_secs_f64() * 1000.0;
        let text =
            if self.args.json { self.as_json(path, &image, &answer, millis).to_string() } else { as_text(path, &image, &answer, millis) };
        print(&text)?;
        self.annotate(path, &image, &answer)
    }

    fn annotate(&mut self, path: &Path, image: &RgbImage, answer: &Answer) -> Result<()> {
        let Some(target) = &self.args.annotate else { return Ok(()) };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let target = if self.several { target.join(self.free_name(path)) } else { target.clone() };
        let caption = format!("{name}   {}", self.args.prompt.text());
        let drawn = self.annotator.draw(image, &answer.detections, &caption);
        drawn.save(&target).context(Kind::Io, || format!("annotated picture {} cannot be written", target.display()))
    }

    /// `NAME.png`, or `NAME-2.png` and so on where an earlier picture has that name.
    fn free_name(&mut self, path: &Path) -> String {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let names = std::iter::once(format!("{stem}.png")).chain((2..).map(|number| format!("{stem}-{number}.png")));
        let free = names.into_iter().find(|name| !self.drawn.contains(name)).unwrap_or_default();
        self.drawn.insert(free.clone());
        free
    }

    fn as_json(&self, path: &Path, image: &RgbImage, answer: &Answer, millis: f64) -> Value {
        let (width, height) = image.dimensions();
        let mut object = json!({
            "image": path.display().to_string(),
            "frame": {"width": width, "height": height},
            "prompt": self.args.prompt.text(),
            "prompt_id": self.args.prompt.id(),
            "model": self.model,
            "latency_ms": {"inference": (millis * 10.0).round() / 10.0},
        });
        if let (Value::Object(object), Value::Object(answer)) = (&mut object, payload::answer(answer, width, height)) {
            object.extend(answer);
        }
        object
    }
}

fn as_text(path: &Path, image: &RgbImage, answer: &Answer, millis: f64) -> String {
    let (width, height) = image.dimensions();
    let mut text = format!("{}  {width}×{height}  {millis:.0} ms\n  raw: {}\n", path.display(), answer.raw);
    if answer.detections.is_empty() {
        text.push_str("  nothing found\n");
    }
    for found in &answer.detections {
        let (share, pixels) = (found.box01, found.box01.to_pixels(width, height));
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "  {:<16} score {:.2}  x {:.4}..{:.4}  y {:.4}..{:.4}  pixels x {}..{} y {}..{}",
            found.label,
            found.score,
            share.x_min,
            share.x_max,
            share.y_min,
            share.y_max,
            pixels.x_min,
            pixels.x_max,
            pixels.y_min,
            pixels.y_max
        );
    }
    for rejected in &answer.rejected {
        let _ = writeln!(text, "  dropped ({}): {}", rejected.why, rejected.text);
    }
    text.truncate(text.trim_end().len());
    text
}

/// What `palisade probe` is asked to do.
pub struct ProbeArgs {
    /// A folder or hub id.
    pub model: ModelSource,
    /// Passed to the model as written.
    pub prompt: String,
    /// The picture.
    pub image: PathBuf,
    /// The answer's bound in tokens.
    pub tokens: usize,
    /// What computes.
    pub device: Device,
    /// The weights' type in memory.
    pub dtype: Dtype,
    /// Token ids the model may not write.
    pub suppress: Vec<u32>,
}

/// Prints one JSON object with every number that another implementation can be held against.
///
/// # Errors
/// When the model, picture or prompt cannot be used.
pub fn probe(args: &ProbeArgs) -> Result<()> {
    let image = read_image(&args.image)?;
    let model = load(&args.model, args.device, args.dtype)?;
    let limits = Limits { max_new_tokens: args.tokens, min_score: MinScore::default(), suppress: args.suppress.clone() };
    let generation = model.session().generate(&Question { image: &image, prompt: &args.prompt, draft: &[] }, &limits)?;
    let object = json!({
        "model": model.name(),
        "prompt": args.prompt,
        "input_ids": generation.input_ids,
        "first_logits": generation.first_logits,
        "generated_ids": generation.generated_ids,
        "token_logprobs": generation.token_logprobs,
        "suppressed_ids": args.suppress,
        "text": generation.text,
        "finish": generation.finish.name(),
    });
    print(&object.to_string())
}

fn load(source: &ModelSource, device: Device, dtype: Dtype) -> Result<PaliGemma> {
    let snapshot = model::resolve(source, &HubOptions::from_env())?;
    PaliGemma::load(&snapshot, LoadOptions::new(device, dtype))
}

/// Text and a line's end to standard output; a reader that went away is an error like any other, not a panic.
///
/// # Errors
/// When it cannot be written.
pub fn print(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context(Kind::Io, || "standard output cannot be written")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_a_folder_or_a_hub_id() {
        assert_eq!(model_source("samples").unwrap(), ModelSource::Folder("samples".into()));
        let hub = ModelSource::Hub { id: "google/paligemma2-3b-mix-224".into(), revision: Some("abc".into()) };
        assert_eq!(model_source("google/paligemma2-3b-mix-224@abc").unwrap(), hub);
        for bad in ["nonsense", "a/b/c", "a/b@", "/no/such/folder"] {
            assert!(model_source(bad).is_err(), "{bad}");
        }
    }
}
