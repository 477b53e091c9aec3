//! axum-reverse-proxy's balanced proxy with its defaults; HTTP/2 to the backends by an own client.

use std::net::SocketAddr;

use axum::Router;
use axum::body::Body;
use axum::serve::ListenerExt;
use axum_reverse_proxy::BalancedProxy;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connect, HttpConnector};
use hyper_util::rt::TokioExecutor;
use tower_gateway_peers::{Options, bind, no_delay, runtime};

fn main() {
    let options = Options::from_args();
    let targets = options
        .backends
        .iter()
        .map(|address| format!("http://{address}"))
        .collect();
    if options.h2 {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client: Client<_, Body> = Client::builder(TokioExecutor::new())
            .http2_only(true)
            .build(connector);
        serve(
            &options,
            BalancedProxy::new_with_client("/".into(), targets, client),
        );
    } else {
        serve(&options, BalancedProxy::new("/".into(), targets));
    }
}

fn serve<C>(options: &Options, proxy: BalancedProxy<C>)
where
    C: Connect + Clone + Send + Sync + 'static,
{
    let app: Router = proxy.into();
    runtime(options.threads).block_on(async {
        let listener = bind(options.listen).await.tap_io(no_delay);
        // With the peer's address at hand it appends X-Forwarded-For, its default.
        let app = app.into_make_service_with_connect_info::<SocketAddr>();
        axum::serve(listener, app).await.expect("serves for ever");
    });
}
