//! Named steps of the commit protocol at which tests break things. In a build without the feature
//! `failpoints` they are nothing.
//!
//! Set by `AUTOMATOR67_FAILPOINTS='name=action;...'` or `set automator67.failpoint = 'name=action'`
//! (`off` clears all). Actions are those of the crate `fail`; `return(...)` takes `exit` (the
//! process is killed), `cut` (the server connection of the step is cut) and `run:COMMAND` (a shell
//! runs it, and the step waits for it).

#[cfg(not(feature = "failpoints"))]
pub use off::{configure, reach, start};
#[cfg(feature = "failpoints")]
pub use on::{configure, reach, start};

#[cfg(not(feature = "failpoints"))]
mod off {
    use crate::server::Server;

    pub fn start() {}

    /// False: this build has no failpoints.
    pub fn configure(_: &str) -> bool {
        false
    }

    #[inline(always)]
    pub async fn reach(_: &'static str, _: Option<&mut Server>) {}
}

#[cfg(feature = "failpoints")]
mod on {
    use crate::server::Server;

    /// Reads the environment.
    pub fn start() {
        if let Ok(list) = std::env::var("AUTOMATOR67_FAILPOINTS") {
            list.split(';').for_each(|one| {
                configure(one);
            });
        }
    }

    /// Takes `name=action`, or `off`. False when it is neither.
    pub fn configure(text: &str) -> bool {
        if text == "off" {
            for (name, _) in fail::list() {
                fail::remove(name);
            }
            return true;
        }
        match text.split_once('=') {
            Some((name, action)) => fail::cfg(name.trim(), action.trim()).is_ok(),
            None => text.trim().is_empty(),
        }
    }

    /// Does what is configured for this step.
    pub async fn reach(name: &'static str, server: Option<&mut Server>) {
        // A pause blocks its thread, which is not one that serves clients.
        let asked =
            tokio::task::spawn_blocking(move || fail::eval(name, Option::unwrap_or_default));
        let Ok(Some(action)) = asked.await else {
            return;
        };
        tracing::warn!(name, action, "failpoint");
        match action.split_once(':') {
            Some(("run", command)) => {
                let mut shell = std::process::Command::new("sh");
                shell.args(["-c", command]);
                let ran = tokio::task::spawn_blocking(move || shell.status()).await;
                tracing::warn!(name, ?ran, "failpoint command");
            }
            _ if action == "exit" => {
                // A bare system has no program of that name, but every shell knows the word.
                let itself = format!("kill -9 {}", std::process::id());
                let mut shell = std::process::Command::new("sh");
                let _ = shell.args(["-c", &itself]).status();
                std::future::pending::<()>().await;
            }
            _ if action == "cut" => {
                if let Some(server) = server {
                    server.cut();
                }
            }
            _ => {}
        }
    }
}
