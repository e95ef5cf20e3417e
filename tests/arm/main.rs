//! Those integration tests that need the model alone.

#[path = ".."]
mod tests {
    pub mod drafts;
    pub mod model;
    pub mod support {
        pub mod snapshot;
    }
}

use tests::support;
