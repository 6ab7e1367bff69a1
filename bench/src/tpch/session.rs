//! A login that runs one query at a time, and comes back after one that took too long.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio_postgres::{Client, NoTls, error::SqlState};

use super::compare::Answer;
use crate::servers::connect;

/// How much later than the server's own limit we give up.
const GRACE: Duration = Duration::from_secs(10);

/// One login.
pub struct Session {
    login: String,
    /// What is set after every login.
    settings: Vec<String>,
    timeout: Duration,
    client: Client,
}

/// What became of a query.
pub enum Outcome {
    /// Its answer, and how long it took to come.
    Answered(Answer, Duration),
    /// It took longer than it may.
    TimedOut,
    /// Why there is no answer.
    Failed(String),
}

impl Session {
    /// Logs in.
    pub async fn open(login: String, settings: Vec<String>, timeout: Duration) -> Result<Session> {
        let client = log_in(&login, &settings).await?;
        Ok(Session {
            login,
            settings,
            timeout,
            client,
        })
    }

    /// Runs one statement.
    pub async fn answer(&mut self, text: &str) -> Result<Outcome> {
        if self.client.is_closed() {
            self.client = log_in(&self.login, &self.settings).await?;
        }
        let started = Instant::now();
        let query = self.client.simple_query(text);
        let Ok(answered) = tokio::time::timeout(self.timeout + GRACE, query).await else {
            // The server did not keep its own limit.
            let token = self.client.cancel_token();
            let cancel = token.cancel_query(NoTls);
            // What comes of it does not matter: the next query has a connection of its own.
            let _ = tokio::time::timeout(GRACE, cancel).await;
            self.client = log_in(&self.login, &self.settings).await?;
            let waited = (self.timeout + GRACE).as_secs();
            return Ok(Outcome::Failed(format!(
                "no answer after {waited} s, in spite of statement_timeout"
            )));
        };
        let duration = started.elapsed();
        Ok(match answered {
            Ok(messages) => Outcome::Answered(Answer::new(messages), duration),
            Err(error)
                if error.code() == Some(&SqlState::QUERY_CANCELED) && duration >= self.timeout =>
            {
                Outcome::TimedOut
            }
            Err(error) => Outcome::Failed(match error.as_db_error() {
                Some(told) => format!("{}: {}", told.code().code(), told.message()),
                None => error.to_string(),
            }),
        })
    }
}

async fn log_in(login: &str, settings: &[String]) -> Result<Client> {
    let client = connect(login).await?;
    for setting in settings {
        let set = client.batch_execute(setting).await;
        set.with_context(|| setting.clone())?;
    }
    Ok(client)
}
