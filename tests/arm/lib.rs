//! The model and what it stands on, without the rest of palisade.

#[path = "../../src"]
mod floors {
    pub mod base;
    pub mod model;
    pub mod types;
}

pub use floors::{base, model, types};
