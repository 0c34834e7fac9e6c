//! (mover)
#[cfg(test)]
mod simulation;
