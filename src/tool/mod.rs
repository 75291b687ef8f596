//! One file per external program: commands as data, and parsers of what they print. Nothing here runs anything.

pub mod coreutils;
pub mod find;
pub mod lxc;
pub mod mkfs;
pub mod mkisofs;
pub mod mount;
pub mod qemu_img;
pub mod virsh;
