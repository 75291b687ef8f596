//! Builds images that a careless driver would hand to `qemu-img`: the cases of the hostile-image lab, and their relatives.

/// A qcow2 with knobs; the defaults are a benign image of 1 MiB.
pub struct Qcow2 {
    pub version: u32,
    pub size: u64,
    pub backing: Vec<u8>,
    pub backing_format: Option<&'static [u8]>,
    pub backing_offset: Option<u64>,
    pub backing_len: Option<u32>,
    pub data_file: Option<Vec<u8>>,
    pub raw_data_file: bool,
    pub cluster_bits: u32,
    pub l1_size: Option<u32>,
    pub l1_offset: Option<u64>,
    pub incompatible: u64,
    pub autoclear: u64,
    pub crypt: u32,
    pub snapshots: u32,
    pub refcount_order: u32,
    pub refcount_clusters: u32,
    pub header_length: u32,
    pub compression: u8,
    pub extension: Vec<u8>,
}

impl Default for Qcow2 {
    fn default() -> Self {
        Self {
            version: 3,
            size: 1 << 20,
            backing: Vec::new(),
            backing_format: Some(b"raw"),
            backing_offset: None,
            backing_len: None,
            data_file: None,
            raw_data_file: true,
            cluster_bits: 16,
            l1_size: None,
            l1_offset: None,
            incompatible: 0,
            autoclear: 0,
            crypt: 0,
            snapshots: 0,
            refcount_order: 4,
            refcount_clusters: 1,
            header_length: 112,
            compression: 0,
            extension: Vec::new(),
        }
    }
}

fn extension(out: &mut Vec<u8>, kind: u32, data: &[u8]) {
    out.extend(kind.to_be_bytes());
    out.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    out.extend(data);
    out.resize(out.len().next_multiple_of(8), 0);
}

impl Qcow2 {
    /// Header, refcount table, refcount block, L1 table: four clusters.
    pub fn build(&self) -> Vec<u8> {
        let cluster = 1u64 << self.cluster_bits.min(21);
        let covered = cluster * (cluster / 8);
        let l1_size = self.l1_size.unwrap_or(u32::try_from(self.size.div_ceil(covered)).unwrap_or(u32::MAX).max(1));
        let mut extensions = self.extension.clone();
        if let Some(format) = self.backing_format.filter(|_| !self.backing.is_empty()) {
            extension(&mut extensions, 0xE279_2ACA, format);
        }
        let (mut incompatible, mut autoclear) = (self.incompatible, self.autoclear);
        if let Some(name) = &self.data_file {
            incompatible |= 4;
            autoclear |= if self.raw_data_file { 2 } else { 0 };
            extension(&mut extensions, 0x4441_5441, name);
        }
        extension(&mut extensions, 0, b"");
        let fixed = if self.version == 2 { 72 } else { 112 };
        let (mut offset, mut len) = (0, 0);
        if !self.backing.is_empty() {
            offset = (fixed + extensions.len()) as u64;
            len = u32::try_from(self.backing.len()).unwrap();
        }
        let mut out = Vec::new();
        out.extend(b"QFI\xfb");
        out.extend(self.version.to_be_bytes());
        out.extend(self.backing_offset.unwrap_or(offset).to_be_bytes());
        out.extend(self.backing_len.unwrap_or(len).to_be_bytes());
        out.extend(self.cluster_bits.to_be_bytes());
        out.extend(self.size.to_be_bytes());
        out.extend(self.crypt.to_be_bytes());
        out.extend(l1_size.to_be_bytes());
        out.extend(self.l1_offset.unwrap_or(3 * cluster).to_be_bytes());
        out.extend(cluster.to_be_bytes());
        out.extend(self.refcount_clusters.to_be_bytes());
        out.extend(self.snapshots.to_be_bytes());
        out.extend(if self.snapshots > 0 { 3 * cluster } else { 0 }.to_be_bytes());
        if self.version != 2 {
            out.extend(incompatible.to_be_bytes());
            out.extend(0u64.to_be_bytes());
            out.extend(autoclear.to_be_bytes());
            out.extend(self.refcount_order.to_be_bytes());
            out.extend(self.header_length.to_be_bytes());
            out.extend([self.compression, 0, 0, 0, 0, 0, 0, 0]);
        }
        out.extend(extensions);
        out.extend(&self.backing);
        out.resize(usize::try_from(4 * cluster).unwrap(), 0);
        out
    }
}

/// A text descriptor with these extent lines.
pub fn descriptor(create_type: &str, extra: &str, extents: &str) -> String {
    format!(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"{create_type}\"\n{extra}{extents}ddb.adapterType = \"ide\"\n"
    )
}

/// A VMDK with binary header and embedded descriptor.
pub fn vmdk(capacity: u64, descriptor_at: u64, directory: u64, text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(b"KDMV");
    out.extend(1u32.to_le_bytes());
    out.extend(3u32.to_le_bytes());
    for field in [capacity, 128, descriptor_at, 20] {
        out.extend(field.to_le_bytes());
    }
    out.extend(512u32.to_le_bytes());
    for field in [21, directory, 128] {
        out.extend(field.to_le_bytes());
    }
    out.push(0);
    out.extend(b"\n \r\n");
    out.resize(usize::try_from(descriptor_at).unwrap() * 512, 0);
    out.extend(text.as_bytes());
    out.resize(128 << 10, 0);
    out
}

/// A QED with these features.
pub fn qed(features: u64, name: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(b"QED\0");
    for field in [65536u32, 4, 1] {
        out.extend(field.to_le_bytes());
    }
    for field in [features, 0, 0, 65536, 1 << 20] {
        out.extend(field.to_le_bytes());
    }
    out.extend(if name.is_empty() { 0u32 } else { 64 }.to_le_bytes());
    out.extend(u32::try_from(name.len()).unwrap().to_le_bytes());
    out.extend(name);
    out.resize(5 * 65536, 0);
    out
}

/// A qcow version 1 with a backing file.
pub fn qcow(name: &[u8], cluster_bits: u8, size: u64) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(b"QFI\xfb");
    out.extend(1u32.to_be_bytes());
    out.extend(if name.is_empty() { 0u64 } else { 48 }.to_be_bytes());
    out.extend(u32::try_from(name.len()).unwrap().to_be_bytes());
    out.extend(0u32.to_be_bytes());
    out.extend(size.to_be_bytes());
    out.extend([cluster_bits, 9, 0, 0]);
    out.extend(0u32.to_be_bytes());
    out.extend(512u64.to_be_bytes());
    out.extend(name);
    out.resize(8192, 0);
    out
}

/// A LUKS 2 container of `total` bytes.
pub fn luks2(json: &str, header: u64, total: usize) -> Vec<u8> {
    let mut out = b"LUKS\xba\xbe\x00\x02".to_vec();
    out.extend(header.to_be_bytes());
    out.resize(4096, 0);
    out.extend(json.as_bytes());
    out.resize(total, 0);
    out
}

/// A VDI of 1 MiB.
pub fn vdi(kind: u32, block: u32, blocks: u32, size: u64, parent: u8) -> Vec<u8> {
    let mut out = vec![0; 2 << 20];
    out[..8].copy_from_slice(b"<<< QEMU");
    let mut put = |at: usize, value: u32| out[at..at + 4].copy_from_slice(&value.to_le_bytes());
    put(64, 0xBEDA_107F);
    put(68, 0x0001_0001);
    put(72, 384);
    put(76, kind);
    put(340, 512);
    put(344, 1024);
    put(360, 512);
    put(376, block);
    put(384, blocks);
    out[368..376].copy_from_slice(&size.to_le_bytes());
    out[440] = parent;
    out
}

fn vpc(kind: u32) -> Vec<u8> {
    let mut out = vec![0; 4096];
    out[..8].copy_from_slice(b"conectix");
    out[8..16].copy_from_slice(&[0, 0, 0, 2, 0, 0, 0, 0]);
    out[12..16].copy_from_slice(&0x0001_0000u32.to_be_bytes());
    out[16..24].copy_from_slice(&512u64.to_be_bytes());
    out[28..32].copy_from_slice(b"win ");
    out[48..56].copy_from_slice(&(1u64 << 20).to_be_bytes());
    out[60..64].copy_from_slice(&kind.to_be_bytes());
    out[512..520].copy_from_slice(b"cxsparse");
    out[528..536].copy_from_slice(&1536u64.to_be_bytes());
    out[540..544].copy_from_slice(&1u32.to_be_bytes());
    out[544..548].copy_from_slice(&(2u32 << 20).to_be_bytes());
    for (n, byte) in "/etc/passwd".bytes().enumerate() {
        out[577 + 2 * n] = byte;
    }
    for (at, len, own) in [(0, 512, 64), (512, 1024, 548)] {
        let sum = !out[at..at + len].iter().fold(0u32, |sum, &byte| sum.wrapping_add(u32::from(byte)));
        out[own..own + 4].copy_from_slice(&sum.to_be_bytes());
    }
    out
}

/// The data of a bitmaps extension.
fn bitmaps(count: u32, size: u64, offset: u64) -> Vec<u8> {
    let mut out = Vec::new();
    extension(
        &mut out,
        0x2385_2875,
        &[&count.to_be_bytes()[..], &[0; 4], &size.to_be_bytes(), &offset.to_be_bytes()].concat(),
    );
    out
}

/// Where [`parallels`] puts the format extension.
const PARALLELS_EXTENSION: usize = 32 << 10;

/// A Parallels image of 1 MiB with a format extension of these numbers: feature, flags, length.
pub fn parallels(features: &[u64]) -> Vec<u8> {
    let mut out = b"WithouFreSpacExt".to_vec();
    for field in [2u32, 16, 0, 2048, 1] {
        out.extend(field.to_le_bytes());
    }
    out.extend(2048u64.to_le_bytes());
    out.extend([0; 12]);
    out.extend((PARALLELS_EXTENSION as u64 / 512).to_le_bytes());
    out.resize(PARALLELS_EXTENSION, 0);
    out.extend(0xAB23_4CEF_23DC_EA87_u64.to_le_bytes());
    out.extend([0; 16]);
    for field in features {
        out.extend(field.to_le_bytes());
    }
    out.resize(2 << 20, 0);
    out
}

/// Every hostile case by name.
#[allow(clippy::too_many_lines)] // A table.
pub fn all() -> Vec<(&'static str, Vec<u8>)> {
    let secret = b"/var/lib/one/.one/one_auth";
    let backing = |name: &[u8]| Qcow2 { backing: name.to_vec(), ..Qcow2::default() };
    let data = |name: &[u8]| Qcow2 { data_file: Some(name.to_vec()), ..Qcow2::default() };
    let json = br#"json:{"driver":"raw","file":{"driver":"file","filename":"/etc/passwd"}}"#;
    let good = "RW 2048 SPARSE \"a.vmdk\"\n";
    let flat = "RW 2048 FLAT \"/etc/passwd\" 0\n";
    let mut stream = vmdk(2048, 1, u64::MAX, &descriptor("streamOptimized", "", good));
    let mut liar = stream.clone();
    // A footer whose capacity is not that of the header.
    let mut footer = stream[..512].to_vec();
    footer[12..20].copy_from_slice(&0u64.to_le_bytes());
    let mut marker = vec![0; 512];
    marker[12] = 3;
    liar.extend([marker, footer, vec![0; 512]].concat());
    stream.truncate(1024);
    let mut cowd = b"COWD".to_vec();
    cowd.resize(2048, 0);
    let mut two_parts = vmdk(2048, 60, 40, &descriptor("monolithicSparse", "", good));
    let hint = b"# Disk DescriptorFile\nparentFileNameHint=\"/etc/passwd\"\n";
    two_parts[512..512 + hint.len()].copy_from_slice(hint);
    let q = |qcow2: Qcow2| qcow2.build();
    let d = Qcow2::default;
    vec![
        ("backing-abs", q(backing(secret))),
        ("backing-nofmt", q(Qcow2 { backing_format: None, ..backing(secret) })),
        ("backing-json", q(backing(json))),
        ("backing-rel", q(backing(b"../../etc/passwd"))),
        ("backing-nbd", q(backing(b"nbd:unix:/tmp/evil.sock"))),
        ("backing-http", q(backing(b"http://127.0.0.1:8099/x"))),
        ("backing-self", q(Qcow2 { backing_format: Some(b"qcow2"), ..backing(b"backing-self.qcow2") })),
        ("backing-nul", q(backing(b"/etc/passwd\0junk"))),
        ("backing-v2", q(Qcow2 { version: 2, ..backing(secret) })),
        ("backing-far", q(Qcow2 { backing_offset: Some(1 << 40), backing_len: Some(8), ..d() })),
        ("backing-wrap", q(Qcow2 { backing_offset: Some(u64::MAX), backing_len: Some(8), ..d() })),
        ("backing-long", q(Qcow2 { backing_offset: Some(200), backing_len: Some(u32::MAX), ..d() })),
        ("backing-empty", q(Qcow2 { backing_offset: Some(200), ..d() })),
        ("backing-len-only", q(Qcow2 { backing_len: Some(5), ..d() })),
        ("datafile", q(data(secret))),
        ("datafile-mapped", q(Qcow2 { raw_data_file: false, ..data(secret) })),
        ("datafile-json", q(data(json))),
        ("datafile-nbd", q(data(b"nbd:unix:/tmp/evil.sock"))),
        ("datafile-bit-only", q(Qcow2 { incompatible: 4, ..d() })),
        ("datafile-ext-only", {
            let mut ext = Vec::new();
            extension(&mut ext, 0x4441_5441, secret);
            q(Qcow2 { extension: ext, ..d() })
        }),
        ("l1-huge", q(Qcow2 { size: 1 << 62, l1_size: Some(0x7FFF_FFFF), ..d() })),
        ("l1-32m", q(Qcow2 { size: 1 << 41, l1_size: Some(1 << 22), ..d() })),
        ("l1-short", q(Qcow2 { size: 1 << 40, l1_size: Some(1), ..d() })),
        ("l1-outside", q(Qcow2 { l1_offset: Some(1 << 30), ..d() })),
        ("l1-unaligned", q(Qcow2 { l1_offset: Some(1000), ..d() })),
        ("l1-wrap", q(Qcow2 { l1_offset: Some(u64::MAX - 65535), ..d() })),
        ("virt-8e", q(Qcow2 { size: (1 << 63) - 512, cluster_bits: 21, ..d() })),
        ("virt-16e", q(Qcow2 { size: u64::MAX, ..d() })),
        ("virt-2p", q(Qcow2 { size: 1 << 51, ..d() })),
        ("incompat-unknown", q(Qcow2 { incompatible: 1 << 40, ..d() })),
        ("bitmaps-none", q(Qcow2 { autoclear: 1, extension: bitmaps(0, 64, 3 << 16), ..d() })),
        ("bitmaps-many", q(Qcow2 { autoclear: 1, extension: bitmaps(u32::MAX, 64, 3 << 16), ..d() })),
        ("bitmaps-outside", q(Qcow2 { autoclear: 1, extension: bitmaps(1, 64, 1 << 40), ..d() })),
        ("encryption-header-outside", {
            let mut ext = Vec::new();
            extension(&mut ext, 0x0537_BE77, &[(1u64 << 40).to_be_bytes(), 4096u64.to_be_bytes()].concat());
            q(Qcow2 { crypt: 2, extension: ext, ..d() })
        }),
        ("encryption-header-alone", {
            let mut ext = Vec::new();
            extension(&mut ext, 0x0537_BE77, &[(3u64 << 16).to_be_bytes(), 4096u64.to_be_bytes()].concat());
            q(Qcow2 { extension: ext, ..d() })
        }),
        ("marked-corrupt", q(Qcow2 { incompatible: 2, ..d() })),
        ("version-4", q(Qcow2 { version: 4, ..d() })),
        ("version-0", q(Qcow2 { version: 0, ..d() })),
        ("cluster-bits-8", q(Qcow2 { cluster_bits: 8, ..d() })),
        ("cluster-bits-22", q(Qcow2 { cluster_bits: 22, ..d() })),
        ("cluster-bits-max", q(Qcow2 { cluster_bits: u32::MAX, ..d() })),
        ("extended-l2-small", q(Qcow2 { cluster_bits: 12, incompatible: 16, ..d() })),
        ("compression-lie", q(Qcow2 { compression: 1, ..d() })),
        ("compression-unknown", q(Qcow2 { compression: 9, incompatible: 8, ..d() })),
        ("crypt-aes", q(Qcow2 { crypt: 1, ..d() })),
        ("crypt-unknown", q(Qcow2 { crypt: 77, ..d() })),
        ("snapshots", q(Qcow2 { snapshots: 3, ..d() })),
        ("snapshots-huge", q(Qcow2 { snapshots: u32::MAX, ..d() })),
        ("refcount-order", q(Qcow2 { refcount_order: 9, ..d() })),
        ("refcount-table-huge", q(Qcow2 { refcount_clusters: u32::MAX, ..d() })),
        ("header-length-small", q(Qcow2 { header_length: 8, ..d() })),
        ("header-length-huge", q(Qcow2 { header_length: u32::MAX, ..d() })),
        ("extension-huge", q(Qcow2 { extension: [[0x12u8; 4], [0xFF; 4]].concat(), ..d() })),
        ("cut-header", q(d())[..60].to_vec()),
        ("cut-magic", b"QFI\xfb".to_vec()),
        ("guest-disk", {
            let mut disk = q(backing(secret));
            disk.resize(1 << 20, 0);
            disk
        }),
        ("vmdk-flat", descriptor("monolithicFlat", "", flat).into_bytes()),
        ("vmdk-json", descriptor("monolithicFlat", "", "RW 2048 FLAT \"json:{\\\"driver\\\":1}\" 0\n").into_bytes()),
        ("vmdk-2gb", descriptor("twoGbMaxExtentFlat", "", "RW 1 FLAT \"a\" 0\nRW 1 FLAT \"nbd:x\" 0\n").into_bytes()),
        ("vmdk-bare-version", b"\n# x\nversion=1\nRW 2048 FLAT \"/etc/passwd\" 0\n".to_vec()),
        ("vmdk-cap0", vmdk(0, 1, 40, &descriptor("monolithicFlat", "", flat))),
        ("vmdk-cap0-sparse", vmdk(0, 1, 40, &descriptor("monolithicSparse", "", good))),
        ("vmdk-parent", {
            let extra = "parentFileNameHint=\"/etc/passwd\"\n";
            vmdk(2048, 1, 40, &descriptor("monolithicSparse", extra, good))
        }),
        ("vmdk-parent-elsewhere", two_parts),
        ("vmdk-two-extents", vmdk(2048, 1, 40, &descriptor("monolithicSparse", "", &good.repeat(2)))),
        ("vmdk-flat-embedded", vmdk(2048, 1, 40, &descriptor("monolithicFlat", "", flat))),
        ("vmdk-no-descriptor", vmdk(2048, 1, 40, "")),
        ("vmdk-capacity-huge", vmdk(u64::MAX, 1, 40, &descriptor("monolithicSparse", "", good))),
        ("vmdk-footer-lies", liar),
        ("vmdk-footer-missing", stream),
        ("vmdk-cowd", cowd),
        ("qcow1", qcow(secret, 12, 1 << 20)),
        ("qcow1-bits", qcow(b"", 40, 1 << 20)),
        ("qcow1-size", qcow(b"", 12, u64::MAX)),
        ("qed-backing", qed(1, secret)),
        ("qed-backing-raw", qed(5, secret)),
        ("qed-unknown", qed(1 << 33, b"")),
        ("vpc-differencing", vpc(4)),
        ("vpc-kind", vpc(9)),
        ("vdi-differencing", vdi(4, 1 << 20, 1, 1 << 20, 0)),
        ("vdi-parent", vdi(1, 1 << 20, 1, 1 << 20, 7)),
        ("vdi-small-table", vdi(1, 1 << 20, 1, 1 << 40, 0)),
        ("vdi-block", vdi(1, 0, 1, 1 << 20, 0)),
        ("vhdx-empty", {
            let mut bytes = b"vhdxfile".to_vec();
            bytes.resize(1 << 20, 0);
            bytes
        }),
        ("luks1-detached", {
            let mut bytes = b"LUKS\xba\xbe\x00\x01".to_vec();
            bytes.resize(4096, 0);
            bytes
        }),
        ("luks-version", b"LUKS\xba\xbe\x00\x09".iter().copied().chain([0; 4096]).collect()),
        ("parallels", b"WithouFreSpacExt".iter().copied().chain([0xFF; 4096]).collect()),
        ("parallels-extension-needed", parallels(&[0x1122_3344_5566_7788, 1, 0])),
        ("parallels-extension-damaged", {
            let mut bytes = parallels(&[]);
            bytes[PARALLELS_EXTENSION..PARALLELS_EXTENSION + 8].fill(0xEE);
            bytes
        }),
        ("bochs", b"Bochs Virtual HD Image\0".iter().copied().chain([0; 4096]).collect()),
        ("cloop", b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0".to_vec()),
    ]
}
