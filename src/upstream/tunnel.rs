//! HTTP/1.1 upgrades: two connections that left HTTP, joined.

use std::sync::Arc;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt as _;

use super::{body::SendBody, http1::Connection};
use crate::{error::BoxError, member::Member};

/// The client's side of an upgrade that the endpoint may accept.
#[derive(Debug)]
pub(super) struct Offer {
    client: OnUpgrade,
    member: Arc<Member>,
}

impl Offer {
    pub(super) fn new(client: OnUpgrade, member: &Arc<Member>) -> Self {
        Self {
            client,
            member: Arc::clone(member),
        }
    }

    /// Joins both sides in a task of its own, until either closes.
    pub(super) fn accept<B: SendBody>(self, connection: Box<Connection<B>>) {
        let guard = self.member.upgraded();
        tokio::spawn(async move {
            if let Err(error) = join(self.client, connection).await {
                tracing::debug!(event = "tunnel_closed", %error, "upgraded connection broke off");
            }
            drop(guard);
        });
    }
}

async fn join<B: SendBody>(
    client: OnUpgrade,
    connection: Box<Connection<B>>,
) -> Result<(), BoxError> {
    let (mut endpoint, rest, _slot) = connection.into_tunnel();
    let mut client = TokioIo::new(client.await?);
    // The endpoint may have gone on talking right behind the head of its response.
    client.write_all(&rest).await?;
    tokio::io::copy_bidirectional(&mut client, &mut endpoint).await?;
    Ok(())
}
