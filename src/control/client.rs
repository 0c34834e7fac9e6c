//! The client of the control socket: one blocking request at a time, for the command line.

use super::protocol::ErrorReply;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;
use tokio::task::JoinHandle;

/// How long a request may take; long errands answer at once and are polled.
const TIMEOUT: Duration = Duration::from_secs(120);

/// What brings the rest of an answer; dropped, the connection ends.
struct Driver(JoinHandle<Result<(), hyper::Error>>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Debug, Error)]
pub enum ClientError {
    #[error("no daemon answers at {path}: {source}")]
    Unreachable { path: String, source: io::Error },
    /// The daemon's own line, and whether it is about what was asked rather than about how the daemon is.
    #[error("{line}")]
    Refused { line: String, wrong_input: bool },
    #[error("the daemon at {path} answered something else than expected: {why}")]
    Garbled { path: String, why: String },
}

pub struct Client {
    path: PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl Client {
    pub fn new(path: &Path) -> io::Result<Client> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Client { path: path.to_owned(), runtime })
    }

    pub fn get<Reply: DeserializeOwned>(&self, target: &str) -> Result<Reply, ClientError> {
        self.decode(&self.exchange(Method::GET, target, Bytes::new())?)
    }

    pub fn get_text(&self, target: &str) -> Result<String, ClientError> {
        Ok(String::from_utf8_lossy(&self.exchange(Method::GET, target, Bytes::new())?).into_owned())
    }

    pub fn post<Reply: DeserializeOwned>(&self, target: &str, body: &impl Serialize) -> Result<Reply, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| self.garbled(error))?;
        self.decode(&self.exchange(Method::POST, target, Bytes::from(body))?)
    }

    fn garbled(&self, why: impl ToString) -> ClientError {
        ClientError::Garbled { path: self.path.display().to_string(), why: why.to_string() }
    }

    fn decode<Reply: DeserializeOwned>(&self, body: &[u8]) -> Result<Reply, ClientError> {
        serde_json::from_slice(body).map_err(|error| self.garbled(error))
    }

    fn exchange(&self, method: Method, target: &str, body: Bytes) -> Result<Bytes, ClientError> {
        let request = self.request(method, target, body)?;
        let (status, body) = self.runtime.block_on(async {
            match tokio::time::timeout(TIMEOUT, self.send(request)).await {
                Ok(answer) => answer,
                Err(_) => Err(self.garbled(format!("nothing within {} s", TIMEOUT.as_secs()))),
            }
        })?;
        if status == StatusCode::OK {
            return Ok(body);
        }
        Err(self.refusal(status, &body))
    }

    fn request(&self, method: Method, target: &str, body: Bytes) -> Result<Request<Full<Bytes>>, ClientError> {
        Request::builder()
            .method(method)
            .uri(target)
            .header("host", "heatfs")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|error| self.garbled(error))
    }

    fn refusal(&self, status: StatusCode, body: &[u8]) -> ClientError {
        let line = serde_json::from_slice::<ErrorReply>(body).map(|reply| reply.error);
        let wrong_input = status == StatusCode::BAD_REQUEST;
        line.map_or_else(|_| self.garbled(status), |line| ClientError::Refused { line, wrong_input })
    }

    /// Calls for each line of a long answer that is not empty, as it comes, until the daemon ends it. Nobody waits for ever: a daemon that has nothing to
    /// say sends empty lines.
    pub fn lines<Failure: From<ClientError>>(
        &self,
        target: &str,
        call: &mut dyn FnMut(&str) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let request = self.request(Method::GET, target, Bytes::new())?;
        self.runtime.block_on(async {
            let (answer, _driver) = self.open(request).await?;
            let status = answer.status();
            let mut body = answer.into_body();
            if status != StatusCode::OK {
                let body = body.collect().await.map_err(|error| self.garbled(error))?.to_bytes();
                return Err(self.refusal(status, &body).into());
            }
            let mut rest = Vec::new();
            loop {
                let silent = |_| self.garbled(format!("nothing within {} s", TIMEOUT.as_secs()));
                let Some(frame) = tokio::time::timeout(TIMEOUT, body.frame()).await.map_err(silent)? else { break };
                let frame = frame.map_err(|error| self.garbled(error))?;
                let Ok(bytes) = frame.into_data() else { continue };
                rest.extend_from_slice(&bytes);
                while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = rest.drain(..=end).collect();
                    let line = String::from_utf8_lossy(&line);
                    if !line.trim().is_empty() {
                        call(line.trim())?;
                    }
                }
            }
            Ok(())
        })
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), ClientError> {
        let (answer, _driver) = self.open(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await.map_err(|error| self.garbled(error))?.to_bytes();
        Ok((status, body))
    }

    /// The beginning of an answer, and the task that brings the rest.
    async fn open(&self, request: Request<Full<Bytes>>) -> Result<(Response<Incoming>, Driver), ClientError> {
        let unreachable = |source| ClientError::Unreachable { path: self.path.display().to_string(), source };
        let stream = tokio::net::UnixStream::connect(&self.path).await.map_err(unreachable)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.garbled(error))?;
        let driver = Driver(tokio::spawn(connection));
        let answer = sender.send_request(request).await.map_err(|error| self.garbled(error))?;
        Ok((answer, driver))
    }
}

/// `text` as a value of a query: everything but unreserved characters and `/` percent-encoded.
pub fn query_value(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
