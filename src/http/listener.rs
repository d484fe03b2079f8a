//! Serves a router on an address, within limits, until told to stop.
//!
//! HTTP/1.1 only, with or without TLS. No caller of this API needs HTTP/2, and its ways of making
//! a server work for nothing (rapid resets, endless continuations) are so not ours to watch. The
//! head's time limit then holds from the first byte, also on a connection that sends none.

use crate::http::limits::{Gate, Limits, on_panic, pass};
use crate::http::observe::{Observer, observe};
use crate::http::patience::{Patient, WRITE_STALL};
use crate::http::problem::Problem;
use crate::http::tls::{self, TlsError, TlsFiles};
use crate::ports::clock::Entropy;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum_server::accept::{Accept, NoDelayAcceptor};
use axum_server::tls_rustls::RustlsAcceptor;
use axum_server::{Handle, Server};
use hyper_util::rt::TokioTimer;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::Service;
use tower_http::catch_panic::CatchPanicLayer;

/// One listener.
#[derive(Clone, Debug)]
pub struct ListenerConfig {
    /// Its name in logs: `client`, `admin`, `metrics`.
    pub name: &'static str,
    /// Where; port 0 takes a free one.
    pub addr: SocketAddr,
    /// TLS, or plain.
    pub tls: Option<TlsFiles>,
    /// Its limits.
    pub limits: Limits,
}

/// Why a listener does not listen, or ended.
#[derive(Debug, Error)]
pub enum ListenerError {
    /// The address cannot be bound.
    #[error("cannot listen on {0}")]
    Bind(SocketAddr, #[source] io::Error),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Serving ended with an error.
    #[error("the listener failed")]
    Serve(#[source] io::Error),
}

/// A listener at work.
#[derive(Debug)]
pub struct Listening {
    /// Where, with the port that was really taken.
    pub addr: SocketAddr,
    task: JoinHandle<io::Result<()>>,
}

impl Listening {
    /// Waits until the listener has stopped and its requests have ended or were cut off.
    ///
    /// # Errors
    ///
    /// [`ListenerError::Serve`].
    pub async fn stopped(self) -> Result<(), ListenerError> {
        let ended = self.task.await.map_err(io::Error::other);
        ended.and_then(|result| result).map_err(ListenerError::Serve)
    }
}

/// Puts everything around a router that stands around every request. Outermost first: id, event
/// and form of failures; panics; room and time; length of bodies.
pub fn dress(
    router: Router,
    name: &'static str,
    limits: Limits,
    entropy: Arc<dyn Entropy>,
) -> Router {
    let observer = Observer { listener: name, entropy };
    router
        .fallback(|| async { Problem::NotFound })
        .method_not_allowed_fallback(|| async { Problem::MethodNotAllowed })
        .layer(DefaultBodyLimit::max(limits.body_bytes_max))
        .layer(from_fn_with_state(Gate::new(limits), pass))
        .layer(CatchPanicLayer::custom(on_panic))
        .layer(from_fn_with_state(observer, observe))
}

/// Dresses a router and serves it. When `stop` is cancelled, no connection is accepted any more,
/// and requests in hand get `drain_ms` to end.
///
/// # Errors
///
/// [`ListenerError`] if the address or the TLS files cannot be used.
pub async fn serve(
    config: ListenerConfig,
    router: Router,
    entropy: Arc<dyn Entropy>,
    stop: CancellationToken,
) -> Result<Listening, ListenerError> {
    let ListenerConfig { name, addr, tls, limits } = config;
    let tls = tls.as_ref().map(tls::load).transpose()?;
    let bound = |error| ListenerError::Bind(addr, error);
    let listener = TcpListener::bind(addr).await.map_err(bound)?;
    let addr = listener.local_addr().map_err(bound)?;
    let room = Arc::new(Semaphore::new(limits.connections_max));
    let handle = Handle::new();
    let mut server = Server::<SocketAddr>::from_listener(listener).handle(handle.clone());
    server
        .http_builder()
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(limits.head_read_ms))
        .max_buf_size(limits.head_bytes_max);
    let service =
        dress(router, name, limits, entropy).into_make_service_with_connect_info::<SocketAddr>();
    let scheme = if tls.is_some() { "https" } else { "http" };
    let task = match tls {
        None => {
            let server = server.acceptor(Capped { inner: PatientAcceptor, room });
            tokio::spawn(server.http1_only().serve(service))
        }
        Some(tls) => {
            let inner = RustlsAcceptor::new(tls)
                .handshake_timeout(Duration::from_millis(limits.head_read_ms))
                .acceptor(PatientAcceptor);
            tokio::spawn(server.acceptor(Capped { inner, room }).http1_only().serve(service))
        }
    };
    tokio::spawn(async move {
        stop.cancelled().await;
        handle.graceful_shutdown(Some(Duration::from_millis(limits.drain_ms)));
    });
    tracing::info!(listener = name, %addr, scheme, "listening");
    Ok(Listening { addr, task })
}

/// Sends small answers at once, and gives up who takes none; see [`Patient`].
#[derive(Clone, Copy)]
struct PatientAcceptor;

impl<S: Send + 'static> Accept<TcpStream, S> for PatientAcceptor {
    type Stream = Patient<TcpStream>;
    type Service = S;
    type Future = Pin<Box<dyn Future<Output = io::Result<(Self::Stream, S)>> + Send>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let accepting = NoDelayAcceptor.accept(stream, service);
        Box::pin(async move {
            let (stream, service) = accepting.await?;
            Ok((Patient::new(stream, WRITE_STALL), service))
        })
    }
}

/// Accepts a connection only where there is room, which it keeps for as long as it lives.
#[derive(Clone)]
struct Capped<A> {
    inner: A,
    room: Arc<Semaphore>,
}

type Accepting<T, S> = Pin<Box<dyn Future<Output = io::Result<(T, Roomed<S>)>> + Send>>;

impl<A, S> Accept<TcpStream, S> for Capped<A>
where
    A: Accept<TcpStream, S>,
    A::Future: Send + 'static,
    A::Stream: 'static,
    A::Service: 'static,
{
    type Stream = A::Stream;
    type Service = Roomed<A::Service>;
    type Future = Accepting<A::Stream, A::Service>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let Ok(place) = Arc::clone(&self.room).try_acquire_owned() else {
            metrics::counter!("claviger_http_connections_refused_total").increment(1);
            return Box::pin(async { Err(io::Error::other("too many connections")) });
        };
        let accepting = self.inner.accept(stream, service);
        Box::pin(async move {
            let (stream, inner) = accepting.await?;
            Ok((stream, Roomed { inner, _place: Arc::new(place) }))
        })
    }
}

/// A connection's service, with its place.
#[derive(Clone)]
struct Roomed<S> {
    inner: S,
    _place: Arc<OwnedSemaphorePermit>,
}

impl<R, S: Service<R>> Service<R> for Roomed<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        self.inner.call(request)
    }
}
