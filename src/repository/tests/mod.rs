//! The repository on simulated disks: what it stores, what it survives.

mod capture;
mod lab;
