//! Signals that end the process.

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The signals that ask for an end: Ctrl-C, `kill`, and the terminal going away.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// From now on these signals no longer end the process by themselves.
    pub fn listen() -> anyhow::Result<Signals> {
        let listen = |kind| signal(kind).context("could not listen for signals");
        Ok(Signals {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

/// Two tokens: the first signal cancels `stop`, a second one `hurry`.
pub struct Stop {
    /// Finish what is begun, then end.
    pub stop: CancellationToken,
    /// End now.
    pub hurry: CancellationToken,
}

impl Stop {
    /// Listens for as long as the process lives.
    pub fn on_signal() -> anyhow::Result<Stop> {
        let (stop, hurry) = (CancellationToken::new(), CancellationToken::new());
        let mut signals = Signals::listen()?;
        let tokens = (stop.clone(), hurry.clone());
        tokio::spawn(async move {
            signals.next().await;
            tokens.0.cancel();
            signals.next().await;
            tokens.1.cancel();
        });
        Ok(Stop { stop, hurry })
    }
}
