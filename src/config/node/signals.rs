//! What the operating system tells a node.

/// The signals of the operating system, heeded from when this is made: SIGHUP reloads a node,
/// SIGTERM and Ctrl-C stop it. Where there are no others, Ctrl-C alone.
///
/// Until then SIGHUP ends the process: make it before the node starts, and have the node
/// [heed](super::Node::heed) it.
#[derive(Debug)]
pub struct Signals {
    source: Source,
    /// A reload that was asked for while nobody could do it.
    is_reload_due: bool,
}

pub(super) enum Signal {
    Reload,
    Stop,
}

impl Signals {
    /// Heeds them from now on.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it changes the process")]
    pub fn new() -> Self {
        Self {
            source: Source::new(),
            is_reload_due: false,
        }
    }

    /// Waits until the process is told to stop. A reload that is asked for meanwhile is left to the
    /// node.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn stopped(&mut self) {
        while let Signal::Reload = self.source.next().await {
            self.is_reload_due = true;
        }
    }

    pub(super) async fn next(&mut self) -> Signal {
        if std::mem::take(&mut self.is_reload_due) {
            return Signal::Reload;
        }
        self.source.next().await
    }
}

#[cfg(unix)]
#[derive(Debug)]
struct Source {
    hangup: Option<tokio::signal::unix::Signal>,
    terminate: Option<tokio::signal::unix::Signal>,
    interrupt: Option<tokio::signal::unix::Signal>,
}

#[cfg(unix)]
impl Source {
    fn new() -> Self {
        use tokio::signal::unix::{SignalKind, signal};
        let listen = |kind| match signal(kind) {
            Ok(signal) => Some(signal),
            Err(error) => {
                tracing::warn!(%error, "a signal cannot be listened for");
                None
            }
        };
        Self {
            hangup: listen(SignalKind::hangup()),
            terminate: listen(SignalKind::terminate()),
            interrupt: listen(SignalKind::interrupt()),
        }
    }

    async fn next(&mut self) -> Signal {
        async fn received(signal: &mut Option<tokio::signal::unix::Signal>) {
            let received = match signal {
                Some(signal) => signal.recv().await,
                None => None,
            };
            if received.is_none() {
                std::future::pending::<()>().await;
            }
        }
        tokio::select! {
            () = received(&mut self.hangup) => Signal::Reload,
            () = received(&mut self.terminate) => Signal::Stop,
            () = received(&mut self.interrupt) => Signal::Stop,
        }
    }
}

#[cfg(not(unix))]
#[derive(Debug)]
struct Source;

#[cfg(not(unix))]
impl Source {
    fn new() -> Self {
        Self
    }

    async fn next(&mut self) -> Signal {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
        Signal::Stop
    }
}
