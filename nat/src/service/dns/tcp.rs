//! DNS over TCP: messages with their length in front (RFC 1035 4.2.2), in whatever pieces they come.

/// What a connection has received and not yet given out.
#[derive(Debug, Default)]
pub struct Framing {
    bytes: Vec<u8>,
    at: usize,
}

/// More bytes than a peer may have waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a DNS peer sent more than {MAX_WAITING} bytes ahead of their answers; close the connection"
)]
pub struct TooMuch;

/// Most bytes held for a connection: the longest message and some that follow it.
pub const MAX_WAITING: usize = 2 + 65_535 + 4096;

impl Framing {
    /// Takes what was received.
    ///
    /// # Errors
    /// When the peer is too far ahead; nothing was taken then.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), TooMuch> {
        self.bytes.drain(..self.at);
        self.at = 0;
        if self.bytes.len() + bytes.len() > MAX_WAITING {
            return Err(TooMuch);
        }
        self.bytes.extend(bytes);
        Ok(())
    }

    /// Length of the message that comes next, if that much of it is here.
    #[must_use]
    pub fn announced(&self) -> Option<usize> {
        let head = self.bytes.get(self.at..)?.first_chunk::<2>()?;
        Some(usize::from(u16::from_be_bytes(*head)))
    }

    /// The next whole message.
    pub fn next_message(&mut self) -> Option<&[u8]> {
        let rest = self.bytes.get(self.at..)?;
        let (head, tail) = rest.split_first_chunk::<2>()?;
        let len = usize::from(u16::from_be_bytes(*head));
        let message = tail.get(..len)?;
        self.at += 2 + len;
        Some(message)
    }
}

/// A message with its length in front; nothing if it is too long to have one.
#[must_use]
pub fn frame(message: &[u8]) -> Option<Vec<u8>> {
    let len = u16::try_from(message.len()).ok()?;
    let mut out = Vec::with_capacity(2 + message.len());
    out.extend(len.to_be_bytes());
    out.extend(message);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_peer_that_sends_and_never_completes() {
        let mut framing = Framing::default();
        framing.push(&[0xff, 0xff]).unwrap();
        framing.push(&[0; 65_534]).unwrap();
        assert_eq!(framing.next_message(), None);
        assert_eq!(framing.push(&[0; 8192]), Err(TooMuch));
        framing.push(&[7]).unwrap();
        assert_eq!(framing.next_message().map(<[u8]>::len), Some(65_535));
        assert_eq!(frame(&vec![0; 65_536]), None);
    }

    proptest! {
        #[test]
        fn messages_come_out_as_they_went_in(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20),
            cut in 1usize..400,
        ) {
            let stream: Vec<u8> = messages.iter().flat_map(|m| frame(m).unwrap()).collect();
            let mut framing = Framing::default();
            let mut seen = vec![];
            for piece in stream.chunks(cut) {
                framing.push(piece).unwrap();
                while let Some(m) = framing.next_message() {
                    seen.push(m.to_vec());
                }
            }
            prop_assert_eq!(seen, messages);
        }
    }
}
