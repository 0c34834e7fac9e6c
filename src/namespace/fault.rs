//! Why an operation on the namespace was refused: by home's filesystem or by the engine.

use crate::error::Error;
use nix::errno::Errno;

pub type Outcome<T> = std::result::Result<T, Fault>;

/// Home's own answers stay bare errno values: most of them (no such name, not empty) are ordinary answers to the application, not
/// events that deserve a path and a message.
#[derive(Debug)]
pub enum Fault {
    Home(Errno),
    Engine(Error),
}

impl From<Errno> for Fault {
    fn from(errno: Errno) -> Fault {
        Fault::Home(errno)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault::Engine(error)
    }
}

impl Fault {
    /// The library's error, for callers that are not applications.
    pub fn into_error(self, action: &'static str, path: impl Into<String>) -> Error {
        match self {
            Fault::Home(errno) => Error::io(action, path, errno.into()),
            Fault::Engine(error) => error,
        }
    }
}
