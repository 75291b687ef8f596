//! OpenNebula's storage drivers as one binary.

pub mod exec;
pub mod image;
pub mod oned;
pub mod payload;
pub mod transfer;
