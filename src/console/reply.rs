//! Answers that say no: a status and a sentence, as JSON.

use std::borrow::Cow;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// A request that is not done.
#[derive(Clone, Debug)]
pub struct Refusal {
    status: StatusCode,
    sentence: Cow<'static, str>,
    retry: bool,
}

impl Refusal {
    /// An address of nothing.
    pub const NOTHING_HERE: Self = Self::fixed(StatusCode::NOT_FOUND, "there is nothing at this address");
    /// POST where there is GET only, or the other way round.
    pub const OTHER_METHOD: Self =
        Self::fixed(StatusCode::METHOD_NOT_ALLOWED, "this address is not asked so; try GET, or POST or PUT where something is changed");

    /// A refusal that never differs.
    pub const fn fixed(status: StatusCode, sentence: &'static str) -> Self {
        Self { status, sentence: Cow::Borrowed(sentence), retry: false }
    }

    /// With what is wrong, and what would be right.
    pub fn new(status: StatusCode, sentence: impl Into<Cow<'static, str>>) -> Self {
        Self { status, sentence: sentence.into(), retry: false }
    }

    /// What should not be.
    pub const fn defect() -> Self {
        Self::fixed(StatusCode::INTERNAL_SERVER_ERROR, "this could not be done, and the log may say why; please report it")
    }

    /// Not now, but soon.
    pub fn soon(sentence: impl Into<Cow<'static, str>>) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, sentence: sentence.into(), retry: true }
    }

    /// The sentence.
    pub fn sentence(&self) -> &str {
        &self.sentence
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.status
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = serde_json::json!({ "error": self.sentence }).to_string();
        let mut response = (self.status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
        if self.retry {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
