//! Who asks: what a client would hear of itself from one Postgres that it is connected to.

use std::net::SocketAddr;

use automator67_planner::plan::{Argument, AskerCall, AskerFunction, Signalled};

use super::{Session, links::cancelled, planning::Request, sequences::not_rewritten, terminated};
use crate::{
    error::{Failure, Outcome, Report, sqlstate},
    guc,
    telemetry::Tier,
};

impl Session {
    /// A statement with calls that ask about the client: it runs with the answers in their place.
    pub(super) async fn with_asker(
        &mut self,
        calls: &[AskerCall],
        request: &Request<'_>,
    ) -> Outcome<Tier> {
        let (from, to) = request.planned.span;
        let whole = request.whole;
        let mut text = String::with_capacity(to - from + 64 * calls.len());
        let mut at = from;
        for call in calls {
            let (start, end) = call.span;
            text.push_str(whole.get(at..start).ok_or_else(not_rewritten)?);
            let answer = match &call.process {
                None => self.about_client(call.function, whole),
                Some(process) => {
                    let done = self.signal(call.function, process, request).await?;
                    let own = whole.get(start..end).ok_or_else(not_rewritten)?;
                    match done {
                        true => "true".to_owned(),
                        // No session of ours: a process of the home shard, if any.
                        false => format!("(SELECT {own} FROM (VALUES (1)) a67)"),
                    }
                }
            };
            if call.is_output {
                // An output without an alias has its name from what stands in it.
                text.push_str(&format!("(SELECT {answer} AS {})", call.function.name()));
            } else {
                text.push_str(&answer);
            }
            at = end;
        }
        text.push_str(whole.get(at..to).ok_or_else(not_rewritten)?);
        self.run_rewritten(&text, request).await
    }

    fn about_client(&self, function: AskerFunction, whole: &str) -> String {
        let client: Option<SocketAddr> = self.card.client.parse().ok();
        match function {
            AskerFunction::Address => match client {
                Some(client) => format!("'{}'::inet", client.ip()),
                None => "NULL::inet".to_owned(),
            },
            AskerFunction::Port => match client {
                Some(client) => format!("'{}'::integer", client.port()),
                None => "NULL::integer".to_owned(),
            },
            AskerFunction::Query => format!("{}::text", guc::quote_literal(whole)),
            AskerFunction::Process => format!("'{}'::integer", self.card.pid),
            // Whom they mean is looked at before.
            AskerFunction::Cancel | AskerFunction::Terminate => "NULL::boolean".to_owned(),
        }
    }

    /// Cancels what a session does, or ends it; false where no session has the number.
    async fn signal(
        &mut self,
        function: AskerFunction,
        process: &Signalled,
        request: &Request<'_>,
    ) -> Outcome<bool> {
        let card = match process {
            Signalled::Own => Some(self.card.clone()),
            Signalled::Given(pid) => number(pid, request).and_then(|pid| self.process.session(pid)),
        };
        let Some(card) = card else {
            return Ok(false);
        };
        self.check_signal(function, &card.user).await?;
        if card.id == self.card.id {
            return Err(match function {
                AskerFunction::Terminate => Failure::Farewell(Box::new(terminated())),
                _ => cancelled(),
            });
        }
        if function == AskerFunction::Terminate {
            card.end.cancel();
        }
        // Its connections are asked in a task of their own: this statement may be what is cancelled.
        let process = self.process.clone();
        let tasks = process.tasks.clone();
        tasks.spawn(async move { process.interrupt(&card).await });
        Ok(true)
    }

    /// Roles may signal those that they are members of; `pg_signal_backend` all but superusers.
    async fn check_signal(&mut self, function: AskerFunction, user: &str) -> Outcome {
        let text = format!(
            "select m.rolsuper or not t.rolsuper and \
             (pg_has_role(t.oid, 'MEMBER') or pg_has_role('pg_signal_backend', 'MEMBER')) \
             from pg_roles m, pg_roles t where m.rolname = current_user and t.rolname = {}",
            guc::quote_literal(user)
        );
        let allowed = self.query_value(self.home(), &text).await?;
        if allowed.as_deref() == Some("t") {
            return Ok(());
        }
        let what = match function {
            AskerFunction::Terminate => "terminate process",
            _ => "cancel query",
        };
        Err(Report::error(
            sqlstate::INSUFFICIENT_PRIVILEGE,
            format!("permission denied to {what}"),
        )
        .detail(format!("The session is one of role \"{user}\"."))
        .hint("Only roles with the privileges of that role or of pg_signal_backend may do it.")
        .into())
    }
}

/// The process id that a call is given.
fn number(process: &Argument, request: &Request<'_>) -> Option<i32> {
    match process {
        Argument::Text(text) => text.as_deref()?.trim().parse().ok(),
        Argument::Parameter(index) => {
            let bind = &request.bound?.bind;
            let value = bind.value(*index)?;
            match bind.is_binary(*index) {
                true => Some(i32::from_be_bytes(value.try_into().ok()?)),
                false => std::str::from_utf8(value).ok()?.trim().parse().ok(),
            }
        }
    }
}
