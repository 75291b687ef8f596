//! Ctrl-C and its kin set a flag. Whoever waits looks at it and returns an error, so that guards unmount and remove.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Whether a signal asked for the end.
#[derive(Clone)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Takes over SIGINT, SIGTERM and SIGHUP for the rest of the process.
    ///
    /// # Errors
    /// The kernel refuses a handler.
    pub fn install() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&flag)).context("Cannot install signal handlers")?;
        }
        Ok(Self(flag))
    }

    /// Whether a signal arrived.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Fails once a signal arrived.
    ///
    /// # Errors
    /// A signal arrived.
    pub fn check(&self) -> Result<()> {
        if self.requested() {
            bail!("Stopped by a signal; everything made so far is removed");
        }
        Ok(())
    }
}
