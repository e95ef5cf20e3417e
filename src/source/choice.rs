//! Which decoder: by what the pictures are and by what the configuration allows. Hardware that fails gives way to software.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use gstreamer::prelude::*;
use gstreamer::{CapsRef, ElementFactory, ElementFactoryType, Rank};

use crate::config::DecoderKind;
use crate::source::fault;
use crate::source::watch::{Fault, Retry};
use crate::types::CameraId;

/// So many failures of hardware in a row are no accident.
const FAILURES: u32 = 2;

/// One camera's choice, over all its attempts. Clones share it.
#[derive(Clone, Debug)]
pub struct Choice(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    camera: CameraId,
    kind: DecoderKind,
    failures: AtomicU32,
    gave_up: AtomicBool,
    /// That hardware is missing was told.
    told: AtomicBool,
}

impl Choice {
    /// As the configuration says.
    pub fn new(camera: CameraId, kind: DecoderKind) -> Self {
        Self(Arc::new(Inner { camera, kind, failures: AtomicU32::new(0), gave_up: AtomicBool::new(false), told: AtomicBool::new(false) }))
    }

    /// What is to be used now: software, once hardware has failed.
    pub fn kind(&self) -> DecoderKind {
        if self.0.gave_up.load(Ordering::Acquire) { DecoderKind::Software } else { self.0.kind }
    }

    /// The decoder for pictures of `caps`.
    ///
    /// # Errors
    /// Where none is installed: the sentence names the Debian package. It is not there in a second either.
    pub fn factory(&self, caps: &CapsRef) -> Result<ElementFactory, Fault> {
        let picked = pick(self.kind(), caps, &installed()).ok_or_else(|| missing(caps))?;
        let asked = self.kind();
        let wanted = !matches!(asked, DecoderKind::Software | DecoderKind::Auto) && !is_hardware(&picked);
        if wanted && !self.0.told.swap(true, Ordering::AcqRel) {
            tracing::warn!(camera = %self.0.camera, "no {} decoder for these pictures is there; software decodes", name(asked));
        }
        Ok(picked)
    }

    /// The one in software, to hold hardware's failure against; `None` where hardware is not in use.
    pub fn witness(&self, factory: &ElementFactory, caps: &CapsRef) -> Option<ElementFactory> {
        is_hardware(factory).then(|| pick(DecoderKind::Software, caps, &installed()))?
    }

    /// A decoder showed a picture, or failed to. After two failures of hardware in a row the camera stays with software
    /// until the daemon starts anew.
    pub fn judge(&self, factory: &ElementFactory, shown: bool) {
        if shown || !is_hardware(factory) {
            return self.0.failures.store(0, Ordering::Release);
        }
        if self.0.failures.fetch_add(1, Ordering::AcqRel) + 1 < FAILURES || self.0.gave_up.swap(true, Ordering::AcqRel) {
            return;
        }
        let decoder = factory.name();
        tracing::warn!(camera = %self.0.camera, %decoder, "the hardware decoder failed twice in a row; software decodes from now on");
    }
}

/// Every picture decoder of this installation, the preferred ones first. Debian 12 gives those of VA-API no rank at all;
/// so has nobody else who is to be found only by name.
fn installed() -> Vec<ElementFactory> {
    let mut all: Vec<ElementFactory> = ElementFactory::factories_with_type(ElementFactoryType::DECODER, Rank::NONE).into_iter().collect();
    all.retain(|factory| factory.klass().contains("Video") || factory.klass().contains("Image"));
    // Those for pictures with an alpha channel are bins of two decoders, and take any.
    all.retain(|factory| !factory.name().ends_with("decodebin"));
    all.retain(|factory| is_hardware(factory) || factory.rank() >= Rank::MARGINAL);
    all.sort_by_key(|factory| std::cmp::Reverse(factory.rank()));
    all
}

/// The first decoder of this kind that takes these pictures, else the first in software.
fn pick(kind: DecoderKind, caps: &CapsRef, from: &[ElementFactory]) -> Option<ElementFactory> {
    let takes = |factory: &&ElementFactory| factory.can_sink_any_caps(caps);
    let software = || from.iter().filter(|factory| !is_hardware(factory)).find(takes);
    let hardware = |prefixes: &[&str]| {
        let named = |factory: &&ElementFactory| prefixes.iter().any(|prefix| factory.name().starts_with(prefix));
        from.iter().filter(|factory| is_hardware(factory)).filter(named).find(takes)
    };
    let wanted = match kind {
        DecoderKind::Software => None,
        DecoderKind::Auto => hardware(&[""]),
        DecoderKind::Va => hardware(&["va"]),
        DecoderKind::Nvidia => hardware(&["nv"]),
        DecoderKind::V4l2 => hardware(&["v4l2"]),
    };
    wanted.or_else(software).cloned()
}

fn name(kind: DecoderKind) -> &'static str {
    match kind {
        DecoderKind::Auto => "hardware",
        DecoderKind::Software => "software",
        DecoderKind::Va => "VA-API",
        DecoderKind::Nvidia => "NVIDIA",
        DecoderKind::V4l2 => "V4L2",
    }
}

/// Whether a decoder stands in other silicon. Not all of them say so.
fn is_hardware(factory: &ElementFactory) -> bool {
    factory.klass().contains("Hardware") || ["va", "nv", "v4l2", "vaapi"].iter().any(|prefix| factory.name().starts_with(prefix))
}

fn missing(caps: &CapsRef) -> Fault {
    let name = caps.structure(0).map(|structure| structure.name().to_string()).unwrap_or_default();
    let reason = format!("gstreamer has no decoder for {name}; install {}", fault::package_for(&name));
    Fault { reason, retry: Retry::Slowly }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caps(text: &str) -> gstreamer::Caps {
        gstreamer::init().unwrap();
        text.parse().unwrap()
    }

    #[test]
    fn the_usual_formats_have_a_decoder_in_software() {
        let choice = Choice::new(CameraId::new("a").unwrap(), DecoderKind::Software);
        for (text, name) in [
            ("video/x-h264,stream-format=byte-stream,alignment=au", "avdec_h264"),
            ("video/x-h265,stream-format=byte-stream,alignment=au", "avdec_h265"),
            ("image/jpeg", "jpegdec"),
            ("video/x-vp8", "vp8dec"),
        ] {
            assert_eq!(choice.factory(&caps(text)).unwrap().name(), name, "{text}");
        }
    }

    #[test]
    fn a_format_without_a_decoder_names_its_package() {
        for (text, package) in [
            ("video/x-h264", "gstreamer1.0-libav"),
            ("video/x-h265", "gstreamer1.0-libav"),
            ("image/jpeg", "gstreamer1.0-plugins-good"),
            ("video/x-vp9", "gstreamer1.0-plugins-good"),
            ("video/x-av1", "gstreamer1.0-plugins-bad"),
        ] {
            assert!(pick(DecoderKind::Auto, &caps(text), &[]).is_none());
            let reason = missing(&caps(text)).reason;
            assert_eq!(reason, format!("gstreamer has no decoder for {text}; install {package}"));
        }
    }

    #[test]
    fn hardware_that_is_not_there_gives_way_to_software() {
        let of = |kind| Choice::new(CameraId::new("a").unwrap(), kind).factory(&caps("video/x-h264")).unwrap();
        for kind in [DecoderKind::Va, DecoderKind::Nvidia, DecoderKind::V4l2] {
            let found = of(kind);
            assert!(is_hardware(&found) || found.name() == "avdec_h264", "{kind:?}: {}", found.name());
        }
    }
}
