//! Who says something, and how long it holds. PURE.

use std::{sync::Arc, time::Duration};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

/// What every message over a bus begins with.
///
/// ```text
/// version: u8 = 1
/// origin: u8 length, UTF-8          the name of the node
/// zone: u8 length, UTF-8            empty where it has none
/// incarnation: u64                  which run of the node; drawn at its start
/// number: u64                       grows with each message of a run
/// holds: u32                        milliseconds after receipt for which it holds
/// payload                           the rest
/// ```
///
/// Numbers are big-endian. There is no time of day in it: no clock of a node decides.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Envelope {
    /// The node that says it.
    pub origin: Arc<str>,
    /// The zone of that node.
    pub zone: Option<Arc<str>>,
    /// Which run of the node it is.
    pub incarnation: u64,
    /// The number of the message in that run.
    pub number: u64,
    /// How long it holds after receipt.
    pub holds: Duration,
    /// What is said.
    pub payload: Bytes,
}

/// A message that nobody can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// It is larger than any message may be.
    #[error("the message is too large")]
    Large,
    /// It is of another version.
    #[error("the message is of another version")]
    Version,
    /// It ends too early, or is no text where there must be one.
    #[error("the message is torn")]
    Torn,
}

const VERSION: u8 = 1;

impl Envelope {
    /// Bytes of a message, at most.
    pub const MOST_BYTES: usize = 32 << 10;

    /// Bytes of a payload that fits into a message of any node.
    pub const MOST_PAYLOAD: usize = Self::MOST_BYTES - 1 - 2 * 256 - 8 - 8 - 4;

    /// A message of a node.
    #[must_use]
    pub fn new(origin: impl Into<Arc<str>>, incarnation: u64, number: u64) -> Self {
        Self {
            origin: origin.into(),
            zone: None,
            incarnation,
            number,
            holds: Duration::from_secs(15),
            payload: Bytes::new(),
        }
    }

    /// Sets the zone of the node.
    #[must_use]
    pub fn zone(mut self, zone: Option<Arc<str>>) -> Self {
        self.zone = zone;
        self
    }

    /// Sets how long it holds after receipt, to the millisecond; 49 days at most. Default: 15 s.
    #[must_use]
    pub fn holds(mut self, span: Duration) -> Self {
        self.holds = span;
        self
    }

    /// Sets what is said.
    #[must_use]
    pub fn payload(mut self, payload: impl Into<Bytes>) -> Self {
        self.payload = payload.into();
        self
    }

    /// The message. Names are cut at 255 bytes, and a payload above the bound is left out.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut message = BytesMut::with_capacity(64 + self.payload.len());
        message.put_u8(VERSION);
        put_text(&mut message, &self.origin);
        put_text(&mut message, self.zone.as_deref().unwrap_or_default());
        message.put_u64(self.incarnation);
        message.put_u64(self.number);
        message.put_u32(u32::try_from(self.holds.as_millis()).unwrap_or(u32::MAX));
        if self.payload.len() <= Self::MOST_PAYLOAD {
            message.put_slice(&self.payload);
        }
        message.freeze()
    }

    /// Reads a message.
    ///
    /// # Errors
    ///
    /// [`Malformed`] for what is none.
    pub fn decode(mut message: Bytes) -> Result<Self, Malformed> {
        if message.len() > Self::MOST_BYTES {
            return Err(Malformed::Large);
        }
        if message.try_get_u8().map_err(|_| Malformed::Torn)? != VERSION {
            return Err(Malformed::Version);
        }
        let origin = text(&mut message).filter(|origin| !origin.is_empty());
        let origin = origin.ok_or(Malformed::Torn)?;
        let zone = text(&mut message).ok_or(Malformed::Torn)?;
        let mut number = || message.try_get_u64().map_err(|_| Malformed::Torn);
        let (incarnation, number) = (number()?, number()?);
        let holds = message.try_get_u32().map_err(|_| Malformed::Torn)?;
        Ok(Self {
            origin,
            zone: Some(zone).filter(|zone| !zone.is_empty()),
            incarnation,
            number,
            holds: Duration::from_millis(holds.into()),
            payload: message,
        })
    }
}

fn put_text(message: &mut BytesMut, text: &str) {
    let text = head(text, 255);
    message.put_u8(text.len() as u8);
    message.put_slice(text.as_bytes());
}

fn text(message: &mut Bytes) -> Option<Arc<str>> {
    let length = usize::from(message.try_get_u8().ok()?);
    if message.len() < length {
        return None;
    }
    let text = message.split_to(length);
    std::str::from_utf8(&text).ok().map(Into::into)
}

/// So many bytes of a text at most, without a torn character.
fn head(text: &str, most: usize) -> &str {
    let mut ends = (0..=most.min(text.len())).rev();
    let end = ends.find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or_default()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_said_is_what_is_heard(
            origin in "[a-zäß☃]{1,300}", zone in proptest::option::of("[a-z]{1,9}"),
            incarnation: u64, number: u64, millis: u32, payload: Vec<u8>,
        ) {
            let said = Envelope::new(origin.as_str(), incarnation, number)
                .zone(zone.map(Into::into))
                .holds(Duration::from_millis(millis.into()))
                .payload(payload);
            let heard = Envelope::decode(said.encode()).unwrap();
            prop_assert!(origin.starts_with(&*heard.origin) && heard.origin.len() >= origin.len().min(252));
            prop_assert_eq!(Envelope { origin: said.origin.clone(), ..heard }, said);
        }

        #[test]
        fn garbage_is_refused_and_no_harm(garbage: Vec<u8>, cut in 0_usize..40) {
            drop(Envelope::decode(garbage.into()));
            let whole = Envelope::new("node", 1, 2).encode();
            let cut = cut.min(whole.len());
            let torn = Envelope::decode(whole.slice(..cut));
            prop_assert_eq!(torn.is_ok(), cut == whole.len());
        }
    }

    #[test]
    fn bounds_and_versions() {
        let large = vec![VERSION; Envelope::MOST_BYTES + 1];
        assert_eq!(Envelope::decode(large.into()), Err(Malformed::Large));
        let other = Bytes::from_static(&[2, 0, 0]);
        assert_eq!(Envelope::decode(other), Err(Malformed::Version));
        let payload = vec![7; Envelope::MOST_PAYLOAD];
        let said = Envelope::new("n".repeat(400), 1, 2).payload(payload);
        let said = said.zone(Some("z".repeat(400).into()));
        let heard = Envelope::decode(said.encode()).unwrap();
        assert_eq!(heard.payload.len(), Envelope::MOST_PAYLOAD);
        let too_much = said.payload(vec![7; Envelope::MOST_PAYLOAD + 1]);
        assert!(
            Envelope::decode(too_much.encode())
                .unwrap()
                .payload
                .is_empty()
        );
    }
}
