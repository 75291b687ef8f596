//! The XML of a datastore action, in the shape in which oned sends it: compact, every element there, values in CDATA.
//!
//! A case gives attributes; known element names go where oned puts them, all others into the `TEMPLATE`. `PATH` of a
//! `stat` comes in oned's short form: hardly more than the path, escaped instead of CDATA.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::case::{Call, Encoding};
use super::vars::Vars;

/// The image's elements outside its template, with oned's values for an image that is being made.
const IMAGE: [(&str, &str); 17] = [
    ("ID", "7"),
    ("UID", "0"),
    ("GID", "0"),
    ("UNAME", "oneadmin"),
    ("GNAME", "oneadmin"),
    ("NAME", "kit image"),
    ("TYPE", "0"),
    ("DISK_TYPE", "0"),
    ("PERSISTENT", "0"),
    ("REGTIME", "1795262593"),
    ("SOURCE", ""),
    ("PATH", ""),
    ("FORMAT", ""),
    ("FS", ""),
    ("SIZE", "64"),
    ("STATE", "4"),
    ("TARGET_SNAPSHOT", "-1"),
];

/// The datastore's elements outside its template.
const DATASTORE: [(&str, &str); 14] = [
    ("ID", "100"),
    ("UID", "0"),
    ("GID", "0"),
    ("UNAME", "oneadmin"),
    ("GNAME", "oneadmin"),
    ("NAME", "kit datastore"),
    ("DS_MAD", "fs"),
    ("TM_MAD", "ssh"),
    ("BASE_PATH", "{base}"),
    ("TYPE", "0"),
    ("DISK_TYPE", "0"),
    ("STATE", "0"),
    ("TOTAL_MB", "258020"),
    ("FREE_MB", "67952"),
];

/// What the datastore's template holds in every case that does not set it.
const DATASTORE_TEMPLATE: [(&str, &str); 5] = [
    ("ALLOW_ORPHANS", "YES"),
    ("CLONE_TARGET", "SYSTEM"),
    ("LN_TARGET", "SYSTEM"),
    ("PERSISTENT_SNAPSHOTS", "YES"),
    ("SAFE_DIRS", "{work}"),
];

/// Arguments of the call: given ones, or the id that oned passes.
pub fn argv(call: &Call, vars: &Vars) -> Result<Vec<String>> {
    if let Some(argv) = &call.argv {
        return argv.iter().map(|argument| vars.text(argument)).collect();
    }
    if !call.action.starts_with("datastore/") {
        bail!("Only datastore actions have arguments by default");
    }
    let of = if call.action.ends_with("/monitor") { (&call.datastore, "100") } else { (&call.image, "7") };
    Ok(vec![of.0.get("ID").map_or(of.1, String::as_str).to_owned()])
}

/// What the call reads from standard input.
pub fn stdin(call: &Call, vars: &Vars) -> Result<Vec<u8>> {
    let text = match &call.stdin {
        Some(text) => vars.text(text)?,
        None if call.stdin_as == Encoding::None => String::new(),
        None => vars.text(&xml(call, vars)?)?,
    };
    let encoded = || STANDARD.encode(&text).into_bytes();
    Ok(match call.stdin_as {
        Encoding::Base64 => encoded(),
        Encoding::Wrapped => encoded().chunks(60).flat_map(|line| [line, b"\n"].concat()).collect(),
        Encoding::Half => {
            let whole = encoded();
            whole[..whole.len() / 2].to_vec()
        }
        Encoding::Plain => text.into_bytes(),
        Encoding::Bytes => STANDARD.decode(text.trim()).context("stdin is not Base64")?,
        Encoding::None => Vec::new(),
    })
}

/// The document, with names still to be replaced.
fn xml(call: &Call, vars: &Vars) -> Result<String> {
    let mut xml = String::from("<DS_DRIVER_ACTION_DATA>");
    let system = call.action.starts_with("tm/");
    if call.action.ends_with("/stat") {
        let path = vars.text(call.image.get("PATH").map_or("", String::as_str))?;
        let size = call.image.get("SIZE").map_or("", String::as_str);
        write!(xml, "<IMAGE><PATH>{}</PATH><SIZE>{size}</SIZE></IMAGE>", escape(&path))?;
    } else if !system && !call.action.ends_with("/monitor") {
        image(&mut xml, &call.image)?;
    }
    datastore(&mut xml, &call.datastore, call.images)?;
    for (name, value) in &call.extra {
        write!(xml, "<{name}>{}</{name}>", escape(value))?;
    }
    xml.push_str("</DS_DRIVER_ACTION_DATA>");
    Ok(xml)
}

fn image(xml: &mut String, given: &BTreeMap<String, String>) -> Result<()> {
    xml.push_str("<IMAGE>");
    elements(xml, &IMAGE, given)?;
    xml.push_str("<RUNNING_VMS>0</RUNNING_VMS><CLONING_OPS>0</CLONING_OPS><CLONING_ID>-1</CLONING_ID>");
    xml.push_str("<DATASTORE_ID>100</DATASTORE_ID><DATASTORE>kit datastore</DATASTORE><VMS></VMS><CLONES></CLONES>");
    xml.push_str("<APP_CLONES></APP_CLONES>");
    template(xml, &IMAGE, &[("DEV_PREFIX", "vd")], given)?;
    xml.push_str("<SNAPSHOTS></SNAPSHOTS><BACKUP_INCREMENTS></BACKUP_INCREMENTS></IMAGE>");
    Ok(())
}

fn datastore(xml: &mut String, given: &BTreeMap<String, String>, images: usize) -> Result<()> {
    xml.push_str("<DATASTORE>");
    elements(xml, &DATASTORE, given)?;
    xml.push_str("<USED_MB>25102</USED_MB><CLUSTERS><ID>0</ID></CLUSTERS><IMAGES>");
    for id in 0..images {
        write!(xml, "<ID>{id}</ID>")?;
    }
    xml.push_str("</IMAGES>");
    let own_lists = given.contains_key("SAFE_DIRS") || given.contains_key("RESTRICTED_DIRS");
    let defaults = if own_lists { &DATASTORE_TEMPLATE[..4] } else { &DATASTORE_TEMPLATE[..] };
    template(xml, &DATASTORE, defaults, given)?;
    xml.push_str("</DATASTORE>");
    Ok(())
}

fn elements(xml: &mut String, known: &[(&str, &str)], given: &BTreeMap<String, String>) -> Result<()> {
    for (name, default) in known {
        let value = given.get(*name).map_or(*default, String::as_str);
        let plain = value.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-') && !value.is_empty();
        if plain {
            write!(xml, "<{name}>{value}</{name}>")?;
        } else {
            write!(xml, "<{name}>{}</{name}>", cdata(value))?;
        }
    }
    Ok(())
}

fn template(
    xml: &mut String,
    known: &[(&str, &str)],
    defaults: &[(&str, &str)],
    given: &BTreeMap<String, String>,
) -> Result<()> {
    let mut all: BTreeMap<&str, &str> = defaults.iter().copied().collect();
    let outside = |name: &str| known.iter().any(|(other, _)| *other == name);
    all.extend(given.iter().filter(|(name, _)| !outside(name)).map(|(name, value)| (name.as_str(), value.as_str())));
    xml.push_str("<TEMPLATE>");
    for (name, value) in all {
        write!(xml, "<{name}>{}</{name}>", cdata(value))?;
    }
    xml.push_str("</TEMPLATE>");
    Ok(())
}

fn cdata(text: &str) -> String {
    format!("<![CDATA[{}]]>", text.replace("]]>", "]]]]><![CDATA[>"))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&apos;")
}
