//! `claviger serve`

use crate::audit::Signing;
use crate::{softhsm, telling, world};
use claviger::app::policies::{self, Begun};
use claviger::app::{
    App, PolicyInForce, create_key, hsm_events, lease, recover, release, suspension,
};
use claviger::audit::sequencer;
use claviger::cli::{Failure, load};
use claviger::config::server::ServerConfig;
use claviger::core::policy::Bundle;
use claviger::core::time::duration_ms;
use claviger::http::limits::Limits;
use claviger::http::listener::{ListenerConfig, Listening, serve};
use claviger::http::state::HttpState;
use claviger::http::tls::TlsFiles;
use claviger::http::{admin, metrics, v1};
use claviger::jobs::{self, EdgeJob, Periods, PolledChain};
use claviger::ports::signer::Signer;
use claviger::system::SystemEntropy;
use futures::future::BoxFuture;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// How often decided, unsigned attempts are looked for, in milliseconds.
const RECOVER_MS: u64 = 2_000;
/// How long jobs may take to end when the server stops.
const DRAIN: Duration = Duration::from_secs(30);
/// How often gauges are counted, in milliseconds.
const GAUGES_MS: u64 = 5_000;

/// How often it is looked whether the server waits for an operator, in milliseconds.
const SUSPENSION_MS: u64 = 5_000;

/// How often it is looked whether something has happened to a token, in milliseconds.
const HSM_EVENTS_MS: u64 = 500;
/// How often it is looked whether another policy bundle is in force, or may be, in milliseconds.
const POLICY_MS: u64 = 1_000;
/// How often keys that were begun are looked for.
const FINISH_KEYS_MS: u64 = 60_000;

/// How often requests that wait for time or people are looked for, in milliseconds.
const WAITING_MS: u64 = 1_000;

/// Runs the server until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start; nothing has been signed then.
pub fn run(path: &Path) -> Result<(), Failure> {
    let (config, bundle) = load::both(path)?;
    softhsm::with_its_environment(&config)?;
    let filter = tracing_subscriber::EnvFilter::try_from_env("CLAVIGER_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(std::io::stderr).init();
    let workers = config.server.workers.max(1);
    crate::block_on(workers, start(config, bundle))
}

async fn start(config: ServerConfig, bundle: Bundle) -> Result<(), Failure> {
    let stop = CancellationToken::new();
    let recorder = metrics::install().map_err(|e| Failure::of("metrics", e))?;
    let upkeep = tokio::spawn(metrics::upkeep(recorder.clone(), stop.clone()));
    let names = config.clone();
    let against = Box::new(move |bundle: &Bundle| load::differences(&names, bundle));
    let policy = Arc::new(PolicyInForce::within(Arc::new(bundle), against));
    let store = world::store(&config).await?;
    let signing = Signing::open(&config, &store).await?;
    let hsm = world::hsm(&config).await?;
    let signer: Arc<dyn Signer> = Arc::clone(&hsm) as Arc<dyn Signer>;
    let app = world::app(&config, Arc::clone(&policy), store, signer)?;
    begin_policy(&config, &app).await?;
    recover::keys(&app).await.map_err(|e| Failure::of("keys", e))?;
    suspension::check_lanes(&app).await.map_err(|e| Failure::of("lanes", e))?;
    let auth = world::authenticator(&config, policy)?;
    auth.load().await.map_err(|_| Failure::new("the token issuers' keys cannot be loaded"))?;
    lease::begin(&app).await.map_err(|e| Failure::of("leases", e))?;
    recover::unsigned(&app).await.map_err(|e| Failure::of("recovery", e))?;

    let (tellers, broker) = telling::tellers(&config)?;
    telling::begin(&app, &tellers).await?;

    let state = HttpState { app: Arc::clone(&app), auth };
    let mut listening = vec![
        listen(&config, "client", config.server.listen, v1::router(state.clone()), &stop).await?,
        listen(&config, "admin", config.server.admin_listen, admin::router(state), &stop).await?,
    ];
    if let Some(address) = config.server.metrics_listen {
        let plain =
            ListenerConfig { name: "metrics", addr: address, tls: None, limits: Limits::default() };
        let entropy = Arc::new(SystemEntropy);
        let served = serve(plain, metrics::router(recorder), entropy, stop.clone()).await;
        listening.push(served.map_err(|e| Failure::of("metrics", e))?);
    }
    let mut edges = vec![sequence(&config, &app)];
    edges.push(watch_suspension(&app));
    edges.push(record_hsm_events(&app));
    edges.push(finish_keys(&app));
    edges.push(follow_policy(&app));
    edges.push(release_waiting(&app));
    edges.extend(signing.iter().map(Signing::job));
    // Before the listeners are waited for: an open stream would keep them open.
    let ends = app.telling.end.clone();
    let periods = Periods { recover_ms: RECOVER_MS, gauges_ms: GAUGES_MS };
    let mut jobs = jobs::start(&app, polled(&config, &app), edges, periods, &stop);
    jobs::telling::start(&mut jobs, &app, tellers, &stop);
    if let Some(broker) = broker {
        let stop = stop.clone();
        jobs.spawn(async move { broker.run(stop).await });
    }
    tracing::info!("ready");
    let ended = tokio::select! {
        signal = wait_for_signal() => signal,
        _ = jobs.join_next() => Err(Failure::new("a job ended by itself; see the log")),
    };
    tracing::info!("stopping");
    stop.cancel();
    ends.cancel();
    for listener in listening {
        listener.stopped().await.map_err(|e| Failure::of("listener", e))?;
    }
    let drained = async { while jobs.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        // Whatever they are at is committed step by step, and goes on at the next start.
        tracing::warn!("jobs did not end in time");
        jobs.shutdown().await;
    }
    if let Err(error) = hsm_events::record_last(&app).await {
        tracing::warn!(%error, "what happened to the HSM is not in the audit log");
    }
    if let Err(error) = lease::release(&app).await {
        tracing::warn!(%error, "other servers wait until this one's leases run out");
    }
    if let Some(signing) = signing {
        signing.close().await;
    }
    let _ = upkeep.await;
    drop(app);
    // The module must be quiet before the process ends.
    tokio::task::spawn_blocking(move || drop(hsm)).await.map_err(|e| Failure::of("hsm", e))?;
    tracing::info!("stopped");
    ended
}

/// The folder's bundle, or the one that people have put in force over it.
async fn begin_policy(config: &ServerConfig, app: &App) -> Result<(), Failure> {
    let files = load::files(&config.policies.dir)?;
    let begun = policies::begin(app, &files).await.map_err(|e| Failure::of("policy", e))?;
    if begun == Begun::Folder && app.policy.numbered().1 > 1 {
        let dir = config.policies.dir.display();
        tracing::warn!(%dir, "the folder's bundle has replaced the one that was in force: it has no [change]");
    }
    if let Begun::Kept { in_force } = begun {
        let dir = config.policies.dir.display();
        tracing::warn!(%dir, %in_force, "the folder's bundle is not the one in force, and does not replace it");
    }
    let bundle = app.bundle();
    let against = app.policy.against(&bundle);
    if !against.is_empty() {
        return Err(Failure::new(format!("the bundle in force: {}", against.join("; "))));
    }
    let (version, hash) = (bundle.version(), bundle.hash());
    tracing::info!(version, %hash, ?begun, "policy bundle loaded");
    Ok(())
}

async fn listen(
    config: &ServerConfig,
    name: &'static str,
    addr: SocketAddr,
    router: axum::Router,
    stop: &CancellationToken,
) -> Result<Listening, Failure> {
    let tls = config
        .server
        .tls
        .as_ref()
        .map(|tls| TlsFiles { cert: tls.cert_file.clone(), key: tls.key_file.clone() });
    if tls.is_none() && !addr.ip().is_loopback() {
        tracing::warn!(listener = name, %addr, "plain HTTP outside the loopback interface");
    }
    let listener = ListenerConfig { name, addr, tls, limits: Limits::default() };
    serve(listener, router, Arc::new(SystemEntropy), stop.clone())
        .await
        .map_err(|e| Failure::of(name, format!("{addr}: {e}")))
}

fn polled(config: &ServerConfig, app: &App) -> Vec<PolledChain> {
    let sections = config.chains.iter();
    sections
        .filter_map(|section| {
            let chain = app.chain(&section.name)?;
            let every = duration_ms(&section.poll_every)?;
            Some((Arc::clone(chain), u64::try_from(every).ok()?))
        })
        .collect()
}

/// Moves audit leaves into the log until none waits.
fn sequence(config: &ServerConfig, app: &App) -> EdgeJob {
    let every = duration_ms(&config.audit.sequence_every).unwrap_or(100);
    let store = Arc::clone(&app.store);
    let run = move || {
        let store = Arc::clone(&store);
        Box::pin(async move {
            while sequencer::sequence(&*store).await? > 0 {}
            Ok(())
        }) as BoxFuture<'static, _>
    };
    EdgeJob { name: "sequence", every_ms: u64::try_from(every).unwrap_or(100), run: Box::new(run) }
}

/// Tells, again and again, that the server waits for an operator; and looks whether it must.
fn watch_suspension(app: &Arc<App>) -> EdgeJob {
    let app = Arc::clone(app);
    let run = move || {
        let app = Arc::clone(&app);
        Box::pin(async move { suspension::watch(&app).await }) as BoxFuture<'static, _>
    };
    EdgeJob { name: "suspension", every_ms: SUSPENSION_MS, run: Box::new(run) }
}

/// Writes into the audit log what happened to the tokens.
fn record_hsm_events(app: &Arc<App>) -> EdgeJob {
    let app = Arc::clone(app);
    let run = move || {
        let app = Arc::clone(&app);
        Box::pin(async move { hsm_events::record(&app).await }) as BoxFuture<'static, _>
    };
    EdgeJob { name: "hsm_events", every_ms: HSM_EVENTS_MS, run: Box::new(run) }
}

/// Keys that another process or a failed call has begun are finished once nobody holds them.
fn finish_keys(app: &Arc<App>) -> EdgeJob {
    let app = Arc::clone(app);
    let run = move || {
        let app = Arc::clone(&app);
        Box::pin(async move { create_key::finish_begun(&app, None, false).await.map(drop) })
            as BoxFuture<'static, _>
    };
    EdgeJob { name: "begun_keys", every_ms: FINISH_KEYS_MS, run: Box::new(run) }
}

/// What another process puts in force is followed; what waited for its delay is put in force.
fn follow_policy(app: &Arc<App>) -> EdgeJob {
    let app = Arc::clone(app);
    let run = move || {
        let app = Arc::clone(&app);
        Box::pin(async move { policies::follow(&app).await }) as BoxFuture<'static, _>
    };
    EdgeJob { name: "policy", every_ms: POLICY_MS, run: Box::new(run) }
}

/// Requests that wait for time or people go on, end, or are asked for anew.
fn release_waiting(app: &Arc<App>) -> EdgeJob {
    let app = Arc::clone(app);
    let run = move || {
        let app = Arc::clone(&app);
        Box::pin(async move { release::due(&app).await }) as BoxFuture<'static, _>
    };
    EdgeJob { name: "waiting", every_ms: WAITING_MS, run: Box::new(run) }
}

async fn wait_for_signal() -> Result<(), Failure> {
    let mut term = signal(SignalKind::terminate()).map_err(|e| Failure::of("signals", e))?;
    let mut int = signal(SignalKind::interrupt()).map_err(|e| Failure::of("signals", e))?;
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}
