//! What oned's datastore driver process puts on an action's standard input: Base64 of one XML document (contract 01 §6.1).

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context as _, Result};
use base64::engine::general_purpose::STANDARD;
use base64::write::EncoderWriter;

use super::files;

/// Size of the large document in bytes, before Base64.
const LARGE: u64 = 10_000_000;

/// Images that the datastore of the large document holds.
const MANY: u32 = 100_000;

/// What the action is about; the rest is as a running oned sends it.
#[derive(Default)]
pub struct Payload {
    /// `DATASTORE/DS_MAD`.
    pub mad: &'static str,
    /// `DATASTORE/BASE_PATH`.
    pub base: String,
    /// Value of `SAFE_DIRS`.
    pub safe: String,
    /// `IMAGE/PATH`.
    pub path: String,
    /// `IMAGE/SOURCE`.
    pub source: String,
    /// `IMAGE/FORMAT`.
    pub format: &'static str,
    /// `IMAGE/SIZE` in MiB.
    pub mib: u64,
    /// `IMAGE/TEMPLATE/MD5`, if the image is to be checked.
    pub md5: Option<String>,
    /// Elements after the datastore.
    pub extra: String,
    /// Whether the datastore holds 100,000 images and the document has 10 MB.
    pub large: bool,
}

impl Payload {
    /// Writes the Base64 text to `path`, in one line without an end, as the driver process does.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let write = || -> Result<()> {
            let mut encoder = EncoderWriter::new(BufWriter::new(File::create_new(path)?), &STANDARD);
            self.xml(&mut encoder)?;
            encoder.finish()?.flush()?;
            Ok(())
        };
        write().with_context(|| format!("Cannot write the payload {}", path.display()))
    }

    fn xml(&self, out: &mut impl Write) -> Result<()> {
        let Self { mad, base, safe, path, source, format, mib, .. } = self;
        let md5 = self.md5.as_ref().map_or_else(String::new, |md5| format!("<MD5><![CDATA[{md5}]]></MD5>"));
        write!(
            out,
            "<DS_DRIVER_ACTION_DATA><IMAGE><ID>7</ID><UID>0</UID><GID>0</GID><UNAME>oneadmin</UNAME>\
             <GNAME>oneadmin</GNAME><NAME>bench</NAME><PERMISSIONS><OWNER_U>1</OWNER_U><OWNER_M>1</OWNER_M>\
             <OWNER_A>0</OWNER_A></PERMISSIONS><TYPE>0</TYPE><DISK_TYPE>0</DISK_TYPE><PERSISTENT>0</PERSISTENT>\
             <SOURCE><![CDATA[{source}]]></SOURCE><PATH><![CDATA[{path}]]></PATH><FORMAT><![CDATA[{format}]]></FORMAT>\
             <FS><![CDATA[]]></FS><SIZE>{mib}</SIZE><STATE>4</STATE><TARGET_SNAPSHOT>-1</TARGET_SNAPSHOT>\
             <DATASTORE_ID>100</DATASTORE_ID><TEMPLATE><DEV_PREFIX><![CDATA[vd]]></DEV_PREFIX>{md5}</TEMPLATE>\
             <SNAPSHOTS></SNAPSHOTS></IMAGE><DATASTORE><ID>100</ID><NAME>bench</NAME><DS_MAD><![CDATA[{mad}]]></DS_MAD>\
             <TM_MAD><![CDATA[ssh]]></TM_MAD><BASE_PATH><![CDATA[{base}]]></BASE_PATH><TYPE>0</TYPE>\
             <DISK_TYPE>0</DISK_TYPE><STATE>0</STATE><CLUSTERS><ID>0</ID></CLUSTERS><TOTAL_MB>258020</TOTAL_MB>\
             <FREE_MB>76836</FREE_MB><USED_MB>16217</USED_MB><IMAGES>"
        )?;
        let mut length = 0;
        let images = if self.large { MANY } else { 10 };
        for id in 0..images {
            let element = format!("<ID>{id}</ID>");
            length += u64::try_from(element.len())?;
            out.write_all(element.as_bytes())?;
        }
        write!(out, "</IMAGES><TEMPLATE><SAFE_DIRS><![CDATA[{safe}]]></SAFE_DIRS>")?;
        if self.large {
            for number in 0.. {
                if length >= LARGE {
                    break;
                }
                write!(out, "<NOTE_{number}><![CDATA[")?;
                files::letters(out, 8000)?;
                write!(out, "]]></NOTE_{number}>")?;
                length += 8000 + 40;
            }
        }
        write!(
            out,
            "<CLONE_TARGET><![CDATA[SYSTEM]]></CLONE_TARGET><DISK_TYPE><![CDATA[FILE]]></DISK_TYPE>\
             <DS_MAD><![CDATA[{mad}]]></DS_MAD><LN_TARGET><![CDATA[SYSTEM]]></LN_TARGET>\
             <TM_MAD><![CDATA[ssh]]></TM_MAD></TEMPLATE></DATASTORE>{}</DS_DRIVER_ACTION_DATA>",
            self.extra
        )?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;

    use super::{LARGE, MANY, Payload, STANDARD};

    fn document(large: bool) -> String {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("payload");
        Payload { mad: "fs", base: "/ds/100".into(), large, ..Payload::default() }.write(&file).unwrap();
        String::from_utf8(STANDARD.decode(std::fs::read(file).unwrap()).unwrap()).unwrap()
    }

    #[test]
    fn the_document_is_whole() {
        let xml = document(false);
        assert!(xml.starts_with("<DS_DRIVER_ACTION_DATA><IMAGE>"));
        assert!(xml.ends_with("</DATASTORE></DS_DRIVER_ACTION_DATA>"));
        assert!(xml.contains("<BASE_PATH><![CDATA[/ds/100]]></BASE_PATH>"));
    }

    #[test]
    fn the_large_document_has_its_size_and_images() {
        let xml = document(true);
        let length = u64::try_from(xml.len()).unwrap();
        assert!((LARGE..LARGE + 50_000).contains(&length), "{length}");
        let images = xml.split("<IMAGES>").nth(1).unwrap().split("</IMAGES>").next().unwrap();
        assert_eq!(images.matches("<ID>").count(), usize::try_from(MANY).unwrap());
    }
}
