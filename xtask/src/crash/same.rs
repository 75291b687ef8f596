//! Stops at which a kill finds the same as at the stop before, and that need not be tried.
//!
//! A kill at a stop finds what the calls before it have made. So two stops are the same if the same process is killed, and
//! nothing was done between them that is left after it: by no process that is traced, killed or not. What counts as nothing
//! is decided by the call alone ([`Call::effect`](super::calls::Call::effect)): it failed, or it is of a kind that changes
//! nothing but what dies with its process. Each run decides anew, so that threads may take turns as they like.

use std::collections::BTreeSet;

use nix::unistd::Pid;

use super::calls::{self, Effect};

/// What was done since the last stop that is tried, or is the same as that one.
#[derive(Debug, Default)]
pub struct Changes {
    any: bool,
    /// Who is in a call that has no effect if it fails.
    open: BTreeSet<i32>,
    /// Who would have been killed at that stop.
    victim: Option<Pid>,
}

impl Changes {
    /// Whether a kill of `victim`, now, finds what one at the last stop would have found. This is the last stop then.
    pub fn none_since_kill_of(&mut self, victim: Pid) -> bool {
        let same = !self.any && self.open.is_empty() && self.victim == Some(victim);
        self.any = false;
        self.victim = Some(victim);
        same
    }

    /// A process is about to make a call.
    pub fn begin(&mut self, pid: Pid, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::NoneIfItFails => drop(self.open.insert(pid.as_raw())),
            Effect::Some => self.any = true,
        }
    }

    /// Whether the end of a call has to be waited for.
    pub fn is_open(&self, pid: Pid) -> bool {
        self.open.contains(&pid.as_raw())
    }

    /// A process is at the end of a call.
    pub fn has_ended(&mut self, pid: Pid) {
        if self.open.remove(&pid.as_raw()) && !calls::has_failed(pid) {
            self.any = true;
        }
    }

    /// A process is not there any more, or is another program: its call was made, for all that is known.
    pub fn has_gone(&mut self, pid: Pid) {
        self.any |= self.open.remove(&pid.as_raw());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changes_nothing_is_the_same() {
        let (one, other) = (Pid::from_raw(7), Pid::from_raw(8));
        let mut changes = Changes::default();
        assert!(!changes.none_since_kill_of(one), "the first stop");
        changes.begin(one, Effect::None);
        assert!(changes.none_since_kill_of(one));
        assert!(!changes.none_since_kill_of(other), "another one is killed");
        changes.begin(one, Effect::Some);
        assert!(!changes.none_since_kill_of(other));
        assert!(changes.none_since_kill_of(other), "nothing has begun since");
        changes.begin(other, Effect::NoneIfItFails);
        assert!(!changes.none_since_kill_of(other), "nobody knows yet");
        changes.has_gone(other);
        assert!(!changes.none_since_kill_of(other), "it may have been made");
        assert!(changes.none_since_kill_of(other));
    }
}
