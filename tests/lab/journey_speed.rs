//! What a journey costs beside `tar | ssh tar`, `ssh cat`, one stream over a far link, and a journey from the start.
//!
//! All contestants run in turn, round by round, each round begins with another one, and the ratios of the rounds count.
//! `ONESTORE_MIB` (1024) and `ONESTORE_ROUNDS` (5) change what is measured; the budgets are asserted for a release
//! build, which `ONESTORE_BINARY` names.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use onestore::driver::journey::Load;

use crate::delay::Delay;
use crate::sshd::within;
use crate::{Lab, MIB, PORTS, control, number, same};

/// A file of `mib` MiB of data that nothing compresses, in pieces of 32 MiB with three times as much of holes between
/// them, and the data alone.
fn sources(lab: &Lab, mib: u64) {
    let (image, plain) = (lab.path("source/image"), lab.path("source/plain"));
    let (image, plain) = (File::create(image).expect("makes"), File::create(plain).expect("makes"));
    let mut random = File::open("/dev/urandom").expect("opens");
    let mut piece = vec![0; 32 << 20];
    for at in 0..mib / 32 {
        std::io::Read::read_exact(&mut random, &mut piece).expect("reads");
        image.write_all_at(&piece, at * 128 * MIB).expect("writes");
        plain.write_all_at(&piece, at * 32 * MIB).expect("writes");
    }
    image.set_len(mib * 4 * MIB).expect("extends");
    image.sync_all().and_then(|()| plain.sync_all()).expect("syncs");
}

/// How long a line of bash takes; `$F` is ssh's configuration, `$D` the lab.
fn bash(lab: &Lab, line: &str) -> Duration {
    let mut bash = Command::new("bash");
    bash.args(["-o", "pipefail", "-c", line]).env("D", lab.path("")).env("F", lab.path("ssh_config"));
    let begun = Instant::now();
    assert!(bash.status().expect("bash").success(), "{line}");
    begun.elapsed()
}

/// Multiplexing masters to these hosts, which the configuration names, and which end with this.
struct Masters(Vec<Child>);

impl Masters {
    fn start(lab: &Lab, hosts: &[&str]) -> Self {
        let socket = |host: &str| lab.path(&format!("master-{host}"));
        lab.sshd.configure(&format!("Host lab*\n ControlPath {}-%n", lab.path("master").display()));
        let start = |host: &&str| {
            let mut ssh = Command::new("ssh");
            ssh.arg("-F").arg(lab.path("ssh_config")).args(["-M", "-N", host]).stdin(Stdio::null());
            ssh.spawn().expect("ssh")
        };
        let masters = Self(hosts.iter().map(start).collect());
        assert!(within(20, || hosts.iter().all(|host| socket(host).exists())), "no master");
        masters
    }
}

impl Drop for Masters {
    fn drop(&mut self) {
        for master in &mut self.0 {
            let _ = master.kill();
            let _ = master.wait();
        }
    }
}

fn ours(lab: &Lab) -> Duration {
    let load = Load { from: lab.path("source/image"), to: lab.to("image") };
    let begun = Instant::now();
    lab.carry("lab1", "lab2", std::slice::from_ref(&load), &control()).expect("arrives");
    begun.elapsed()
}

/// Seconds that all processors of this machine have been busy, of `/proc/stat` (`proc_stat(5)`: hundredths of a second).
fn busy() -> f64 {
    let stat = fs::read_to_string("/proc/stat").expect("reads");
    let fields: Vec<f64> =
        stat.lines().next().into_iter().flat_map(str::split_whitespace).filter_map(|f| f.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq
    [0, 1, 2, 5, 6].iter().filter_map(|at| fields.get(*at)).sum::<f64>() / 100.0
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of.get(of.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The median of how many times one is the other, round by round.
fn paired(one: &[f64], other: &[f64]) -> f64 {
    median(one.iter().zip(other).map(|(one, other)| one / other).collect())
}

/// Runs all, round by round, and gives the seconds of each round of each.
fn race(lab: &Lab, rounds: u64, contestants: &[(&str, &dyn Fn() -> Duration)]) -> Vec<Vec<f64>> {
    let mut seconds = vec![Vec::new(); contestants.len()];
    for round in 0..=rounds {
        for turn in 0..contestants.len() {
            let which = (turn + usize::try_from(round).expect("few")) % contestants.len();
            let busy = busy();
            let took = contestants[which].1().as_secs_f64();
            let busy = self::busy() - busy;
            println!("round {round}, {}: {took:.2} s, {busy:.2} s of CPU", contestants[which].0);
            // The first round warms up.
            if round > 0 {
                seconds[which].push(took);
            }
            for gone in [lab.path("ds/.onestore"), lab.path("away")] {
                let _ = fs::remove_dir_all(&gone);
                fs::create_dir_all(&gone).expect("makes");
            }
            bash(lab, "sync -f \"$D\"");
        }
    }
    for ((what, _), of) in contestants.iter().zip(&seconds) {
        println!("{what}: {:.2} s, {:.2} times the first; {of:.2?}", median(of.clone()), paired(of, &seconds[0]));
    }
    seconds
}

/// Whether a release binary is measured. Else the measuring itself is tried, with little data.
fn measures() -> bool {
    std::env::var_os("ONESTORE_BINARY").is_some()
}

#[test]
#[ignore = "measures; needs sshd, and a release build to mean anything"]
fn near() {
    let lab = Lab::new();
    lab.sync();
    sources(&lab, number("ONESTORE_MIB", if measures() { 1024 } else { 96 }));
    fs::create_dir_all(lab.path("away")).expect("makes");
    let gcm = "ssh -F $F -c aes128-gcm@openssh.com lab2";
    let upstream =
        || bash(&lab, "tar -C $D/source --sparse -cf - image | ssh -F $F lab2 tar -C $D/away --sparse -xf -");
    let raw = || bash(&lab, &format!("{gcm} 'cat >/dev/null' <$D/source/plain"));
    let floor = || bash(&lab, &format!("{gcm} \"cat >$D/away/plain && sync $D/away/plain\" <$D/source/plain"));
    let beside = || {
        lab.set(PORTS);
        let took = ours(&lab);
        lab.set("");
        took
    };
    let seconds = race(
        &lab,
        number("ONESTORE_ROUNDS", if measures() { 5 } else { 1 }),
        &[
            ("ours by ssh", &|| ours(&lab)),
            ("ours beside ssh", &beside),
            ("tar | ssh tar", &upstream),
            ("ssh aes128-gcm cat >/dev/null", &raw),
            ("the same to a file, synced", &floor),
        ],
    );
    same_as_source(&lab);
    for (how, ours) in [("by ssh", 0), ("beside ssh", 1)] {
        let [tar, raw, floor] = [2, 3, 4].map(|other| paired(&seconds[other], &seconds[ours]));
        println!(
            "{how}: {tar:.2} times tar, {raw:.2} times what ssh moves, {floor:.2} times what it moves to the disk"
        );
        if measures() {
            assert!(tar >= 2.0, "{tar:.2} times tar's");
        }
    }
    let raw = paired(&seconds[3], &seconds[1]);
    assert!(!measures() || raw >= 0.85, "{raw:.2} times what ssh moves");
}

#[test]
#[ignore = "measures; needs sshd, and a release build to mean anything"]
fn far() {
    let lab = Lab::new();
    lab.sync();
    sources(&lab, number("ONESTORE_MIB", if measures() { 1024 } else { 96 }));
    // The front-end is near, the two hosts are far from each other.
    let delay = Delay::before(lab.sshd.port(), Duration::from_millis(20));
    lab.sshd.configure(&format!("Host lab2\n Port {}\n HostKeyAlias [127.0.0.1]:{}", delay.port(), lab.sshd.port()));
    let streams = |count: u32| {
        lab.set(&format!("TRANSFER_STREAMS={count}\n"));
        ours(&lab)
    };
    // 0 is to decide by the link.
    let seconds = race(
        &lab,
        number("ONESTORE_ROUNDS", if measures() { 3 } else { 1 }),
        &[
            ("ours", &|| streams(0)),
            ("1 stream", &|| streams(1)),
            ("2 streams", &|| streams(2)),
            ("4 streams", &|| streams(4)),
        ],
    );
    if measures() {
        let ratio = paired(&seconds[1], &seconds[0]);
        assert!(ratio >= 3.0, "{ratio:.2} times one stream");
    }
}

#[test]
#[ignore = "measures; needs sshd, and a release build to mean anything"]
fn resumed() {
    let lab = Lab::new();
    lab.sync();
    let mib = number("ONESTORE_MIB", if measures() { 1024 } else { 192 });
    sources(&lab, mib);
    // With little data there has to be time to cut.
    let until = if measures() { mib * 9 / 10 } else { mib / 2 };
    let cut = || {
        let load = Load { from: lab.path("source/image"), to: lab.to("image") };
        let first = control();
        let done = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !first.cancel.is_set() && arrived(&lab) < until {
                    std::thread::sleep(Duration::from_millis(2));
                }
                first.cancel.set();
            });
            let done = lab.carry("lab1", "lab2", std::slice::from_ref(&load), &first);
            first.cancel.set();
            done
        });
        done.expect_err("cut");
        println!("cut at {} of {mib} MiB", arrived(&lab));
        ours(&lab)
    };
    let beside = |what: &dyn Fn() -> Duration| {
        lab.set(PORTS);
        let took = what();
        lab.set("");
        took
    };
    // Masters of the operator's ssh are there, as a cloud has them whose hosts were spoken to in the last minute.
    let masters = Masters::start(&lab, &["lab1", "lab2"]);
    let seconds = race(
        &lab,
        number("ONESTORE_ROUNDS", if measures() { 5 } else { 1 }),
        &[
            ("from the start", &|| ours(&lab)),
            ("resumed", &cut),
            ("from the start, beside ssh", &|| beside(&|| ours(&lab))),
            ("resumed, beside ssh", &|| beside(&cut)),
        ],
    );
    same_as_source(&lab);
    drop(masters);
    for (how, share) in [("by", paired(&seconds[1], &seconds[0])), ("beside", paired(&seconds[3], &seconds[2]))] {
        println!("{how} ssh: {:.1} % of the whole time", share * 100.0);
        // Beside ssh the whole is faster by more than the part is.
        let budget = if how == "by" { 0.15 } else { 0.2 };
        assert!(!measures() || share <= budget, "{how} ssh: {:.1} % of the whole time", share * 100.0);
    }
}

/// MiB that the journal of the unfinished copy names.
fn arrived(lab: &Lab) -> u64 {
    let names = lab.staged();
    let journal = names.iter().find(|name| name.contains("journal.part"));
    let len =
        journal.and_then(|name| fs::metadata(lab.path("ds/.onestore").join(name)).ok()).map_or(0, |data| data.len());
    // The first line, then 44 bytes for each range.
    len.saturating_sub(180) / 44
}

fn same_as_source(lab: &Lab) {
    ours(lab);
    same(&lab.path("source/image"), &lab.to("image"));
}
