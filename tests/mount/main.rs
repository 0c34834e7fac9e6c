//! Real mounts: what applications see. Needs root and /dev/fuse; says so where it cannot run.
#![allow(unsafe_code)]

mod content;
mod faults;
mod image;
mod names;
mod owners;
mod ring;
mod server;
mod slow;

/// Not a test: the serving side of all of them.
#[test]
fn serve() {
    server::serve();
}
