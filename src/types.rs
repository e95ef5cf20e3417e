//! Floor 1: the nouns of the domain. None of them knows a wire format.

mod camera;
mod detection;
mod encoded;
mod event;
mod frame;
mod luma;
mod mark;
mod min_score;
mod model;
mod prompt;
mod tracking;

pub use camera::{CameraId, CameraState, CameraStatus};
pub use detection::{Answer, Box01, Detection, Finish, PixelBox, Rejected};
pub use encoded::{Codec, Encoded, EncodedUnit};
pub use event::{Event, EventKind, Reason, Track};
pub use frame::{Frame, Looked, TimeSource};
pub use luma::{Luma, Plane};
pub use mark::{Mark, Patch};
pub use min_score::{MinScore, label_key};
pub use model::{Device, Dtype, ModelSource};
pub use prompt::Prompt;
pub use tracking::{Area, Filter, Tracking, Updates, Zone};
