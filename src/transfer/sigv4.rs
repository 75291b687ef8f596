//! AWS Signature Version 4 in headers: proves who sends a request without sending the key.
//!
//! Source: "Authenticating Requests (AWS Signature Version 4)" of the Amazon S3 API reference, and the published test
//! suite of Signature Version 4, whose vectors the tests repeat.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

use crate::exec::cmd::Secret;

/// SHA-256 of no bytes: the body of a GET.
pub(super) const EMPTY_BODY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Who signs, and for what.
#[derive(Clone, Debug)]
pub(super) struct Signer {
    /// Public part of the key.
    pub(super) access_key: String,
    /// Secret part.
    pub(super) secret_key: Secret,
    /// `eu-west-1`
    pub(super) region: String,
    /// `s3`
    pub(super) service: &'static str,
}

/// What is signed.
pub(super) struct Message<'a> {
    /// `GET`
    pub(super) method: &'a str,
    /// The path as it is sent, percent-encoded.
    pub(super) path: &'a str,
    /// The query as it is sent: encoded, its parameters sorted, each with a `=`.
    pub(super) query: &'a str,
    /// Headers with their names in lower case, sorted by them; `host` among them.
    pub(super) headers: &'a [(&'a str, &'a str)],
    /// SHA-256 of the body in hexadecimal.
    pub(super) body: &'a str,
}

impl Signer {
    /// Value of the `Authorization` header of a message that is sent at `stamp`, which `x-amz-date` has to say as well.
    pub(super) fn authorization(&self, message: &Message<'_>, stamp: &str) -> Secret {
        let day = stamp.get(..8).unwrap_or_default();
        let scope = format!("{day}/{}/{}/aws4_request", self.region, self.service);
        let names = message.headers.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
        let text = format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{}", hex(&Sha256::digest(canonical(message, &names))));
        let first = format!("AWS4{}", self.secret_key.reveal());
        let key = [day, &self.region, self.service, "aws4_request"]
            .iter()
            .fold(first.into_bytes(), |key, part| hmac(&key, part.as_bytes()));
        let signature = hex(&hmac(&key, text.as_bytes()));
        let credential = format!("{}/{scope}", self.access_key);
        Secret::new(format!("AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={names}, Signature={signature}"))
    }
}

/// The message as both sides write it down.
fn canonical(message: &Message<'_>, names: &str) -> String {
    let mut text = format!("{}\n{}\n{}\n", message.method, message.path, message.query);
    for (name, value) in message.headers {
        let value = value.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name}:{value}");
    }
    let _ = write!(text, "\n{names}\n{}", message.body);
    text
}

fn hmac(key: &[u8], data: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(data);
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Percent-encodes a path for the address and the signature alike: everything but letters, digits, `-._~` and `/`.
pub(super) fn encode_path(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// A time of UTC as `20130524T000000Z`.
pub(super) fn stamp(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    format!("{year:04}{month:02}{day:02}T{:02}{:02}{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

/// Year, month and day of a day since 1970, in the Gregorian calendar.
///
/// Counts from 1 March of the year 0, so that the leap day is the last of a year, and by eras of 400 years.
pub(crate) fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn signature(signer: &Signer, message: &Message<'_>, stamp: &str) -> String {
        signer.authorization(message, stamp).reveal().rsplit_once("Signature=").expect("a signature").1.to_owned()
    }

    /// The examples of the S3 API reference.
    #[test]
    fn the_examples_of_the_s3_reference_come_out() {
        let signer = Signer {
            access_key: "AKIAIOSFODNN7EXAMPLE".to_owned(),
            secret_key: Secret::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
            region: "us-east-1".to_owned(),
            service: "s3",
        };
        let stamp = "20130524T000000Z";
        let (host, date) = (("host", "examplebucket.s3.amazonaws.com"), ("x-amz-date", stamp));
        let hash = ("x-amz-content-sha256", EMPTY_BODY);
        let get = |path, query, headers: &[(&str, &str)]| {
            signature(&signer, &Message { method: "GET", path, query, headers, body: EMPTY_BODY }, stamp)
        };
        assert_eq!(
            get("/test.txt", "", &[host, ("range", "bytes=0-9"), hash, date]),
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
        assert_eq!(
            get("/", "lifecycle=", &[host, hash, date]),
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"
        );
        assert_eq!(
            get("/", "max-keys=2&prefix=J", &[host, hash, date]),
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
        );
        let whole = signer.authorization(
            &Message { method: "GET", path: "/", query: "", headers: &[host, hash, date], body: EMPTY_BODY },
            stamp,
        );
        let begin = "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, \
                     SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature=";
        assert!(whole.reveal().starts_with(begin));
    }

    /// Cases of the published test suite.
    #[test]
    fn the_cases_of_the_test_suite_come_out() {
        let signer = Signer {
            access_key: "AKIDEXAMPLE".to_owned(),
            secret_key: Secret::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
            region: "us-east-1".to_owned(),
            service: "service",
        };
        let stamp = "20150830T123600Z";
        let plain = [("host", "example.amazonaws.com"), ("x-amz-date", stamp)];
        let run = |method, path: &str, query, headers: &[(&str, &str)]| {
            let path = encode_path(path);
            signature(&signer, &Message { method, path: &path, query, headers, body: EMPTY_BODY }, stamp)
        };
        assert_eq!(
            run("GET", "/", "", &plain),
            "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
            "get-vanilla"
        );
        assert_eq!(
            run("POST", "/", "", &plain),
            "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
            "post-vanilla"
        );
        assert_eq!(
            run("GET", "/\u{1234}", "", &plain),
            "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85",
            "get-utf8"
        );
        assert_eq!(
            run("GET", "/-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", "", &plain),
            "07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f",
            "get-unreserved"
        );
        assert_eq!(
            run("GET", "/", "Param1=value1&Param2=value2", &plain),
            "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
            "get-vanilla-query-order-key-case"
        );
        let odd = [plain[0], ("my-header1", " value1"), ("my-header2", "\"a   b   c\""), plain[1]];
        assert_eq!(
            run("GET", "/", "", &odd),
            "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
            "get-header-value-trim"
        );
        let token = "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8YUuwthAx7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVXAkiY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA==";
        assert_eq!(
            run("POST", "/", "", &[plain[0], plain[1], ("x-amz-security-token", token)]),
            "85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead",
            "post-sts-header-before"
        );
    }

    #[test]
    fn paths_are_encoded_byte_by_byte() {
        assert_eq!(encode_path("/a b/+/%20/ü/~x*?#&="), "/a%20b/%2B/%2520/%C3%BC/~x%2A%3F%23%26%3D");
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds| stamp(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "19700101T000000Z");
        assert_eq!(at(951_782_399), "20000228T235959Z");
        assert_eq!(at(951_782_400), "20000229T000000Z");
        assert_eq!(at(1_369_353_600), "20130524T000000Z");
        assert_eq!(at(1_440_938_160), "20150830T123600Z");
        assert_eq!(at(4_107_542_400), "21000301T000000Z");
        assert_eq!(at(4_102_444_799), "20991231T235959Z");
    }

    #[test]
    fn the_key_is_never_shown() {
        let signer = Signer {
            access_key: "AK".to_owned(),
            secret_key: Secret::new("canary"),
            region: "r".to_owned(),
            service: "s3",
        };
        let message = Message { method: "GET", path: "/", query: "", headers: &[], body: EMPTY_BODY };
        let shown = format!("{signer:?} {:?}", signer.authorization(&message, "20130524T000000Z"));
        assert!(!shown.contains("canary") && !shown.contains("Signature"), "{shown}");
    }
}
