//! Moving bytes.

pub mod copy;
