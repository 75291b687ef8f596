//! Changes as steps: a script on a host, the sentence that explains it, and how it is undone.
//!
//! A driver hands steps to an [`Executor`]. [`Runner`] runs them and keeps the undo stack; [`Explainer`] writes down what
//! would run and changes nothing. The driver cannot tell which one it talks to (rule 4 of `docs/architecture.md`).

use std::cell::RefCell;
use std::fs::File;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;

use super::control::Control;
use super::host::Host;
use super::interpret::{Input, Io};
use super::op::{Op, Script, Value};
use crate::report::{Level, Log, one_line};

/// How long a roll-back may take in all, and what cannot be rolled back.
const ROLL_BACK_TIME: Duration = Duration::from_secs(120);

/// How long may be cleared away after a success: directories full of large files go slowly.
const CLEAR_TIME: Duration = Duration::from_secs(3600);

/// Data that goes into a step's [`Op::Receive`].
pub enum Feed {
    /// Bytes from somewhere; an error from the reader fails the step.
    Stream(Box<dyn Read + Send>),
    /// An open file: a local host may share its blocks instead of reading them.
    File(File),
}

impl std::fmt::Debug for Feed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Stream(_) => "Stream",
            Self::File(_) => "File",
        })
    }
}

/// One change.
pub struct Step {
    /// What is done, as a sentence for a person, without a full stop.
    pub what: String,
    /// What the user reads first when it fails: `Error copying /a to /b`.
    pub failure: String,
    /// Where it runs.
    pub host: Arc<dyn Host>,
    /// What runs.
    pub script: Script,
    /// What takes it back, after a part of it as well as after all of it; empty where there is nothing to take back.
    pub undo: Script,
    /// What flows into it.
    pub feed: Option<Feed>,
    /// What takes its output stream.
    pub sink: Option<Box<dyn Write + Send>>,
    /// Whether its failure is only worth a warning.
    pub best_effort: bool,
    /// Whether a cancellation leaves it alone once it has begun.
    pub whole: bool,
}

impl Step {
    /// A step without undo or input.
    #[must_use]
    pub fn new(host: &Arc<dyn Host>, what: impl Into<String>, ops: impl IntoIterator<Item = Op>) -> Self {
        let what = what.into();
        Self {
            failure: format!("Cannot {}", lower_first(&what)),
            what,
            host: Arc::clone(host),
            script: Script::new(ops),
            undo: Script::default(),
            feed: None,
            sink: None,
            best_effort: false,
            whole: false,
        }
    }

    /// Sets what takes it back.
    #[must_use]
    pub fn undo(mut self, ops: impl IntoIterator<Item = Op>) -> Self {
        self.undo = Script::new(ops);
        self
    }

    /// Sets what the user reads first when it fails.
    #[must_use]
    pub fn or_say(mut self, failure: impl Into<String>) -> Self {
        self.failure = failure.into();
        self
    }

    /// Lets nothing but a deadline end it once it has begun: for the few operations behind which there is no way back.
    /// Half of them is what neither oned nor a second try could make sense of.
    #[must_use]
    pub fn whole(mut self) -> Self {
        self.whole = true;
        self
    }

    /// Makes its failure a warning.
    #[must_use]
    pub fn best_effort(mut self) -> Self {
        self.best_effort = true;
        self
    }

    /// Sets what takes what an operation that sends writes.
    #[must_use]
    pub fn sink(mut self, sink: Box<dyn Write + Send>) -> Self {
        self.sink = Some(sink);
        self
    }

    /// Sets what flows into it.
    #[must_use]
    pub fn feed(mut self, feed: Feed) -> Self {
        self.feed = Some(feed);
        self
    }
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

/// Does steps, or says what they would do.
pub trait Executor {
    /// Does one step; on failure the step itself and all before it are taken back when the executor is dropped.
    ///
    /// # Errors
    /// What failed, under the step's own words.
    fn apply(&self, step: Step) -> anyhow::Result<Vec<Value>>;

    /// Adds what takes a step back from now on, when more is known than before it ran: the step itself does nothing.
    fn on_failure(&self, step: Step);

    /// Leaves a step for [`Executor::commit`].
    fn after(&self, step: Step);

    /// Whether steps really happen. For the few places where an answer exists only after a change.
    fn is_real(&self) -> bool;

    /// The reply is delivered: does the steps left for this moment, whatever signal comes. Then nothing will be taken back
    /// any more.
    ///
    /// # Errors
    /// One of these steps failed; then the whole action has failed and everything is taken back. A staging name that
    /// stayed would take the image away later ([`super::staging`]).
    fn commit(&self) -> anyhow::Result<()>;
}

/// Runs steps and keeps the undo stack.
pub struct Runner<'a> {
    control: Control,
    log: &'a Log,
    undo: RefCell<Vec<Undo>>,
    after: RefCell<Vec<Step>>,
}

struct Undo {
    what: String,
    host: Arc<dyn Host>,
    script: Script,
}

impl<'a> Runner<'a> {
    /// A runner that obeys `control` and tells `log` what it does.
    #[must_use]
    pub fn new(control: Control, log: &'a Log) -> Self {
        Self { control, log, undo: RefCell::default(), after: RefCell::default() }
    }
}

impl Runner<'_> {
    fn run(&self, mut step: Step, control: &Control) -> anyhow::Result<Vec<Value>> {
        self.log.say(Level::Debug, &format!("{}: {}", step.host.name(), step.what));
        control.check().with_context(|| step.failure.clone())?;
        // Before it runs: a part of it may have to be taken back.
        self.push(&step);
        let input = match &mut step.feed {
            Some(Feed::Stream(reader)) => Some(Input::Stream(reader.as_mut())),
            Some(Feed::File(file)) => Some(Input::File(file)),
            None => None,
        };
        let whole = Control::only_within(ROLL_BACK_TIME);
        let control = if step.whole { &whole } else { control };
        let output = step.sink.as_mut().map(|sink| &mut **sink as &mut (dyn Write + Send));
        step.host
            .run(&step.script, Io { input, output, ..Io::default() }, control)
            .with_context(|| step.failure.clone())
    }

    fn push(&self, step: &Step) {
        if !step.undo.ops.is_empty() {
            let undo = Undo { what: step.what.clone(), host: Arc::clone(&step.host), script: step.undo.clone() };
            self.undo.borrow_mut().push(undo);
        }
    }
}

impl Executor for Runner<'_> {
    fn apply(&self, step: Step) -> anyhow::Result<Vec<Value>> {
        self.run(step, &self.control)
    }

    fn on_failure(&self, step: Step) {
        self.push(&step);
    }

    fn after(&self, step: Step) {
        self.after.borrow_mut().push(step);
    }

    fn is_real(&self) -> bool {
        true
    }

    fn commit(&self) -> anyhow::Result<()> {
        let steps: Vec<Step> = self.after.borrow_mut().drain(..).collect();
        let control = Control::only_within(ROLL_BACK_TIME);
        for step in steps {
            if !step.best_effort {
                self.run(step, &control)?;
                continue;
            }
            // What stays after a success stays for long: a connection that broke, or a child that was killed, is not the end.
            let again = Step::new(&step.host, step.what.clone(), step.script.ops.clone()).or_say(step.failure.clone());
            let control = Control::only_within(CLEAR_TIME);
            if self.run(step, &control).is_err()
                && let Err(error) = self.run(again, &control)
            {
                self.log.say(Level::Warn, &one_line(&error));
            }
        }
        self.undo.borrow_mut().clear();
        Ok(())
    }
}

impl Drop for Runner<'_> {
    /// Takes back what is not committed, newest first. Each undo is tried, whatever became of the one before; what
    /// cannot be taken back is named in the log.
    fn drop(&mut self) {
        let control = Control::only_within(ROLL_BACK_TIME);
        for undo in self.undo.borrow_mut().drain(..).rev() {
            let done = undo.host.run(&undo.script, Io::default(), &control);
            if let Err(e) = done {
                let left: Vec<String> = undo.script.ops.iter().map(ToString::to_string).collect();
                let text = one_line(&anyhow::Error::new(e));
                self.log.say(
                    Level::Error,
                    &format!("Cannot take back \"{}\" ({text}); do by hand: {}", undo.what, left.join("; ")),
                );
            }
        }
    }
}

/// One step as it would run.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Planned {
    /// Host name; empty for the front-end itself.
    pub host: String,
    /// The sentence.
    pub what: String,
    /// The operations, in the words of commands.
    pub ops: Vec<String>,
    /// What would take it back.
    pub undo: Vec<String>,
}

/// Writes steps down and runs none.
#[derive(Default)]
pub struct Explainer {
    plan: RefCell<Vec<Planned>>,
    after: RefCell<Vec<Step>>,
}

impl Explainer {
    /// The steps so far.
    #[must_use]
    pub fn plan(&self) -> Vec<Planned> {
        self.plan.borrow().clone()
    }
}

impl Executor for Explainer {
    fn apply(&self, step: Step) -> anyhow::Result<Vec<Value>> {
        let words = |script: &Script| script.ops.iter().map(ToString::to_string).collect();
        self.plan.borrow_mut().push(Planned {
            host: step.host.name().to_owned(),
            ops: words(&step.script),
            undo: words(&step.undo),
            what: step.what,
        });
        Ok(vec![Value::Unknown; step.script.ops.len()])
    }

    fn on_failure(&self, _step: Step) {}

    fn after(&self, step: Step) {
        self.after.borrow_mut().push(step);
    }

    fn is_real(&self) -> bool {
        false
    }

    fn commit(&self) -> anyhow::Result<()> {
        let steps: Vec<Step> = self.after.borrow_mut().drain(..).collect();
        steps.into_iter().try_for_each(|step| self.apply(step).map(drop))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::exec::host::{ErrorKind, ScriptError};

    /// Breaks off the first scripts.
    struct Breaks {
        times: usize,
        runs: AtomicUsize,
    }

    impl Host for Breaks {
        fn name(&self) -> &'static str {
            "bridge1"
        }

        fn run(&self, script: &Script, _: Io<'_>, _: &Control) -> Result<Vec<Value>, ScriptError> {
            if self.runs.fetch_add(1, Ordering::Relaxed) < self.times {
                return Err(ScriptError::new("bridge1", ErrorKind::Lost, "Killed"));
            }
            Ok(vec![Value::Done; script.ops.len()])
        }
    }

    /// How often a step is run that breaks so often, and whether the action succeeds.
    fn afterwards(times: usize, best_effort: bool) -> (usize, bool) {
        let broken = Arc::new(Breaks { times, runs: AtomicUsize::new(0) });
        let host: Arc<dyn Host> = broken.clone();
        let log = Log::quiet("test");
        let runner = Runner::new(Control::only_within(ROLL_BACK_TIME), &log);
        let step = Step::new(&host, "Leave the staging folder", [Op::RemoveDirIfEmpty { path: "/nowhere".into() }]);
        runner.after(if best_effort { step.best_effort() } else { step });
        let done = runner.commit().is_ok();
        (broken.runs.load(Ordering::Relaxed), done)
    }

    #[test]
    fn what_need_not_succeed_afterwards_is_tried_twice() {
        assert_eq!(afterwards(0, true), (1, true));
        assert_eq!(afterwards(1, true), (2, true));
        assert_eq!(afterwards(9, true), (2, true));
        assert_eq!(afterwards(1, false), (1, false));
    }
}
