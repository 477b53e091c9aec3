//! Sessions that stay at their endpoint.

use crate::support::{Backend, Gateway, Wire, one_cluster};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn text(endpoints: &str) -> String {
    format!(
        "node: {{ listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\" }}\n\
         clusters:\n  web:\n    discovery: {{ type: static, endpoints: [ {endpoints} ] }}\n\
         \x20   sticky: {{ cookie: gw_session, ttl: 1h }}\n\
         routes: [ {{ match: {{}}, cluster: web }} ]\n"
    )
}

/// Asks with this cookie; returns the cookie that was set.
async fn ask(client: &mut Wire, cookie: Option<&str>) -> Option<String> {
    let cookie = cookie.map(|value| format!("cookie: a=b; gw_session={value}\r\n"));
    let cookie = cookie.unwrap_or_default();
    let request = format!("GET / HTTP/1.1\r\nhost: a\r\n{cookie}\r\n");
    let response = client.ask(request).await;
    assert_eq!(response.status(), 200);
    let field = response.head.one("set-cookie")?;
    let (value, attributes) = field.split_once(';').unwrap();
    assert_eq!(attributes, " Path=/; HttpOnly; SameSite=Lax; Max-Age=3600");
    Some(value.strip_prefix("gw_session=").unwrap().to_owned())
}

fn counts(backends: [&Backend; 2]) -> [usize; 2] {
    backends.map(|backend| std::mem::take(&mut *backend.seen.lock()).len())
}

#[tokio::test]
async fn a_session_stays_at_its_endpoint_while_that_is_there() {
    let (one, two) = (Backend::saying(OK).await, Backend::saying(OK).await);
    let backends = [&one, &two];
    let entry =
        |backend: &Backend, more: &str| format!("{{ address: \"{}\"{more} }}", backend.address);
    let both = format!("{}, {}", entry(&one, ""), entry(&two, ""));
    let mut gateway = Gateway::start(&text(&both)).await;
    let mut client = gateway.connect().await;

    // A cookie that stands for nobody is replaced.
    let cookie = ask(&mut client, Some("forged"))
        .await
        .expect("a new session");
    let home = counts(backends)
        .iter()
        .position(|count| *count == 1)
        .unwrap();
    let (at_home, elsewhere) = match home {
        0 => (&one, &two),
        _ => (&two, &one),
    };
    for _ in 0..10 {
        assert_eq!(ask(&mut client, Some(&cookie)).await, None, "set once");
    }
    assert_eq!(counts([at_home, elsewhere]), [10, 0]);
    // Without a cookie, they take turns.
    for _ in 0..10 {
        assert!(ask(&mut client, None).await.is_some());
    }
    assert_eq!(counts(backends), [5, 5]);

    for kept in [", draining: true", ", weight: 0", ", weight: 9"] {
        let list = format!("{}, {}", entry(elsewhere, ""), entry(at_home, kept));
        gateway.reload(&text(&list)).await;
        for _ in 0..5 {
            assert_eq!(ask(&mut client, Some(&cookie)).await, None, "{kept}");
        }
        assert_eq!(counts([at_home, elsewhere]), [5, 0], "{kept}");
    }

    gateway.reload(&text(&entry(elsewhere, ""))).await;
    let moved = ask(&mut client, Some(&cookie))
        .await
        .expect("its endpoint is gone");
    assert_ne!(moved, cookie);
    assert_eq!(ask(&mut client, Some(&moved)).await, None);
    assert_eq!(counts([at_home, elsewhere]), [0, 2]);

    // Another process knows the session too.
    let other = Gateway::start(&text(&both)).await;
    let mut client = other.connect().await;
    for _ in 0..5 {
        assert_eq!(ask(&mut client, Some(&cookie)).await, None);
    }
    assert_eq!(counts([at_home, elsewhere]), [5, 0]);
}

#[tokio::test]
async fn what_an_endpoint_allows_is_stored_beside_sessions() {
    for (fields, kept) in [
        ("cache-control: max-age=60", true),
        ("cache-control: max-age=60\r\nset-cookie: a=b", false),
    ] {
        let text = format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n{fields}\r\n\r\nok");
        let backend = Backend::saying(text.leak()).await;
        let cluster = "sticky: { cookie: gw_session }";
        let gateway = Gateway::start(&one_cluster(backend.address, cluster, "cache: {}")).await;
        let mut client = gateway.connect().await;
        let mut cookies = Vec::new();
        for _ in 0..3 {
            let response = client.ask("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
            assert_eq!(response.text(), "ok");
            cookies.push(response.head.all("set-cookie").len());
        }
        // The session of the first client is nobody else's; what an endpoint sets is for its client.
        let (asked, set) = if kept { (1, [1, 0, 0]) } else { (3, [2, 2, 2]) };
        assert_eq!(backend.heads().len(), asked, "{fields}");
        assert_eq!(cookies, set, "{fields}");
    }
}
