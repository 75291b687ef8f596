//! Tests of the parser's rules; `tests/payload_fixtures.rs` has recorded documents.

use std::fmt::Write as _;
use std::io::{self, Read};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;

use super::*;
use crate::exec::cmd::Secret;

fn image(xml: &str) -> Image {
    parse::<Image>(&format!("<IMAGE>{xml}</IMAGE>")).expect("parses")
}

fn refused(xml: &str) -> String {
    parse::<ActionData>(xml).expect_err("is refused").to_string()
}

#[test]
fn the_first_element_wins_and_an_empty_first_is_absent() {
    let it = image("<PATH>/a</PATH><SIZE/><PATH>/b</PATH><SIZE>5</SIZE><FS></FS>");
    assert_eq!(it.path.get(), Some("/a"));
    assert_eq!(it.size.get(), Ok(None));
    assert_eq!(it.fs.get(), None);
    assert_eq!(it.source.get(), None);
    assert_eq!(it.path.required(), Ok("/a"));
    assert_eq!(it.source.required().unwrap_err().to_string(), "IMAGE/SOURCE is missing or empty");
    assert_eq!(it.size.required().unwrap_err().to_string(), "IMAGE/SIZE is missing or empty");
}

#[test]
fn a_record_met_twice_goes_on_where_it_stopped() {
    let it = image("<TEMPLATE><MD5>1</MD5></TEMPLATE><ID>3</ID><TEMPLATE><MD5>2</MD5><SHA1>3</SHA1></TEMPLATE>");
    assert_eq!((it.template.md5.get(), it.template.sha1.get()), (Some("1"), Some("3")));
}

#[test]
fn text_is_decoded_and_nested_elements_are_ignored() {
    let it = image("<PATH> a&amp;<![CDATA[<b>&amp;]]><X>no<Y/></X>&#x41;&lt;<!-- no --> </PATH>");
    assert_eq!(it.path.get(), Some(" a&<b>&amp;A< "));
    assert_eq!(it.path.trimmed(), Some("a&<b>&amp;A<"));
}

#[test]
fn an_odd_number_is_an_error_only_where_it_is_asked_for() {
    let it = image("<SIZE>12 MB</SIZE><ID> 7\n</ID><TYPE>9</TYPE>");
    assert_eq!(it.id.get(), Ok(Some(7)));
    assert_eq!(it.size.get().unwrap_err().to_string(), "IMAGE/SIZE is \"12 MB\", not a whole number from 0");
    assert_eq!(it.image_type.get().unwrap_err().to_string(), "IMAGE/TYPE is \"9\", not an image type from 0 to 7");
    let it = image("<TARGET_SNAPSHOT>-1</TARGET_SNAPSHOT><TYPE>2</TYPE>");
    assert_eq!(it.target_snapshot.get(), Ok(Some(-1)));
    assert_eq!(it.image_type.get(), Ok(Some(ImageType::Datablock)));
}

#[test]
fn an_odd_id_names_its_list() {
    let it =
        image("<VMS><ID>1</ID><ID/><X>5</X><ID>two</ID></VMS><BACKUP_DISK_IDS><ID>0</ID><ID>3</ID></BACKUP_DISK_IDS>");
    assert_eq!(it.backup_disk_ids.numbers(), Ok(vec![0, 3]));
    let says = it.vms.numbers().unwrap_err().to_string();
    assert_eq!(says, "IMAGE/VMS is \"two\", not a whole number from 0 to 4294967295");
}

#[test]
fn yes_has_two_rules() {
    for (text, exact, any_case) in [
        ("yes", true, true),
        ("YES", true, true),
        ("Yes", false, true),
        ("yEs", false, true),
        ("true", true, false),
        ("TRUE", true, false),
        ("True", false, false),
        ("1", false, false),
        ("no", false, false),
    ] {
        let it = image(&format!("<FS>{text}</FS>"));
        assert_eq!((it.fs.is_yes(), it.fs.is_yes_any_case()), (exact, any_case), "{text}");
    }
    let it = image("");
    assert!(!it.fs.is_yes() && !it.fs.is_yes_any_case() && !it.fs.is_no() && !it.fs.is_no_any_case());
    assert!(image("<FS>No</FS>").fs.is_no_any_case());
    assert!(!image("<FS>No</FS>").fs.is_no());
}

#[test]
fn lists_are_split_by_blanks_or_commas() {
    let it = image("<PATH> a  b\n</PATH><FS>1, 2,,3</FS>");
    assert_eq!(it.path.words().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(it.fs.items().collect::<Vec<_>>(), ["1", "2", "3"]);
}

#[test]
fn secrets_and_unknown_attributes_are_not_shown() {
    let xml = "<DATASTORE><TEMPLATE><RESTIC_PASSWORD>canary</RESTIC_PASSWORD><NETAPP_PASS>canary</NETAPP_PASS>\
               <LN_TARGET_SSH>SYSTEM</LN_TARGET_SSH><RSYNC_NICE>19</RSYNC_NICE><RSYNC_IONICE>x</RSYNC_IONICE>\
               </TEMPLATE></DATASTORE>";
    let it: Datastore = parse(xml).expect("parses");
    let template = &it.template;
    assert_eq!(template.restic_password.get().map(Secret::reveal), Some("canary"));
    assert_eq!(template.other.secret("NETAPP_PASS").as_ref().map(Secret::reveal), Some("canary"));
    assert_eq!(template.other.get("LN_TARGET_SSH"), Some("SYSTEM"));
    assert_eq!(template.other.value::<i64>("RSYNC_NICE"), Ok(Some(19)));
    let error = template.other.value::<i64>("RSYNC_IONICE").unwrap_err();
    assert_eq!(error.to_string(), "DATASTORE/TEMPLATE/RSYNC_IONICE is \"x\", not a whole number");
    assert!(!format!("{it:?}").contains("canary"));
}

#[test]
fn what_is_no_document_is_refused_in_one_line() {
    let deep = format!("<DS_DRIVER_ACTION_DATA>{}", "<A>".repeat(100_000));
    for (xml, says) in [
        ("<VM/>", "Expected an XML document <DS_DRIVER_ACTION_DATA>, got <VM>"),
        ("hello", "The XML is malformed at byte 0: text outside of an element"),
        ("  ", "The XML is cut off at byte 2"),
        ("<DS_DRIVER_ACTION_DATA><IMAGE><PATH>/a", "The XML is cut off at byte 38 inside <PATH>"),
        ("<DS_DRIVER_ACTION_DATA><IMAGE><PATH", "The XML is cut off at byte 35"),
        ("<DS_DRIVER_ACTION_DATA><IMAGE><PATH><![CDATA[x", "The XML is cut off at byte 46"),
        ("<DS_DRIVER_ACTION_DATA/>x", "The XML is malformed at byte 24: more after the end of the document"),
        ("<DS_DRIVER_ACTION_DATA/><A/>", "The XML is malformed at byte 24: more after the end of the document"),
        (
            "<!DOCTYPE a [<!ENTITY b \"c\">]><DS_DRIVER_ACTION_DATA/>",
            "The XML has a DOCTYPE at byte 0, which is refused",
        ),
        (
            "<DS_DRIVER_ACTION_DATA><IMAGE><PATH>&b;</PATH></IMAGE></DS_DRIVER_ACTION_DATA>",
            "The XML is malformed at byte 36: an entity that XML does not define",
        ),
        (
            "<DS_DRIVER_ACTION_DATA><IMAGE><PATH>&#xD800;</PATH></IMAGE></DS_DRIVER_ACTION_DATA>",
            "The XML is malformed at byte 36: a reference to no character",
        ),
        (&deep, "The XML is nested more than 64 elements deep at byte 212"),
    ] {
        assert_eq!(refused(xml), says, "{}", &xml[..xml.len().min(80)]);
    }
    assert!(
        refused("<DS_DRIVER_ACTION_DATA><A></B></DS_DRIVER_ACTION_DATA>").starts_with("The XML is malformed at byte")
    );
}

#[test]
fn memory_is_in_proportion_to_the_document() {
    // Each disk has more than sixty fields: a small document could otherwise occupy gigabytes.
    let xml = format!("<VM><TEMPLATE>{}</TEMPLATE></VM>", "<DISK/>".repeat(1 << 20));
    assert!(matches!(parse::<Vm>(&xml), Err(PayloadError::TooMuch { .. })));
    let mut xml = String::from("<VM><TEMPLATE>");
    for n in 0..300_000 {
        write!(xml, "<A{n}/>").expect("writes");
    }
    xml += "</TEMPLATE></VM>";
    assert!(matches!(parse::<Vm>(&xml), Err(PayloadError::TooMuch { .. })));
}

#[test]
fn a_hundred_thousand_ids_are_no_trouble() {
    let mut xml = String::from("<DATASTORE><ID>1</ID><IMAGES>");
    for n in 0..100_000 {
        write!(xml, "<ID>{n}</ID>").expect("writes");
    }
    xml += "</IMAGES><NAME>x</NAME></DATASTORE>";
    let it: Datastore = parse(&xml).expect("parses");
    assert_eq!(it.images.ids.len(), 100_000);
    assert_eq!(it.images.ids.last().map(First::get), Some(Ok(Some(99_999))));
    assert_eq!(it.name.get(), Some("x"));
}

#[test]
fn disks_snapshots_and_history_are_found() {
    let it: Vm = parse(
        "<VM><SNAPSHOTS><DISK_ID>1</DISK_ID><SNAPSHOT><ID>0</ID></SNAPSHOT></SNAPSHOTS><TEMPLATE>\
         <DISK><DISK_ID>x</DISK_ID></DISK><DISK><DISK_ID>1</DISK_ID><SIZE>4</SIZE></DISK></TEMPLATE>\
         <HISTORY_RECORDS><HISTORY><SEQ>0</SEQ><DS_ID>7</DS_ID></HISTORY><HISTORY><SEQ>1</SEQ></HISTORY>\
         </HISTORY_RECORDS></VM>",
    )
    .expect("parses");
    assert_eq!(it.disk(1).map(|disk| disk.size.get()), Some(Ok(Some(4))));
    assert!(it.disk(0).is_none());
    assert_eq!(it.disk_snapshots(1).map(|s| s.snapshots.len()), Some(1));
    assert_eq!(it.last_history().map(|h| h.seq.get()), Some(Ok(Some(1))));
    assert_eq!(it.previous_history().map(|h| h.ds_id.get()), Some(Ok(Some(7))));
}

// --- input ---

const XML: &str = "<DS_DRIVER_ACTION_DATA><IMAGE><ID>1</ID></IMAGE></DS_DRIVER_ACTION_DATA>";

fn says(bytes: &[u8]) -> String {
    read(bytes, 1000).expect_err("is refused").to_string()
}

#[test]
fn base64_and_plain_are_told_apart() {
    for xml in [XML, &format!("{XML} "), &format!("{XML}  ")] {
        let line = STANDARD.encode(xml);
        let mut wrapped = String::new();
        for (n, c) in line.char_indices() {
            wrapped.push(c);
            if n % 60 == 59 {
                wrapped += "\r\n";
            }
        }
        for sent in [
            line.clone(),
            format!("{line}\n"),
            wrapped,
            line.trim_end_matches('=').to_owned(),
            format!("\n {line}"),
            format!("\u{feff}{line}"),
            xml.to_owned(),
            format!("\u{feff}{xml}"),
            STANDARD.encode(format!("\u{feff}{xml}")),
        ] {
            assert_eq!(read(sent.as_bytes(), 1000).expect(&sent), *xml);
            assert_eq!(read(OneByOne(sent.as_bytes()), 1000).expect(&sent), *xml);
        }
    }
    assert_eq!(read(&b"\n\t <VM/>"[..], 10).expect("reads"), "\n\t <VM/>");
}

/// A reader that gives one byte at a time.
struct OneByOne<'a>(&'a [u8]);

impl Read for OneByOne<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Some((first, rest)) = self.0.split_first() else {
            return Ok(0);
        };
        buf[0] = *first;
        self.0 = rest;
        Ok(1)
    }
}

#[test]
fn what_is_wrong_with_the_input_is_said_in_one_line() {
    assert_eq!(says(b""), "Nothing on standard input: expected Base64 XML");
    assert_eq!(says(b" \n\t"), "Nothing on standard input: expected Base64 XML");
    assert_eq!(says(b"\xef\xbb\xbf"), "Nothing on standard input: expected Base64 XML");
    assert_eq!(says(b"PElN!UdF"), "Standard input is neither XML nor Base64: byte 4 is '!'");
    assert_eq!(says(b"PElN\x00"), "Standard input is neither XML nor Base64: byte 4 is 0x00");
    assert_eq!(says(b"PEl=NUdF"), "Standard input is neither XML nor Base64: byte 4 is 'N'");
    assert_eq!(says(b"PElNP"), "The Base64 text on standard input is cut off at byte 5");
    assert_eq!(says(b"PElNPA="), "The Base64 text on standard input is cut off at byte 7");
    assert_eq!(says(b"<A>\xff</A>"), "The XML is not UTF-8 at byte 3");
    assert_eq!(says(STANDARD.encode(b"<A>\xff</A>").as_bytes()), "The XML is not UTF-8 at byte 3");
    let large = format!("<A>{}</A>", "x".repeat(1000));
    assert_eq!(says(large.as_bytes()), "The document is larger than the limit of 1000 bytes");
    assert_eq!(says(STANDARD.encode(&large).as_bytes()), "The document is larger than the limit of 1000 bytes");
    // A writer that never stops is not read for ever, whatever it writes.
    assert!(matches!(read(io::repeat(b' '), 1000), Err(PayloadError::TooLarge { limit: 1000 })));
    assert!(matches!(read(Read::chain(&b"PElN"[..], io::repeat(b'\n')), 9), Err(PayloadError::TooLarge { limit: 9 })));
}

#[test]
fn a_document_of_just_the_limit_is_read() {
    let xml = format!("<A>{}</A>", "x".repeat(993));
    assert_eq!(read(xml.as_bytes(), 1000).expect("reads").len(), 1000);
    assert_eq!(read(STANDARD.encode(&xml).as_bytes(), 1000).expect("reads").len(), 1000);
}

// --- properties ---

fn escaped(text: &str, how: u8) -> String {
    match how {
        0 => quick_xml::escape::escape(text).into_owned(),
        1 => text.chars().fold(String::new(), |mut all, c| {
            let _ = write!(all, "&#{};", u32::from(c));
            all
        }),
        _ => format!("<![CDATA[{}]]>", text.replace("]]>", "]]]]><![CDATA[>")),
    }
}

/// What XML can carry: no control characters; carriage returns become line feeds on the way.
fn xml_text() -> impl Strategy<Value = String> {
    let special = r#"[<>&'"\]\[!;# \n\t]{0,8}"#;
    (special, r"[^\p{C}]{0,20}", special).prop_map(|(a, b, c)| format!("{a}{b}{c}"))
}

proptest! {
    #[test]
    fn any_text_survives_any_encoding(text in xml_text(), how in 0u8..3) {
        let it = image(&format!("<PATH>{}</PATH>", escaped(&text, how)));
        prop_assert_eq!(it.path.get().unwrap_or(""), &text);
        let base64 = STANDARD.encode(format!("<IMAGE><PATH>{}</PATH></IMAGE>", escaped(&text, how)));
        let again: Image = parse(&read(base64.as_bytes(), 10_000).expect("reads")).expect("parses");
        prop_assert_eq!(again, it);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = read(&bytes[..], 200);
        let _ = parse::<ActionData>(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn no_xml_like_text_makes_it_panic(text in r"(</?(VM|TEMPLATE|DISK|ID|A)/?>|<!\[CDATA\[|\]\]>|&#?x?[0-9a-z]{0,4};?|<[!?/-]{0,3}|[ -~]){0,40}") {
        let _ = parse::<Vm>(&text);
        let _ = parse::<Vm>(&format!("<VM>{text}</VM>"));
    }

    /// Elements of other names may come in between, in any order, without changing what is found.
    #[test]
    fn interleaving_does_not_change_the_answer(order in Just((0usize..12).collect::<Vec<_>>()).prop_shuffle()) {
        let parts = ["<DISK><DISK_ID>0</DISK_ID><SIZE>1</SIZE></DISK>", "<DISK><SIZE>2</SIZE><DISK_ID>1</DISK_ID></DISK>",
            "<NIC><IP>1</IP></NIC>", "<NIC><IP>2</IP></NIC>", "<MEMORY>64</MEMORY>", "<OS><MACHINE>q35</MACHINE></OS>",
            "<X1/>", "<X2/>", "<CONTEXT><DISK_ID>2</DISK_ID></CONTEXT>", "<TM_MAD_SYSTEM>ssh</TM_MAD_SYSTEM>",
            "<TPM><MODEL>tis</MODEL></TPM>", "<CPU>1</CPU>"];
        let doc = |body: String| parse::<Vm>(&format!("<VM><TEMPLATE>{body}</TEMPLATE></VM>")).expect("parses");
        let straight = doc(parts.concat());
        // Disks keep their order among themselves; everything else may stand anywhere.
        let mut order = order;
        let (zero, one) = (order.iter().position(|n| *n == 0).expect("is there"), order.iter().position(|n| *n == 1).expect("is there"));
        if zero > one { order.swap(zero, one); }
        let nics = (order.iter().position(|n| *n == 2).expect("is there"), order.iter().position(|n| *n == 3).expect("is there"));
        if nics.0 > nics.1 { order.swap(nics.0, nics.1); }
        prop_assert_eq!(doc(order.iter().map(|n| parts[*n]).collect()), straight);
    }
}
