//! Annotated frames as JPEG files.
