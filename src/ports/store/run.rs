//! Run a closure over one transaction, and give its answer its type back.

use super::{End, Erased, Store, StoreError, Unit, Work};
use futures::future::BoxFuture;
use std::sync::Arc;

/// Runs a named unit and gives its value back, whether it ended by commit or by rollback.
///
/// # Errors
/// As [`Store::run`].
pub async fn unit<T, F>(store: &dyn Store, name: &'static str, work: F) -> Result<T, StoreError>
where
    T: Send + 'static,
    F: for<'u> Fn(&'u mut dyn Unit) -> BoxFuture<'u, Result<End<T>, StoreError>>
        + Send
        + Sync
        + 'static,
{
    typed(store.run(name, erase(work)).await?)
}

/// Runs a named read.
///
/// # Errors
/// As [`Store::look`].
pub async fn look<T, F>(store: &dyn Store, name: &'static str, work: F) -> Result<T, StoreError>
where
    T: Send + 'static,
    F: for<'u> Fn(&'u mut dyn Unit) -> BoxFuture<'u, Result<T, StoreError>> + Send + Sync + 'static,
{
    let work = Arc::new(work);
    let erased: Work = Arc::new(move |unit| {
        let answer = work(unit);
        Box::pin(async move { Ok(End::Rollback(Box::new(answer.await?) as Erased)) })
    });
    typed(store.look(name, erased).await?)
}

fn erase<T, F>(work: F) -> Work
where
    T: Send + 'static,
    F: for<'u> Fn(&'u mut dyn Unit) -> BoxFuture<'u, Result<End<T>, StoreError>>
        + Send
        + Sync
        + 'static,
{
    Arc::new(move |unit| {
        let answer = work(unit);
        Box::pin(async move {
            Ok(match answer.await? {
                End::Commit(value) => End::Commit(Box::new(value) as Erased),
                End::Rollback(value) => End::Rollback(Box::new(value) as Erased),
            })
        })
    })
}

fn typed<T: 'static>(end: End<Erased>) -> Result<T, StoreError> {
    let (End::Commit(value) | End::Rollback(value)) = end;
    value
        .downcast::<T>()
        .map(|value| *value)
        .map_err(|_| StoreError::Corrupt("a unit answered with another type".to_owned()))
}
