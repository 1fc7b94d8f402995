//! The coordinator's binary: `serve` and every command for people.

mod config;
mod journal;
mod store;
mod words;

#[cfg(test)]
mod fixture;

fn main() {}
