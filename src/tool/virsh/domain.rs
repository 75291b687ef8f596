//! What `virsh dumpxml` says of a running domain's disks (libvirt's `formatdomain`).

use std::path::PathBuf;

use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion};

/// A running domain, as far as storage is concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Domain {
    /// Its disks, in libvirt's order.
    pub disks: Vec<Disk>,
    /// Whether an agent in the guest has opened its channel.
    pub agent: bool,
}

/// One disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// Its name in the domain: `vda`.
    pub target: String,
    /// The files behind it: the current one, what that stands on, and so on. Empty for an empty drive or one that is no
    /// file. A path is the one by which libvirt opened the file: a link may have moved on since.
    pub chain: Vec<Layer>,
    /// Whether a copy or an active commit of it is under way. Other jobs are not told here: [`super::Virsh::job_info`].
    pub mirror: bool,
}

/// One file of a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layer {
    /// Its path.
    pub path: PathBuf,
    /// Its format: `qcow2`, `raw`.
    pub format: String,
    /// libvirt's number for it, as in `vda[3]`; stays while the file is open.
    pub index: Option<u32>,
}

/// A domain description that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Cannot read the domain's description: {what} at byte {at}")]
pub struct BadDomain {
    at: u64,
    what: String,
}

/// Deepest nesting that is read: a chain nests two elements a file, and libvirt's own limit is 200 files.
const MAX_DEPTH: usize = 512;

impl Domain {
    /// Reads what `dumpxml` printed.
    ///
    /// # Errors
    /// [`BadDomain`] for what is no XML or nests too deep. What is unknown is passed over.
    pub fn parse(xml: &str) -> Result<Self, BadDomain> {
        let mut reader = Reader::from_str(xml);
        reader.config_mut().expand_empty_elements = true;
        let mut domain = Self::default();
        // Names of the elements that we are in.
        let mut within: Vec<String> = Vec::new();
        loop {
            let at = reader.buffer_position();
            let bad = |what: String| BadDomain { at, what };
            match reader.read_event().map_err(|error| bad(error.to_string()))? {
                Event::Start(element) => {
                    within.push(String::from_utf8_lossy(element.name().as_ref().as_bytes()).into_owned());
                    if within.len() > MAX_DEPTH {
                        return Err(bad("elements nest too deep".to_owned()));
                    }
                    domain.take(&within, &element);
                }
                Event::End(_) => drop(within.pop()),
                Event::DocType(_) => return Err(bad("a DOCTYPE".to_owned())),
                Event::Eof if within.is_empty() => break,
                Event::Eof => return Err(bad(format!("it ends within <{}>", within.join("><")))),
                _ => {}
            }
        }
        for disk in &mut domain.disks {
            disk.chain.retain(|layer| !layer.path.as_os_str().is_empty());
        }
        Ok(domain)
    }

    /// The disk of this name.
    #[must_use]
    pub fn disk(&self, target: &str) -> Option<&Disk> {
        self.disks.iter().find(|disk| disk.target == target)
    }

    fn take(&mut self, within: &[String], element: &BytesStart<'_>) {
        let names: Vec<&str> = within.iter().map(String::as_str).collect();
        let ["domain", "devices", device, inner @ ..] = &names[..] else { return };
        match (*device, inner) {
            ("disk", []) => self.disks.push(Disk::default()),
            ("disk", [backing @ .., last]) if backing.iter().all(|name| *name == "backingStore") => {
                if let Some(disk) = self.disks.last_mut() {
                    disk.take(backing.len(), last, element);
                }
            }
            ("channel", ["target"]) => {
                self.agent |= attribute(element, "name").as_deref() == Some("org.qemu.guest_agent.0")
                    && attribute(element, "state").as_deref() == Some("connected");
            }
            _ => {}
        }
    }
}

impl Disk {
    /// An element within `depth` elements `backingStore`: the file at that place of the chain.
    fn take(&mut self, depth: usize, name: &str, element: &BytesStart<'_>) {
        let number = |text: Option<String>| text.and_then(|text| text.parse().ok());
        match (name, depth) {
            ("target", 0) => self.target = attribute(element, "dev").unwrap_or_default(),
            ("mirror", 0) => self.mirror = true,
            ("driver", 0) => self.layer(0).format = attribute(element, "type").unwrap_or_default(),
            ("source", depth) => {
                let path = attribute(element, "file").or_else(|| attribute(element, "dev"));
                let layer = self.layer(depth);
                layer.path = path.map(PathBuf::from).unwrap_or_default();
                layer.index = number(attribute(element, "index")).or(layer.index);
            }
            ("format", depth) => self.layer(depth).format = attribute(element, "type").unwrap_or_default(),
            // The one at the end of a chain has no attributes.
            ("backingStore", depth) if attribute(element, "type").is_some() => {
                self.layer(depth + 1).index = number(attribute(element, "index"));
            }
            _ => {}
        }
    }

    fn layer(&mut self, at: usize) -> &mut Layer {
        if self.chain.len() <= at {
            self.chain.resize_with(at + 1, Layer::default);
        }
        &mut self.chain[at]
    }
}

fn attribute(element: &BytesStart<'_>, name: &str) -> Option<String> {
    let attribute = element.try_get_attribute(name).ok().flatten()?;
    attribute.normalized_value(XmlVersion::Explicit1_0).ok().map(std::borrow::Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From libvirt 9.0 with QEMU 10.0: three live snapshots, the disk link already moved on; paths shortened.
    const RUNNING: &str = include_str!("../../../tests/data/virsh/chain.xml");

    fn paths(disk: &Disk) -> Vec<(&str, &str, Option<u32>)> {
        let layers = disk.chain.iter();
        layers.map(|layer| (layer.path.to_str().expect("plain"), layer.format.as_str(), layer.index)).collect()
    }

    #[test]
    fn a_chain_is_read_in_order() {
        let domain = Domain::parse(RUNNING).expect("parses");
        assert!(!domain.agent);
        assert_eq!(domain.disks.len(), 2);
        let hda = domain.disk("hda").expect("hda");
        assert_eq!(
            paths(hda),
            [
                ("/ds/0/42/disk.0.snap/3", "qcow2", Some(5)),
                ("/ds/0/42/disk.0.snap/2", "qcow2", Some(4)),
                ("/ds/0/42/disk.0.snap/1", "qcow2", Some(3)),
                ("/ds/0/42/disk.0", "qcow2", Some(2)),
            ]
        );
        assert!(hda.mirror, "a copy is under way, and its target is no part of the chain");
        assert_eq!(paths(domain.disk("hdb").expect("hdb")), [("/ds/0/42/raw & more", "raw", Some(1))]);
        let connected = RUNNING.replace("state='disconnected'", "state='connected'");
        assert!(Domain::parse(&connected).expect("parses").agent);
    }

    #[test]
    fn an_empty_drive_has_no_file() {
        let xml =
            "<domain><devices><disk device='cdrom'><driver name='qemu'/><target dev='hdc'/></disk></devices></domain>";
        let domain = Domain::parse(xml).expect("parses");
        assert_eq!((domain.disks.len(), domain.disks[0].chain.len()), (1, 0));
    }

    #[test]
    fn hostile_descriptions_are_refused() {
        for bad in ["<domain>", "<!DOCTYPE x [<!ENTITY a 'b'>]><domain/>", "<a></b>", &"<a>".repeat(10_000)] {
            assert!(Domain::parse(bad).is_err(), "{}", &bad[..bad.len().min(40)]);
        }
        for len in 0..RUNNING.len() {
            let _ = RUNNING.get(..len).map(Domain::parse);
        }
    }
}
