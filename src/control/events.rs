//! Events over the socket: one JSON object per line, for as long as the client reads.
//!
//! Each client has a queue of [`QUEUE`] events. One that does not read in time is dropped, and told so by its last line; nobody waits for it. An empty
//! line comes every [`QUIET`] when nothing happens, so that both ends notice a dead other.

use super::protocol::{EventLine, EventsQuery, Health};
use crate::jobs::events::{Event, Events, What};
use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use http_body_util::channel::{Channel, Sender};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Events that a client may be behind.
const QUEUE: usize = 256;
/// Clients at once.
const CLIENTS: usize = 32;
/// How long nothing is said.
const QUIET: Duration = Duration::from_secs(20);
/// Parts of the body that wait for the socket.
const PARTS: usize = 4;
/// How often health is looked at.
pub(super) const HEALTH_EVERY: Duration = Duration::from_secs(2);

/// A listener's end of its queue.
struct Queue {
    waiting: mpsc::Receiver<Event>,
    overrun: Arc<AtomicBool>,
}

/// Begins to listen: what was, and what will be.
fn listen(events: &Events, capacity: usize) -> (Vec<Event>, Queue) {
    let (queue, waiting) = mpsc::channel(capacity);
    let overrun = Arc::new(AtomicBool::new(false));
    let overruns = Arc::clone(&overrun);
    let latest = events.follow(Box::new(move |event| {
        let Some(event) = event else { return !queue.is_closed() };
        let sent = queue.try_send(event.clone());
        if matches!(sent, Err(mpsc::error::TrySendError::Full(_))) {
            overruns.store(true, Ordering::Relaxed);
        }
        sent.is_ok()
    }));
    (latest, Queue { waiting, overrun })
}

/// The answer to `/v1/events`.
pub(super) fn answer(events: &Arc<Events>, query: &EventsQuery) -> Response {
    let kind = [("content-type", "application/x-ndjson")];
    if !query.follow {
        let text: String = events.latest().into_iter().map(|event| line(&EventLine::Event(event))).collect();
        return (kind, text).into_response();
    }
    if events.listeners() >= CLIENTS {
        let text = format!("events: {CLIENTS} clients follow them already, which is as many as may");
        return super::server::refusal(StatusCode::CONFLICT, text);
    }
    let (latest, queue) = listen(events, QUEUE);
    let (sender, body) = Channel::<Bytes, Infallible>::new(PARTS);
    tokio::spawn(send(sender, latest, queue));
    (kind, Body::new(body)).into_response()
}

fn line(line: &EventLine) -> String {
    // Plain data: encoding it cannot fail.
    serde_json::to_string(line).map(|text| text + "\n").unwrap_or_default()
}

/// Until the client or the daemon is gone, or the client has fallen behind.
async fn send(mut client: Sender<Bytes>, latest: Vec<Event>, mut queue: Queue) {
    let latest: String = latest.into_iter().map(|event| line(&EventLine::Event(event))).collect();
    let mut part = if latest.is_empty() { "\n".to_owned() } else { latest };
    loop {
        if client.send_data(Bytes::from(part)).await.is_err() {
            return;
        }
        part = match timeout(QUIET, queue.waiting.recv()).await {
            Ok(Some(event)) => line(&EventLine::Event(event)),
            Ok(None) => break,
            Err(_) => "\n".to_owned(),
        };
    }
    if queue.overrun.load(Ordering::Relaxed) {
        let ended = format!("this client was {QUEUE} events behind and was dropped: ask again");
        let _ = client.send_data(Bytes::from(line(&EventLine::Ended { ended }))).await;
    }
}

/// Tells a change of health, which nobody else watches for.
pub(super) struct HealthWatch {
    last: Option<(Health, Vec<String>)>,
}

impl HealthWatch {
    pub(super) fn new() -> HealthWatch {
        HealthWatch { last: None }
    }

    /// The event, if it is another than when last asked. That it is healthy at first is none.
    pub(super) fn look(&mut self, health: Health, reasons: &[String]) -> Option<What> {
        let now = (health, reasons.to_vec());
        let news = match &self.last {
            None => health != Health::Healthy,
            // The words of a reason may count something; what matters is how many there are.
            Some((before, said)) => *before != health || said.len() != reasons.len(),
        };
        self.last = Some(now);
        news.then(|| What::HealthChanged { health: health.to_string(), reasons: reasons.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::{HealthWatch, listen, send};
    use crate::control::protocol::{EventLine, Health};
    use crate::jobs::events::{Events, What};
    use axum::body::Bytes;
    use http_body_util::BodyExt;
    use http_body_util::channel::Channel;

    fn lines(body: &[u8]) -> Vec<EventLine> {
        let text = std::str::from_utf8(body).expect("text");
        text.lines().filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).expect(line)).collect()
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_dropped_and_told() {
        let events = Events::default();
        events.publish(What::Stopping);
        let (latest, queue) = listen(&events, 3);
        for _ in 0..4 {
            events.publish(What::Stopping);
        }
        assert_eq!(events.listeners(), 0, "nobody waits for it");
        let (sender, body) = Channel::<Bytes>::new(1);
        let sending = tokio::spawn(send(sender, latest, queue));
        let heard = lines(&body.collect().await.expect("a body").to_bytes());
        sending.await.expect("it ends");
        assert_eq!(heard.len(), 5, "one before, three that fitted, and that it was dropped: {heard:?}");
        assert!(matches!(&heard[4], EventLine::Ended { ended } if ended.contains("behind")), "{heard:?}");
        assert!(heard[..4].iter().all(|line| matches!(line, EventLine::Event(_))));
    }

    #[tokio::test]
    async fn a_client_that_goes_is_forgotten_and_costs_the_others_nothing() {
        let events = Events::default();
        let (_, gone) = listen(&events, 3);
        let (_, mut stays) = listen(&events, 3);
        assert_eq!(events.listeners(), 2);
        drop(gone);
        assert_eq!(events.listeners(), 1, "before anything happens: it must not keep others out");
        events.publish(What::Stopping);
        assert_eq!(stays.waiting.recv().await.map(|event| event.what), Some(What::Stopping));
    }

    #[test]
    fn health_is_told_when_it_changes() {
        let mut watch = HealthWatch::new();
        assert_eq!(watch.look(Health::Healthy, &[]), None);
        let why = ["tier hdd: EIO".to_owned()];
        let told = What::HealthChanged { health: "degraded".into(), reasons: why.to_vec() };
        assert_eq!(watch.look(Health::Degraded, &why), Some(told));
        assert_eq!(watch.look(Health::Degraded, &["tier hdd: EIO, twice".to_owned()]), None);
        assert!(watch.look(Health::Healthy, &[]).is_some());
    }
}
