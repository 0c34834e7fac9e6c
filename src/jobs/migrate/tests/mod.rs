mod moving;
mod simulation;
