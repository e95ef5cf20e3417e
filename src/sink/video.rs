//! Annotated frames as video.
