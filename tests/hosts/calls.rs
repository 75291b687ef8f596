//! An action called in process, in a context like the dispatcher's.

use std::path::{Path, PathBuf};

use anyhow::Result;
use onestore::context::{Cx, Hosts, Parts};
use onestore::dispatch::Explanation;
use onestore::driver::Reply;
use onestore::exec::control::{Cancel, Control};
use onestore::exec::staging::Owner;
use onestore::exec::step::{Executor, Explainer, Runner};
use onestore::location::Layout;
use onestore::oned::{self, Oned, OnedEnv};
use onestore::report::{Log, one_line};
use onestore::settings::Settings;

/// What calls of one cloud have in common.
pub struct Calls<'a> {
    /// The driver whose settings hold.
    pub mad: &'a str,
    /// `remotes/` of the front-end.
    pub remotes: PathBuf,
    /// `DS_DIR`, where it is not that of an installation.
    pub datastores: Option<PathBuf>,
    /// oned's objects, as a directory of XML files.
    pub oned: Option<PathBuf>,
    /// Settings of the environment.
    pub settings: &'a [(&'static str, &'static str)],
    pub hosts: &'a dyn Hosts,
}

impl Calls<'_> {
    /// Calls with this executor; what it holds back is the caller's to commit.
    pub fn with<T>(
        &self,
        executor: &dyn Executor,
        control: Control,
        body: impl FnOnce(&Cx<'_>) -> Result<T>,
    ) -> Result<T> {
        let env = |name: &str| self.datastores.as_ref().filter(|_| name == "DS_DIR").map(|path| path.clone().into());
        let layout = Layout::new(env, Some(&self.remotes));
        let setting = |name: &str| self.settings.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).into());
        let settings = Settings::load(&layout, self.mad, setting)?;
        let log = Log::quiet("test");
        let choice = self.oned.as_ref().map(|dir| format!("dir:{}", dir.display()).into());
        let connect = || -> Box<dyn Oned> { oned::connect(&OnedEnv { choice: choice.clone(), ..OnedEnv::default() }) };
        body(&Cx::new(Parts {
            layout: &layout,
            settings: &settings,
            log: &log,
            control,
            hosts: self.hosts,
            executor,
            connect: &connect,
            name: &|image| format!("new{image}"),
        }))
    }

    /// Does it; what it did is kept if it succeeds, else taken back.
    pub fn run<T>(&self, control: Control, body: impl FnOnce(&Cx<'_>) -> Result<T>) -> Result<T> {
        let log = Log::quiet("test");
        let runner = Runner::new(control.clone(), &log);
        let done = self.with(&runner, control, body)?;
        runner.commit()?;
        Ok(done)
    }

    /// What `call` would do, in words without anything of this machine: `root` is `/CLOUD`.
    pub fn explain(&self, call: &str, root: &Path, body: impl FnOnce(&Cx<'_>) -> Result<Reply>) -> String {
        let explainer = Explainer::default();
        let text = match self.with(&explainer, Control::new(Cancel::new()), body) {
            Ok(reply) => {
                explainer.commit().expect("commits");
                Explanation { call: call.to_owned(), steps: explainer.plan(), reply: reply.to_string() }.to_string()
            }
            Err(error) => format!("fails: {}\n", one_line(&error)),
        };
        let owner = Owner::me().expect("proc").tag();
        text.replace(&root.display().to_string(), "/CLOUD").replace(&owner, "OWNER")
    }
}
