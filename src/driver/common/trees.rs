//! What has become of a directory that was copied: whether the copy is whole, and the end of the original.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::folder::Folder;
use crate::context::Cx;
use crate::exec::host::Host;
use crate::exec::op::{FileKind, Node, Op, Value};
use crate::exec::step::Step;
use crate::location::with_suffix;

/// Levels of a VM's directory that are compared: more than anything in it has.
pub const DEPTH: u32 = 16;

/// Removes what its copy has taken the place of, when the action has succeeded: until then it may be all that is left. That
/// it stays is no failure: the work is done.
pub fn drop_old(cx: &Cx<'_>, host: &Arc<dyn Host>, paths: Vec<PathBuf>) {
    let remove = |path| Op::Remove { path, tree: true, must_exist: false };
    let step = Step::new(host, "Remove what it was copied from; this cannot be undone", paths.into_iter().map(remove));
    cx.after(step.best_effort());
}

/// The same for the directory of a VM, which goes under a staging name of its datastore first: half of it under its own name
/// would be taken for the VM's directory by whoever does the action again after it was killed, and take the place of the copy.
pub fn drop_directory(cx: &Cx<'_>, datastore: &Folder, path: &Path) {
    let gone = datastore.staging(with_suffix(Path::new(path.file_name().unwrap_or_default()), ".old"));
    let mut ops = datastore.enter();
    ops.push(Op::PutBack { from: path.to_owned(), to: gone.clone() });
    ops.push(Op::Remove { path: gone, tree: true, must_exist: false });
    ops.extend(datastore.leave());
    let what = format!("Remove {}, which was copied; this cannot be undone", path.display());
    cx.after(Step::new(&datastore.host, what, ops).best_effort());
}

/// The first path at which two trees differ in kind, size or link.
pub fn difference(found: &[Value]) -> Option<PathBuf> {
    let [Value::Tree(a), Value::Tree(b)] = found else { return Some("/".into()) };
    let facts = |nodes: &[Node]| -> BTreeMap<PathBuf, (FileKind, u64, Option<PathBuf>)> {
        // What a directory occupies is the file system's business.
        let size = |node: &Node| if node.kind == FileKind::Dir { 0 } else { node.size };
        nodes.iter().map(|node| (node.path.clone(), (node.kind, size(node), node.link.clone()))).collect()
    };
    let (a, b) = (facts(a), facts(b));
    let differs = |path: &&PathBuf| a.get(*path) != b.get(*path);
    a.keys().chain(b.keys()).find(differs).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(path: &str, kind: FileKind, size: u64) -> Node {
        Node { path: path.into(), kind, size, allocated: size, link: None }
    }

    #[test]
    fn a_copy_that_is_not_whole_is_noticed() {
        let tree = |size| Value::Tree(vec![node("", FileKind::Dir, 7), node("disk.0", FileKind::File, size)]);
        let bigger_dir = Value::Tree(vec![node("", FileKind::Dir, 9), node("disk.0", FileKind::File, 3)]);
        assert_eq!(difference(&[tree(3), bigger_dir]), None);
        assert_eq!(difference(&[tree(3), tree(2)]), Some("disk.0".into()));
        let missing = Value::Tree(vec![node("", FileKind::Dir, 7)]);
        assert_eq!(difference(&[tree(3), missing.clone()]), Some("disk.0".into()));
        assert_eq!(difference(&[missing, tree(3)]), Some("disk.0".into()));
        assert!(difference(&[tree(3), Value::Absent]).is_some());
    }
}
