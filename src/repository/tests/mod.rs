//! The repository on simulated disks: what it stores, what it survives.

mod archive;
mod capture;
mod crash;
mod damage;
mod economy;
mod interleave;
mod lab;
mod prune;
