//! Who is behind reads the database in turn.

use crate::letters::webhook;
use crate::still::Still;
use async_trait::async_trait;
use claviger::app::tell::feed;
use claviger::ports::store::{End, Erased, Store, StoreError, Work};
use futures::future::join_all;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A store that knows how many read it at once.
struct CountingStore {
    inner: Arc<dyn Store>,
    reading: AtomicUsize,
    most: Arc<AtomicUsize>,
}

#[async_trait]
impl Store for CountingStore {
    async fn run(&self, name: &'static str, work: Work) -> Result<End<Erased>, StoreError> {
        self.inner.run(name, work).await
    }

    async fn look(&self, name: &'static str, work: Work) -> Result<End<Erased>, StoreError> {
        let reading = self.reading.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(reading, Ordering::SeqCst);
        let answer = self.inner.look(name, work).await;
        self.reading.fetch_sub(1, Ordering::SeqCst);
        answer
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.inner.ping().await
    }

    fn is_alone(&self) -> bool {
        self.inner.is_alone()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_begin_far_back_read_one_after_the_other() {
    let most = Arc::new(AtomicUsize::new(0));
    let kept = Arc::clone(&most);
    let still = Still::over(|inner| {
        Arc::new(CountingStore { inner, reading: AtomicUsize::new(0), most: kept })
    })
    .await;
    let hook = webhook(&still, "http://127.0.0.1:9/hook");
    for n in 0..3 {
        still.happens(&hook, &n.to_string(), "submitted").await;
    }
    most.store(0, Ordering::SeqCst);
    let streams = (0..16).map(async |_| {
        let mut last = 0;
        loop {
            let (events, turn) = feed::page_in_turn(&still.app, last).await.unwrap();
            let Some(newest) = events.last() else { return events.len() };
            last = newest.place;
            turn.rest().await;
        }
    });
    join_all(streams).await;
    assert_eq!(most.load(Ordering::SeqCst), 1, "at once");
}
