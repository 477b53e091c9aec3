//! Pingora's proxy over its load balancer, round robin, as its own example has it, without health checks.

use async_trait::async_trait;
use pingora_core::apps::HttpServerOptions;
use pingora_core::server::Server;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorType, Result};
use pingora_http::RequestHeader;
use pingora_load_balancing::LoadBalancer;
use pingora_load_balancing::selection::RoundRobin;
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};
use tower_gateway_peers::Options;

/// The default of one stream a connection would make HTTP/2 upstreams pointless.
const STREAMS_PER_CONNECTION: usize = 100;

struct Proxy {
    backends: LoadBalancer<RoundRobin>,
    h2: bool,
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = ();

    fn new_ctx(&self) -> Self::CTX {}

    async fn upstream_peer(&self, _: &mut Session, (): &mut ()) -> Result<Box<HttpPeer>> {
        let backend = self
            .backends
            .select(b"", 256)
            .ok_or_else(|| Error::new(ErrorType::ConnectNoRoute))?;
        let mut peer = HttpPeer::new(backend, false, String::new());
        if self.h2 {
            peer.options.set_http_version(2, 2);
            peer.options.max_h2_streams = STREAMS_PER_CONNECTION;
        }
        Ok(Box::new(peer))
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        (): &mut (),
    ) -> Result<()> {
        if let Some(client) = session.client_addr().and_then(|address| address.as_inet()) {
            request.insert_header("x-forwarded-for", client.ip().to_string())?;
        }
        Ok(())
    }
}

fn main() {
    let options = Options::from_args();
    let conf = ServerConf {
        threads: options.threads,
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();

    let backends = LoadBalancer::try_from_iter(options.backends.iter().copied())
        .expect("addresses are addresses");
    let proxy = Proxy {
        backends,
        h2: options.h2,
    };
    let mut service = http_proxy_service(&server.configuration, proxy);
    if options.h2 {
        let mut http = HttpServerOptions::default();
        http.h2c = true;
        service
            .app_logic_mut()
            .expect("a fresh service has its application")
            .server_options = Some(http);
    }
    service.add_tcp(&options.listen.to_string());
    server.add_service(service);
    server.run_forever();
}
