//! The life of a volume's process: settings, mount, threads, service notifications, shutdown.

pub mod quantity;
mod reader;
pub mod settings;
