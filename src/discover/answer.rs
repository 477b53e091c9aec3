//! What a closure or a stream of the user's may answer.

use super::{BackendError, Listing};
use crate::{endpoint::Endpoint, error::BoxError};

/// What a closure or a stream may answer: a list of endpoints, or a result of one.
///
/// An error is taken for a transient one: the last good list stays and is stale.
pub trait IntoListing {
    /// The answer as the driver takes it.
    ///
    /// # Errors
    ///
    /// Those of the answer.
    fn into_listing(self) -> Result<Listing, BackendError>;
}

impl IntoListing for Listing {
    fn into_listing(self) -> Result<Listing, BackendError> {
        Ok(self)
    }
}

impl IntoListing for Vec<Endpoint> {
    fn into_listing(self) -> Result<Listing, BackendError> {
        Ok(Listing::new(self))
    }
}

impl<L: Into<Listing>, E: Into<BoxError>> IntoListing for Result<L, E> {
    fn into_listing(self) -> Result<Listing, BackendError> {
        self.map(Into::into)
            .map_err(|error| BackendError::Transient(error.into()))
    }
}
