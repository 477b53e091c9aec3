//! YAML as a tree that knows its lines, and the reading of typed values out of it.
//!
//! - `document`: the text becomes a [`Node`]: one document of at most 4 MiB, 64 levels and 500 000
//!   values, of which anchors and aliases copy at most 1 MiB. Tags and merge keys are refused.
//! - `read`: a [`Value`] is a node and the path to it; [`Fields`] reads a mapping and refuses every
//!   key nobody asked for.
//! - `scalar`: the values a file of this crate is made of: durations, sizes, addresses.
//!
//! A reader goes on after a mistake, so that one run names all of them. Every [`Mistake`] says the
//! line, the path of the key, what was expected and what was found.
//! JSON is read as the YAML it is; the one part of it that YAML has not is a character escaped as
//! two surrogates (`\ud83d\ude00`), which is refused.

mod document;
mod near;
mod read;
mod scalar;

pub(crate) use document::{Data, Node, parse};
pub(crate) use read::{Fields, Mistake, Mistakes, Value, collect};
pub(crate) use scalar::{
    boolean, decimal, duration, number, one_of, percent, positive_duration, rate, size,
    socket_addr, text,
};
