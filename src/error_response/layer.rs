use std::sync::Arc;

use tower::Layer;

use super::{ErrorResponse, service::Log};

/// Turns errors into responses; see the [module docs](super).
///
/// # Defaults
///
/// - `name`: none
#[derive(Clone, Debug, Default)]
pub struct ErrorResponseLayer {
    name: Arc<str>,
}

impl ErrorResponseLayer {
    /// A layer that turns every error into a response.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the name under which errors are logged.
    #[must_use]
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = name.into();
        self
    }
}

impl<S> Layer<S> for ErrorResponseLayer {
    type Service = ErrorResponse<S>;

    fn layer(&self, inner: S) -> ErrorResponse<S> {
        ErrorResponse::new(inner, Arc::new(Log::new(Arc::clone(&self.name))))
    }
}
