//! Requests of the control API, as the server takes them apart: bodies, queries, and the settings, which come from people as well.

use axum::extract::Query;
use axum::http::Uri;
use heatfs::control::protocol::{
    CheckRequest, EventsQuery, ExplainQuery, HeatQuery, PinRequest, PlanQuery, SnapshotRequest, StopRequest,
    TraceRequest, WhatIfQuery, WhyQuery,
};
use heatfs::daemon::settings::Settings;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

type Kind = (&'static str, fn(&[u8]));
const KINDS: [Kind; 12] = [
    ("heat", query::<HeatQuery>),
    ("explain", query::<ExplainQuery>),
    ("why", query::<WhyQuery>),
    ("plan", query::<PlanQuery>),
    ("whatif", query::<WhatIfQuery>),
    ("events", query::<EventsQuery>),
    ("pin", body::<PinRequest>),
    ("check", body::<CheckRequest>),
    ("snapshots", body::<SnapshotRequest>),
    ("trace", body::<TraceRequest>),
    ("stop", body::<StopRequest>),
    ("settings", settings),
];

pub fn feed(data: &[u8]) {
    let [which, bytes @ ..] = data else { return };
    KINDS[usize::from(*which) % KINDS.len()].1(bytes);
}

fn query<T: DeserializeOwned + Debug>(bytes: &[u8]) {
    let target = [b"/v1/any?", bytes].concat();
    if let Ok(uri) = Uri::try_from(target) {
        let _ = Query::<T>::try_from_uri(&uri).map(|Query(parameters)| format!("{parameters:?}"));
    }
}

/// What is taken is the same when it is sent on.
fn body<T: DeserializeOwned + Serialize + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<T>(bytes) {
        let again = serde_json::to_vec(&request).expect("a request can be written");
        assert_eq!(serde_json::from_slice::<T>(&again).expect("what was just written"), request);
    }
}

fn settings(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Err(error) = Settings::parse(text, &[]) {
        assert!(!error.to_string().contains('\n'), "one line, not {error:?}");
    }
}

pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let settings = "name = \"a\"\nmount = \"/m\"\nlog.size = \"1GiB\"\n[[tier]]\nname = \"t\"\npath = \"/t\"\nbudget = \"5GiB\"\nreserve = \"5%\"\n\
        [[rule]]\npath = \"base/1/\"\npin = \"t\"\n[snapshot]\nrepository = \"/r\"\nschedule = \"0 3 * * *\"\nkeep.daily = 3\n";
    let texts = [
        ("heat", "path=base%2F1&files=5&stretches=8"),
        ("explain", "path=a%20b&offset=8192"),
        ("why", "path=&count=9"),
        ("plan", "count=3"),
        ("whatif", "changes=nvme%3D%2B1073741824%2Csata%3D0"),
        ("events", "follow=true"),
        ("pin", "{\"path\":\"/a\",\"tier\":\"nvme\"}"),
        ("check", "{\"deep\":true}"),
        ("snapshots", "{\"labels\":{\"by\":\"hand\"}}"),
        ("trace", "{\"records\":100}"),
        ("stop", "{\"force\":false}"),
        ("settings", settings),
    ];
    let number = |name: &str| KINDS.iter().position(|known| known.0 == name).expect("a kind") as u8;
    texts.map(|(name, text)| (name.to_owned(), [&[number(name)], text.as_bytes()].concat())).into()
}
