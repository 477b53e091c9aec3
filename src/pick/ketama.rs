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
    let mut previous = 0_u32;
    for _ in 0..count {
        let mut hasher = base.clone();
        hasher.update(&previous.to_le_bytes());
        previous = hasher.finalize();
        put(previous);
    }
}

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
