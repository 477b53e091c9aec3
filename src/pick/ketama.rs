//! Where nginx puts the points of a server.

/// The points for each unit of weight.
pub(super) const POINTS: u32 = 160;

/// The points of a server on the ring of nginx's `hash … consistent`
/// (`ngx_http_upstream_init_chash`, which says that it is that of `Cache::Memcached::Fast`):
/// `crc32(HOST \0 PORT PREVIOUS)`, where `PREVIOUS` are the four bytes of the point before, the
/// least significant first, and zeros for the first one.
pub(super) fn points(server: &str, count: u32, put: &mut dyn FnMut(u32)) {
    let (host, port) = host_and_port(server);
    let mut base = crc32fast::Hasher::new();
    base.update(host.as_bytes());
    base.update(b"\0");
    base.update(port.as_bytes());
    let base = base.finalize();
    let mut previous = 0_u32;
    for _ in 0..count {
        previous = with_word(base, previous);
        put(previous);
    }
}

/// The CRC-32 of what has the checksum `crc` and four bytes more, the least significant first: a
/// look at each byte of the table for its place (M. E. Kounavis and F. L. Berry, "A Systematic
/// Approach to Building High Performance Software-Based CRC Generators", 2005).
fn with_word(crc: u32, word: u32) -> u32 {
    let [a, b, c, d] = (!crc ^ word).to_le_bytes().map(usize::from);
    !(TABLES[3][a] ^ TABLES[2][b] ^ TABLES[1][c] ^ TABLES[0][d])
}

/// What a byte does to the checksum, with no, one, two and three bytes after it.
static TABLES: [[u32; 256]; 4] = {
    /// The polynomial of IEEE 802.3, its bits reversed.
    const POLYNOMIAL: u32 = 0xedb8_8320;

    let mut tables = [[0; 256]; 4];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut place = 0;
        while place < 4 {
            let mut bit = 0;
            while bit < 8 {
                crc = (crc >> 1) ^ (POLYNOMIAL * (crc & 1));
                bit += 1;
            }
            tables[place][byte] = crc;
            place += 1;
        }
        byte += 1;
    }
    tables
};

/// A server as it stands in the configuration of nginx, cut before its port as nginx cuts it.
fn host_and_port(server: &str) -> (&str, &str) {
    let is_unix = |prefix: &str| prefix.eq_ignore_ascii_case("unix:");
    if server.get(..5).is_some_and(is_unix) {
        return (&server[5..], "");
    }
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    server
        .rsplit_once(':')
        .filter(|(_, port)| is_port(port))
        .unwrap_or((server, ""))
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_cut_as_nginx_cuts_it() {
        for (server, expected) in [
            ("127.0.0.1:80", ("127.0.0.1", "80")),
            ("[::1]:80", ("[::1]", "80")),
            ("users.internal", ("users.internal", "")),
            ("users:", ("users", "")),
            ("unix:/run/users.sock", ("/run/users.sock", "")),
            ("a:b", ("a:b", "")),
        ] {
            assert_eq!(host_and_port(server), expected, "{server}");
        }
    }

    proptest::proptest! {
        #[test]
        fn four_bytes_more_are_summed_as_any(bytes: Vec<u8>, word: u32) {
            let mut whole = bytes.clone();
            whole.extend_from_slice(&word.to_le_bytes());
            let crc = with_word(crc32fast::hash(&bytes), word);
            proptest::prop_assert_eq!(crc, crc32fast::hash(&whole));
        }
    }

    #[test]
    fn each_point_is_made_of_the_one_before() {
        let mut found = Vec::new();
        points("127.0.0.1:80", 2, &mut |point| found.push(point));
        let first = crc32fast::hash(b"127.0.0.1\x0080\0\0\0\0");
        let mut second = b"127.0.0.1\x0080".to_vec();
        second.extend_from_slice(&first.to_le_bytes());
        assert_eq!(found, [first, crc32fast::hash(&second)]);
    }
}
