//! Floor 3: annotated frames go out, clips of what a camera sent, and pictures of its objects. One thread and one short queue
//! per sink: a slow or failing one drops its own frames, counts them, and disturbs nothing else.

pub mod gallery;
pub mod record;
pub mod snapshot;
pub mod video;

mod fanout;
mod shelf;

use std::sync::Arc;

use image::RgbImage;

use crate::base::clock::Utc;
use crate::base::error::Result;
use crate::types::CameraId;

pub use fanout::Fanout;
pub use shelf::make_folder;

/// An annotated picture on its way out. Clones share the pixels.
#[derive(Clone, Debug)]
pub struct Picture {
    /// Whose picture it is.
    pub camera: CameraId,
    /// When it was taken.
    pub captured: Utc,
    /// The analysed frame with boxes and labels drawn.
    pub image: Arc<RgbImage>,
}

/// Whether pictures of a camera are wanted.
pub type Filter = Box<dyn Fn(&CameraId) -> bool + Send>;

/// A place for annotated pictures. Called from one thread of its own; may block that one.
pub trait Sink: Send + 'static {
    /// A short name for logs and counters: `snapshots`, `file`, `rtsp`, `custom-0`.
    fn name(&self) -> &str;

    /// Takes one picture.
    ///
    /// # Errors
    /// The picture is then counted as failed; the next one is offered all the same.
    fn write(&mut self, picture: &Picture) -> Result<()>;

    /// Says of which cameras pictures are wanted at a moment, so that none need be drawn for nobody. `None`: of all, always.
    fn filter(&self) -> Option<Filter> {
        None
    }

    /// A camera comes, before its first picture; it may be there already. Those of the start are not told.
    ///
    /// # Errors
    /// When it cannot be taken in; its pictures are offered all the same.
    fn enter(&mut self, camera: &CameraId) -> Result<()> {
        let _ = camera;
        Ok(())
    }

    /// A camera goes: its output ends as at `finish`. No picture of it follows, unless it comes again.
    ///
    /// # Errors
    /// When something could not be written to its end.
    fn leave(&mut self, camera: &CameraId) -> Result<()> {
        let _ = camera;
        Ok(())
    }

    /// Called now and then while no picture comes, for retention.
    fn tidy(&mut self) {}

    /// Ends all output: files are complete and readable after this. Called once, last.
    ///
    /// # Errors
    /// When something could not be written to its end.
    fn finish(&mut self) -> Result<()>;
}
