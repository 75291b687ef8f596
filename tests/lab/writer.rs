//! A guest that writes all the time, and the judge of what it wrote.
//!
//! The guest is a boot sector: no kernel, no packages, writing half a second after its start. It writes numbered sectors
//! one after the other through the BIOS, each only when the one before is written, round and round over [`SLOTS`] places of
//! the first disk. So the disk as it was at any one moment tells its story: with H the highest number, the place of every
//! number from H - SLOTS + 1 to H holds that number, all of it. A lost, torn or mixed-in sector breaks the row.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;

/// Places that are written in turn; also the first number.
pub const SLOTS: u32 = 4096;

/// First sector of the first place.
const FIRST: u64 = 2048;

/// Sectors from one place to the next.
const STRIDE: u64 = 16;

/// Size of a disk in bytes: more than the places need.
pub const SIZE: u64 = 48 << 20;

/// The boot sector, 16 bit code at 0000:7C00. In the AT&T words of objdump(1), addresses in front:
#[rustfmt::skip]
const PROGRAM: &[u8] = &[
    // _start:
    0xfa,                                                   // 00 cli   ; segments 0, stack below us
    0x31, 0xc0,                                             // 01 xor %ax,%ax
    0x8e, 0xd8,                                             // 03 mov %ax,%ds
    0x8e, 0xc0,                                             // 05 mov %ax,%es
    0x8e, 0xd0,                                             // 07 mov %ax,%ss
    0xbc, 0x00, 0x7c,                                       // 09 mov $0x7c00,%sp
    0xfb,                                                   // 0c sti
    0xfc,                                                   // 0d cld
    0x88, 0x16, 0x00, 0x06,                                 // 0e mov %dl,0x600   ; the disk we were started from
    0x66, 0x31, 0xff,                                       // 12 xor %edi,%edi   ; edi = place 0: what is there?
    0xb4, 0x42,                                             // 15 mov $0x42,%ah
    0xe8, 0x6d, 0x00,                                       // 17 call 87 <disk>
    0x66, 0x8b, 0x2e, 0x00, 0x80,                           // 1a mov -0x8000,%ebp
    0x66, 0x85, 0xed,                                       // 1f test %ebp,%ebp   ; 0: a new disk
    0x74, 0x2d,                                             // 22 je 51 <fresh>
    0x66, 0xb9, 0x00, 0x08, 0x00, 0x00,                     // 24 mov $0x800,%ecx   ; else find the last place whose number follows from the first's
    // search:
    0x66, 0x57,                                             // 2a push %edi   ; try edi + ecx
    0x66, 0x01, 0xcf,                                       // 2c add %ecx,%edi
    0xb4, 0x42,                                             // 2f mov $0x42,%ah
    0xe8, 0x53, 0x00,                                       // 31 call 87 <disk>
    0x66, 0xa1, 0x00, 0x80,                                 // 34 mov 0x8000,%eax
    0x66, 0x29, 0xe8,                                       // 38 sub %ebp,%eax
    0x66, 0x39, 0xf8,                                       // 3b cmp %edi,%eax
    0x66, 0x5f,                                             // 3e pop %edi
    0x75, 0x03,                                             // 40 jne 45 <nope>
    0x66, 0x01, 0xcf,                                       // 42 add %ecx,%edi
    // nope:
    0x66, 0xd1, 0xe9,                                       // 45 shr %ecx
    0x75, 0xe0,                                             // 48 jne 2a <search>
    0x66, 0x01, 0xfd,                                       // 4a add %edi,%ebp   ; go on with the number after it
    0x66, 0x45,                                             // 4d inc %ebp
    0xeb, 0x06,                                             // 4f jmp 57 <next>
    // fresh:
    0x66, 0xbd, 0x00, 0x10, 0x00, 0x00,                     // 51 mov $0x1000,%ebp   ; the first number
    // next:
    0xbf, 0x00, 0x80,                                       // 57 mov $0x8000,%di   ; fill the sector from the number on
    0x66, 0x89, 0xe8,                                       // 5a mov %ebp,%eax
    0xb9, 0x80, 0x00,                                       // 5d mov $0x80,%cx
    // fill:
    0x66, 0xab,                                             // 60 stos %eax,%es:(%di)
    0x66, 0x69, 0xc0, 0x0d, 0x66, 0x19, 0x00,               // 62 imul $0x19660d,%eax,%eax
    0x66, 0x05, 0x5f, 0xf3, 0x6e, 0x3c,                     // 69 add $0x3c6ef35f,%eax
    0xe2, 0xef,                                             // 6f loop 60 <fill>
    0x66, 0x89, 0xef,                                       // 71 mov %ebp,%edi   ; write it
    0xb4, 0x43,                                             // 74 mov $0x43,%ah
    0xe8, 0x0e, 0x00,                                       // 76 call 87 <disk>
    0x66, 0x45,                                             // 79 inc %ebp
    0x66, 0xf7, 0xc5, 0x3f, 0x00, 0x00, 0x00,               // 7b test $0x3f,%ebp   ; every 64 sectors
    0x75, 0xd3,                                             // 82 jne 57 <next>
    0xf4,                                                   // 84 hlt   ; wait for the timer: 18 times a second
    0xeb, 0xd0,                                             // 85 jmp 57 <next>
    // disk:
    0x89, 0xc3,                                             // 87 mov %ax,%bx   ; disk: ah = 42 read, 43 write; the sector of number or place edi
    // again:
    0x89, 0xd8,                                             // 89 mov %bx,%ax
    0x30, 0xc0,                                             // 8b xor %al,%al
    0x66, 0x89, 0xfa,                                       // 8d mov %edi,%edx   ; LBA = 2048 + edi % 4096 * 16
    0x66, 0x81, 0xe2, 0xff, 0x0f, 0x00, 0x00,               // 90 and $0xfff,%edx
    0x66, 0xc1, 0xe2, 0x04,                                 // 97 shl $0x4,%edx
    0x66, 0x81, 0xc2, 0x00, 0x08, 0x00, 0x00,               // 9b add $0x800,%edx
    0xbe, 0x10, 0x06,                                       // a2 mov $0x610,%si   ; the packet: 16 bytes, one sector, at 0000:8000
    0x66, 0xc7, 0x04, 0x10, 0x00, 0x01, 0x00,               // a5 movl $0x10010,(%si)
    0x66, 0xc7, 0x44, 0x04, 0x00, 0x80, 0x00, 0x00,         // ac movl $0x8000,0x4(%si)
    0x66, 0x89, 0x54, 0x08,                                 // b4 mov %edx,0x8(%si)
    0x66, 0xc7, 0x44, 0x0c, 0x00, 0x00, 0x00, 0x00,         // b8 movl $0x0,0xc(%si)
    0x8a, 0x16, 0x00, 0x06,                                 // c0 mov 0x600,%dl
    0x66, 0x60,                                             // c4 pushal
    0xcd, 0x13,                                             // c6 int $0x13
    0x66, 0x61,                                             // c8 popal
    0x73, 0x03,                                             // ca jae cf <ok>
    0xf4,                                                   // cc hlt   ; an error: later again
    0xeb, 0xba,                                             // cd jmp 89 <again>
    // ok:
    0xc3,                                                   // cf ret
];

/// Makes a disk of this format with the guest on it.
pub fn plant(path: &Path, format: &str) {
    let raw = path.with_extension("plant");
    let mut file = File::create(&raw).expect("creates");
    let mut sector = [0; 512];
    sector[..PROGRAM.len()].copy_from_slice(PROGRAM);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    file.write_all(&sector).and_then(|()| file.set_len(SIZE)).expect("writes");
    let done = Command::new("qemu-img").args(["convert", "-f", "raw", "-O", format]).arg(&raw).arg(path).status();
    assert!(done.expect("qemu-img").success());
    fs::remove_file(raw).expect("removes");
}

/// The highest number on a raw disk.
///
/// # Panics
/// When the disk is not as it was at one moment.
pub fn highest(disk: &Path) -> u32 {
    let mut file = File::open(disk).expect("opens");
    let mut sectors = Vec::new();
    for slot in 0..u64::from(SLOTS) {
        let mut sector = [0; 512];
        file.seek(SeekFrom::Start((FIRST + slot * STRIDE) * 512)).expect("seeks");
        file.read_exact(&mut sector).expect("reads");
        sectors.push(sector);
    }
    let number = |sector: &[u8; 512]| u32::from_le_bytes([sector[0], sector[1], sector[2], sector[3]]);
    let highest = sectors.iter().map(number).max().unwrap_or_default();
    let mut wrong = Vec::new();
    for (slot, sector) in (0..SLOTS).zip(&sectors) {
        let expected = highest.saturating_sub(highest.wrapping_sub(slot) % SLOTS);
        let expected = if expected < SLOTS { 0 } else { expected };
        if *sector != content(expected) {
            wrong.push((slot, number(sector), expected));
        }
    }
    assert!(wrong.is_empty(), "{}: highest {highest}; place, found, expected: {wrong:?}", disk.display());
    highest
}

/// What the guest writes for a number; nothing is written for 0.
fn content(number: u32) -> [u8; 512] {
    let mut sector = [0; 512];
    let mut value = number;
    if number > 0 {
        for word in sector.chunks_exact_mut(4) {
            word.copy_from_slice(&value.to_le_bytes());
            value = value.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        }
    }
    sector
}
