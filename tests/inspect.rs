//! The inspector against real images made by `qemu-img`, against hostile ones built here, and against noise.

#![allow(clippy::unwrap_used)] // The lint's exception for tests does not reach their helpers.

#[path = "inspect/hostile.rs"]
mod hostile;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hostile::Qcow2;
use onestore::image::{Contents, FileSource, Format, Inspection, Prefix, Reason, RefKind, inspect};
use proptest::prelude::*;

fn whole(bytes: &[u8]) -> Inspection {
    inspect(&mut Prefix::whole(bytes)).unwrap()
}

fn file(path: &Path) -> Inspection {
    let file = File::open(path).unwrap();
    inspect(&mut FileSource::new(&file).unwrap()).unwrap()
}

fn qemu_img(args: &[&str]) {
    let out = Command::new("qemu-img").args(args).stdout(Stdio::null()).output().unwrap();
    assert!(out.status.success(), "qemu-img {args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Format and virtual size as `qemu-img info` probes them.
fn qemu_info(path: &Path) -> (String, u64) {
    let out = Command::new("qemu-img").args(["info", "--output=json"]).arg(path).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let info: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    (info["format"].as_str().unwrap().to_owned(), info["virtual-size"].as_u64().unwrap())
}

/// An image of `size` made by `qemu-img create -f format -o options`.
fn create(dir: &Path, name: &str, format: &str, options: &str, size: &str) -> PathBuf {
    let path = dir.join(name);
    let mut args = vec!["create", "-q", "-f", format];
    if !options.is_empty() {
        args.extend(["-o", options]);
    }
    let text = path.to_str().unwrap().to_owned();
    args.extend([text.as_str(), size]);
    qemu_img(&args);
    path
}

#[test]
fn benign_images_are_seen_as_qemu_sees_them() {
    let dir = tempfile::tempdir().unwrap();
    let cases = [
        ("raw", "", "10M"),
        ("qcow2", "", "1G"),
        ("qcow2", "compat=0.10", "1G"),
        ("qcow2", "cluster_size=512", "64M"),
        ("qcow2", "cluster_size=2M", "1T"),
        ("qcow2", "extended_l2=on", "20G"),
        ("qcow2", "compression_type=zstd", "3G"),
        ("qcow2", "lazy_refcounts=on,refcount_bits=1", "3G"),
        ("qcow2", "preallocation=metadata", "300M"),
        ("qcow2", "", "0"),
        ("qcow2", "", "64T"),
        ("qcow", "", "100M"),
        ("qed", "", "100M"),
        ("qed", "cluster_size=4096", "100M"),
        ("vmdk", "", "100M"),
        ("vmdk", "subformat=streamOptimized", "100M"),
        ("vpc", "", "100M"),
        ("vpc", "force_size=on", "100M"),
        ("vpc", "subformat=dynamic", "137G"),
        ("vhdx", "", "100M"),
        ("vhdx", "subformat=fixed", "10M"),
        ("vdi", "", "100M"),
        ("vdi", "static=on", "10M"),
        ("parallels", "", "100M"),
    ];
    for (n, (format, options, size)) in cases.iter().enumerate() {
        let path = create(dir.path(), &n.to_string(), format, options, size);
        let found = file(&path);
        let case = format!("{format} {options} {size}: {found:?}");
        assert_eq!((found.format.name().to_owned(), found.virtual_size.unwrap()), qemu_info(&path), "{case}");
        assert!(found.verdict.is_safe(), "{case}");
        // A prefix says the same, once it is long enough, and never more.
        let bytes = std::fs::read(&path).unwrap();
        for len in [0, 3, 8, 71, 104, 511, 512, 4096, 65536, 3 << 20] {
            let head = &bytes[..bytes.len().min(len)];
            let part = inspect(&mut Prefix::new(head, Some(bytes.len() as u64))).unwrap();
            if part.format == found.format && part.verdict.is_safe() {
                assert_eq!(part.virtual_size, found.virtual_size, "{case}, {len} bytes");
            }
            let needs = part.verdict.reasons().iter().any(|reason| matches!(reason, Reason::Incomplete(_)));
            assert_eq!(needs, part.needs.is_some(), "{case}, {len} bytes: {part:?}");
        }
        let long = &bytes[..bytes.len().min(4 << 20)];
        let part = inspect(&mut Prefix::new(long, Some(bytes.len() as u64))).unwrap();
        assert_eq!(part, found, "{case}");
    }
}

#[test]
fn what_a_header_tells_besides_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = create(dir.path(), "a", "qcow2", "extended_l2=on,compression_type=zstd,cluster_size=128k", "1G");
    qemu_img(&["bitmap", "-f", "qcow2", "--add", path.to_str().unwrap(), "b0"]);
    let found = file(&path);
    assert_eq!(found.cluster_size, Some(128 << 10));
    assert_eq!(found.compression.as_deref(), Some("zstd"));
    for feature in ["extended-l2", "compression-type", "bitmaps", "persistent-bitmaps", "feature-name-table"] {
        assert!(found.features.iter().any(|name| name == feature), "{feature}: {:?}", found.features);
    }
    assert!(found.verdict.is_safe());
    assert_eq!(found.bitmaps, 1);
    let json: serde_json::Value = serde_json::to_value(&found).unwrap();
    assert_eq!(json["format"], "qcow2");
    assert_eq!(json["virtual-size"], 1u64 << 30);
    assert_eq!(json["verdict"], "safe");
}

#[test]
fn overlays_snapshots_encryption_and_data_files_are_unsafe() {
    let dir = tempfile::tempdir().unwrap();
    let base = create(dir.path(), "base", "qcow2", "", "16M");
    let base = base.to_str().unwrap();

    let with = |format: &str, name: &str, options: &str| {
        let path = dir.path().join(name);
        qemu_img(&["create", "-q", "-f", format, "-o", options, path.to_str().unwrap(), "16M"]);
        file(&path)
    };
    for format in ["qcow2", "qcow", "qed", "vmdk"] {
        if format == "vmdk" {
            create(dir.path(), "base.vmdk", "vmdk", "", "16M");
            let path = dir.path().join("overlay.vmdk");
            let parent = dir.path().join("base.vmdk");
            let parent = parent.to_str().unwrap();
            qemu_img(&["create", "-q", "-f", "vmdk", "-b", parent, "-F", "vmdk", path.to_str().unwrap()]);
            let found = file(&path);
            assert_eq!(found.references[0].kind, RefKind::Parent);
            assert_eq!(found.references[0].name, parent);
            continue;
        }
        let path = dir.path().join(format!("overlay.{format}"));
        qemu_img(&["create", "-q", "-f", format, "-b", base, "-F", "qcow2", path.to_str().unwrap()]);
        let found = file(&path);
        assert_eq!(found.references.len(), 1, "{format}");
        assert_eq!((found.references[0].kind, found.references[0].name.as_str()), (RefKind::BackingFile, base));
        if format == "qcow2" {
            assert_eq!(found.references[0].format.as_deref(), Some("qcow2"));
        }
        assert!(found.verdict.to_string().contains(base), "{}", found.verdict);
    }
    let data = dir.path().join("data.raw");
    let found = with("qcow2", "df.qcow2", &format!("data_file={},data_file_raw=on", data.display()));
    assert_eq!(found.references[0].kind, RefKind::DataFile);
    assert_eq!(found.references[0].name, data.to_str().unwrap());
    assert!(found.features.iter().any(|name| name == "data-file-raw"));

    qemu_img(&["snapshot", "-c", "one", base]);
    let found = file(Path::new(base));
    assert_eq!(found.snapshots, 1);
    assert_eq!(found.verdict.reasons(), [Reason::Snapshots(1)]);

    let found = with_secret(dir.path(), "qcow2", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10");
    assert_eq!(found.verdict.reasons(), [Reason::Encrypted("luks".to_owned())]);
    let found = with("vmdk", "flat.vmdk", "subformat=monolithicFlat");
    assert_eq!(found.references[0].kind, RefKind::Extent);
    assert_eq!(found.virtual_size, Some(16 << 20));
    let found = with("vmdk", "split.vmdk", "subformat=twoGbMaxExtentSparse");
    assert!(!found.verdict.is_safe());
    let found = file(&dir.path().join("split-s001.vmdk"));
    assert_eq!(found.format, Format::Vmdk);
    assert!(!found.verdict.is_safe(), "{found:?}");
}

/// An encrypted image; `qemu-img` takes the secret as an object.
fn with_secret(dir: &Path, format: &str, options: &str) -> Inspection {
    let path = dir.join(format!("secret.{format}"));
    let text = path.to_str().unwrap();
    qemu_img(&["create", "-q", "--object", "secret,id=s,data=abc", "-f", format, "-o", options, text, "4M"]);
    file(&path)
}

#[test]
fn luks_tells_where_its_payload_begins() {
    let dir = tempfile::tempdir().unwrap();
    let found = with_secret(dir.path(), "luks", "key-secret=s,iter-time=10");
    let (format, size) = qemu_info(&dir.path().join("secret.luks"));
    assert_eq!((found.format.name(), found.virtual_size), (format.as_str(), Some(size)));
    assert_eq!(found.variant.as_deref(), Some("1"));
    assert_eq!(found.encryption.as_deref(), Some("aes-xts-plain64"));
    let len = std::fs::metadata(dir.path().join("secret.luks")).unwrap().len();
    assert_eq!(found.payload_offset, Some(len - size));
    assert!(found.verdict.is_safe());

    let json = r#"{"keyslots":{"0":{"type":"luks2","size":64}},"segments":{"0":{"type":"crypt","offset":"16777216","size":"dynamic","encryption":"aes-xts-plain64","sector_size":512}}}"#;
    let found = whole(&hostile::luks2(json, 16384, 20 << 20));
    assert_eq!((found.format, found.variant.as_deref()), (Format::Luks, Some("2")));
    assert_eq!((found.payload_offset, found.virtual_size), (Some(16 << 20), Some(4 << 20)));
    assert!(found.verdict.is_safe(), "{}", found.verdict);
    for (json, size) in [("{}", 16384), (json, 4096), (json, u64::MAX), (r#"{"segments":{}}"#, 16384), ("[[[", 16384)] {
        assert!(!whole(&hostile::luks2(json, size, 20 << 20)).verdict.is_safe(), "{json} {size}");
    }
}

#[test]
fn a_fixed_vhd_is_known_by_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = create(dir.path(), "a", "vpc", "subformat=fixed,force_size=on", "10M");
    let found = file(&path);
    assert_eq!((found.format, found.variant.as_deref()), (Format::Vpc, Some("fixed")));
    assert_eq!(found.virtual_size, Some(10 << 20));
    assert!(found.verdict.is_safe());
    // Cookie without the checksum: a raw disk that happens to end so.
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.len() - 1;
    bytes[at] ^= 1;
    assert_eq!(whole(&bytes).format, Format::Raw);
}

#[test]
fn raw_images_are_safe_whatever_they_hold() {
    let mut mbr = vec![0; 1 << 20];
    mbr[510..512].copy_from_slice(&[0x55, 0xAA]);
    assert_eq!(whole(&mbr).contents, []);
    mbr[446..462].copy_from_slice(&[0x80, 0, 1, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0]);
    let found = whole(&mbr);
    assert_eq!((found.format, found.contents, found.virtual_size), (Format::Raw, vec![Contents::Mbr], Some(1 << 20)));
    assert!(found.verdict.is_safe());

    mbr[512..520].copy_from_slice(b"EFI PART");
    assert_eq!(whole(&mbr).contents, [Contents::Gpt]);
    let mut iso = vec![0; 40960];
    iso[32768..32774].copy_from_slice(b"\x01CD001");
    assert_eq!((whole(&iso).format, whole(&iso).contents), (Format::Raw, vec![Contents::Iso9660]));
    assert_eq!(whole(b"").virtual_size, Some(0));
    assert_eq!(whole(b"PK\x03\x04").contents, [Contents::Zip]);
    assert_eq!(inspect(&mut Prefix::new(&iso, None)).unwrap().virtual_size, None);
}

#[test]
fn every_hostile_image_is_refused() {
    let cases = hostile::all();
    assert!(cases.len() > 50);
    for (name, bytes) in &cases {
        let found = whole(bytes);
        println!("{name:28} {:6} {}", found.format.name(), found.verdict);
        assert!(!found.verdict.is_safe(), "{name}: {found:?}");
        // Nor is it safe when only its first bytes are there, or its length is not known.
        let head = &bytes[..bytes.len().min(65536)];
        let part = inspect(&mut Prefix::new(head, Some(bytes.len() as u64))).unwrap();
        assert!(!part.verdict.is_safe(), "{name}, first 64 KiB: {part:?}");
    }
}

/// Classes of hostile images: how their names begin, and what they are.
const CLASSES: [(&str, &str); 27] = [
    ("backing-", "stands on another file or address"),
    ("datafile", "keeps its data in another file"),
    ("guest-disk", "a raw disk that begins with the header of another format"),
    ("vmdk-footer", "has a second header that differs or is missing"),
    ("vmdk-capacity", "claims an impossible size"),
    ("vmdk-no-", "has no description of its parts"),
    ("vmdk-", "names its parts, or a parent"),
    ("qcow1-", "header fields that are impossible"),
    ("qcow1", "stands on another file"),
    ("qed-backing", "stands on another file"),
    ("qed-unknown", "needs features that nobody knows"),
    ("incompat-", "needs features that nobody knows"),
    ("vpc-diff", "stands on another file"),
    ("vdi-diff", "stands on another file"),
    ("vdi-parent", "stands on another file"),
    ("virt-", "claims an impossible size"),
    ("l1-", "tables that are impossible"),
    ("refcount-", "tables that are impossible"),
    ("bitmaps-", "tables that are impossible"),
    ("snapshots", "holds states that its size does not show"),
    ("crypt", "is encrypted inside its container"),
    ("encryption-", "is encrypted inside its container, or says so"),
    ("marked-", "is damaged by its own account"),
    ("cut-", "ends inside its header"),
    ("bochs", "a format that nobody needs"),
    ("cloop", "a format that nobody needs"),
    ("", "header fields that are impossible"),
];

/// The table in `docs/hostile-images.md`.
fn hostile_page() -> String {
    use std::fmt::Write as _;
    let mut rows: Vec<(&str, String)> = Vec::new();
    for (name, bytes) in hostile::all() {
        let found = whole(&bytes);
        let class = CLASSES.iter().find(|(begin, _)| name.starts_with(begin)).unwrap().1;
        let verdict = found.verdict.to_string().replace('|', "\\|");
        rows.push((class, format!("| `{name}` | {} | {verdict} |", found.format)));
    }
    let mut page = String::from(include_str!("inspect/hostile-images.head.md"));
    let mut classes: Vec<&str> = Vec::new();
    classes.extend(rows.iter().map(|(class, _)| *class));
    classes.sort_unstable();
    classes.dedup();
    for class in classes {
        let mut title = class.to_owned();
        title[..1].make_ascii_uppercase();
        let _ = write!(page, "\n## {title}\n\n| case | format | verdict |\n|---|---|---|\n");
        for (_, row) in rows.iter().filter(|(other, _)| *other == class) {
            page.push_str(row);
            page.push('\n');
        }
    }
    page
}

/// `UPDATE_DOCS=1 cargo test --test inspect page` writes it.
#[test]
fn the_page_of_hostile_images_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/hostile-images.md");
    let page = hostile_page();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page, "docs/hostile-images.md is old: UPDATE_DOCS=1 cargo test --test inspect page");
}

#[test]
fn parents_are_named_where_their_format_names_them() {
    let all = hostile::all();
    let of = |name: &str| whole(&all.iter().find(|(case, _)| *case == name).unwrap().1);
    assert_eq!(of("vpc-differencing").references[0].name, "/etc/passwd");
    assert!(of("vpc-differencing").verdict.to_string().contains("the parent '/etc/passwd'"));

    let mut vdi = hostile::vdi(4, 1 << 20, 1, 1 << 20, 0);
    vdi[424..440].copy_from_slice(&[4, 3, 2, 1, 6, 5, 8, 7, 9, 10, 11, 12, 13, 14, 15, 16]);
    assert_eq!(whole(&vdi).references[0].name, "uuid:01020304-0506-0708-090a-0b0c0d0e0f10");

    let dir = tempfile::tempdir().unwrap();
    let mut vhdx = std::fs::read(create(dir.path(), "v", "vhdx", "", "10M")).unwrap();
    let text = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let (key, value) = (text("absolute_win32_path"), text("C:\\secret\n.vhdx"));
    let mut locator = vec![0; 16];
    locator.extend([0, 0, 1, 0]);
    locator.extend([32u32.to_le_bytes(), (32 + u32::try_from(key.len()).unwrap()).to_le_bytes()].concat());
    for len in [key.len(), value.len()] {
        locator.extend(u16::try_from(len).unwrap().to_le_bytes());
    }
    locator.extend([&key[..], &value[..]].concat());
    // One more entry in the metadata table, whose items begin behind its 64 KiB.
    let at = vhdx.windows(8).position(|part| part == b"metadata").unwrap();
    let count = u16::from_le_bytes([vhdx[at + 10], vhdx[at + 11]]);
    vhdx[at + 10..at + 12].copy_from_slice(&(count + 1).to_le_bytes());
    let entry = at + 32 + usize::from(count) * 32;
    let id = [0x2D, 0x5F, 0xD3, 0xA8, 0x0B, 0xB3, 0x4D, 0x45, 0xAB, 0xF7, 0xD3, 0xD8, 0x48, 0x34, 0xAB, 0x0C];
    vhdx[entry..entry + 16].copy_from_slice(&id);
    vhdx[entry + 16..entry + 20].copy_from_slice(&(80u32 << 10).to_le_bytes());
    vhdx[entry + 20..entry + 24].copy_from_slice(&u32::try_from(locator.len()).unwrap().to_le_bytes());
    vhdx[at + (80 << 10)..at + (80 << 10) + locator.len()].copy_from_slice(&locator);
    let found = whole(&vhdx);
    assert_eq!(found.variant.as_deref(), Some("differencing"));
    assert_eq!((found.references[0].kind, found.references[0].name.as_str()), (RefKind::Parent, "C:\\secret\n.vhdx"));
    assert!(found.verdict.to_string().contains(r"'C:\\secret\n.vhdx'"), "{}", found.verdict);
}

#[test]
fn features_are_known_by_name_and_others_by_number() {
    let extension = |kind: u32| [&kind.to_be_bytes()[..], &[0; 4]].concat();
    let qcow2 =
        Qcow2 { incompatible: 1 | 1 << 9, autoclear: 1 << 7, extension: extension(0x1234_5678), ..Qcow2::default() };
    let found = whole(&qcow2.build());
    assert_eq!(found.features, ["dirty"]);
    assert_eq!(found.unknown_features, ["incompatible-9", "autoclear-7", "extension-0x12345678"]);
    assert_eq!(found.verdict.reasons(), [Reason::UnknownFeatures(vec![9])]);
    // Nobody has to know the other two.
    let found = whole(&Qcow2 { incompatible: 1, ..qcow2 }.build());
    assert!(found.verdict.is_safe(), "{}", found.verdict);

    let found = whole(&hostile::parallels(&[0x2038_5FAE_252C_B34A, 1, 0, 0x77, 0, 0]));
    assert_eq!(found.features, ["format-extension", "dirty-bitmap"]);
    assert_eq!(found.unknown_features, ["extension-0x0000000000000077"]);
    assert!(found.verdict.is_safe(), "{}", found.verdict);

    let dir = tempfile::tempdir().unwrap();
    let found = with_secret(dir.path(), "qcow2", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10");
    assert_eq!(found.encryption.as_deref(), Some("luks, aes-xts-plain64"));
}

#[test]
fn references_are_named_as_written() {
    let backing = |qcow2: Qcow2| whole(&qcow2.build()).references.remove(0);
    let plain = backing(Qcow2 { backing: b"/etc/passwd".to_vec(), ..Qcow2::default() });
    assert_eq!((plain.name.as_str(), plain.format.as_deref()), ("/etc/passwd", Some("raw")));
    let none = backing(Qcow2 { backing: b"x".to_vec(), backing_format: None, ..Qcow2::default() });
    assert_eq!(none.format, None);
    let nul = Qcow2 { backing: b"/etc/passwd\0junk\n".to_vec(), ..Qcow2::default() };
    // One line, whatever is in the name.
    let text = whole(&nul.build()).verdict.to_string();
    assert!(text.contains(r"/etc/passwd\0junk\n"), "{text}");
    let unknown = whole(&Qcow2 { incompatible: 1 << 40 | 1 << 5, ..Qcow2::default() }.build());
    assert_eq!(unknown.verdict.reasons(), [Reason::UnknownFeatures(vec![5, 40])]);
}

#[test]
fn a_table_of_one_terabyte_in_a_small_file_is_told_by_its_size() {
    // Aliased clusters: nothing in the header is wrong, so the caller compares the size with what was granted.
    let found = whole(&Qcow2 { size: 1 << 40, l1_size: Some(2048), ..Qcow2::default() }.build());
    assert!(found.verdict.is_safe(), "{}", found.verdict);
    assert_eq!(found.virtual_size, Some(1 << 40));
}

#[test]
fn a_device_node_is_judged_like_a_file() {
    // A plain file stands in for the device: both come as a descriptor that someone else has opened.
    let mut temp = tempfile::NamedTempFile::new().unwrap();
    temp.write_all(&Qcow2 { backing: b"/x".to_vec(), ..Qcow2::default() }.build()).unwrap();
    let found = file(temp.path());
    assert_eq!(found.references.len(), 1);
}

#[test]
fn a_source_that_fails_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let dir = File::open(dir.path()).unwrap();
    assert!(inspect(&mut FileSource::new(&dir).unwrap()).is_err());
}

/// A good header of every format, as bytes.
fn seeds() -> &'static Vec<Vec<u8>> {
    static SEEDS: std::sync::OnceLock<Vec<Vec<u8>>> = std::sync::OnceLock::new();
    SEEDS.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let mut seeds: Vec<_> = ["qcow2", "qcow", "qed", "vmdk", "vpc", "vhdx", "vdi", "parallels"]
            .iter()
            .map(|format| {
                let mut bytes = std::fs::read(create(dir.path(), format, format, "", "20M")).unwrap();
                bytes.truncate(2 << 20);
                bytes
            })
            .collect();
        seeds.extend(hostile::all().into_iter().map(|(_, bytes)| bytes));
        seeds
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn noise_in_headers_never_panics(
        seed in any::<prop::sample::Index>(),
        changes in prop::collection::vec((0usize..1024, any::<u8>()), 1..12),
        far in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
        cut in prop::option::of(0usize..70_000),
        total in prop::option::of(any::<u64>()),
    ) {
        let seeds = seeds();
        let mut bytes = seeds[seed.index(seeds.len())].clone();
        for (at, value) in changes {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        if let Some((at, value)) = far.filter(|_| !bytes.is_empty()) {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let head = &bytes[..cut.unwrap_or(bytes.len()).min(bytes.len())];
        let found = inspect(&mut Prefix::new(head, total)).unwrap();
        // Whatever came out can be shown and sent.
        let _ = found.verdict.to_string();
        serde_json::to_string(&found).unwrap();
        prop_assert!(found.references.is_empty() || !found.verdict.is_safe());
    }

    #[test]
    fn any_bytes_are_some_image(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        inspect(&mut Prefix::whole(&bytes)).unwrap();
    }
}
