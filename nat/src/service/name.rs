//! Names that a person or a client typed, made fit for DNS and DHCP answers.

use hickory_proto::rr::Name;

/// A name that can't stand in DNS.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` can't be a domain name: write labels of 1 to 63 letters, digits, `-` or `_` with dots between, 253 characters at most"
)]
pub struct InvalidName(pub(crate) String);

/// `text` as a fully qualified, lower-case name; the final dot may be missing.
pub(crate) fn domain(text: &str) -> Result<Name, InvalidName> {
    let invalid = || InvalidName(text.to_owned());
    let bare = text.strip_suffix('.').unwrap_or(text);
    if bare.is_empty() || bare.len() > 253 {
        return Err(invalid());
    }
    let labels = bare.split('.').map(|label| {
        let fits = (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        fits.then(|| label.to_ascii_lowercase()).ok_or_else(invalid)
    });
    let labels = labels.collect::<Result<Vec<_>, _>>()?;
    let mut name = Name::from_labels(labels.iter().map(String::as_bytes)).map_err(|_| invalid())?;
    name.set_fqdn(true);
    Ok(name)
}

/// The first label of a host name that a client sent, lower-case, or nothing if it can't be a host name (RFC 1123 2.1).
#[must_use]
pub fn host_label(bytes: &[u8]) -> Option<String> {
    // Some clients count a closing NUL.
    let bytes = bytes.split(|b| *b == 0).next().unwrap_or_default();
    let label = bytes.split(|b| *b == b'.').next().unwrap_or_default();
    let inner = |b: &u8| b.is_ascii_alphanumeric() || *b == b'-';
    let ends = label.first().zip(label.last());
    let fits = label.len() <= 63
        && label.iter().all(inner)
        && ends.is_some_and(|(a, z)| *a != b'-' && *z != b'-');
    fits.then(|| String::from_utf8_lossy(label).to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_of_clients() {
        assert_eq!(host_label(b"Web-1.example\0"), Some("web-1".into()));
        for bad in [
            &b""[..],
            b"-a",
            b"a-",
            b"a b",
            b"\0",
            b".x",
            &[b'a'; 64],
            b"\xff",
        ] {
            assert_eq!(host_label(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn domains() {
        assert_eq!(domain("Net1.Example").unwrap().to_ascii(), "net1.example.");
        assert_eq!(domain("_http._tcp.web.").unwrap().num_labels(), 3);
        for bad in ["", ".", "a..b", "a b", &"a".repeat(64), &"a.".repeat(128)] {
            assert!(domain(bad).is_err(), "{bad}");
        }
    }
}
