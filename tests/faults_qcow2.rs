//! The qcow2 transfer manager killed, cancelled and called twice; what it leaves is what upstream's scripts go on with, and
//! the other way round. The real binary; hosts are this machine behind a stand-in for ssh, so that scripts go through
//! sh as on a host where the binary does not stand.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

#[path = "hosts/tm_faults.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod tm_faults;

use tm_faults::{Case, Cloud, MOMENTS, cancelled, disturbances, killed, qemu_img, same, signal};

/// The transfer manager.
const MAD: &str = "qcow2";

const RAW: Case = Case {
    action: "clone",
    words: &["fe:{ds}/1/abc", "node1:{ds}/103/7/disk.2", "7", "1"],
    prepare: |cloud| drop(cloud.image("ds/1/abc", 24)),
    check: |cloud| assert!(same(&cloud.path("ds/103/7/disk.2"), &cloud.path("ds/1/abc"))),
};

const OVERLAY: Case = Case {
    action: "clone",
    words: &["fe:{ds}/1/abc", "node1:{ds}/103/7/disk.0", "7", "1"],
    prepare: |cloud| drop(cloud.qcow2("ds/1/abc", 4)),
    check: |cloud| {
        assert_eq!(fs::read_link(cloud.path("ds/103/7/disk.0")).expect("a link"), Path::new("disk.0.snap/0"));
        assert!(same(&cloud.path("ds/103/7/disk.0"), &cloud.path("ds/1/abc")));
    },
};

const STANDALONE: Case = Case {
    action: "clone",
    words: &["fe:{ds}/1/abc", "node1:{ds}/103/7/disk.1", "7", "1"],
    prepare: |cloud| drop(cloud.qcow2("ds/1/abc", 16)),
    check: |cloud| assert!(same(&cloud.path("ds/103/7/disk.1"), &cloud.path("ds/1/abc"))),
};

const LN: Case = Case {
    action: "ln",
    words: &["fe:{ds}/1/abc", "node1:{ds}/103/7/disk.3", "7", "1"],
    prepare: |cloud| drop(cloud.qcow2("ds/1/abc", 4)),
    check: |cloud| assert!(same(&cloud.path("ds/103/7/disk.3"), &cloud.path("ds/1/abc"))),
};

const MKIMAGE: Case = Case {
    action: "mkimage",
    words: &["32", "qcow2", "node1:{ds}/103/7/disk.5", "7", "103"],
    prepare: |_| (),
    check: |cloud| qemu_img(&["check", "-q", "-f", "qcow2"], &[&cloud.path("ds/103/7/disk.5")]),
};

const CPDS: Case = Case {
    action: "cpds",
    words: &["node1:{ds}/103/7/disk.2", "{ds}/1/new", "-1", "7", "1"],
    prepare: |cloud| drop(cloud.image("ds/103/7/disk.2", 24)),
    check: |cloud| assert!(same(&cloud.path("ds/1/new"), &cloud.path("ds/103/7/disk.2"))),
};

disturbances!(clone_raw RAW, clone_overlay OVERLAY, clone_standalone STANDALONE, ln LN, mkimage MKIMAGE, cpds CPDS);

#[test]
fn a_killed_move_has_the_directory_in_one_place() {
    let words = ["node1:{ds}/103/7", "node1:{ds}/104/7", "7", "104"];
    for moment in 0..MOMENTS {
        let cloud = Cloud::new();
        cloud.image("ds/103/7/disk.2", 1);
        let mut child = cloud.start("mv", &words);
        std::thread::sleep(Duration::from_millis(u64::from(moment) * 15));
        signal(&child, Signal::KILL);
        child.wait().expect("waits");
        let again = cloud.command("mv", &words).output().expect("runs");
        let (old, new) = (cloud.path("ds/103/7/disk.2").exists(), cloud.path("ds/104/7/disk.2").exists());
        assert_eq!((old, new), (false, true), "{moment}: {}", String::from_utf8_lossy(&again.stderr));
    }
}

#[test]
fn a_killed_return_to_the_image_loses_nothing() {
    let words = ["node1:{ds}/103/7/disk.3", "{ds}/1/abc", "7", "1"];
    for moment in 0..MOMENTS {
        let cloud = Cloud::new();
        cloud.qcow2("ds/1/abc", 1);
        let written = cloud.qcow2("written", 12);
        fs::create_dir(cloud.path("ds/103/7/disk.3.snap")).expect("layers");
        fs::copy(&written, cloud.path("ds/103/7/disk.3.snap/0")).expect("copies");
        symlink(".", cloud.path("ds/103/7/disk.3.snap/disk.3.snap")).expect("the self link");
        symlink("disk.3.snap/0", cloud.path("ds/103/7/disk.3")).expect("the disk");
        let mut child = cloud.start("mvds.ssh", &words);
        std::thread::sleep(Duration::from_millis(u64::from(moment) * 25));
        signal(&child, Signal::KILL);
        child.wait().expect("waits");
        if cloud.path("ds/103/7/disk.3").exists() {
            // It may be on its way still: then the second one waits, and finds it there or not.
            let ran = cloud.command("mvds.ssh", &words).output().expect("runs");
            let said = String::from_utf8_lossy(&ran.stderr).into_owned();
            assert!(ran.status.success() || said.contains("does not exist"), "{moment}: {said}");
        }
        assert!(same(&cloud.path("ds/1/abc"), &written), "{moment}");
    }
}

#[test]
fn two_at_once_on_one_disk_come_one_after_the_other() {
    let cloud = Cloud::new();
    (OVERLAY.prepare)(&cloud);
    let both = [cloud.start("clone", OVERLAY.words), cloud.start("clone", OVERLAY.words)];
    for child in both {
        let ran = child.wait_with_output().expect("waits");
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    }
    (OVERLAY.check)(&cloud);
    assert_eq!(cloud.staged(), Vec::<String>::new());
}

#[test]
fn what_upstream_lays_out_is_taken_and_the_other_way_round() {
    let cloud = Cloud::new();
    let image = cloud.qcow2("ds/1/abc", 2);
    // Upstream's clone: an overlay with the absolute name of the image, and the link of the directory to itself.
    let snap = cloud.path("ds/103/7/disk.0.snap");
    fs::create_dir(&snap).expect("layers");
    let overlay = |layer: &str, backing: &str| {
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2", "-o", "backing_fmt=qcow2", "-b", backing, layer]);
        assert!(create.current_dir(&snap).status().expect("qemu-img").success());
        let disk = cloud.path("ds/103/7/disk.0");
        let _ = fs::remove_file(&disk);
        symlink(format!("disk.0.snap/{layer}"), disk).expect("the disk");
    };
    symlink(".", snap.join("disk.0.snap")).expect("the self link");
    overlay("0", &image.display().to_string());
    overlay("1", "disk.0.snap/0");
    // Ours on that.
    cloud.done("resize", &["node1:{ds}/103/7/disk.0", "4", "7", "1"]);
    cloud.done("cpds", &["node1:{ds}/103/7/disk.0", "{ds}/1/saved", "-1", "7", "1"]);
    assert!(same(&cloud.path("ds/1/saved"), &cloud.path("ds/103/7/disk.0")));
    cloud.done("delete", &["node1:{ds}/103/7/disk.0", "7", "1"]);
    // Ours first, upstream's snapshots on that, ours again, moved to another datastore.
    cloud.done("clone", OVERLAY.words);
    overlay("1", "disk.0.snap/0");
    overlay("2", "disk.0.snap/1");
    cloud.done("cpds", &["node1:{ds}/103/7/disk.0", "{ds}/1/first", "0", "7", "1"]);
    assert!(same(&cloud.path("ds/1/first"), &image));
    cloud.done("mv", &["node1:{ds}/103/7", "node1:{ds}/104/7", "7", "104"]);
    qemu_img(&["check", "-q", "-f", "qcow2"], &[&cloud.path("ds/104/7/disk.0")]);
    assert!(same(&cloud.path("ds/104/7/disk.0"), &image));
}

#[test]
fn a_context_holds_what_it_was_given() {
    let cloud = Cloud::new();
    let script = cloud.path("vms/context.sh");
    fs::write(&script, "A='1'\n").expect("the script");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("executable");
    fs::write(cloud.path("vms/token.txt"), "secret").expect("the token");
    let (script, token) = (script.display().to_string(), cloud.path("vms/token.txt").display().to_string());
    let named = format!("{script}:'my");
    let words = [script.as_str(), &named, "long", "name'", &token, "node1:{ds}/103/7/disk.9", "7", "103"];
    let both = [cloud.start("context", &words), cloud.start("context", &words)];
    for child in both {
        let ran = child.wait_with_output().expect("waits");
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    }
    let out = cloud.path("out");
    let mut extract = Command::new("xorriso");
    extract.args(["-osirrox", "on", "-indev"]).arg(cloud.path("ds/103/7/disk.9")).args(["-extract", "/"]).arg(&out);
    assert!(extract.output().expect("xorriso").status.success());
    let mode = |name: &str| fs::metadata(out.join(name)).expect(name).permissions().mode() & 0o777;
    assert_eq!(fs::read(out.join("my long name")).expect("a file"), b"A='1'\n");
    assert_eq!((mode("context.sh"), mode("token.txt") & 0o007), (0o755, 0));
    assert_eq!(fs::read_dir(&out).expect("a folder").count(), 3);
    assert_eq!(fs::read_dir(cloud.path("ds/.isofiles")).expect("a folder").count(), 0);
}

#[test]
fn monitord_is_told_the_sizes_of_disks() {
    use base64::Engine as _;
    use std::io::{Read as _, Write as _};
    let cloud = Cloud::new();
    cloud.image("ds/103/7/disk.2", 3);
    let monitord = UdpSocket::bind("127.0.0.1:0").expect("a port");
    monitord.set_read_timeout(Some(Duration::from_secs(20))).expect("a limit");
    let port = monitord.local_addr().expect("an address").port();
    let conf = format!("NETWORK = [ MONITOR_ADDRESS = \"auto\",\n  PORT = {port} ]\n");
    fs::write(cloud.path("one/etc/monitord.conf"), conf).expect("the configuration");
    let xml = format!(
        "<DS_DRIVER_ACTION_DATA><DATASTORE><ID>103</ID></DATASTORE><DATASTORE_LOCATION>{}</DATASTORE_LOCATION>\
         <MONITOR_VM_DISKS>1</MONITOR_VM_DISKS></DS_DRIVER_ACTION_DATA>",
        cloud.path("ds").display()
    );
    let mut child = cloud.command("monitor", &["103"]).stdin(Stdio::piped()).spawn().expect("starts");
    child.stdin.take().expect("a pipe").write_all(xml.as_bytes()).expect("writes");
    let ran = child.wait_with_output().expect("waits");
    assert!(String::from_utf8_lossy(&ran.stdout).contains("TOTAL_MB="), "{}", String::from_utf8_lossy(&ran.stderr));
    let mut datagram = vec![0; 65536];
    let (length, _) = monitord.recv_from(&mut datagram).expect("a datagram");
    let text = String::from_utf8_lossy(&datagram[..length]).into_owned();
    let payload = text.strip_prefix("MONITOR_VM SUCCESS -1 0 ").expect("the message").trim_end();
    let decode = |text: &str| base64::engine::general_purpose::STANDARD.decode(text).expect("Base64");
    let mut plain = String::new();
    flate2::read::ZlibDecoder::new(&decode(payload)[..]).read_to_string(&mut plain).expect("zlib");
    let monitor = plain.strip_prefix("VM=[ID=7, MONITOR=\"").and_then(|rest| rest.strip_suffix("\"]\n")).expect(&plain);
    assert_eq!(String::from_utf8(decode(monitor)).expect("text"), "DISK_SIZE = [ ID=2, SIZE=3]\n");
}
