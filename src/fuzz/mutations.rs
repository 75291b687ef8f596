//! Changes of inputs that are the same in every run: what an ordinary test has in the place of libFuzzer.

#[path = "../../tests/common/noise.rs"]
mod noise;

use noise::Noise;

/// Longest input, in bytes, but for one of 64, which may be six times as long.
const LONGEST: usize = 4 << 10;

/// Numbers at which readers decide something.
const NUMBERS: [u64; 16] = [0, 1, 2, 7, 8, 9, 31, 64, 104, 255, 512, 4096, 1 << 16, 1 << 31, u32::MAX as u64, u64::MAX];

/// Pieces that mean something to one reader or the other.
const PIECES: [&[u8]; 40] = [
    b"\0",
    b"\n",
    b"\r\n",
    b" ",
    b"\t",
    b"\"",
    b"'",
    b"\\",
    b"$(",
    b"`",
    b";",
    b"#",
    b"=",
    b":",
    b"/",
    b"//",
    b"..",
    b"../",
    b"-",
    b"--",
    b"@",
    b"?",
    b"%2e",
    b"[",
    b"]",
    b"<",
    b">",
    b"</",
    b"<![CDATA[",
    b"]]>",
    b"&#0;",
    b"&#x41;",
    b"&amp;",
    b"*",
    b"\xff",
    b"\xc3",
    b"\xef\xbb\xbf",
    b"json:{",
    b"99999999999999999999",
    b"|",
];

/// One of the inputs, changed in up to five places; the same for the same number.
pub(super) fn changed(corpus: &[Vec<u8>], number: u64) -> Vec<u8> {
    let mut noise = Noise(number);
    let longest = if noise.below(64) == 0 { LONGEST * 6 } else { LONGEST };
    let mut data = noise.one_of(corpus).clone();
    data.truncate(longest);
    for _ in 0..=noise.below(5) {
        change(&mut data, corpus, &mut noise);
        data.truncate(longest);
    }
    data
}

/// One change: a bit, a byte, a number, a piece that is put in, taken out, doubled or brought from another input.
fn change(data: &mut Vec<u8>, corpus: &[Vec<u8>], noise: &mut Noise) {
    let len = data.len();
    // Where headers are, as often as anywhere.
    let near = if noise.below(2) == 0 { len.min(128) } else { len };
    let at = noise.below(near + 1);
    let number = *noise.one_of(&NUMBERS);
    let over = |data: &mut Vec<u8>, bytes: &[u8]| {
        let here = &mut data[at..];
        let n = here.len().min(bytes.len());
        here[..n].copy_from_slice(&bytes[..n]);
    };
    match noise.below(12) {
        0 if at < len => data[at] ^= 1 << noise.below(8),
        1 if at < len => data[at] = noise.next().to_le_bytes()[0],
        2 => over(data, &number.to_be_bytes()),
        3 => over(data, &number.to_le_bytes()),
        4 => over(data, &number.to_be_bytes()[4..]),
        5 => over(data, &number.to_le_bytes()[..4]),
        6 => drop(data.splice(at..at, noise.one_of(&PIECES).iter().copied())),
        7 => drop(data.splice(at..at, number.to_string().into_bytes())),
        8 => drop(data.drain(at..len.min(at + 1 + noise.below(64)))),
        9 => {
            let piece = data[at..len.min(at + 1 + noise.below(256))].to_vec();
            let again = 1 + noise.below(8);
            drop(data.splice(at..at, piece.repeat(again)));
        }
        10 => data.truncate(at),
        _ => {
            let other = noise.one_of(corpus);
            let from = noise.below(other.len() + 1);
            let piece = &other[from..other.len().min(from + 1 + noise.below(512))];
            drop(data.splice(at..at, piece.iter().copied()));
        }
    }
}
