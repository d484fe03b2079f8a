//! PostgreSQL behind a host that vanishes without a word: no connection ends, and none is answered any more.

use crate::fixtures::Database;
use claviger::ports::store::{Store, StoreError, look, unit};
use claviger::store::{OpenMode, open};
use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// As many as a process keeps.
const CONNECTIONS: u32 = 8;

/// Well below what a pool waits for a connection, and what the kernel waits for an answer.
const LIMIT: Duration = Duration::from_secs(15);

/// Between the store and PostgreSQL.
struct Relay {
    port: u16,
    answers: Arc<Mutex<CancellationToken>>,
}

impl Relay {
    async fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let answers = Arc::new(Mutex::new(CancellationToken::new()));
        let current = answers.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let vanished = current.lock().unwrap().clone();
                tokio::spawn(async move {
                    let mut server = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut server) => {}
                        // Both ends stay open.
                        () = vanished.cancelled() => pending().await,
                    }
                });
            }
        });
        Self { port, answers }
    }

    /// The connections that there are lead nowhere from now on. New ones are of another host.
    fn vanish(&self) {
        let mut answers = self.answers.lock().unwrap();
        std::mem::take(&mut *answers).cancel();
    }
}

/// The database behind a relay.
async fn relayed() -> (Relay, Arc<dyn Store>, Database) {
    let database = Database::postgres().await;
    let (user, place) = database.url.rsplit_once('@').unwrap();
    let (host, name) = place.split_once('/').unwrap();
    let port = host.rsplit_once(':').unwrap().1.parse().unwrap();
    let relay = Relay::start(port).await;
    let url = format!("{user}@127.0.0.1:{}/{name}", relay.port);
    let store = open(&url, OpenMode::Existing).await.unwrap();
    (relay, store, database)
}

async fn reads(store: &dyn Store) {
    let read = look(store, "test", |unit| Box::pin(async move { unit.meta("created_by").await }));
    let read = tokio::time::timeout(LIMIT, read).await.expect("a new connection is made in time");
    assert!(read.unwrap().is_some());
}

#[tokio::test]
async fn an_idle_connection_to_a_host_that_vanished_is_replaced() {
    let (relay, store, _database) = relayed().await;
    reads(&*store).await;
    relay.vanish();
    reads(&*store).await;
}

#[tokio::test]
async fn connections_that_were_in_use_when_the_host_vanished_give_their_places_back() {
    let (relay, store, _database) = relayed().await;
    let begun = Arc::new(Semaphore::new(0));
    let units: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let (store, begun) = (store.clone(), begun.clone());
            tokio::spawn(async move {
                unit(&*store, "test", move |unit| {
                    let begun = begun.clone();
                    Box::pin(async move {
                        unit.meta("created_by").await?;
                        begun.add_permits(1);
                        pending::<Result<_, StoreError>>().await
                    })
                })
                .await
                .map(|(): ()| ())
            })
        })
        .collect();
    let all = tokio::time::timeout(LIMIT, begun.acquire_many(CONNECTIONS)).await;
    drop(all.expect("every connection is in use").unwrap());
    relay.vanish();
    // Whoever waited for them has given up.
    units.iter().for_each(tokio::task::JoinHandle::abort);
    reads(&*store).await;
}
