//! Payloads, configuration files, descriptions of domains, and how we are called.

#![allow(clippy::missing_panics_doc, reason = "a panic is how a target says no")]

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::{halves, xml_escaped, xml_text};
use crate::downloader::options::{Options, bytes};
use crate::invocation::Invocation;
use crate::payload::{ActionData, Datastore, DatastorePool, Host, HostPool, Image, Vm, parse, read};
use crate::settings::parse_conf;
use crate::tool::virsh::{Domain, job_kind};
use crate::transfer::fuzz::unquote;

/// Most bytes of XML here.
const LIMIT: usize = 1 << 20;

/// Standard input of an action: Base64 and plain XML say the same, values come out to the letter, the first one wins,
/// and no secret is shown.
pub fn payload(data: &[u8]) {
    if let Ok(xml) = read(data, LIMIT) {
        assert!(xml.len() <= LIMIT);
        // A second mark at the beginning would be taken off as well.
        if !xml.starts_with('\u{feff}') {
            let packed = BASE64.encode(&xml);
            assert_eq!(
                read(packed.as_bytes(), LIMIT).ok().as_deref(),
                Some(xml.as_str()),
                "Base64 is the same document"
            );
        }
        // One of the others: all take any root, and reading is what costs.
        let _ = match xml.len() % 6 {
            0 => parse::<Vm>(&xml).is_ok(),
            1 => parse::<Image>(&xml).is_ok(),
            2 => parse::<Datastore>(&xml).is_ok(),
            3 => parse::<Host>(&xml).is_ok(),
            4 => parse::<HostPool>(&xml).is_ok(),
            _ => parse::<DatastorePool>(&xml).is_ok(),
        };
        if let Ok(action) = parse::<ActionData>(&xml) {
            let again: ActionData = parse(&xml).expect("it was read before");
            assert_eq!(action, again);
            let _ = format!("{action:?}");
        }
    }
    let (first, second) = halves(data, b'|');
    let (first, second) = (xml_text(first), xml_text(second));
    let xml = format!(
        "<DS_DRIVER_ACTION_DATA><X><IMAGE/></X><IMAGE><PATH>{0}</PATH><Y>{1}</Y><PATH>{1}</PATH></IMAGE>\
         <DATASTORE><TEMPLATE><RESTIC_PASSWORD>{0}c4n4ry</RESTIC_PASSWORD></TEMPLATE></DATASTORE>\
         </DS_DRIVER_ACTION_DATA>",
        xml_escaped(&first),
        xml_escaped(&second)
    );
    let action: ActionData = parse(&xml).expect("it is well-formed");
    let image = action.image.as_deref().expect("it has an image");
    assert_eq!(image.path.get(), Some(first.as_str()).filter(|text| !text.is_empty()));
    let secret = action.datastore.template.restic_password.get().map(|secret| secret.reveal().to_owned());
    assert_eq!(secret, Some(format!("{first}c4n4ry")));
    assert!(first.contains("c4n4ry") || second.contains("c4n4ry") || !format!("{action:?}").contains("c4n4ry"));
}

/// Configuration files: names are names, a quoted value comes out to the letter, and one word means what it means to a
/// shell.
pub fn conf(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let values = parse_conf(&text);
    for name in values.keys() {
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        assert!(!name.is_empty() && !name.as_bytes()[0].is_ascii_digit() && name.bytes().all(is_name), "{name:?}");
    }
    for line in text.lines() {
        let Some((_, word)) = line.split_once('=') else { continue };
        let one = format!("X={word}");
        if let Some(word) = unquote(word.as_bytes()).and_then(|word| String::from_utf8(word).ok()) {
            assert_eq!(parse_conf(&one).get("X"), Some(&word), "{one:?}");
        }
    }
    let value: String = text.chars().filter(|c| !matches!(c, '\n' | '\r' | '\0')).collect();
    let line = format!(" export NAME='{}' # {value}\nOTHER=1", value.replace('\'', r"'\''"));
    assert_eq!(parse_conf(&line).get("NAME"), Some(&value));
}

/// What `virsh dumpxml` and `virsh blockjob` print: chains are bounded, and come out as they were written.
pub fn domain(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(domain) = Domain::parse(&text) {
        for disk in &domain.disks {
            assert!(disk.chain.len() <= 513 && disk.chain.iter().all(|layer| !layer.path.as_os_str().is_empty()));
            assert_eq!(domain.disk(&disk.target).map(|found| &found.target), Some(&disk.target));
        }
    }
    assert!(job_kind(&text).is_none_or(|kind| !kind.contains('\n')));
    let paths: Vec<String> = data.split(|byte| *byte == 0).take(40).map(xml_text).collect();
    // Blanks in attributes are normalised.
    let paths: Vec<&String> =
        paths.iter().filter(|path| !path.is_empty() && !path.contains(char::is_whitespace)).collect();
    let mut xml = "<domain><devices><disk><target dev='vda'/><driver type='qcow2'/>".to_owned();
    for (n, path) in paths.iter().enumerate() {
        let open = if n == 0 { "" } else { "<backingStore type='file'>" };
        xml.extend([open, "<source file='", &xml_escaped(path), "'/>"]);
    }
    xml.push_str(&"</backingStore>".repeat(paths.len().saturating_sub(1)));
    xml.push_str("</disk></devices></domain>");
    let domain = Domain::parse(&xml).expect("it is well-formed");
    let found: Vec<&Path> = domain.disks[0].chain.iter().map(|layer| layer.path.as_path()).collect();
    assert_eq!(found, paths.iter().map(Path::new).collect::<Vec<_>>());
}

/// The called path: names hold plain letters only, and the call is that of the path that it prints.
pub fn invocation(data: &[u8]) {
    let mut parts = data.split(|byte| *byte == 0).map(OsStr::from_bytes);
    let (path, cwd) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let args: Vec<OsString> = parts.map(OsStr::to_owned).collect();
    let cwd = Path::new("/").join(cwd);
    if let Some(call) = Invocation::from_path(Path::new(path), &cwd, args.clone()) {
        let plain = |name: &str| {
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
        };
        assert!(plain(&call.mad) && plain(&call.action) && call.system.as_deref().is_none_or(plain), "{call:?}");
        let remotes = call.remotes.clone().expect("a called path has its folder");
        assert!(remotes.is_absolute() && !remotes.components().any(|part| part == Component::ParentDir), "{call:?}");
        let again = Invocation::from_path(&remotes.join(call.to_string()), Path::new("/"), args.clone());
        assert_eq!(again.as_ref(), Some(&call));
        if let Some(spec) = call.spec() {
            assert_eq!((spec.kind, call.canonical_action()), (call.kind, spec.name));
        }
        let driver = crate::driver::Driver::find(call.kind, &call.mad);
        if let Some(entry) = driver.and_then(|driver| driver.entry(&call.action, call.system.as_deref())) {
            assert_eq!(entry.name.split('.').next(), Some(call.action.as_str()));
        }
    }
    if let Some((program, remotes)) = Invocation::program(Path::new(path), &cwd) {
        assert_eq!(Invocation::program(&remotes.join(program.path), Path::new("/")).map(|(_, at)| at), Some(remotes));
    }
    if let (Some(mad), Some(action)) = (path.to_str(), cwd.to_str())
        && let Ok(call) = Invocation::from_words("tm", mad, action.trim_start_matches('/'), args)
    {
        assert!(!call.to_string().contains(|c: char| !c.is_ascii_alphanumeric() && !"_-./".contains(c)), "{call}");
    }
}

/// Arguments of the downloader: what stands behind `--` is taken to the letter, numbers are whole or refused.
pub fn options(data: &[u8]) {
    let words: Vec<OsString> = data.split(|byte| *byte == 0).map(|word| OsString::from_vec(word.to_vec())).collect();
    let no_env = |_: &str| None;
    if let Ok(options) = Options::parse(words.clone(), no_env) {
        assert!(!options.from.is_empty() && !options.to.is_empty());
        assert!(words.contains(&options.from) && words.contains(&options.to), "operands are words");
        assert!(
            options.digests().is_err()
                || options.max_size().is_err()
                || options.max_size().ok() == Some(None)
                || options.digests().is_ok_and(|all| all.is_empty())
        );
        if let Ok(Some(rate)) = options.rate() {
            assert!(rate.bytes_per_second() > 0);
        }
    }
    let two: Vec<OsString> = words.iter().filter(|word| !word.is_empty()).take(2).cloned().collect();
    if let [from, to] = &two[..] {
        let behind = vec!["-n".into(), "--".into(), from.clone(), to.clone()];
        let options = Options::parse(behind, no_env).expect("operands");
        assert_eq!((&options.from, &options.to, options.opaque), (from, to, true));
        let value = ["--max-size".into(), from.clone(), "a".into(), "-".into()];
        let options = Options::parse(value.to_vec(), no_env).expect("a value");
        assert_eq!(options.max_size().ok().flatten(), bytes(from));
    }
    if let Some(count) = bytes(OsStr::from_bytes(data)) {
        assert_eq!(bytes(OsStr::new(&count.to_string())), Some(count));
    }
}
