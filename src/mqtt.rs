//! Floor 3: detections and states are published.
