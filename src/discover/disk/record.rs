//! A list as it stands on disk. PURE.
//!
//! ```json
//! {"tower-gateway":1,"checksum":"…","list":{"service":"users","saved":1700000000,"endpoints":[…]}}
//! ```
//! The checksum is over the text of `list` as it is written here; it finds damage, not forgery.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::{
    discover::{ServiceName, listing},
    endpoint::{Address, Endpoint},
};

/// The version of the format.
const VERSION: u64 = 1;

/// Why a list on disk is not used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("not a list of this version of the crate")]
    Foreign,
    #[error("damaged: the checksum is another")]
    Damaged,
    #[error("of another service")]
    OtherService,
    #[error("expired: {0:?} old")]
    Expired(Duration),
    #[error("damaged: an endpoint is not readable")]
    Endpoint,
}

/// The bytes of a list.
pub(super) fn seal<E: AsRef<Endpoint>>(
    endpoints: &[E],
    service: &ServiceName,
    now: SystemTime,
) -> Vec<u8> {
    let saved = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|e| listing::json(e.as_ref()))
        .collect();
    let list = json!({ "service": service.as_str(), "saved": saved, "endpoints": endpoints });
    let checksum = format!("{:016x}", checksum(list.to_string().as_bytes()));
    let record = json!({ "tower-gateway": VERSION, "checksum": checksum, "list": list });
    record.to_string().into_bytes()
}

/// The list in these bytes and its age, when it is whole, of this service and not too old.
pub(super) fn open(
    bytes: &[u8],
    service: &ServiceName,
    expiry: Duration,
    now: SystemTime,
) -> Result<(Vec<Endpoint>, Duration), Refusal> {
    let record: Value = serde_json::from_slice(bytes).map_err(|_| Refusal::Foreign)?;
    let list = &record["list"];
    if record["tower-gateway"] != VERSION || !list.is_object() {
        return Err(Refusal::Foreign);
    }
    let sum = format!("{:016x}", checksum(list.to_string().as_bytes()));
    if record["checksum"] != *sum {
        return Err(Refusal::Damaged);
    }
    if list["service"] != *service.as_str() {
        return Err(Refusal::OtherService);
    }
    let saved = list["saved"].as_u64().ok_or(Refusal::Damaged)?;
    let saved = UNIX_EPOCH.checked_add(Duration::from_secs(saved));
    // A clock that was set back makes a list young, never old.
    let age = now.duration_since(saved.ok_or(Refusal::Damaged)?);
    let age = age.unwrap_or_default();
    if age >= expiry {
        return Err(Refusal::Expired(age));
    }
    let endpoints = list["endpoints"].as_array().ok_or(Refusal::Damaged)?;
    let endpoints = endpoints
        .iter()
        .map(|endpoint| read(endpoint).ok_or(Refusal::Endpoint));
    let endpoints: Vec<_> = endpoints.collect::<Result<_, _>>()?;
    Ok((endpoints, age))
}

fn read(written: &Value) -> Option<Endpoint> {
    let address: Address = written["address"].as_str()?.parse().ok()?;
    let number = |key: &str| u32::try_from(written[key].as_u64()?).ok();
    let mut endpoint = Endpoint::new(address)
        .id(written["id"].as_str()?)
        .weight(number("weight")?)
        .priority(number("priority")?);
    if let Some(zone) = written["zone"].as_str() {
        endpoint = endpoint.zone(zone);
    }
    for (key, value) in written["metadata"].as_object()? {
        endpoint = endpoint.metadata(key.as_str(), value.as_str()?);
    }
    endpoint.draining = written["draining"].as_bool()?;
    Some(endpoint)
}

/// FNV-1a, 64 bits.
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_list_is_used_until_it_expires() {
        let saved = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let endpoint: Endpoint = "[::1]:80".parse().unwrap();
        let bytes = seal(&[Arc::new(endpoint.clone())], &"users".into(), saved);
        let day = Duration::from_secs(24 * 3600);
        let opened = |now| open(&bytes, &"users".into(), day, now);
        assert_eq!(
            opened(saved + day / 2),
            Ok((vec![endpoint.clone()], day / 2))
        );
        assert_eq!(opened(saved - day), Ok((vec![endpoint], Duration::ZERO)));
        assert_eq!(opened(saved + day), Err(Refusal::Expired(day)));
    }

    #[test]
    fn the_checksum_is_fnv_1a() {
        // From the reference vectors of the FNV authors.
        assert_eq!(checksum(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
