//! A host that keeps images, for tests of what may go wrong with them: a cloud of [`super::tm_faults`] whose image
//! datastore has a cache in `cache`.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::Output;

use super::MAD;
use super::tm_faults::{Cloud, same};

/// oned's `MODTIME` of the images.
const MODTIME: &str = "5";

/// Words of a `clone` of the image `abc` and of the image `def`, each as a disk of its own.
pub const ABC: [&str; 4] = ["{ds}/1/abc", "node1:{ds}/103/7/disk.2", "7", "1"];
pub const DEF: [&str; 4] = ["{ds}/1/def", "node1:{ds}/103/7/disk.1", "7", "1"];

/// A cloud with a cache; both images have `mib` MiB.
pub fn cloud(mib: u32) -> Cloud {
    let cloud = Cloud::of(MAD);
    fs::create_dir_all(cloud.path("oned/image")).expect("a folder");
    fs::create_dir(cloud.path("cache")).expect("a folder");
    let datastore = format!(
        "<DATASTORE><ID>1</ID><TEMPLATE><CACHE_ENABLE>YES</CACHE_ENABLE><CACHE_PATH>{}</CACHE_PATH>\
         <CACHE_MAX_SIZE>100</CACHE_MAX_SIZE></TEMPLATE></DATASTORE>",
        cloud.path("cache").display()
    );
    fs::write(cloud.path("oned/datastore/1.xml"), datastore).expect("the datastore");
    let mut disks = String::new();
    for (number, image, name) in [(1, 4, "def"), (2, 3, "abc")] {
        let path = cloud.image(&format!("ds/1/{name}"), mib);
        write!(
            disks,
            "<DISK><DISK_ID>{number}</DISK_ID><IMAGE_ID>{image}</IMAGE_ID><DATASTORE_ID>1</DATASTORE_ID><FORMAT>raw</FORMAT>\
             <CLONE>YES</CLONE><SOURCE>{}</SOURCE></DISK>",
            path.display()
        )
        .expect("writes");
        let xml = format!("<IMAGE><ID>{image}</ID><PERSISTENT>0</PERSISTENT><MODTIME>{MODTIME}</MODTIME></IMAGE>");
        fs::write(cloud.path(&format!("oned/image/{image}.xml")), xml).expect("the image");
    }
    // They differ.
    let mut other = fs::read(cloud.path("ds/1/def")).expect("reads");
    other.reverse();
    fs::write(cloud.path("ds/1/def"), other).expect("writes");
    let vm = format!("<VM><ID>7</ID><LCM_STATE>0</LCM_STATE><TEMPLATE>{disks}</TEMPLATE></VM>");
    fs::write(cloud.path("oned/vm/7.xml"), vm).expect("the VM");
    cloud
}

/// What an action says besides its answer.
pub fn said(ran: &Output) -> String {
    String::from_utf8_lossy(&ran.stderr).into_owned()
}

/// The image, as upstream and we have it in the cache, asked for at this time.
pub fn plant(cloud: &Cloud, name: &str, content: &[u8], metadata: &str) {
    fs::write(cloud.path("cache").join(name), content).expect("an image");
    fs::write(cloud.path("cache").join(format!("{name}-lock")), "").expect("a lock");
    fs::write(cloud.path("cache").join(format!("{name}-metadata")), metadata).expect("metadata");
}

/// The metadata of an image that was last asked for at this time.
pub fn metadata(last_used: &str) -> String {
    format!("---\n:last_used: '{last_used}'\n:modtime: '{MODTIME}'\n")
}

/// Every image that the cache calls valid is the image.
#[track_caller]
pub fn consistent(cloud: &Cloud, when: &str) {
    for name in ["abc", "def"] {
        let file = |end: &str| -> PathBuf { cloud.path("cache").join(format!("{name}{end}")) };
        let valid = fs::read_to_string(file("-metadata")).is_ok_and(|text| text.contains(&format!("'{MODTIME}'")));
        if valid && file("").exists() {
            assert!(same(&file(""), &cloud.path(&format!("ds/1/{name}"))), "{when}: {name}");
        }
    }
}

/// Names of what unfinished fetches have left in the cache.
pub fn leftovers(cloud: &Cloud) -> Vec<String> {
    let names = fs::read_dir(cloud.path("cache/.onestore")).into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    // Whoever finds the image has nothing to clear away: the claims of the dead go with the next fetch.
    names.filter(|name| !name.ends_with(".claim.part")).collect()
}

/// The next one finds the image, and its disk is right.
#[track_caller]
pub fn hit(cloud: &Cloud, when: &str) {
    let ran = cloud.done("clone", &ABC);
    assert!(said(&ran).contains("is in the cache of node1"), "{when}: {}", said(&ran));
    assert!(same(&cloud.path("ds/103/7/disk.2"), &cloud.path("ds/1/abc")), "{when}");
    assert_eq!(leftovers(cloud), Vec::<String>::new(), "{when}");
    consistent(cloud, when);
}
