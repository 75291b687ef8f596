//! What must hold of oned's replies and of `monitord.conf`, whatever they say. See [`crate::fuzz`].

#![allow(clippy::missing_panics_doc, reason = "a panic is how a target says no")]

use super::{Cause, monitord as conf, reply as xml};
use crate::fuzz::{xml_escaped, xml_text};

/// An XML-RPC reply: words of oned's are one line of bounded length, an object comes out to the letter.
pub fn reply(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match xml::read(&text) {
        Ok(object) => assert!(!object.is_empty()),
        Err(Cause::Denied { message, .. } | Cause::Fault { message, .. }) => {
            assert!(message.chars().count() <= 500 && !message.contains(['\n', '\r']), "{message:?}");
        }
        Err(_) => {}
    }
    let text = xml_text(data);
    let say = |first: &str| {
        format!(
            "<?xml version=\"1.0\"?><methodResponse><params><param><value><array><data><value><boolean>{first}</boolean>\
             </value><value><string>{}</string></value><value><i4>512</i4></value></data></array></value></param></params>\
             </methodResponse>",
            xml_escaped(&text)
        )
    };
    assert_eq!(xml::read(&say("1")).ok(), Some(text.clone()).filter(|text| !text.is_empty()));
    assert!(matches!(xml::read(&say("0")), Err(Cause::Denied { code: 512, .. })));
}

/// `monitord.conf`: what is found stands in the file.
pub fn monitord(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for (name, value) in conf::network(&text) {
        assert!(text.contains(name.lines().next().unwrap_or_default()) && !name.contains(',') && !value.contains(','));
        assert!(!name.contains([']', '=']) && !value.contains(']'));
    }
    let value: String = text.chars().filter(|c| c.is_ascii_alphanumeric() || "./:-_".contains(*c)).collect();
    let file = format!("A = [ NETWORK_X = 1 ]\n NETWORK\n=\n[ PORT = \"1\", # ]\n PUBKEY = \"{value}\" ]\n");
    let found = conf::network(&file);
    assert_eq!(found, [("PORT".to_owned(), "1".to_owned()), ("PUBKEY".to_owned(), value)]);
}
