//! The qcow2 transfer manager as a cloud has it: hosts see the datastores elsewhere than the front-end, contexts come from
//! https, and several of them at once. The real binary; the host is this machine behind a stand-in for ssh.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "faults/cloud.rs"]
#[allow(dead_code)]
mod cloud;
#[path = "transfer/tls.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod tls;

use cloud::{Cloud, qemu_img, same};
use tls::{Certificate, Server};

/// Every action that is told a path of the front-end, on a host that has its datastores elsewhere.
#[test]
fn front_end_and_host_see_the_datastores_in_different_places() {
    let cloud = Cloud::new();
    let image = cloud.qcow2("ds/1/abc", 2);
    let record = fs::read_to_string(cloud.path("oned/vm/7.xml")).expect("the VM");
    let (here, there) = (cloud.path("ds").display().to_string(), "/var/lib/elsewhere//datastores");
    fs::write(cloud.path("oned/vm/7.xml"), record.replace(&here, there)).expect("the VM");
    let source = "fe:/var/lib/elsewhere//datastores/1/abc";
    let image_of = |name: &str| format!("/var/lib/elsewhere//datastores/1/{name}");
    let disk = |n: u32| format!("node1:{{ds}}/103/7/disk.{n}");
    let at = |name: &str| cloud.path("ds/103/7").join(name);

    cloud.done("clone", &[source, &disk(0), "7", "1"]);
    assert!(same(&at("disk.0"), &image));
    cloud.done("clone.ssh", &[source, &disk(1), "7", "1"]);
    assert!(same(&at("disk.1"), &image));
    cloud.done("ln", &[source, &disk(3), "7", "1"]);
    assert_eq!(fs::read_link(at("disk.3")).expect("a link"), cloud.path("ds/1/abc.snap/0"));
    for n in [0, 1, 3] {
        for k in ["0", "1"] {
            cloud.done("snap_create", &[&disk(n), k, "7", "1"]);
        }
        cloud.done("resize", &[&disk(n), "3", "7", "1"]);
        let saved = format!("saved{n}");
        cloud.done("cpds", &[&disk(n), &image_of(&saved), "1", "7", "1"]);
        assert!(same(&cloud.path("ds/1").join(saved), &image), "disk {n}");
        cloud.done("snap_revert", &[&disk(n), "1", "7", "1"]);
        cloud.done("snap_delete", &[&disk(n), "0", "7", "1"]);
        cloud.done("snap_delete", &[&disk(n), "1", "7", "1"]);
        assert!(same(&at(&format!("disk.{n}")), &image), "disk {n}");
    }
    assert!(cloud.path("ds/1/abc.snap/2").exists(), "the persistent image's layers are beside it");
    cloud.done("delete", &[&disk(3), "7", "103"]);
    cloud.done("mkimage", &["8", "raw", &disk(5), "7", "103"]);
    cloud.done("mv", &["node1:{ds}/103/7", "node1:{ds}/104/7", "7", "104"]);
    qemu_img(&["check", "-q", "-f", "qcow2"], &[&cloud.path("ds/104/7/disk.0")]);
    cloud.done("mv", &["node1:{ds}/104/7", "node1:{ds}/103/7", "7", "103"]);
    cloud.done("ln.ssh", &[source, &disk(3), "7", "1"]);
    assert!(same(&at("disk.3"), &image));
    cloud.done("snap_create.ssh", &[&disk(3), "2", "7", "1"]);
    cloud.done("snap_revert.ssh", &[&disk(3), "2", "7", "1"]);
    cloud.done("snap_delete.ssh", &[&disk(3), "2", "7", "1"]);
    cloud.done("cpds.ssh", &[&disk(3), &image_of("saved"), "-1", "7", "1"]);
    cloud.done("mvds.ssh", &[&disk(3), &image_of("abc"), "7", "1"]);
    assert!(same(&cloud.path("ds/1/abc"), &cloud.path("ds/1/saved")));
    cloud.done("delete", &["node1:{ds}/103/7", "7", "103"]);
    assert!(!Path::new("/var/lib/elsewhere").exists(), "nothing is made at the front-end's place");
    assert_eq!(cloud.staged(), Vec::<String>::new());
}

/// `mv.ssh` from host to host, where the datastores are elsewhere on the front-end and upstream's delete has left absolute
/// names: they hold at the new place, and after a move back.
#[test]
fn a_disk_that_goes_to_another_host_holds_whatever_its_layers_are_called() {
    let cloud = Cloud::new();
    cloud.layered("disk.0", 2);
    let record = fs::read_to_string(cloud.path("oned/vm/7.xml")).expect("the VM");
    let (here, there) = (cloud.path("ds").display().to_string(), "/var/lib/elsewhere//datastores");
    fs::write(cloud.path("oned/vm/7.xml"), record.replace(&here, there)).expect("the VM");
    let (old, new) = (cloud.path("ds/103/7"), cloud.path("ds/104/7"));
    let content = cloud.content(&old.join("disk.0"));
    for (layer, below) in [("2", "1"), ("1", "0")] {
        let folder = old.join("disk.0.snap");
        let rebase = ["rebase", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b"];
        qemu_img(&rebase, &[&folder.join(below), &folder.join(layer)]);
    }
    fs::remove_file(old.join("disk.0")).expect("removes");
    std::os::unix::fs::symlink(old.join("disk.0.snap/2"), old.join("disk.0")).expect("links");

    cloud.done("mv.ssh", &["node1:{ds}/103/7", "node2:{ds}/104/7", "7", "104"]);
    assert!(!old.exists());
    assert_eq!(fs::read_link(new.join("disk.0")).expect("a link"), Path::new("disk.0.snap/2"));
    assert!(cloud.content(&new.join("disk.0")) == content);
    for k in ["2", "3"] {
        cloud.done("snap_create", &["node2:{ds}/104/7/disk.0", k, "7", "1"]);
    }
    cloud.done("mv.ssh", &["node2:{ds}/104/7", "node1:{ds}/103/7", "7", "103"]);
    assert!(!new.exists() && cloud.content(&old.join("disk.0")) == content);
    cloud.done("snap_delete", &["node1:{ds}/103/7/disk.0", "1", "7", "1"]);
    assert!(cloud.content(&old.join("disk.0")) == content);
    assert!(!Path::new("/var/lib/elsewhere").exists(), "nothing is made at the front-end's place");
    assert_eq!(cloud.staged(), Vec::<String>::new());
}

/// A context's files, by name.
fn inside(cloud: &Cloud, to: &str) -> PathBuf {
    let out = cloud.path(to);
    let mut extract = Command::new("xorriso");
    extract.args(["-osirrox", "on", "-indev"]).arg(cloud.path("ds/103/7/disk.9")).args(["-extract", "/"]).arg(&out);
    assert!(extract.output().expect("xorriso").status.success());
    out
}

#[test]
fn contexts_of_one_vm_at_once_do_not_mix() {
    let cloud = Cloud::new();
    let mut running = Vec::new();
    for run in 0..4 {
        let folder = cloud.path(&format!("vms/{run}"));
        fs::create_dir(&folder).expect("a folder");
        let (script, token) = (folder.join("context.sh"), folder.join("token.txt"));
        fs::write(&script, format!("RUN={run}\n")).expect("a script");
        fs::write(&token, format!("token {run}")).expect("a token");
        // What the administrator's umask leaves.
        fs::set_permissions(&token, fs::Permissions::from_mode(0o644)).expect("a mode");
        let words = [script.display().to_string(), token.display().to_string()];
        running.push(cloud.start("context", &[&words[0], &words[1], "node1:{ds}/103/7/disk.9", "7", "103"]));
    }
    for child in running {
        let ran = child.wait_with_output().expect("waits");
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    }
    let out = inside(&cloud, "out");
    let script = fs::read_to_string(out.join("context.sh")).expect("the script");
    let run = script.trim().strip_prefix("RUN=").expect("a run").to_owned();
    assert_eq!(fs::read_to_string(out.join("token.txt")).expect("the token"), format!("token {run}"));
    assert_eq!(fs::metadata(out.join("token.txt")).expect("there").permissions().mode() & 0o007, 0);
    assert_eq!(fs::read_dir(&out).expect("a folder").count(), 2);
    assert_eq!(fs::read_dir(cloud.path("ds/.isofiles")).expect("a folder").count(), 0);
    let mut blkid = Command::new("blkid");
    blkid.args(["-o", "value", "-s", "LABEL", "-p"]).arg(cloud.path("ds/103/7/disk.9"));
    let named = blkid.output().expect("blkid");
    assert_eq!(String::from_utf8_lossy(&named.stdout).trim(), "CONTEXT");
}

#[test]
fn a_context_file_comes_by_https_from_whom_is_trusted() {
    let cloud = Cloud::new();
    let server = Server::start(Certificate::Good, b"a package");
    let url = server.url("/files/package.deb?x=1");
    let words = [url.as_str(), "node1:{ds}/103/7/disk.9", "7", "103"];
    let said = cloud.fails("context", &words);
    assert!(said.contains("Error downloading") && said.contains("certificate"), "{said}");
    assert!(!cloud.path("ds/103/7/disk.9").exists());
    let mut trusting = cloud.command("context", &words);
    let ran = trusting.env("SSL_CERT_FILE", server.authority()).output().expect("runs");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    assert_eq!(fs::read(inside(&cloud, "out").join("package.deb")).expect("the file"), b"a package");
    assert_eq!(fs::read_dir(cloud.path("ds/.isofiles")).expect("a folder").count(), 0);
}
