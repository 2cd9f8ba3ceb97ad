//! A panic is a bug in what one refresh, request or look is about: it is told,
//! and others go on.

use std::any::Any;
use std::panic::AssertUnwindSafe;

use futures::FutureExt;
use thiserror::Error;

/// What a panic said.
#[derive(Debug, Error)]
#[error("panicked: {0}")]
pub struct Panicked(String);

impl From<Box<dyn Any + Send>> for Panicked {
    fn from(panic: Box<dyn Any + Send>) -> Self {
        let said = panic.downcast_ref::<&str>().map(|said| said.to_string());
        let said = said.or_else(|| panic.downcast_ref::<String>().cloned());
        Self(said.unwrap_or_else(|| "without a word".to_string()))
    }
}

/// Carries out `work`; a panic in it breaks off nothing else. What it was about is
/// to be looked at anew: nothing that it held in memory counts.
pub async fn caught<T>(work: impl Future<Output = T>) -> Result<T, Panicked> {
    let caught = AssertUnwindSafe(work).catch_unwind().await;
    caught.map_err(Panicked::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_panic_said_is_told() {
        assert_eq!(caught(async { 7 }).await.ok(), Some(7));
        let number = 3;
        let told = caught(async { panic!("at {number}") }).await;
        let told: Result<(), _> = told;
        assert_eq!(told.unwrap_err().to_string(), "panicked: at 3");
    }
}
