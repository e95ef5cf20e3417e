//! Floor 3: a camera or file becomes frames.
