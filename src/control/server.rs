//! The server of the control socket.
//!
//! Who may: root, the daemon's own user, and the group of the socket file; the kernel checks the last by the socket's mode. Each request that
//! changes something is logged with its sender.

use super::errands::Errands;
use super::events::{self, HEALTH_EVERY, HealthWatch};
use super::insight;
use super::metrics;
use super::placement;
use super::protocol::{
    self, CheckRequest, DoneReply, ErrorReply, EventsQuery, ExplainQuery, ExplainReply, HeatQuery, HeatReply,
    HistoryReply, JobReply, PinRequest, PlanQuery, PlanReply, ScheduleReply, SnapshotRequest, StatusReply, StopRequest,
    TiersReply, TopReply, TraceRequest, TracedFiles, WhatIfQuery, WhatIfReply, WhyQuery, WhyReply,
};
use super::snapshots;
use super::socket::Socket;
use crate::daemon::{Control, Served};
use crate::error::{Error, Result};
use crate::heat::TakenTrace;
use crate::jobs::check::examine;
use axum::Router;
use axum::body::Bytes;
use axum::extract::connect_info::Connected;
use axum::extract::rejection::QueryRejection;
use axum::extract::{ConnectInfo, Path, Query, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use axum::serve::IncomingStream;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::oneshot;

/// Requests in the engine at once; others wait for them.
const BLOCKING_THREADS: usize = 8;
/// Records of a trace in one answer.
const TRACE_RECORDS: usize = 16_384;

/// What the handlers share.
#[derive(Clone)]
struct Context {
    served: Arc<Served>,
    errands: Arc<Errands>,
}

/// The running server; dropping it ends the server and removes the socket.
struct Server {
    runtime: tokio::runtime::Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    _socket: Socket,
}

impl Control for Server {
    fn is_alive(&self, within: Duration) -> bool {
        let (answer, answered) = std::sync::mpsc::channel();
        self.runtime.spawn(async move { answer.send(()) });
        answered.recv_timeout(within).is_ok()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the control thread panicked");
        }
    }
}

/// Binds the socket of the settings and serves it on a thread of its own.
pub fn start(served: Arc<Served>) -> Result<Box<dyn Control>> {
    let path = served.settings.socket_path()?;
    let failed = |error| Error::io("serving control socket", path.display().to_string(), error);
    let (socket, listener) = Socket::bind(&path)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .map_err(failed)?;
    let listener = {
        let _inside = runtime.enter();
        UnixListener::from_std(listener).map_err(failed)?
    };
    let handle = runtime.handle().clone();
    let (stop, stopped) = oneshot::channel::<()>();
    runtime.spawn(watch_health(Context { served: Arc::clone(&served), errands: Arc::default() }));
    let router = router(Context { served, errands: Arc::default() }).into_make_service_with_connect_info::<Peer>();
    let thread = std::thread::Builder::new()
        .name("control".to_owned())
        .spawn(move || {
            let ended = runtime.block_on(async move {
                tokio::select! {
                    ended = axum::serve(listener, router) => ended,
                    _ = stopped => Ok(()),
                }
            });
            if let Err(error) = ended {
                tracing::error!("the control interface ended: {error}");
            }
            // An errand may still run in the engine; it is not waited for.
            runtime.shutdown_background();
        })
        .map_err(failed)?;
    Ok(Box::new(Server { runtime: handle, stop: Some(stop), thread: Some(thread), _socket: socket }))
}

fn router(context: Context) -> Router {
    Router::new()
        .route(protocol::STATUS, get(status))
        .route(protocol::TIERS, get(tiers))
        .route(protocol::TOP, get(top))
        .route(protocol::HEAT, get(heat))
        .route(protocol::EXPLAIN, get(explain))
        .route(protocol::WHY, get(why))
        .route(protocol::PLAN, get(plan))
        .route(protocol::WHAT_IF, get(what_if))
        .route(protocol::HISTORY, get(history))
        .route(protocol::PIN, post(pin))
        .route(protocol::UNPIN, post(unpin))
        .route(protocol::CHECK, post(check))
        .route(protocol::SETTLE, post(settle))
        .route(protocol::CHECKPOINT, post(checkpoint))
        .route(protocol::SNAPSHOTS, post(snapshot))
        .route(protocol::SCHEDULE, get(schedule))
        .route(protocol::EVENTS, get(follow_events))
        .route(protocol::TRACE, get(trace))
        .route(protocol::TRACE_START, post(start_trace))
        .route(protocol::TRACE_STOP, post(stop_trace))
        .route(protocol::STOP, post(stop))
        .route("/v1/jobs/{id}", get(job))
        .route(protocol::METRICS, get(prometheus))
        .fallback(nothing_here)
        .method_not_allowed_fallback(wrong_method)
        .layer(axum::middleware::from_fn(admit))
        .with_state(context)
}

/// Who is at the other end.
#[derive(Clone, Copy, Debug)]
struct Peer {
    /// User, group and process; None: the kernel does not say.
    credentials: Option<(u32, u32, Option<i32>)>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Peer {
        let credentials = stream.io().peer_cred().ok();
        Peer { credentials: credentials.map(|peer| (peer.uid(), peer.gid(), peer.pid())) }
    }
}

async fn admit(ConnectInfo(peer): ConnectInfo<Peer>, request: Request, next: Next) -> Response {
    let Some((uid, gid, pid)) = peer.credentials else {
        return Failure(StatusCode::FORBIDDEN, "the kernel does not say who asks".into()).into_response();
    };
    if request.method() != Method::GET {
        let pid = pid.unwrap_or_default();
        tracing::info!("{} {} by uid {uid}, gid {gid}, pid {pid}", request.method(), request.uri().path());
    }
    next.run(request).await
}

/// A refusal on its way to the client.
struct Failure(StatusCode, String);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(ErrorReply { error: self.1.replace('\n', " ") })).into_response()
    }
}

/// One line, with its status.
pub(super) fn refusal(code: StatusCode, line: String) -> Response {
    Failure(code, line).into_response()
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let code = match &error {
            Error::Invalid(_) => StatusCode::BAD_REQUEST,
            Error::NotFound(_) => StatusCode::NOT_FOUND,
            Error::Busy(_) | Error::Overtaken(_) | Error::WouldWait | Error::LogFull => StatusCode::CONFLICT,
            Error::Io { .. }
            | Error::Corrupt { .. }
            | Error::WrongTier { .. }
            | Error::ReadOnly { .. }
            | Error::NoSpace
            | Error::Untrusted { .. }
            | Error::SnapshotFailed { .. }
            | Error::Unfinished { .. }
            | Error::Source { .. }
            | Error::State { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Failure(code, error.to_string())
    }
}

type Answer<Reply> = std::result::Result<Json<Reply>, Failure>;

/// Runs a call into the engine where it may block.
async fn blocking<Reply: Send + 'static>(
    context: Context,
    call: impl FnOnce(&Context) -> Result<Reply> + Send + 'static,
) -> std::result::Result<Reply, Failure> {
    match tokio::task::spawn_blocking(move || call(&context)).await {
        Ok(outcome) => Ok(outcome?),
        Err(_) => {
            Err(Failure(StatusCode::INTERNAL_SERVER_ERROR, "the request failed within (see the daemon's log)".into()))
        }
    }
}

/// A request's body; an empty one stands for `{}`.
fn body<Body: DeserializeOwned>(bytes: &Bytes) -> std::result::Result<Body, Failure> {
    let text: &[u8] = if bytes.is_empty() { b"{}" } else { bytes };
    serde_json::from_slice(text).map_err(|error| Failure(StatusCode::BAD_REQUEST, format!("request body: {error}")))
}

async fn nothing_here(request: Request) -> Failure {
    Failure(StatusCode::NOT_FOUND, format!("{}: there is no such request", request.uri().path()))
}

async fn wrong_method(request: Request) -> Failure {
    let text = format!("{}: not with the method {}", request.uri().path(), request.method());
    Failure(StatusCode::METHOD_NOT_ALLOWED, text)
}

fn status_of(served: &Served) -> StatusReply {
    let volume = served.volume.status();
    let namespace = served.namespace.stats();
    let snapshots = served.keeper.status();
    let (health, reasons) = StatusReply::judge(&volume, namespace.untrusted_files, &snapshots);
    let (mover, block_bytes) = (served.mover.status(), served.volume.block_bytes());
    StatusReply {
        name: served.settings.name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        mount: served.settings.mount.display().to_string(),
        pid: std::process::id(),
        uptime_s: served.uptime().as_secs(),
        health,
        reasons,
        stopping: served.stopping(),
        nodes: namespace.nodes,
        untrusted_files: namespace.untrusted_files,
        only_on_fastest_bytes: StatusReply::only_on_fastest(&volume, &mover, block_bytes),
        warnings: StatusReply::warn(&volume, &mover, block_bytes),
        volume,
        mover,
        snapshots,
        hydration: served.hydrator.as_ref().map(|hydrator| hydrator.status()),
        log_archive: served.log_archive.as_ref().map(|archive| archive.status()),
    }
}

/// Publishes changes of health, as long as the server runs.
async fn watch_health(context: Context) {
    let mut watch = HealthWatch::new();
    loop {
        let looked = blocking(context.clone(), |context| {
            let (volume, untrusted) =
                (context.served.volume.status(), context.served.namespace.stats().untrusted_files);
            Ok(StatusReply::judge(&volume, untrusted, &context.served.keeper.status()))
        });
        if let Ok((health, reasons)) = looked.await
            && let Some(what) = watch.look(health, &reasons)
        {
            context.served.publish(what);
        }
        tokio::time::sleep(HEALTH_EVERY).await;
    }
}

async fn status(State(context): State<Context>) -> Answer<StatusReply> {
    blocking(context, |context| Ok(status_of(&context.served))).await.map(Json)
}

async fn tiers(State(context): State<Context>) -> Answer<TiersReply> {
    blocking(context, |context| Ok(TiersReply { tiers: context.served.volume.status().tiers })).await.map(Json)
}

async fn top(State(context): State<Context>) -> Answer<TopReply> {
    let reply = blocking(context, |context| {
        let status = context.served.volume.status();
        let uptime_us = u64::try_from(context.served.uptime().as_micros()).unwrap_or(u64::MAX);
        Ok(TopReply { uptime_us, counters: status.counters, tiers: status.tiers, log: status.log })
    });
    reply.await.map(Json)
}

/// A query's parameters; what is wrong with them is said in one line.
type Parameters<T> = std::result::Result<Query<T>, QueryRejection>;

fn parameters<T>(query: Parameters<T>) -> std::result::Result<T, Failure> {
    query.map(|Query(parameters)| parameters).map_err(|error| Failure(StatusCode::BAD_REQUEST, error.body_text()))
}

async fn heat(State(context): State<Context>, query: Parameters<HeatQuery>) -> Answer<HeatReply> {
    let query = parameters(query)?;
    blocking(context, move |context| placement::heat(&context.served, &query)).await.map(Json)
}

async fn explain(State(context): State<Context>, query: Parameters<ExplainQuery>) -> Answer<ExplainReply> {
    let query = parameters(query)?;
    blocking(context, move |context| placement::explain(&context.served, &query)).await.map(Json)
}

async fn why(State(context): State<Context>, query: Parameters<WhyQuery>) -> Answer<WhyReply> {
    let query = parameters(query)?;
    blocking(context, move |context| insight::why(&context.served, &query)).await.map(Json)
}

async fn plan(State(context): State<Context>, query: Parameters<PlanQuery>) -> Answer<PlanReply> {
    let query = parameters(query)?;
    blocking(context, move |context| insight::plan(&context.served, &query)).await.map(Json)
}

async fn what_if(State(context): State<Context>, query: Parameters<WhatIfQuery>) -> Answer<WhatIfReply> {
    let query = parameters(query)?;
    blocking(context, move |context| insight::what_if(&context.served, &query)).await.map(Json)
}

async fn history(State(context): State<Context>) -> Answer<HistoryReply> {
    blocking(context, |context| insight::history(&context.served)).await.map(Json)
}

async fn pin(State(context): State<Context>, bytes: Bytes) -> Answer<DoneReply> {
    let request: PinRequest = body(&bytes)?;
    blocking(context, move |context| placement::pin(&context.served, &request)).await.map(Json)
}

async fn unpin(State(context): State<Context>, bytes: Bytes) -> Answer<DoneReply> {
    let request: PinRequest = body(&bytes)?;
    blocking(context, move |context| placement::unpin(&context.served, &request)).await.map(Json)
}

async fn check(State(context): State<Context>, bytes: Bytes) -> Answer<JobReply> {
    let request: CheckRequest = body(&bytes)?;
    let reply = blocking(context, move |context| {
        let served = Arc::clone(&context.served);
        let work = Box::new(move || {
            let home = served.settings.tiers[0].path.join("home");
            let report = examine(&served.volume, &home, request.deep)?;
            serde_json::to_value(report).map(Some).map_err(|error| Error::Invalid(format!("findings: {error}")))
        });
        context.errands.start("check", Box::new(|| 0), work)
    });
    reply.await.map(Json)
}

async fn settle(State(context): State<Context>) -> Answer<JobReply> {
    let reply = blocking(context, |context| {
        let (asked, worked) = (Arc::clone(&context.served.volume), Arc::clone(&context.served.volume));
        let remaining = Box::new(move || asked.status().log.live_bytes);
        let work =
            Box::new(move || worked.coalesce_all(&mut |_, _| {}).and_then(|()| worked.checkpoint()).map(|()| None));
        context.errands.start("settle", remaining, work)
    });
    reply.await.map(Json)
}

async fn snapshot(State(context): State<Context>, bytes: Bytes) -> Answer<JobReply> {
    let request: SnapshotRequest = body(&bytes)?;
    blocking(context, move |context| snapshots::create(&context.served, &context.errands, request)).await.map(Json)
}

async fn schedule(State(context): State<Context>) -> Answer<ScheduleReply> {
    blocking(context, |context| Ok(snapshots::schedule(&context.served))).await.map(Json)
}

async fn follow_events(
    State(context): State<Context>,
    query: Parameters<EventsQuery>,
) -> std::result::Result<Response, Failure> {
    Ok(events::answer(&context.served.keeper.events, &parameters(query)?))
}

async fn checkpoint(State(context): State<Context>) -> Answer<DoneReply> {
    let reply = blocking(context, |context| {
        context.served.volume.checkpoint()?;
        Ok(DoneReply { message: "checkpoint is durable".to_owned() })
    });
    reply.await.map(Json)
}

async fn start_trace(State(context): State<Context>, bytes: Bytes) -> Answer<DoneReply> {
    let request: TraceRequest = body(&bytes)?;
    context.served.mover.recorder().start_trace(request.records)?;
    Ok(Json(DoneReply { message: "recording".to_owned() }))
}

async fn trace(State(context): State<Context>) -> Answer<TakenTrace> {
    Ok(Json(context.served.mover.recorder().take_trace(TRACE_RECORDS)))
}

async fn stop_trace(State(context): State<Context>) -> Answer<TracedFiles> {
    blocking(context, |context| insight::stop_trace(&context.served)).await.map(Json)
}

async fn stop(State(context): State<Context>, bytes: Bytes) -> Answer<DoneReply> {
    let request: StopRequest = body(&bytes)?;
    context.served.ask_to_stop(request.force);
    Ok(Json(DoneReply { message: "stopping".to_owned() }))
}

async fn job(State(context): State<Context>, Path(id): Path<String>) -> Answer<JobReply> {
    let number = id.parse().map_err(|_| Failure(StatusCode::BAD_REQUEST, format!("job `{id}`: a number is wanted")))?;
    blocking(context, move |context| context.errands.poll(number)).await.map(Json)
}

async fn prometheus(State(context): State<Context>) -> std::result::Result<Response, Failure> {
    let text = blocking(context, |context| Ok(metrics::text(&status_of(&context.served)))).await?;
    let text = text.map_err(|error| Failure(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([("content-type", kind)], text).into_response())
}
