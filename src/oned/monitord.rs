//! Telling monitord: datagrams as the probes of a host send them (contract 01 §16).
//!
//! `TYPE STATUS OID TIMESTAMP PAYLOAD`, the payload compressed (zlib) and in Base64; before that encrypted with monitord's
//! public key, in blocks, where it has one.

use std::fs;
use std::io::{self, Write};
use std::net::{ToSocketAddrs, UdpSocket};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use flate2::Compression;
use flate2::write::ZlibEncoder;
use openssl::pkey::Public;
use openssl::rsa::{Padding, Rsa};

/// Where it listens, and its key.
pub struct Monitord {
    address: String,
    port: u16,
    key: Option<Rsa<Public>>,
}

/// Most bytes of one datagram; the protocol allows 65,507.
const DATAGRAM: usize = 60_000;

/// Most bytes that are encrypted into one datagram.
const ENCRYPTED: usize = DATAGRAM / 4 * 3 / 256 * 240;

/// Bytes that the padding of PKCS #1 takes from each block.
const PADDING: u32 = 11;

/// Why nobody was told.
#[derive(Debug, thiserror::Error)]
pub enum MonitordError {
    /// Its configuration cannot be read.
    #[error("Cannot read {}", .0.display())]
    Conf(PathBuf, #[source] io::Error),
    /// Its public key cannot be used.
    #[error("Cannot use the public key {}", .0.display())]
    Key(PathBuf, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// The datagram was not sent.
    #[error("Cannot send to monitord at {0}")]
    Send(String, #[source] io::Error),
}

impl Monitord {
    /// As the first of these configuration files that exists says; `None` without one.
    ///
    /// # Errors
    /// The file or the key that it names cannot be read. A key that does not exist is none.
    pub fn configured(files: &[PathBuf]) -> Result<Option<Self>, MonitordError> {
        let Some(file) = files.iter().find(|file| file.is_file()) else { return Ok(None) };
        let text = fs::read_to_string(file).map_err(|e| MonitordError::Conf(file.clone(), e))?;
        let network = network(&text);
        let get = |name: &str| network.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let address = match get("MONITOR_ADDRESS").unwrap_or("auto") {
            address if address.contains("auto") || address.is_empty() => "127.0.0.1".to_owned(),
            address => address.to_owned(),
        };
        let port = get("PORT").and_then(|port| port.parse().ok()).unwrap_or(4124);
        let key = match get("PUBKEY").filter(|path| !path.is_empty()).map(Path::new) {
            Some(path) if path.exists() => Some(read_key(path)?),
            _ => None,
        };
        Ok(Some(Self { address, port, key }))
    }

    /// Where it is, for people.
    #[must_use]
    pub fn place(&self) -> String {
        format!("{}:{}", self.address, self.port)
    }

    /// Sends `items`, as few datagrams as hold them.
    ///
    /// # Errors
    /// [`MonitordError`]; a datagram that is lost on its way is not noticed.
    pub fn tell(&self, message: &str, items: &[String]) -> Result<(), MonitordError> {
        let failed = |e| MonitordError::Send(self.place(), e);
        let address = (self.address.as_str(), self.port).to_socket_addrs().map_err(failed)?.next();
        let address = address.ok_or_else(|| failed(io::ErrorKind::AddrNotAvailable.into()))?;
        let own = if address.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
        let socket = UdpSocket::bind(own).map_err(failed)?;
        for datagram in self.datagrams(message, items)? {
            socket.send_to(&datagram, address).map_err(failed)?;
        }
        Ok(())
    }

    /// The datagrams; a list that is too long for one is halved.
    fn datagrams(&self, message: &str, items: &[String]) -> Result<Vec<Vec<u8>>, MonitordError> {
        let payload = format!("{}\n", items.join(" "));
        // What is encrypted cannot be compressed: no need to encrypt it to see that it is too long.
        let hopeless = self.key.is_some() && payload.len() > ENCRYPTED;
        if !hopeless || items.len() < 2 {
            let packed = self.packed(payload.as_bytes()).map_err(|e| MonitordError::Send(self.place(), e))?;
            let datagram = format!("{message} SUCCESS -1 0 {}\n", BASE64.encode(packed)).into_bytes();
            if datagram.len() <= DATAGRAM || items.len() < 2 {
                return Ok(vec![datagram]);
            }
        }
        let (first, second) = items.split_at(items.len() / 2);
        let mut all = self.datagrams(message, first)?;
        all.extend(self.datagrams(message, second)?);
        Ok(all)
    }

    fn packed(&self, payload: &[u8]) -> io::Result<Vec<u8>> {
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
        match &self.key {
            None => zlib.write_all(payload)?,
            Some(key) => {
                let size = key.size();
                let mut block = vec![0; usize::try_from(size).map_err(io::Error::other)?];
                let room = usize::try_from(size.saturating_sub(PADDING)).map_err(io::Error::other)?.max(1);
                for part in payload.chunks(room) {
                    let len = key.public_encrypt(part, &mut block, Padding::PKCS1).map_err(io::Error::other)?;
                    zlib.write_all(&block[..len])?;
                }
            }
        }
        zlib.finish()
    }
}

fn read_key(path: &Path) -> Result<Rsa<Public>, MonitordError> {
    let bad = |e: Box<dyn std::error::Error + Send + Sync>| MonitordError::Key(path.to_owned(), e);
    let pem = fs::read(path).map_err(|e| bad(e.into()))?;
    let key = Rsa::public_key_from_pem_pkcs1(&pem).or_else(|_| Rsa::public_key_from_pem(&pem));
    key.map_err(|e| bad(e.into()))
}

/// Names and values of the `NETWORK` vector of `monitord.conf`.
pub(super) fn network(text: &str) -> Vec<(String, String)> {
    let plain: Vec<&str> = text.lines().map(|line| line.split('#').next().unwrap_or_default()).collect();
    let plain = plain.join("\n");
    let is_name = |at: usize| plain[..at].chars().next_back().is_none_or(char::is_whitespace);
    let starts = plain.match_indices("NETWORK").filter(|(at, _)| is_name(*at));
    let vector = starts.filter_map(|(at, name)| {
        let rest = plain[at + name.len()..].trim_start().strip_prefix('=')?;
        rest.trim_start().strip_prefix('[')?.split(']').next()
    });
    let pairs = vector.take(1).flat_map(|vector| vector.split(',')).filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.trim().to_owned(), value.trim().trim_matches('"').to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use openssl::pkey::Private;

    use super::*;

    const CONF: &str = "# NETWORK = [ PORT = 1 ]\nMANAGER_TIMER = 15\nNETWORK = [\n    ADDRESS         = \"0.0.0.0\",\n    \
                        MONITOR_ADDRESS = \"auto\", # x\n    PORT    = 4127,\n    PUBKEY  = \"{key}\"\n]\nHOST = [ PORT = 2 ]\n";

    fn monitord(key: &str) -> Monitord {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), CONF.replace("{key}", key)).expect("writes");
        let files = [PathBuf::from("/none/at/all"), file.path().to_owned()];
        Monitord::configured(&files).expect("reads").expect("there is one")
    }

    fn unpacked(datagram: &[u8], key: Option<&Rsa<Private>>) -> String {
        let text = std::str::from_utf8(datagram).expect("text");
        let payload =
            text.strip_prefix("MONITOR_VM SUCCESS -1 0 ").and_then(|t| t.strip_suffix('\n')).expect("a message");
        let packed = BASE64.decode(payload).expect("Base64");
        let mut plain = Vec::new();
        flate2::read::ZlibDecoder::new(&packed[..]).read_to_end(&mut plain).expect("zlib");
        if let Some(key) = key {
            let size = key.size() as usize;
            let mut block = vec![0; size];
            let parts = plain.chunks(size).flat_map(|part| {
                let len = key.private_decrypt(part, &mut block, Padding::PKCS1).expect("decrypts");
                block[..len].to_vec()
            });
            plain = parts.collect();
        }
        String::from_utf8(plain).expect("text")
    }

    #[test]
    fn its_configuration_is_read() {
        let found = monitord("/no/such/key");
        assert_eq!(found.place(), "127.0.0.1:4127");
        assert!(found.key.is_none());
        assert!(Monitord::configured(&[]).expect("reads").is_none());
    }

    #[test]
    fn a_message_arrives_as_monitord_reads_it() {
        let items = ["VM=[ID=1, MONITOR=\"YQ==\"]".to_owned(), "VM=[ID=2, MONITOR=\"Yg==\"]".to_owned()];
        let datagrams = monitord("").datagrams("MONITOR_VM", &items).expect("datagrams");
        assert_eq!(datagrams.len(), 1);
        assert_eq!(unpacked(&datagrams[0], None), format!("{} {}\n", items[0], items[1]));
    }

    #[test]
    fn with_a_key_only_monitord_can_read_it() {
        let key = Rsa::generate(2048).expect("a key");
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), key.public_key_to_pem_pkcs1().expect("PEM")).expect("writes");
        let items: Vec<String> = (0..40).map(|id| format!("VM=[ID={id}, MONITOR=\"YQ==\"]")).collect();
        let datagrams =
            monitord(&file.path().display().to_string()).datagrams("MONITOR_VM", &items).expect("datagrams");
        assert_eq!(datagrams.len(), 1);
        assert_eq!(unpacked(&datagrams[0], Some(&key)), format!("{}\n", items.join(" ")));
    }

    #[test]
    fn a_long_list_comes_in_several_datagrams_and_whole() {
        use md5::Digest as _;
        let digest = |id: u32| BASE64.encode(md5::Md5::digest(id.to_le_bytes()));
        let items: Vec<String> = (0..9000).map(|id| format!("VM=[ID={id}, MONITOR=\"{}\"]", digest(id))).collect();
        let datagrams = monitord("").datagrams("MONITOR_VM", &items).expect("datagrams");
        assert!(datagrams.len() > 1 && datagrams.iter().all(|datagram| datagram.len() <= DATAGRAM));
        let all: Vec<String> = datagrams.iter().map(|datagram| unpacked(datagram, None).trim().to_owned()).collect();
        assert_eq!(all.join(" "), items.join(" "));
    }
}
